"""DER as far as extensions need it: accepted forms, and every laxity refused."""

from __future__ import annotations

import pytest

from attest.der import INTEGER, OCTET_STRING, der_items, der_unsigned
from attest.errors import MalformedEvidence


def test_items_one_after_another() -> None:
    assert der_items(b"") == []
    assert der_items(b"\x02\x01\x05\x04\x00") == [(INTEGER, b"\x05"), (OCTET_STRING, b"")]
    for size, head in ((0x7F, b"\x7f"), (0x80, b"\x81\x80"), (0x100, b"\x82\x01\x00"), (0x10000, b"\x83\x01\x00\x00")):
        assert der_items(b"\x04" + head + bytes(size)) == [(OCTET_STRING, bytes(size))]


REFUSED = {
    "tag alone": b"\x02",
    "cut": b"\x02\x02\x01",
    "long form for a short length": b"\x04\x81\x01a",
    "leading zero in the length": b"\x04\x82\x00\x81" + bytes(0x81),
    "indefinite length": b"\x30\x80\x00\x00",
    "length of four bytes": b"\x04\x84\x01\x00\x00\x00",
    "length that is cut": b"\x04\x82\x01",
    "tag of several bytes": b"\x1f\x81\x00\x00",
    "too many": b"\x04\x00" * 257,
}


@pytest.mark.parametrize("case", REFUSED)
def test_items_refused(case: str) -> None:
    with pytest.raises(MalformedEvidence):
        der_items(REFUSED[case])


@pytest.mark.parametrize(
    ("content", "value"), [(b"\x00", 0), (b"\x7f", 127), (b"\x00\x80", 128), (b"\x00\xff\xff", 65535)]
)
def test_integers(content: bytes, value: int) -> None:
    assert der_unsigned(content, 65_535) == value


@pytest.mark.parametrize("content", [b"", b"\x80", b"\xff\xff", b"\x00\x01", b"\x01\x00\x00", b"\xff\x80"])
def test_integers_refused(content: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        der_unsigned(content, 65_535)
