"""Just enough of the protobuf wire format for Google's messages: varints and length-delimited fields, strict.

Groups, fixed-width fields, field number zero and overlong varints are refused; unknown fields are kept for the caller.
"""

from __future__ import annotations

from typing import TypeAlias

from attest.errors import MalformedEvidence

__all__ = ["Fields", "fields_of", "map_of", "number", "one"]

Fields: TypeAlias = "dict[int, list[int | bytes]]"
MAX_FIELDS = 4096
_VARINT, _LENGTH = 0, 2


def fields_of(raw: bytes) -> Fields:
    """The fields of one message in order, by number. The caller bounds the size. MalformedEvidence."""
    fields: Fields = {}
    at = count = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind, field = key & 7, key >> 3
        value, at = _varint(raw, at)
        count += 1
        if not field or kind not in (_VARINT, _LENGTH) or count > MAX_FIELDS:
            raise MalformedEvidence("protobuf: field number, wire type or number of fields")
        if kind == _VARINT:
            fields.setdefault(field, []).append(value)
            continue
        if value > len(raw) - at:
            raise MalformedEvidence("protobuf: truncated")
        fields.setdefault(field, []).append(raw[at : at + value])
        at += value
    return fields


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 63, 7):
        if at >= len(raw):
            raise MalformedEvidence("protobuf: truncated")
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedEvidence("protobuf: number of more than nine bytes")


def one(fields: Fields, field: int, default: bytes | None = None) -> bytes:
    """The bytes of a field that occurs once; ``default`` when it is absent. MalformedEvidence."""
    values = fields.get(field, [])
    if not values and default is not None:
        return default
    if len(values) != 1 or not isinstance(values[0], bytes):
        raise MalformedEvidence(f"protobuf: field {field} is absent, repeated or no bytes")
    return values[0]


def number(fields: Fields, field: int) -> int:
    """The number of a field that occurs at most once, 0 when it is absent. MalformedEvidence."""
    values = fields.get(field, [0])
    if len(values) != 1 or not isinstance(values[0], int):
        raise MalformedEvidence(f"protobuf: field {field} is repeated or no number")
    return values[0]


def map_of(fields: Fields, field: int) -> dict[int, bytes]:
    """A ``map<uint32, bytes>``; a key twice is MalformedEvidence, because readers disagree about it."""
    found: dict[int, bytes] = {}
    for entry in fields.get(field, []):
        if not isinstance(entry, bytes):
            raise MalformedEvidence(f"protobuf: field {field} is no map")
        pair = fields_of(entry)
        key = number(pair, 1)
        if key in found:
            raise MalformedEvidence(f"protobuf: key {key} twice in field {field}")
        found[key] = one(pair, 2, b"")
    return found
