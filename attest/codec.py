"""Deterministic CBOR (RFC 8949 §4.2.1), the subset that evidence uses: uint, bstr, tstr, array, map, null.

One value has one encoding, so equality of bytes is equality of values. Refused: non-minimal heads, indefinite lengths,
negative numbers, tags, floats, booleans, unsorted or duplicate keys, invalid UTF-8, trailing bytes, containers nested
deeper than 4. Map keys are uint or tstr. What the values mean is not checked here.
"""

from __future__ import annotations

from typing import TypeAlias, Union

from attest.errors import MalformedEvidence

__all__ = ["MAX_DEPTH", "CborValue", "cbor_decode", "cbor_encode"]

CborValue: TypeAlias = Union[int, bytes, str, None, "list[CborValue]", "dict[int | str, CborValue]"]

MAX_DEPTH = 4  # containers inside one another
_NULL, _NULL_BYTE = 0xF6, b"\xf6"
_UINT, _BSTR, _TSTR, _ARRAY, _MAP = 0, 2, 3, 4, 5
_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}


def cbor_encode(value: CborValue) -> bytes:
    """The deterministic encoding of ``value``. Raises ValueError or TypeError for what the subset does not have."""
    return _encode(value, 0)


def cbor_decode(raw: bytes) -> CborValue:
    """The value whose deterministic encoding is exactly ``raw``; raises MalformedEvidence for anything else."""
    try:
        value, end = _read(raw, 0, 0)
    except IndexError:
        raise MalformedEvidence("CBOR: truncated") from None
    if end != len(raw):
        raise MalformedEvidence(f"CBOR: {len(raw) - end} trailing bytes")
    return value


def _head(major: int, number: int) -> bytes:
    """The shortest head (§3) for a number or length. Raises ValueError above 64 bits."""
    if number < 24:
        return bytes((major << 5 | number,))
    for info, width in _WIDTHS.items():
        if number < 1 << (8 * width):
            return bytes((major << 5 | info,)) + number.to_bytes(width, "big")
    raise ValueError("CBOR: number above 64 bits")


_HEADS = {major: [_head(major, number) for number in range(256)] for major in (_UINT, _BSTR, _TSTR, _ARRAY, _MAP)}


def _encode(value: object, depth: int) -> bytes:
    if isinstance(value, bytes):
        return _sized(_BSTR, len(value)) + value
    if value is None:
        return _NULL_BYTE
    if isinstance(value, str):
        text = value.encode()
        return _sized(_TSTR, len(text)) + text
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return _sized(_UINT, value)
    if isinstance(value, (list, tuple, dict)):
        if depth == MAX_DEPTH:
            raise ValueError(f"CBOR: nested deeper than {MAX_DEPTH}")
        return _encode_container(value, depth + 1)
    raise ValueError(f"CBOR: {type(value).__name__} {value!r} is outside of the subset")


def _sized(major: int, number: int) -> bytes:
    return _HEADS[major][number] if number < 256 else _head(major, number)


def _encode_container(value: list[object] | tuple[object, ...] | dict[object, object], depth: int) -> bytes:
    if isinstance(value, dict):
        members = sorted([(_encode_key(key), _encode(item, depth)) for key, item in value.items()])
        return _sized(_MAP, len(value)) + b"".join([part for member in members for part in member])
    return _sized(_ARRAY, len(value)) + b"".join([_encode(item, depth) for item in value])


def _encode_key(key: object) -> bytes:
    if not isinstance(key, (int, str)):
        raise TypeError("CBOR: map keys are numbers or text")
    return _encode(key, 0)


def _read(raw: bytes, at: int, depth: int) -> tuple[CborValue, int]:
    """The value at ``at`` and the offset after it. Raises MalformedEvidence, or IndexError at the end of ``raw``."""
    first = raw[at]
    at += 1
    number = first & 31
    if number == 24:
        number = raw[at]
        at += 1
        if number < 24:
            raise MalformedEvidence("CBOR: not the shortest form of a number")
    elif number > 24:
        number, at = _read_number(raw, at, number)
    major = first >> 5
    if major == _BSTR:
        end = at + number
        if end > len(raw):
            raise MalformedEvidence("CBOR: truncated")
        return raw[at:end], end
    if major == _UINT:
        return number, at
    if major == _TSTR:
        return _read_text(raw, at, at + number)
    if first == _NULL:
        return None, at
    if major not in (_ARRAY, _MAP):
        raise MalformedEvidence(f"CBOR: major type {major} is outside of the subset")
    if depth == MAX_DEPTH:
        raise MalformedEvidence(f"CBOR: nested deeper than {MAX_DEPTH}")
    return (_read_array if major == _ARRAY else _read_map)(raw, at, number, depth + 1)


def _read_number(raw: bytes, at: int, info: int) -> tuple[int, int]:
    """A number in two bytes or more and the offset after it; it must need that many."""
    width = _WIDTHS.get(info)
    if width is None:
        raise MalformedEvidence("CBOR: indefinite or reserved length")
    end = at + width
    if end > len(raw):
        raise MalformedEvidence("CBOR: truncated")
    number = int.from_bytes(raw[at:end], "big")
    if number < 1 << (4 * width):
        raise MalformedEvidence("CBOR: not the shortest form of a number")
    return number, end


def _read_text(raw: bytes, start: int, end: int) -> tuple[str, int]:
    if end > len(raw):
        raise MalformedEvidence("CBOR: truncated")
    try:
        return raw[start:end].decode(), end
    except UnicodeDecodeError:
        raise MalformedEvidence("CBOR: text is not UTF-8") from None


def _read_array(raw: bytes, at: int, count: int, depth: int) -> tuple[CborValue, int]:
    items: list[CborValue] = []
    for _ in range(count):
        item, at = _read(raw, at, depth)
        items.append(item)
    return items, at


def _read_map(raw: bytes, at: int, count: int, depth: int) -> tuple[CborValue, int]:
    items: dict[int | str, CborValue] = {}
    key: CborValue
    previous = b""
    for _ in range(count):
        start, key = at, raw[at]
        if key < 24:  # the number that it stands for
            at += 1
        else:
            key, at = _read(raw, at, MAX_DEPTH)
        encoded = raw[start:at]
        if not isinstance(key, (int, str)):
            raise MalformedEvidence("CBOR: map keys are numbers or text")
        if encoded <= previous:
            raise MalformedEvidence("CBOR: duplicate or unsorted key")
        previous = encoded
        items[key], at = _read(raw, at, depth)
    return items, at
