"""As much of DER (X.690) as vendors' certificate extensions need: definite, minimal lengths and nothing left over."""

from __future__ import annotations

from attest.errors import MalformedEvidence

__all__ = ["INTEGER", "OCTET_STRING", "OID", "SEQUENCE", "Tlv", "der_items", "der_unsigned"]

INTEGER, OCTET_STRING, OID, SEQUENCE = 0x02, 0x04, 0x06, 0x30
Tlv = tuple[int, bytes]  # tag and content
_MAX_ITEMS = 256


def der_items(raw: bytes) -> list[Tlv]:
    """The elements that stand one after another in ``raw``, which must be all of it. Raises MalformedEvidence."""
    items: list[Tlv] = []
    at, size = 0, len(raw)
    while at < size:
        tag, start = raw[at], at + 2
        if start > size or tag & 0x1F == 0x1F:
            raise MalformedEvidence("DER: no length, or a tag of several bytes")
        length = raw[at + 1]
        if length >= 0x80:
            length, start = _long_length(raw, start, length & 0x7F)
        at = start + length
        if at > size or len(items) == _MAX_ITEMS:
            raise MalformedEvidence("DER: an element that is cut, or too many")
        items.append((tag, raw[start:at]))
    return items


def _long_length(raw: bytes, at: int, count: int) -> tuple[int, int]:
    """A length in ``count`` bytes of its own, and where the content starts."""
    start = at + count
    length = int.from_bytes(raw[at:start], "big")
    if not 1 <= count <= 3 or start > len(raw) or length < 0x80 or length >> (8 * (count - 1)) == 0:
        raise MalformedEvidence("DER: a length that is not minimal")
    return length, start


def der_unsigned(content: bytes, maximum: int) -> int:
    """An INTEGER's content from 0 to ``maximum``. Raises MalformedEvidence."""
    minimal = len(content) == 1 or (len(content) > 1 and (content[0] or content[1] & 0x80))
    value = int.from_bytes(content, "big", signed=True)
    if not minimal or not 0 <= value <= maximum:
        raise MalformedEvidence(f"DER: not an INTEGER from 0 to {maximum}")
    return value
