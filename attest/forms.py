"""Forms in which tools leave evidence in files: PCR values, AKs, signatures, key sets, certificates. Unverified."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key, load_pem_public_key

from attest.chain import MAX_CHAIN_BYTES, load_certificates
from attest.collateral import Endorsements, sort_endorsements
from attest.errors import AttestError, MalformedEvidence
from attest.schemes.azure.verify import load_padded_certificate
from attest.schemes.vtpm.abi import BANK_NAMES, DIGEST_BYTES, Alg, Signature, parse_quote, parse_signature
from attest.schemes.vtpm.verify import AkKey, load_ak

__all__ = ["parse_ak", "parse_pcrs", "parse_tpm_signature", "quoted_pcrs", "sorted_endorsements"]

MAX_PCRS_BYTES = 1 << 20
MAX_KEY_BYTES = MAX_CHAIN_BYTES  # the largest form is a certificate, with others behind it
_BANKS = {name: alg for alg, name in BANK_NAMES.items()}


def parse_ak(raw: bytes) -> tuple[AkKey, bytes]:
    """An AK as TPMT_PUBLIC or TPM2B_PUBLIC (its attributes are checked), or as a bare key: PEM, DER or a certificate.

    Gives the key, and the TPMT_PUBLIC, empty for a bare key. Raises MalformedEvidence or what ``load_ak`` raises.
    """
    if raw[:2] in (b"\x00\x01", b"\x00\x23"):
        return load_ak(raw)[1], raw
    if len(raw) > 2 and int.from_bytes(raw[:2], "big") == len(raw) - 2:
        return load_ak(raw[2:])[1], raw[2:]
    if len(raw) > MAX_KEY_BYTES:
        raise MalformedEvidence(f"AK of {len(raw)} bytes is above {MAX_KEY_BYTES}", code="oversize")
    key = _bare_key(raw)
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise MalformedEvidence("AK: neither RSA nor EC")
    return key, b""


def _bare_key(raw: bytes) -> object:
    try:
        if raw.lstrip().startswith(b"-----BEGIN PUBLIC KEY-----"):
            return load_pem_public_key(raw.strip())
        if raw.lstrip().startswith(b"-----BEGIN CERTIFICATE-----"):
            return load_certificates(raw)[0].public_key()
        return load_der_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise MalformedEvidence("AK: no TPMT_PUBLIC, public key or certificate") from None


def parse_tpm_signature(raw: bytes, key: AkKey) -> Signature:
    """A TPMT_SIGNATURE, or, for an RSA key, the bare bytes of RSASSA with SHA-256 that Azure's tools leave."""
    if isinstance(key, rsa.RSAPublicKey) and len(raw) == (key.key_size + 7) // 8:
        return Signature(Alg.RSASSA, Alg.SHA256, (raw,))
    return parse_signature(raw)


def parse_pcrs(raw: bytes) -> dict[int, dict[int, bytes]]:
    """PCR values as JSON: ``{"sha256": {"0": "<hex>", ...}}``, the same with ``pcrs_sha256``, a member ``pcrs`` with a
    list or object of SHA-256 values, or that list alone. Digest sizes are checked; MalformedEvidence.
    """
    if len(raw) > MAX_PCRS_BYTES:
        raise MalformedEvidence(f"PCR values of {len(raw)} bytes are above {MAX_PCRS_BYTES}", code="oversize")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise MalformedEvidence("PCR values: not JSON") from None
    if isinstance(content, dict) and isinstance(content.get("pcrs"), (dict, list)):
        content = content["pcrs"]
    if isinstance(content, dict) and any(isinstance(value, (dict, list)) for value in content.values()):
        names = {name: name.removeprefix("pcrs_").lower() for name in content}
        banks = {_BANKS[bank]: _bank(content[name], bank) for name, bank in names.items() if bank in _BANKS}
    else:
        banks = {_BANKS["sha256"]: _bank(content, "sha256")}
    if not any(banks.values()):
        raise MalformedEvidence("PCR values: none of a known bank")
    return banks


def _bank(values: Any, bank: str) -> dict[int, bytes]:
    pairs = list(enumerate(values)) if isinstance(values, list) else list(getattr(values, "items", dict)())
    try:
        found = {int(index): _digest(value) for index, value in pairs}
    except (TypeError, ValueError):
        raise MalformedEvidence(f"PCR values: bank {bank} is not index to hex") from None
    size = DIGEST_BYTES[_BANKS[bank]]
    if len(found) != len(pairs) or any(not 0 <= i <= 31 or len(value) != size for i, value in found.items()):
        raise MalformedEvidence(f"PCR values: bank {bank} has an index or a digest that it cannot have")
    return found


def _digest(value: Any) -> bytes:
    if isinstance(value, str):
        return bytes.fromhex(value.removeprefix("0x"))
    if isinstance(value, list):
        return bytes(value)
    raise TypeError("neither hex nor a list of bytes")


def quoted_pcrs(attest: bytes, pcrs: dict[int, dict[int, bytes]]) -> dict[int, dict[int, bytes]]:
    """Of all values of a machine, those that the quote selects: files often hold all 24, quotes a few."""
    selected = {s.bank: s.indexes for s in parse_quote(attest).selections if s.indexes}
    return {
        bank: {index: pcrs[bank][index] for index in indexes if index in pcrs[bank]}
        for bank, indexes in selected.items()
        if bank in pcrs
    }


def sorted_endorsements(files: Sequence[bytes]) -> Endorsements:
    """``collateral.sort_endorsements``, which also reads Azure's AK certificate as its NV buffer, perhaps in PEM."""
    return sort_endorsements([_cut(raw) for raw in files])


def _cut(raw: bytes) -> bytes:
    try:
        return load_padded_certificate(raw).public_bytes(Encoding.DER)
    except AttestError:
        return raw
