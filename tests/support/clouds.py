"""VMs of the clouds out of a software TPM and scripted services: keys, certificates and reports where each cloud has
them. What the paravisor does by itself on Azure (a new report when user data is written) a stand-in for NV reads does.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from cryptography.x509 import Certificate, ExtendedKeyUsage, load_der_x509_certificate

from attest.schemes.azure.abi import AK
from attest.schemes.azure.collect import AK_CERTIFICATE, AK_HANDLE, HCL_REPORT, USER_DATA
from attest.schemes.azure.verify import AK_EKU
from attest.schemes.gcp.collect import AK_INDEXES
from attest.schemes.vtpm.tools import TpmTools
from attest.testkit.azure import hcl_report, runtime_claims
from attest.testkit.pki import ca_certificate
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tokens import certificate, fixed_key, jwk, maa_claims, sign
from tests.support.endpoint import Endpoint, Reply, Seen

AK_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"
ROOT = certificate("Virtual TPM Root", fixed_key("service-other"), ca=True)
THIM, QUOTE = "/metadata/THIM/amd/certification", "/acc/tdquote"
MAA_SNP, MAA_TDX = "/attest/SevSnpVm?api-version=2022-08-01", "/attest/TdxVm?api-version=2023-04-01-preview"


class _Public:
    """A public key where the testkit takes a private one, to name it in a certificate or a key set."""

    def __init__(self, key: Any) -> None:
        self.public_key = lambda: key


class Tpm:
    """A software TPM's front door for setting a machine up."""

    def __init__(self, tcti: str, directory: Path) -> None:
        self.tcti, self.directory = tcti, directory
        self.tools = TpmTools(tcti, 10.0)

    def key(
        self, name: str, *arguments: str, hierarchy: str = "o"
    ) -> tuple[str, rsa.RSAPublicKey | ec.EllipticCurvePublicKey]:
        """A primary key: its saved context and public part."""
        context, pem = str(self.directory / f"{name}.ctx"), self.directory / f"{name}.pem"
        self.tools.run("tpm2_createprimary", "-Q", "-C", hierarchy, "-c", context, *arguments)
        self.tools.run("tpm2_readpublic", "-Q", "-c", context, "-f", "pem", "-o", str(pem))
        key = load_pem_public_key(pem.read_bytes())
        assert isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey))
        return context, key

    def store(self, index: int, content: bytes) -> None:
        self.tools.write_nv(index, content)


def ak_certificate(key: Any) -> Certificate:
    """What the cloud has issued for its AK."""
    usage = [(ExtendedKeyUsage([AK_EKU]), False)]
    return certificate("AK", _Public(key), "Virtual TPM Root", fixed_key("service-other"), extensions=usage)  # type: ignore[arg-type]


class AzureVm:
    """A confidential VM of ``kind`` "sev-snp" or "tdx": AK at its handle, certificate and HCL report in NV, and the
    metadata and attestation services at ``service``. ``paravisor`` puts the stand-in into place.
    """

    def __init__(self, tpm: Tpm, service: Endpoint, kind: str) -> None:
        self.tpm, self.kind, self.service = tpm, kind, service
        self.snp, self.tdx = SnpPlatform(b"azure"), TdxPlatform(b"azure")
        context, self.ak = tpm.key("ak", "-G", "rsa2048:rsassa-sha256:null", "-a", AK_ATTRIBUTES)
        tpm.tools.run("tpm2_evictcontrol", "-Q", "-C", "o", "-c", context, AK_HANDLE)
        tpm.store(AK_CERTIFICATE, ak_certificate(self.ak).public_bytes(Encoding.DER).ljust(1500, b"\x00"))
        self.serve()

    def serve(self) -> None:
        """What the services answer when all is well."""
        self.service.at("GET", THIM, Reply(self.thim()))
        self.service.on("POST", QUOTE, self._quote)
        self.service.on("POST", MAA_SNP, self._token)
        self.service.on("POST", MAA_TDX, self._token)

    def claims(self, user_data: bytes = bytes(64)) -> bytes:
        key = jwk(_Public(self.ak), AK) | {"key_ops": ["sign"]}  # type: ignore[arg-type]
        return runtime_claims(None, **{"keys": [key], "user-data": user_data.hex().upper()})

    def report(self, claims: bytes) -> bytes:
        if self.kind == "sev-snp":
            return hcl_report(self.snp, claims)
        data = hashlib.sha256(claims).digest().ljust(64, b"\x00")
        td_report = bytes(128) + data + bytes(1024 - 192)
        return hcl_report(self.snp, claims, hardware=td_report, report_type=4)

    def paravisor(self, monkeypatch: pytest.MonkeyPatch, stale_reads: int = 0) -> None:
        """NV reads as on Azure: the report is made anew over what user data there is, after so many that are stale."""
        read, left = TpmTools.read_nv, [stale_reads]

        def read_nv(tools: TpmTools, index: int) -> bytes:
            if index != HCL_REPORT:
                return read(tools, index)
            if left[0] > 0:
                left[0] -= 1
                return self.report(self.claims(b"\x07" * 64))
            listed = tools.run("tpm2_getcap", "handles-nv-index").decode().lower()
            return self.report(self.claims(read(tools, USER_DATA) if f"{USER_DATA:#x}" in listed else bytes(64)))

        monkeypatch.setattr(TpmTools, "read_nv", read_nv)

    def thim(self) -> bytes:
        leaf, intermediate = (load_der_x509_certificate(der) for der in self.snp.endorsements)
        chain = [intermediate, ca_certificate("ark", self.snp.product)]
        text = [c.public_bytes(Encoding.PEM).decode() for c in (leaf, *chain)]
        members = {"vcekCert": text[0], "certificateChain": text[1] + text[2], "tcbm": "DB18000000000004"}
        return json.dumps({**members, "cacheControl": "86400"}).encode()

    def _quote(self, seen: Seen) -> Reply:
        if seen.fields.get("metadata") != "true":
            return Reply(b'{"error":"Required metadata header not specified"}', 400)
        report = _decoded(json.loads(seen.body)["report"])
        assert len(report) == 1024
        return Reply(json.dumps({"quote": _encoded(self.tdx.quote(report[128:192]))}).encode())

    def _token(self, seen: Seen) -> Reply:
        """As the service: it looks that the hardware covers the runtime data, and repeats that."""
        body = json.loads(seen.body)
        assert body["runtimeData"]["dataType"] == "JSON" and seen.fields["content-type"] == "application/json"
        claims = _decoded(body["runtimeData"]["data"])
        if "report" in body:
            evidence = json.loads(_decoded(body["report"]))
            assert _decoded(evidence["VcekCertChain"]).count(b"BEGIN CERTIFICATE") == 3
            report_data, kind = _decoded(evidence["SnpReport"])[0x50:0x90], "sevsnpvm"
        else:
            report_data, kind = _decoded(body["quote"])[48 + 520 : 48 + 584], "tdxvm"
        if report_data[:32] != hashlib.sha256(claims).digest():
            return Reply(b'{"error":{"code":"InvalidParameter","message":"RuntimeData does not match."}}', 400)
        made = maa_claims(kind, self.now, b"")
        made["x-ms-runtime"] = json.loads(claims)
        return Reply(json.dumps({"token": sign(made).decode()}).encode())

    now = 1_799_999_000.0


class GceVm:
    """An instance of Google Cloud: templates of both AKs and their certificates in NV."""

    def __init__(self, tpm: Tpm) -> None:
        self.tpm = tpm
        self.keys: dict[str, Any] = {}
        for name, (certified, template) in AK_INDEXES.items():
            kind = "rsa2048:rsassa-sha256:null" if name == "rsa" else "ecc256:ecdsa-sha256:null"
            seed = tpm.directory / f"{name}.template"
            arguments = ("-G", kind, "-g", "sha256", "-a", AK_ATTRIBUTES, "--template-data", str(seed))
            _, self.keys[name] = tpm.key(name, *arguments, hierarchy="e")
            tpm.store(template, seed.read_bytes())
            der = ak_certificate(self.keys[name]).public_bytes(Encoding.DER)
            tpm.store(certified, der.ljust(1200, b"\xff"))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
