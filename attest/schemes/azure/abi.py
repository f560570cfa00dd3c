"""The HCL report of Azure's paravisor (NV index 0x01400001) as fields, and its runtime claims. Little endian.

Layout: a 32-byte header, the hardware report in 1184 bytes, 20 bytes that describe the claims, the claims as JSON, zero
padding. Nothing is verified here: a claim counts when the hardware report names the hash of the claims (``verify``).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa

from attest.errors import MalformedEvidence
from attest.jws import decode_base64url, load_json, rsa_key

__all__ = ["AK", "EK", "HclReport", "RuntimeClaims", "parse_claims", "parse_hcl"]

MAX_HCL_BYTES = 4096
HARDWARE_OFFSET, HARDWARE_BYTES = 32, 1184
CLAIMS_OFFSET = 1236
TD_REPORT_BYTES = 1024
_REQUEST_TYPE = 2
_KINDS: dict[int, Literal["sev-snp", "tdx"]] = {2: "sev-snp", 4: "tdx"}
_HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}
AK, EK = "HCLAkPub", "HCLEkPub"


class HclReport(msgspec.Struct, frozen=True):
    """A parsed, unverified report. ``hardware``: an SNP report, or a TDREPORT of 1024 bytes and padding."""

    version: int
    kind: Literal["sev-snp", "tdx"]
    hardware: bytes
    hash_name: str
    raw_claims: bytes


class RuntimeClaims(msgspec.Struct, frozen=True):
    """What the paravisor says of the VM. ``user_data``: 64 bytes that the guest wrote to NV 0x01400002, or empty."""

    ak: rsa.RSAPublicKey
    ek: rsa.RSAPublicKey | None
    user_data: bytes
    configuration: dict[str, Any]


def parse_hcl(raw: bytes) -> HclReport:
    """Sizes, types and padding, each exact. Raises MalformedEvidence (sizes: ``oversize``, ``hcl_size``), or
    UnsupportedEvidence for an unknown version, report type or hash (``hcl_version``, ``hcl_report_type``,
    ``hcl_hash_type``).
    """
    if len(raw) > MAX_HCL_BYTES:
        raise MalformedEvidence(f"HCL report: {len(raw)} bytes are above {MAX_HCL_BYTES}", code="oversize")
    if len(raw) <= CLAIMS_OFFSET or raw[:4] != b"HCLA":
        raise MalformedEvidence(f"HCL report: {len(raw)} bytes, or another signature than HCLA")
    version, report_size, request_type, status = _words(raw, 4, 4)
    data_size, data_version, report_type, hash_type, claims_length = _words(raw, 1216, 5)
    if version not in (1, 2) or data_version != 1:
        raise MalformedEvidence(f"HCL report version {version}, claims {data_version}", code="hcl_version")
    if (request_type, status) != (_REQUEST_TYPE, 0) or any(raw[20:HARDWARE_OFFSET]):
        raise MalformedEvidence("HCL report: request type, status or reserved bytes")
    if report_type not in _KINDS:
        raise MalformedEvidence(f"HCL report type {report_type}", code="hcl_report_type")
    if hash_type not in _HASHES:
        raise MalformedEvidence(f"HCL hash type {hash_type}", code="hcl_hash_type")
    end = CLAIMS_OFFSET + claims_length
    if not claims_length or end > len(raw) or report_size != end or data_size != claims_length + 20:
        raise MalformedEvidence("HCL report: its sizes contradict each other or the buffer", code="hcl_size")
    if any(raw[end:]):
        raise MalformedEvidence("HCL report: bytes after the claims")
    hardware = raw[HARDWARE_OFFSET : HARDWARE_OFFSET + HARDWARE_BYTES]
    return HclReport(version, _KINDS[report_type], hardware, _HASHES[hash_type], raw[CLAIMS_OFFSET:end])


def _words(raw: bytes, offset: int, count: int) -> list[int]:
    return [int.from_bytes(raw[at : at + 4], "little") for at in range(offset, offset + 4 * count, 4)]


def parse_claims(raw: bytes) -> RuntimeClaims:
    """The runtime claims as fields: exactly one AK (``ak_missing``). Call it after the hash has been compared.

    Raises MalformedEvidence.
    """
    claims = load_json(raw, "runtime claims")
    ak = _key(claims, AK)
    if ak is None:
        raise MalformedEvidence("runtime claims: no HCLAkPub", code="ak_missing")
    configuration = claims.get("vm-configuration", {})
    if not isinstance(configuration, dict):
        raise MalformedEvidence("runtime claims: vm-configuration is no object")
    return RuntimeClaims(ak, _key(claims, EK), _user_data(claims.get("user-data", "")), configuration)


def _key(claims: dict[str, Any], kid: str) -> rsa.RSAPublicKey | None:
    keys = claims.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise MalformedEvidence("runtime claims: keys is no list of objects")
    named = [key for key in keys if key.get("kid") == kid]
    if not named:
        return None
    if len(named) > 1 or named[0].get("kty") != "RSA":
        raise MalformedEvidence(f"runtime claims: {kid} twice, or not RSA")
    numbers = [named[0].get(name) for name in ("n", "e")]
    if not all(isinstance(text, str) and text.isascii() for text in numbers):
        raise MalformedEvidence(f"runtime claims: {kid} without numbers")
    modulus, exponent = (int.from_bytes(decode_base64url(str(text).encode(), kid), "big") for text in numbers)
    return rsa_key(modulus, exponent)


def _user_data(text: Any) -> bytes:
    try:
        data = bytes.fromhex(text)
    except (TypeError, ValueError):
        raise MalformedEvidence("runtime claims: user-data is not hex") from None
    if len(data) not in (0, 64):
        raise MalformedEvidence(f"runtime claims: user-data of {len(data)} bytes")
    return data
