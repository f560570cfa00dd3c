"""The CBOR subset: tables of bytes, properties, and cbor2 as the independent opinion."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attest.codec import MAX_DEPTH, CborValue, cbor_decode, cbor_encode
from attest.errors import MalformedEvidence

LEAVES = st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=300), st.text(max_size=40), st.none())
KEYS = st.one_of(st.integers(0, 2**64 - 1), st.text(max_size=30))


def _nested(depth: int) -> st.SearchStrategy[CborValue]:
    if depth == 0:
        return LEAVES
    inner = _nested(depth - 1)
    return st.one_of(LEAVES, st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4))


@given(_nested(MAX_DEPTH))
@settings(max_examples=150, deadline=None)
def test_round_trip_and_cbor2_agrees(value: CborValue) -> None:
    raw = cbor_encode(value)
    assert cbor_decode(raw) == value
    assert cbor2.loads(raw) == value
    # cbor2 sorts keys by length first (RFC 7049), we bytewise (RFC 8949): encodings of maps may differ in order.
    if not isinstance(value, (dict, list)):
        assert cbor2.dumps(value, canonical=True) == raw


@given(st.binary(max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_bytes_decode_to_their_only_encoding_or_are_malformed(raw: bytes) -> None:
    try:
        value = cbor_decode(raw)
    except MalformedEvidence:
        return
    assert cbor_encode(value) == raw


REFUSED = {
    "empty": "",
    "uint 24 in two bytes of head for 23": "1817",
    "uint16 for 255": "1900ff",
    "uint32 for 65535": "1a0000ffff",
    "uint64 for 2^32-1": "1b00000000ffffffff",
    "long length": "5801ff",
    "indefinite bytes": "5f41ff",
    "indefinite array": "9fff",
    "indefinite map": "bfff",
    "negative": "20",
    "tag": "c000",
    "false": "f4",
    "true": "f5",
    "undefined": "f7",
    "half float": "f93c00",
    "break": "ff",
    "duplicate key": "a201000100",
    "unsorted keys": "a202000100",
    "unsorted by length first": "a2616100" + "1818" + "00",
    "null key": "a1f600",
    "bytes key": "a1410000",
    "array key": "a18000",
    "map without value": "a101",
    "truncated bytes": "420a",
    "truncated head": "19ff",
    "text is not UTF-8": "61ff",
    "surrogate": "63eda080",
    "overlong": "62c080",
    "trailing": "0000",
    "depth 5": "8181818180",
    "absurd count": "9bffffffffffffffff",
    "absurd map": "bb7fffffffffffffff00",
    "absurd bytes": "5b7fffffffffffffff00",
    "reserved length": "1c",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(MalformedEvidence):
        cbor_decode(bytes.fromhex(REFUSED[name]))


def test_depth_4_is_the_last_accepted() -> None:
    assert cbor_decode(bytes.fromhex("81818180")) == [[[[]]]]


@pytest.mark.parametrize("value", [True, -1, 1.5, 1 << 64, [[[[[]]]]], {b"k": 1}, {True: 1}, object(), "\ud800"])
def test_not_encodable(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        cbor_encode(value)  # type: ignore[arg-type]
