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
_NULL = 0xF6
_UINT, _BSTR, _TSTR, _ARRAY, _MAP = 0, 2, 3, 4, 5
_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}


def cbor_encode(value: CborValue) -> bytes:
    """The deterministic encoding of ``value``. Raises ValueError or TypeError for what the subset does not have."""
    out = bytearray()
    _write(out, value, 0)
    return bytes(out)


def cbor_decode(raw: bytes) -> CborValue:
    """The value whose deterministic encoding is exactly ``raw``; raises MalformedEvidence for anything else."""
    try:
        value, end = _read(raw, 0, 0)
    except IndexError:
        raise MalformedEvidence("CBOR: truncated") from None
    if end != len(raw):
        raise MalformedEvidence(f"CBOR: {len(raw) - end} trailing bytes")
    return value


def _write_head(out: bytearray, major: int, number: int) -> None:
    top = major << 5
    if number < 24:
        out.append(top | number)
    elif number < 1 << 8:
        out += bytes((top | 24, number))
    elif number < 1 << 16:
        out.append(top | 25)
        out += number.to_bytes(2, "big")
    elif number < 1 << 32:
        out.append(top | 26)
        out += number.to_bytes(4, "big")
    elif number < 1 << 64:
        out.append(top | 27)
        out += number.to_bytes(8, "big")
    else:
        raise ValueError("CBOR: number above 64 bits")


def _write(out: bytearray, value: object, depth: int) -> None:
    if isinstance(value, bytes):
        _write_head(out, _BSTR, len(value))
        out += value
    elif value is None:
        out.append(_NULL)
    elif isinstance(value, str):
        text = value.encode()
        _write_head(out, _TSTR, len(text))
        out += text
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        _write_head(out, _UINT, value)
    elif isinstance(value, (list, tuple, dict)):
        if depth == MAX_DEPTH:
            raise ValueError(f"CBOR: nested deeper than {MAX_DEPTH}")
        _write_container(out, value, depth + 1)
    else:
        raise ValueError(f"CBOR: {type(value).__name__} {value!r} is outside of the subset")


def _write_container(out: bytearray, value: object, depth: int) -> None:
    if isinstance(value, dict):
        _write_head(out, _MAP, len(value))
        for key, item in sorted((_encode_key(key), item) for key, item in value.items()):
            out += key
            _write(out, item, depth)
    elif isinstance(value, (list, tuple)):
        _write_head(out, _ARRAY, len(value))
        for item in value:
            _write(out, item, depth)


def _encode_key(key: object) -> bytes:
    if not isinstance(key, (int, str)):
        raise TypeError("CBOR: map keys are numbers or text")
    out = bytearray()
    _write(out, key, 0)
    return bytes(out)


def _read(raw: bytes, at: int, depth: int) -> tuple[CborValue, int]:
    """The value at ``at`` and the offset after it. Raises MalformedEvidence, or IndexError at the end of ``raw``."""
    first = raw[at]
    at += 1
    number = first & 31
    if number >= 24:
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
    """A number in bytes of its own and the offset after it; it must need that many."""
    width = _WIDTHS.get(info)
    if width is None:
        raise MalformedEvidence("CBOR: indefinite or reserved length")
    end = at + width
    if end > len(raw):
        raise MalformedEvidence("CBOR: truncated")
    number = int.from_bytes(raw[at:end], "big")
    if number < (24 if width == 1 else 1 << (4 * width)):
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
    previous = b""
    for _ in range(count):
        start = at
        key, at = _read(raw, at, MAX_DEPTH)
        encoded = raw[start:at]
        if not isinstance(key, (int, str)):
            raise MalformedEvidence("CBOR: map keys are numbers or text")
        if encoded <= previous:
            raise MalformedEvidence("CBOR: duplicate or unsorted key")
        previous = encoded
        items[key], at = _read(raw, at, depth)
    return items, at
