"""Any known file, decoded as plain data for reading. Nothing is verified, and the result says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from attest.binding import decode_claims
from attest.chain import issuer_name, load_certificates
from attest.collateral import parse_collateral, window
from attest.errors import AttestError, MalformedEvidence
from attest.eventlog import parse_event_log, replay
from attest.evidence import decode_evidence
from attest.jws import parse_jwks, parse_token, payload_for_display
from attest.schemes.azure.abi import TD_REPORT_BYTES, parse_claims, parse_hcl
from attest.schemes.gcp.attestation import parse_attestation
from attest.schemes.gcp.endorsement import read_unverified
from attest.schemes.sev_snp.abi import parse_report
from attest.schemes.tdx.abi import parse_quote as parse_td_quote
from attest.schemes.vtpm.abi import BANK_NAMES, parse_public, parse_quote, parse_signature

__all__ = ["show"]

MAX_EVENTS_SHOWN = 1000
_MAX_DATA_SHOWN = 256


def show(raw: bytes) -> dict[str, Any]:
    """``{"format": ..., "verified": False, "content": ...}``, bytes as hex. MalformedEvidence for an unknown format.

    The format is found by trying the strict parsers, most telling first: each refuses what is not its own.
    """
    for name, read in _READERS:
        try:
            content = read(raw)
        except (AttestError, UnicodeDecodeError):
            continue
        return {"format": name, "verified": False, "content": _plain(content)}
    raise MalformedEvidence("no known format", code="unknown_format")


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else _key_text(value)


def _key_text(value: Any) -> str:
    size = getattr(value, "key_size", None)
    return f"{type(value).__name__.lower()} {size}" if size else str(value)


def _certificates(raw: bytes) -> list[dict[str, Any]]:
    return [_certificate(certificate) for certificate in load_certificates(raw)]


def _certificate(certificate: x509.Certificate) -> dict[str, Any]:
    extensions = {
        extension.oid.dotted_string: extension.value.value
        for extension in certificate.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": issuer_name(certificate),
        "serial": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "sha256": certificate.fingerprint(hashes.SHA256()),
        "key": certificate.public_key(),
        "vendor_extensions": extensions,
    }


def _hcl(raw: bytes) -> dict[str, Any]:
    hcl = parse_hcl(raw)
    is_snp = hcl.kind == "sev-snp"
    hardware = parse_report(hcl.hardware) if is_snp else hcl.hardware[:TD_REPORT_BYTES]
    return {"report": hcl, "hardware": hardware, "claims": parse_claims(hcl.raw_claims)}


def _log(raw: bytes) -> dict[str, Any]:
    log = parse_event_log(raw)
    events = [
        {"index": e.index, "type": f"{e.type:#x}", "digests": _named(e.digests), "data": e.data[:_MAX_DATA_SHOWN]}
        for e in log.events[:MAX_EVENTS_SHOWN]
    ]
    banks = {BANK_NAMES[alg]: replay(log, alg) for alg in log.algorithms if alg in BANK_NAMES}
    return {"locality": log.locality, "number_of_events": len(log.events), "replay": banks, "events": events}


def _named(digests: dict[int, bytes]) -> dict[str, bytes]:
    return {BANK_NAMES.get(alg, f"{alg:#06x}"): digest for alg, digest in digests.items()}


def _token(raw: bytes) -> dict[str, Any]:
    token = parse_token(raw)
    return {"header": token.header, "claims": payload_for_display(token), "signature": token.signature}


def _collateral(raw: bytes) -> dict[str, Any]:
    collateral = parse_collateral(raw)
    times = window(collateral)
    return {"usable_from": times.start, "usable_until": times.end, "digest": collateral.digest}


def _cube_evidence(raw: bytes) -> dict[str, Any]:
    evidence = decode_evidence(raw)
    return {"claims": decode_claims(evidence.claims), "parts": evidence.parts}


def _public(raw: bytes) -> Any:
    """TPMT_PUBLIC, or the same with its size in front (TPM2B_PUBLIC)."""
    sized = len(raw) > 2 and int.from_bytes(raw[:2], "big") == len(raw) - 2
    return parse_public(raw[2:] if sized else raw)


_READERS: tuple[tuple[str, Callable[[bytes], Any]], ...] = (
    ("azure-hcl", _hcl),
    ("tpm2-quote", parse_quote),
    ("cube-mesh-evidence", _cube_evidence),
    ("sev-snp-report", parse_report),
    ("tdx-quote", parse_td_quote),
    ("gce-launch-endorsement", read_unverified),
    ("certificates", _certificates),
    ("tdx-collateral", _collateral),
    ("jwks", parse_jwks),
    ("jwt", _token),
    ("tpm2-public", _public),
    ("tpm2-signature", parse_signature),
    ("go-tpm-tools-attestation", parse_attestation),
    ("event-log", _log),
)
