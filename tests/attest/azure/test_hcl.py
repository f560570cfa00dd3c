"""HCL reports: the chain from hardware to the quote's key, broken at one link at a time; and real machines."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from attest.chain import load_certificate, load_certificates
from attest.codec import cbor_encode
from attest.errors import AttestError, MalformedEvidence
from attest.schemes.azure.abi import parse_claims, parse_hcl
from attest.schemes.azure.appraise import ReferenceValues, Rules, appraise_hcl, claims_of
from attest.schemes.azure.verify import (
    AK_EKU,
    azure_roots,
    check_ak,
    load_padded_certificate,
    split_tdx_part,
    tdx_part,
    verify_ak_certificate,
    verify_hcl_snp,
    verify_hcl_tdx,
)
from attest.schemes.vtpm.abi import Alg, Signature
from attest.schemes.vtpm.verify import VerifiedQuote, verify_quote_by_key
from attest.testkit.azure import hcl_report, runtime_claims
from attest.testkit.pki import simulated_roots
from attest.testkit.snp import SnpPlatform
from attest.testkit.tokens import certificate, fixed_key, jwk
from attest.testkit.tpm import SoftwareTpm

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")
NOW = 1_780_000_000.0
REAL_NOW = 1_795_000_000.0
PLATFORM = SnpPlatform(b"azure")
CERTIFICATES = [load_certificate(der) for der in PLATFORM.endorsements]
AK, OTHER = fixed_key("vtpm-ak"), fixed_key("service-other")
CLAIMS = runtime_claims()
GOOD = hcl_report(PLATFORM)


def _verify(raw: bytes) -> Any:
    return verify_hcl_snp(raw, CERTIFICATES, NOW, simulated_roots())


def test_accepted() -> None:
    verified = _verify(GOOD)
    quote = _quote(SoftwareTpm(key=AK))
    check_ak(verified, quote)
    assert not appraise_hcl(verified, Rules(), ReferenceValues(vm_unique_ids=("VM-1",), user_data=("00" * 64,)))
    assert claims_of(verified)["azure.secure-boot"] == "true"
    for length in (len(GOOD.rstrip(b"\x00")), 4096):
        assert _verify(hcl_report(PLATFORM, length=length)).claims.user_data == bytes(64)


def _quote(tpm: SoftwareTpm) -> VerifiedQuote:
    from attest.schemes.vtpm.abi import decode_quote_part, parse_signature

    part = decode_quote_part(tpm.quote(b"nonce"))
    key: Any = tpm.key.public_key()
    return verify_quote_by_key(part.attest, parse_signature(part.signature), key, part.pcrs, b"nonce")


_HASHED = hashlib.sha256(CLAIMS).digest()
_KEY = json.loads(CLAIMS)["keys"][0]
REFUSED: dict[str, tuple[bytes, str]] = {
    "hash is SHA-384": (hcl_report(PLATFORM, words={1228: 2}), "claims_hash"),
    "hash type zero": (hcl_report(PLATFORM, words={1228: 0}), "hcl_hash_type"),
    "version 3": (hcl_report(PLATFORM, words={4: 3}), "hcl_version"),
    "claims version 2": (hcl_report(PLATFORM, words={1220: 2}), "hcl_version"),
    "request type": (hcl_report(PLATFORM, words={12: 1}), "malformed_evidence"),
    "status": (hcl_report(PLATFORM, words={16: 1}), "malformed_evidence"),
    "reserved": (hcl_report(PLATFORM, words={24: 1}), "malformed_evidence"),
    "claims length zero": (hcl_report(PLATFORM, words={1232: 0}), "hcl_size"),
    "claims one shorter": (hcl_report(PLATFORM, words={1232: len(CLAIMS) - 1}), "hcl_size"),
    "report size": (hcl_report(PLATFORM, words={8: 2600}), "hcl_size"),
    "data size": (hcl_report(PLATFORM, words={1216: 0}), "hcl_size"),
    "bytes behind the claims": (hcl_report(PLATFORM, tail=b"\x01"), "malformed_evidence"),
    "signature": (b"HCLB" + GOOD[4:], "malformed_evidence"),
    "AK twice": (hcl_report(PLATFORM, runtime_claims(keys=[_KEY, _KEY])), "malformed_evidence"),
    "AK is EC": (hcl_report(PLATFORM, runtime_claims(keys=[_KEY | {"kty": "EC"}])), "malformed_evidence"),
    "AK without modulus": (hcl_report(PLATFORM, runtime_claims(keys=[_KEY | {"n": 1}])), "malformed_evidence"),
    "AK of zero": (hcl_report(PLATFORM, runtime_claims(keys=[_KEY | {"n": ""}])), "malformed_evidence"),
    "keys are no list": (hcl_report(PLATFORM, runtime_claims(keys={})), "malformed_evidence"),
    "keys are numbers": (hcl_report(PLATFORM, runtime_claims(keys=[1])), "malformed_evidence"),
    "configuration is a list": (
        hcl_report(PLATFORM, runtime_claims(**{"vm-configuration": []})), "malformed_evidence",
    ),
    "user data not hex": (hcl_report(PLATFORM, runtime_claims(**{"user-data": "zz"})), "malformed_evidence"),
    "user data short": (hcl_report(PLATFORM, runtime_claims(**{"user-data": "00"})), "malformed_evidence"),
    "user data a number": (hcl_report(PLATFORM, runtime_claims(**{"user-data": 1})), "malformed_evidence"),
    "claims with a member twice": (hcl_report(PLATFORM, b'{"keys":[],"keys":[]}'), "malformed_evidence"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_one_thing_wrong(name: str) -> None:
    raw, code = REFUSED[name]
    with pytest.raises(AttestError) as caught:
        _verify(raw)
    assert caught.value.code == code, caught.value


@pytest.mark.parametrize("hash_type", [2, 3])
def test_longer_hashes(hash_type: int) -> None:
    digest = hashlib.new({2: "sha384", 3: "sha512"}[hash_type], CLAIMS).digest()
    _verify(hcl_report(PLATFORM, report_data=digest.ljust(64, b"\x00"), words={1228: hash_type}))


def test_every_bit_and_every_truncation() -> None:
    for at in range(0, len(GOOD.rstrip(b"\x00")), 3):
        flipped = GOOD[:at] + bytes((GOOD[at] ^ 0x10,)) + GOOD[at + 1 :]
        with pytest.raises(AttestError):
            _verify(flipped)
    for length in range(len(GOOD.rstrip(b"\x00"))):
        with pytest.raises(MalformedEvidence):
            parse_hcl(GOOD[:length])


@given(st.binary(max_size=64), st.integers(0, 1300))
def test_any_bytes(raw: bytes, at: int) -> None:
    for parse in (parse_hcl, parse_claims, load_padded_certificate):
        try:
            parse(GOOD[:at] + raw + GOOD[at + len(raw) :] if parse is parse_hcl else raw)
        except AttestError:
            continue


@pytest.mark.parametrize(
    ("configuration", "rules", "reference", "codes"),
    [
        ({"secure-boot": False}, Rules(), ReferenceValues(), ["secure_boot"]),
        ({"secure-boot": "true"}, Rules(), ReferenceValues(), ["secure_boot"]),
        ({"secure-boot": False}, Rules(unsafe_allow_no_secure_boot=True), ReferenceValues(), []),
        ({"tpm-enabled": False}, Rules(), ReferenceValues(), ["tpm_disabled"]),
        ({}, Rules(), ReferenceValues(vm_unique_ids=("VM-2",)), ["vm_id"]),
        ({}, Rules(), ReferenceValues(user_data=("01" * 64,)), ["user_data"]),
    ],
)
def test_rules(configuration: dict[str, Any], rules: Rules, reference: ReferenceValues, codes: list[str]) -> None:
    whole = json.loads(CLAIMS)["vm-configuration"] | configuration
    verified = _verify(hcl_report(PLATFORM, runtime_claims(**{"vm-configuration": whole})))
    assert [m.code for m in appraise_hcl(verified, rules, reference)] == codes


# -- a trust domain instead of an SNP guest ----------------------------------------------------------------------------


def _td_report(report_data: bytes) -> bytes:
    return bytes(128) + report_data + bytes(1024 - 192)


def test_a_trust_domain() -> None:
    data = _HASHED.ljust(64, b"\x00")
    raw = hcl_report(PLATFORM, hardware=_td_report(data), report_type=4)
    assert verify_hcl_tdx(raw, data).report is None
    for report, quoted, kind, code in (
        (_td_report(bytes(64)), data, 4, "report_data"),
        (_td_report(bytes(64)), bytes(64), 4, "claims_hash"),
        (_td_report(data) + b"\x01", data, 4, "malformed_evidence"),
        (PLATFORM.report(data), data, 2, "hcl_report_type"),
    ):
        with pytest.raises(AttestError) as caught:
            verify_hcl_tdx(hcl_report(PLATFORM, hardware=report, report_type=kind), quoted)
        assert caught.value.code == code


@pytest.mark.parametrize("items", [1, [b"hcl"], [b"hcl", 1], [1, b"quote"]])
def test_a_part_that_is_not_report_and_quote(items: Any) -> None:
    assert split_tdx_part(tdx_part(b"hcl", b"quote")) == (b"hcl", b"quote")
    with pytest.raises(MalformedEvidence):
        split_tdx_part(cbor_encode(items))


def test_claims_that_are_no_plain_values_are_not_shown() -> None:
    configuration = {"vm-configuration": {"tpm-enabled": True, "list": [1]}}
    claims = claims_of(_verify(hcl_report(PLATFORM, runtime_claims(None, **configuration))))
    assert claims["azure.tpm-enabled"] == "true" and "azure.list" not in claims


# -- Microsoft's certificate of the AK ---------------------------------------------------------------------------------

ROOT = certificate("root", OTHER, ca=True)
EKU = [(x509.ExtendedKeyUsage([AK_EKU]), False)]


def _ak_certificate(**changes: Any) -> x509.Certificate:
    return certificate(**{"subject": "ak", "key": AK, "issuer": "root", "signer": OTHER, "extensions": EKU} | changes)


def test_the_aks_certificate() -> None:
    verified = _verify(GOOD)
    assert verify_ak_certificate(verified, [_ak_certificate()], NOW, [ROOT]) == 1_900_000_000
    padded = _ak_certificate().public_bytes(Encoding.DER).ljust(4096, b"\x00")
    assert load_padded_certificate(padded) == _ak_certificate()
    for raw in (b"", padded[:-1] + b"\x01", padded + b"\x00", b"\x30\x03" + padded[2:]):
        with pytest.raises(MalformedEvidence):
            load_padded_certificate(raw)
    with pytest.raises(AttestError) as caught:
        verify_ak_certificate(verified, [_ak_certificate(), ROOT], NOW)  # Microsoft's roots know nothing of ours
    assert caught.value.code == "untrusted_chain"


# -- real machines -----------------------------------------------------------------------------------------------------


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _evidence(path: Path) -> tuple[bytes, bytes, bytes, bytes, list[bytes]]:
    """HCL report, VCEK, TPMS_ATTEST, bare signature, the 24 SHA-256 PCRs, of the shapes that the collectors wrote."""
    content = json.loads(path.read_text())
    content = content.get("evidence", content)
    if "quote" in content:
        quote = content["quote"]
        pcrs = [bytes(pcr) for pcr in quote["pcrs"]]
        return (
            bytes(content["report"]),
            content["vcek"].encode(),
            bytes(quote["message"]),
            bytes(quote["signature"]),
            pcrs,
        )
    quote = content["tpm_quote"]
    pcrs = [bytes.fromhex(pcr) for pcr in quote["pcrs"]]
    message, signature = bytes.fromhex(quote["message"]), bytes.fromhex(quote["signature"])
    return _decoded(content["hcl_report"]), _decoded(content["vcek"]), message, signature, pcrs


GENOA_NONCE = bytes.fromhex(
    "0218488bae25d2509232bf676f1a66a30d7372add909109b36016ef136f2938ca05475f8b46094de6b64270ea35d950f"
)


@pytest.mark.parametrize(
    ("name", "nonce", "product"),
    [
        ("attestation-rs/az_snp-live-evidence.json", b"attestation-test-fixture", "Milan"),
        ("trustee-az-snp/evidence-v1.json", b"challenge", "Milan"),
        ("trustee-az-snp/evidence-genoa.json", GENOA_NONCE, "Genoa"),
    ],
)
def test_real_evidence(vectors: Path, name: str, nonce: bytes, product: str) -> None:
    hcl, vcek, message, signature, pcrs = _evidence(vectors / "azure" / name)
    verified = verify_hcl_snp(hcl, load_certificates(vcek), REAL_NOW)
    assert verified.report is not None and verified.report.product == product
    rsassa = Signature(Alg.RSASSA, Alg.SHA256, (signature,))
    values = {Alg.SHA256: dict(enumerate(pcrs))}
    check_ak(verified, verify_quote_by_key(message, rsassa, verified.claims.ak, values, nonce))
    for changed in ({**values[Alg.SHA256], 0: bytes(32)}, dict(enumerate(pcrs[:-1]))):
        with pytest.raises(AttestError):
            verify_quote_by_key(message, rsassa, verified.claims.ak, {Alg.SHA256: changed}, nonce)


def test_the_real_report_without_its_vcek(vectors: Path) -> None:
    """kinvolk's report is of another chip than the certificates beside it."""
    raw = (vectors / "azure/kinvolk/hcl-report-snp.bin").read_bytes()
    assert parse_claims(parse_hcl(raw).raw_claims).configuration["secure-boot"] is True
    with pytest.raises(AttestError) as caught:
        verify_hcl_snp(raw, load_certificates((vectors / "azure/kinvolk/certs.pem").read_bytes()), REAL_NOW)
    assert caught.value.code == "hwid_mismatch"


def test_the_quote_that_no_known_ak_signed(vectors: Path) -> None:
    folder = vectors / "azure/trustee-az-snp"
    hcl = parse_hcl((folder / "hcl-report.bin").read_bytes())
    signature = Signature(Alg.RSASSA, Alg.SHA256, ((folder / "tpm-quote.sig").read_bytes(),))
    with pytest.raises(AttestError) as caught:
        verify_quote_by_key(
            (folder / "tpm-quote.msg").read_bytes(), signature, parse_claims(hcl.raw_claims).ak, {}, b""
        )
    assert caught.value.code == "signature"


def _flashbots(vectors: Path) -> str:
    (file,) = (vectors / "azure" / "flashbots").glob("*.yaml")
    return file.read_text()


def test_the_real_ak_certificate_lacks_its_intermediate(vectors: Path) -> None:
    text = _flashbots(vectors)
    pem = text[text.index("-----BEGIN") : text.index("-----END CERTIFICATE-----") + 25].replace("    ", "").encode()
    leaf = load_padded_certificate(pem)
    with pytest.raises(AttestError):
        load_padded_certificate(pem.replace(b"MIID", b"M!ID"))
    assert AK_EKU in leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {root.subject.rfc4514_string()[:25] for root in azure_roots()} == {
        "CN=Azure Virtual TPM Root",
        "CN=Microsoft RSA Devices ",
    }


@pytest.mark.parametrize("name", ["kinvolk/hcl-report-tdx.bin", "trustee-az-tdx/hcl-report.bin"])
def test_real_trust_domains(vectors: Path, name: str) -> None:
    raw = (vectors / "azure" / name).read_bytes()
    report_data = parse_hcl(raw).hardware[128:192]
    assert verify_hcl_tdx(raw, report_data).claims.ek is not None
    assert jwk(AK)["kty"] == "RSA"
