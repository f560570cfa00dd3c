"""Records of every kind of item, minted under the testkit's roots; any part can be changed."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attest.items import Item, Record, make_record
from attest.testkit import intel, pki, tokens
from attest.testkit.snp import SnpPlatform

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC).timestamp()
MILAN, TURIN = SnpPlatform(b"r"), SnpPlatform(b"r", product="Turin")
FMSPC = intel.tcb_info()["fmspc"].lower()
SET = json.loads(intel.collateral())


def der(signed: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    return signed.public_bytes(Encoding.DER)


def amd_chain(*kinds: str, product: str = "Milan") -> bytes:
    return intel.pem(*(pki.ca_certificate(kind, product) for kind in kinds)).encode()


def thim(leaf: x509.Certificate = MILAN.leaf) -> bytes:
    chain = amd_chain("ask", "ark").decode()
    return json.dumps({"vcekCert": intel.pem(leaf), "certificateChain": chain, "tcbm": "00"}).encode()


def document(kind: str, raw: str, signature: str) -> bytes:
    return f'{{"{kind}":{raw},"signature":"{signature}"}}'.encode()


SIGNER = intel.pem(intel.certificate("signer"), intel.root_certificate())
TCB_INFO = document("tcbInfo", SET["tcb_info"], SET["tcb_info_signature"])
QE_IDENTITY = document("enclaveIdentity", SET["qe_identity"], SET["qe_identity_signature"])
PCK_ISSUER = intel.pem(intel.certificate("platform"), intel.root_certificate())

# Item: body, and the issuer chain where it has one.
BODIES: dict[str, tuple[bytes, str]] = {
    f"amd-vcek:Milan/{MILAN.hwid.hex()}/4.0.24.219": (der(MILAN.leaf), ""),
    f"amd-vcek:Turin/{TURIN.hwid.hex()}/1.7.0.14.72": (der(TURIN.leaf), ""),
    "amd-chain:Milan/vcek": (amd_chain("ask", "ark"), ""),
    "amd-chain:Milan/vlek": (amd_chain("asvk", "ark"), ""),
    "amd-crl:Milan": (der(pki.crl("Milan")), ""),
    "azure-thim:local": (thim(), ""),
    f"intel-tcb-info:{FMSPC}": (TCB_INFO, SIGNER),
    "intel-qe-identity:tdx": (QE_IDENTITY, SIGNER),
    "intel-pck-crl:platform": (der(intel.crl("platform")), PCK_ISSUER),
    "intel-root-crl:root": (der(intel.crl("root")), ""),
    "jwks:https://issuer.example": (tokens.jwks(tokens.jwk()), ""),
}
VCEK, VCEK_TURIN, *_ = BODIES
TCB = f"intel-tcb-info:{FMSPC}"


def record(name: str, body: bytes | None = None, **changes: Any) -> Record:
    """The record of item ``name``, checked; ``changes`` are :func:`attest.items.make_record`'s."""
    good, issuer_chain = BODIES[name]
    kind, _, key = name.partition(":")
    given = {"url": "https://x", "fetched_at": NOW, "issuer_chain": issuer_chain, **changes}
    return make_record(Item(kind, key), body=good if body is None else body, **given)
