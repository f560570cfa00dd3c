"""``attest.Attestation`` of go-tpm-tools: what GCE machines store and send with that tool, read as its parts.

Nothing is verified here: hand the parts to ``vtpm.verify``, ``gcp.certificate`` and ``eventlog``.
"""

from __future__ import annotations

import msgspec

from attest.errors import MalformedEvidence
from attest.schemes.gcp.protobuf import fields_of, map_of, number, one
from attest.schemes.vtpm.abi import DIGEST_BYTES, QuotePart

__all__ = ["Attestation", "parse_attestation"]

MAX_ATTESTATION_BYTES = 1 << 20
_MAX_QUOTES = 8


class Attestation(msgspec.Struct, frozen=True):
    """One quote for each PCR bank, all by the same AK; ``ak_certificate`` (DER) is empty when there was none."""

    quotes: tuple[QuotePart, ...]
    event_log: bytes
    ak_certificate: bytes


def parse_attestation(raw: bytes) -> Attestation:
    """The message's parts, unverified. Raises MalformedEvidence."""
    if len(raw) > MAX_ATTESTATION_BYTES:
        raise MalformedEvidence(f"attestation of {len(raw)} bytes is above {MAX_ATTESTATION_BYTES}", code="oversize")
    fields = fields_of(raw)
    ak_public, quotes = one(fields, 1), fields.get(2, [])
    if not 1 <= len(quotes) <= _MAX_QUOTES:
        raise MalformedEvidence(f"attestation: not 1 to {_MAX_QUOTES} quotes")
    parts = tuple(_quote(quote, ak_public) for quote in quotes)
    return Attestation(parts, one(fields, 3, b""), one(fields, 6, b""))


def _quote(raw: int | bytes, ak_public: bytes) -> QuotePart:
    if not isinstance(raw, bytes):
        raise MalformedEvidence("attestation: a quote is no message")
    fields = fields_of(raw)
    pcrs = fields_of(one(fields, 3))
    bank, values = number(pcrs, 1), map_of(pcrs, 2)
    if any(index > 23 or len(digest) != DIGEST_BYTES.get(bank) for index, digest in values.items()):
        raise MalformedEvidence(f"attestation: PCR values of bank {bank:#06x}")
    return QuotePart(one(fields, 1), one(fields, 2), ak_public, {bank: values})
