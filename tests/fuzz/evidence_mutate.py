"""Mutations for the evidence fuzzer: of bytes, and of the values that the bytes of a format stand for.

A form takes a seed apart once and gives a mutator, which puts it together again around one change: lengths, counts and
encodings around the change are then right, so that what lies inside is reached. All randomness is the caller's.
"""

from __future__ import annotations

import base64
import binascii
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from random import Random
from types import MappingProxyType
from typing import Any

from attest.cose import Tag, cbor_read
from attest.der import der_items
from attest.errors import MalformedEvidence

Mutator = Callable[[Random], bytes]
Form = Callable[[bytes], Mutator]

_NUMBERS = (0, 1, 2, 23, 24, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 1 << 24, (1 << 31) - 1, 1 << 31,
            (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
_WIDTHS = (1, 2, 2, 4, 4, 8)
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"
_FRAGMENTS = (
    b"\x00", b"\xff" * 9, bytes(64), b"\x30\x82\x00\x00", b"\x30\x80", b"\x9f\xff", b"\xbf\xff", b"\xf6",
    b"\x1b" + b"\xff" * 8, b"[" * 3000, b'{"a":' * 3000, b"\x81" * 3000, b"\xc1" * 3000, b"9" * 5000, b"1e999", b"NaN",
    b"-1", b"null", b'"\\ud800"', b"\xed\xa0\x80", b"\xef\xbb\xbf", b'{"a":1,"a":1}', b",", b"\n", _BEGIN, _END,
    b"Spec ID Event03\x00", b"StartupLocality\x00\x03", b"Z=", b"=",
)  # fmt: skip
_TEXTS = (
    "", "a", "\ud800", "\x00", "\x7f", "é", "\U0001f600", "0", "-1", "１", "0x", "00", "zz", "f" * 96, "A" * 3000,
    "9" * 5000, "null", "TDX", "UpToDate", "Revoked", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "2026-01-01",
    "RSA", "EC", "P-256", "AQAB",
)  # fmt: skip
_HUGE = "a number of 5,000 digits"  # json writes none
_PLAIN: tuple[Any, ...] = (None, True, False, [], {}, [[]], [{}], {"": None}, -1, 10**30, *_NUMBERS, *_TEXTS)
JSON_VALUES: tuple[Any, ...] = (*_PLAIN, 0.5, -0.0, 1e300, float("inf"), float("nan"), _HUGE)
CBOR_VALUES: tuple[Any, ...] = (
    *_PLAIN[:8], -1, *_NUMBERS, "", "a", "é", b"", b"\x00", bytes(32), bytes(48), b"\xff" * 70, {1: []}, {0: {}, -1: 0},
    Tag(1, 0), Tag(18, []), Tag(37, bytes(16)), Tag(560, b""),
)  # fmt: skip


class _Twin(str):
    """A name equal to no other, so that one table can hold a name twice."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _pick(rng: Random, items: Sequence[Any]) -> Any:
    return items[int(rng.random() * len(items))]


# -- bytes -------------------------------------------------------------------------------------------------------------


def _span(rng: Random, size: int) -> tuple[int, int]:
    """A part of ``size`` bytes, mostly short."""
    start = int(rng.random() * size)
    most = size - start if rng.random() < 0.2 else min(16, size - start)
    return start, start + 1 + int(rng.random() * most)


def _flip(rng: Random, raw: bytearray) -> None:
    raw[int(rng.random() * len(raw))] ^= 1 << int(rng.random() * 8)


def _byte(rng: Random, raw: bytearray) -> None:
    raw[int(rng.random() * len(raw))] = int(rng.random() * 256)


def _number(rng: Random, raw: bytearray) -> None:
    """A length or a count: an odd number, or nearly the one that is there, or nearly what is left."""
    width = _pick(rng, _WIDTHS)
    at = int(rng.random() * len(raw))
    order: Any = "little" if rng.random() < 0.5 else "big"
    roll = rng.random()
    if roll < 0.5:
        value = _pick(rng, _NUMBERS)
    elif roll < 0.8:
        value = int.from_bytes(raw[at : at + width], order) + _pick(rng, (-2, -1, 1, 2, 8))
    else:
        value = len(raw) - at - width + _pick(rng, (-1, 0, 1))
    raw[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, order)


def _remove(rng: Random, raw: bytearray) -> None:
    start, end = _span(rng, len(raw))
    del raw[start:end]


def _truncate(rng: Random, raw: bytearray) -> None:
    del raw[int(rng.random() * len(raw)) :]


def _repeat(rng: Random, raw: bytearray) -> None:
    start, end = _span(rng, len(raw))
    raw[end:end] = raw[start:end] * _pick(rng, (1, 1, 2, 30))


def _move(rng: Random, raw: bytearray) -> None:
    """One part over another: splices within a seed."""
    start, end = _span(rng, len(raw))
    at = int(rng.random() * len(raw))
    raw[at : at + end - start] = raw[start:end]


def _insert(rng: Random, raw: bytearray) -> None:
    at = int(rng.random() * (len(raw) + 1))
    raw[at:at] = _pick(rng, _FRAGMENTS)


_BYTE_MUTATIONS = (_flip, _flip, _byte, _byte, _number, _number, _number, _remove, _truncate, _repeat, _move, _insert)


def mutate_bytes(rng: Random, seed: bytes) -> bytes:
    """One change, sometimes up to four."""
    raw = bytearray(seed)
    for _ in range(1 if rng.random() < 0.6 else 2 + int(rng.random() * 3)):
        if not raw:
            raw += _pick(rng, _FRAGMENTS)
        _pick(rng, _BYTE_MUTATIONS)(rng, raw)
    return bytes(raw)


def in_bytes(seed: bytes) -> Mutator:
    return lambda rng: mutate_bytes(rng, seed)


def splice(seeds: Sequence[bytes]) -> Mutator:
    """The front of one seed, the end of another."""

    def mutate(rng: Random) -> bytes:
        one, other = _pick(rng, seeds), _pick(rng, seeds)
        return bytes(one[: int(rng.random() * (len(one) + 1))] + other[int(rng.random() * (len(other) + 1)) :])

    return mutate


# -- values ------------------------------------------------------------------------------------------------------------


def mutate_value(rng: Random, value: Any, palette: Sequence[Any]) -> Any:
    """A copy in which one member, at any depth, is another value, gone, there twice, or in another's place."""
    if isinstance(value, Tag) and rng.random() < 0.8:
        return Tag(value.number, mutate_value(rng, value.value, palette))
    if not value or not isinstance(value, (dict, list)) or rng.random() < 0.05:
        return _mutate_leaf(rng, value, palette)
    copy: Any = value.copy()
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, roll = _pick(rng, keys), rng.random()
    if roll < 0.08:
        del copy[key]
    elif roll < 0.16:
        _double(rng, copy, key, palette)
    elif roll < 0.24:
        copy[key] = value[_pick(rng, keys)]
    else:
        copy[key] = mutate_value(rng, value[key], palette)
    return copy


def _double(rng: Random, copy: Any, key: Any, palette: Sequence[Any]) -> None:
    if isinstance(copy, list):
        copy[key:key] = [copy[key]] * _pick(rng, (1, 1, 1, 70))
    elif rng.random() < 0.5 and isinstance(key, str):
        copy[_Twin(key)] = copy[key]
    else:
        copy[_pick(rng, (0, 1, 7, "a", "", "Id", "é"))] = _pick(rng, palette)


def _mutate_leaf(rng: Random, value: Any, palette: Sequence[Any]) -> Any:
    roll = rng.random()
    if roll < 0.5:
        if isinstance(value, bytes):
            return mutate_bytes(rng, value)
        if isinstance(value, str):
            return _mutate_text(rng, value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value + _pick(rng, (-1, 1, 256, -256))
    return [value] if roll > 0.95 else _pick(rng, palette)


def _mutate_text(rng: Random, text: str) -> str:
    at = int(rng.random() * (len(text) + 1))
    new = _pick(rng, _TEXTS) if rng.random() < 0.5 else chr(32 + int(rng.random() * 95))
    return text[:at] + new + text[at + int(rng.random() * 3) :]


def in_json(seed: bytes) -> Mutator:
    value = json.loads(seed)

    def mutate(rng: Random) -> bytes:
        text = json.dumps(mutate_value(rng, value, JSON_VALUES), separators=(",", ":"))
        return text.replace(f'"{_HUGE}"', "9" * 5000).encode()

    return mutate


def in_cbor(seed: bytes) -> Mutator:
    """Also in what byte strings hold, where that is CBOR. What a change leaves alone is written only once."""
    value = _unwrapped(cbor_read(seed))
    known: dict[int, bytes] = {}
    cbor_write(value, known)
    return lambda rng: cbor_write(mutate_value(rng, value, CBOR_VALUES), MappingProxyType(known))


class _Wrapped(Tag, frozen=True):
    """CBOR in a byte string."""


def _unwrapped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unwrapped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unwrapped(item) for item in value]
    if isinstance(value, Tag):
        return Tag(value.number, _unwrapped(value.value))
    if isinstance(value, bytes):
        try:
            inner = cbor_read(value)
        except MalformedEvidence:
            return value
        return _Wrapped(0, _unwrapped(inner)) if isinstance(inner, (dict, list, Tag)) else value
    return value


def cbor_write(value: Any, known: Mapping[int, bytes] = MappingProxyType({})) -> bytes:
    """CBOR of any value here, the members of a map in deterministic order. ``known``: by the identity of containers;
    a dict learns them.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return _cbor_head(0, value) if value >= 0 else _cbor_head(1, -1 - value)
    if isinstance(value, (bytes, str)):
        data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        return _cbor_head(2 if isinstance(value, bytes) else 3, len(data)) + data
    if not isinstance(value, (list, dict, Tag)):
        return {False: b"\xf4", True: b"\xf5", None: b"\xf6"}[value]
    written = known.get(id(value))
    if written is None:
        written = _cbor_container(value, known)
        if isinstance(known, dict):
            known[id(value)] = written
    return written


def _cbor_container(value: Any, known: Mapping[int, bytes]) -> bytes:
    if isinstance(value, _Wrapped):
        inner = cbor_write(value.value, known)
        return _cbor_head(2, len(inner)) + inner
    if isinstance(value, Tag):
        return _cbor_head(6, value.number) + cbor_write(value.value, known)
    if isinstance(value, list):
        return _cbor_head(4, len(value)) + b"".join([cbor_write(item, known) for item in value])
    pairs = sorted((cbor_write(key, known), cbor_write(item, known)) for key, item in value.items())
    return _cbor_head(5, len(pairs)) + b"".join([key + item for key, item in pairs])


def _cbor_head(major: int, number: int) -> bytes:
    number &= (1 << 64) - 1
    if number < 24:
        return bytes((major << 5 | number,))
    width = 1 if number < 1 << 8 else 2 if number < 1 << 16 else 4 if number < 1 << 32 else 8
    return bytes((major << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[width],)) + number.to_bytes(width, "big")


def in_toml(seed: bytes) -> Mutator:
    value = tomllib.loads(seed.decode())
    return lambda rng: toml_write(mutate_value(rng, value, JSON_VALUES)).encode("utf-8", "surrogatepass")


def toml_write(document: Any) -> str:
    if not isinstance(document, dict):
        return f"value = {_toml(document)}\n"
    return "".join(f"{json.dumps(str(key))} = {_toml(value)}\n" for key, value in document.items())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return (
            repr(value).removesuffix(".0") + (".0" if value == int(value or 0) else "") if abs(value) < 1e18 else "inf"
        )
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value == _HUGE:
        return "9" * 5000
    return json.dumps(value, ensure_ascii=False) if value is not None else "nan"


def in_protobuf(seed: bytes) -> Mutator:
    value = _messages(seed)
    return lambda rng: _protobuf(mutate_value(rng, value, CBOR_VALUES))


def _messages(raw: bytes) -> list[Any]:
    """Field by field: [number, value], where a value that reads as a message is one."""
    fields: list[Any] = []
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, at = _varint(raw, at)
        if key & 7 == 0:
            fields.append([key >> 3, number])
            continue
        if key & 7 != 2 or not key >> 3 or at + number > len(raw):
            raise ValueError("no message")
        content, at = raw[at : at + number], at + number
        try:
            fields.append([key >> 3, _messages(content) if 2 < len(content) < 1000 else content])
        except (ValueError, IndexError):
            fields.append([key >> 3, content])
    return fields


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while raw[at] & 0x80:
        value |= (raw[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | raw[at] << shift, at + 1


def _protobuf(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, list):
        return cbor_write(value)
    out = b""
    for pair in value:
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int):
            number, content = pair
            if isinstance(content, int):
                out += _varint_bytes(number << 3) + _varint_bytes(content)
            else:
                data = _protobuf(content)
                out += _varint_bytes(number << 3 | 2) + _varint_bytes(len(data)) + data
        else:
            out += _protobuf(pair)
    return out


def _varint_bytes(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


# -- structures --------------------------------------------------------------------------------------------------------


def in_der(seed: bytes) -> Mutator:
    """One element changed and the lengths of all around it corrected."""
    nodes = _nodes(seed, 0, len(seed), ())

    def mutate(rng: Random) -> bytes:
        start, end, around = _pick(rng, nodes)
        new = _mutate_element(rng, seed[start:end], nodes, seed)
        for tag_at, content_at, stop in reversed(around):
            content = seed[content_at:start] + new + seed[end:stop]
            new, start, end = _tlv(seed[tag_at], content), tag_at, stop
        return seed[:start] + new + seed[end:]

    return mutate


Node = tuple[int, int, tuple[tuple[int, int, int], ...]]  # start, end, and for all around it: tag, content, end


def _nodes(raw: bytes, start: int, end: int, around: tuple[tuple[int, int, int], ...]) -> list[Node]:
    found: list[Node] = []
    at = start
    for tag, content in der_items(raw[start:end]):
        size = len(content)
        first = raw[at + 1]
        content_at = at + 2 + (first & 0x7F if first & 0x80 else 0)
        stop = content_at + size
        found.append((at, stop, around))
        if tag & 0x20 or tag == 4:
            with suppress(MalformedEvidence):
                found += _nodes(raw, content_at, stop, (*around, (at, content_at, stop)))
        at = stop
    return found


def _mutate_element(rng: Random, element: bytes, nodes: Sequence[Node], seed: bytes) -> bytes:
    roll = rng.random()
    if roll < 0.1:
        return b""
    if roll < 0.2:
        return element * int(_pick(rng, (2, 2, 3, 300)))
    if roll < 0.4:
        start, end, _ = _pick(rng, nodes)
        return seed[start:end]
    if roll < 0.5:
        return (
            bytes((_pick(rng, (1, 2, 3, 4, 5, 6, 10, 12, 19, 22, 23, 24, 30, 48, 49, 160, 161, 163, 131)),))
            + element[1:]
        )
    content_at = 2 + (element[1] & 0x7F if element[1] & 0x80 else 0)
    return _tlv(element[0], mutate_bytes(rng, element[content_at:]))


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def pieces(split: Callable[[bytes], list[bytes]], join: Callable[[list[bytes]], bytes], forms: Sequence[Form]) -> Form:
    """A form of several: one piece is mutated by its own form, is empty, there twice, or changes places. The last form
    stands for all that follow.
    """

    def form(seed: bytes) -> Mutator:
        parts = split(seed)
        mutators = [forms[min(at, len(forms) - 1)](part) for at, part in enumerate(parts)]

        def mutate(rng: Random) -> bytes:
            new, at, roll = parts.copy(), int(rng.random() * len(parts)), rng.random()
            if roll < 0.8:
                new[at] = mutators[at](rng)
            elif roll < 0.87:
                new[at] = b""
            elif roll < 0.94:
                new[at] *= 2
            else:
                other = int(rng.random() * len(parts))
                new[at], new[other] = new[other], new[at]
            return join(new)

        return mutate

    return form


def _unarmour(pem: bytes) -> list[bytes]:
    blocks = pem.split(_BEGIN)[1:]
    return [binascii.a2b_base64(block.partition(b"-----END")[0]) for block in blocks]


def _armour(certificates: list[bytes]) -> bytes:
    lines = (_BEGIN + base64.encodebytes(der) + _END for der in certificates)
    return b"".join(lines)


in_pem = pieces(_unarmour, _armour, [in_der])


def in_hex(form: Form) -> Form:
    return lambda seed: _hex(form(bytes.fromhex(seed.decode())))


def _hex(mutate: Mutator) -> Mutator:
    return lambda rng: mutate(rng).hex().encode()
