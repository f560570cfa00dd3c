"""Whom we believe about the client's address, and what they may say."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cube_mesh._fastpath import scan_request
from cube_mesh.errors import ConfigError, FramingError
from cube_mesh.forwarded import MAX_HOPS, Trust, normal

PEER = "10.0.0.1"


def told(field: str, *lines: str, peers: tuple[str, ...] = ("10.0.0.0/24",)) -> str:
    """What a Trust makes of these lines of ``field``, from a trusted peer."""
    raw = "GET / HTTP/1.1\r\nHost: h\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n"
    head = scan_request(raw.encode(), 0, 32_768, 100)
    assert head is not None
    return Trust(peers, field).client(head, PEER)


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        ((), PEER),
        (("X-Forwarded-For: 9.9.9.9",), "9.9.9.9"),
        (("X-Forwarded-For: 6.6.6.6, 9.9.9.9",), "9.9.9.9"),  # the nearest hop's word; the rest came from the client
        (("X-Forwarded-For: 6.6.6.6, 9.9.9.9, 10.0.0.7",), "9.9.9.9"),
        (("X-Forwarded-For: 10.0.0.8 ,\t10.0.0.7",), "10.0.0.8"),
        (("X-Forwarded-For: 6.6.6.6", "X-FORWARDED-FOR: 9.9.9.9"), "9.9.9.9"),
        (("X-Forwarded-For: 9.9.9.9:4711",), "9.9.9.9"),
        (("X-Forwarded-For: 2001:DB8::1",), "2001:db8::1"),
        (("X-Forwarded-For: [2001:db8::1]:443",), "2001:db8::1"),
        (("X-Forwarded-For: ::ffff:9.9.9.9",), "9.9.9.9"),
        (("X-Forwarded-For: 9.9.9.9, unknown",), PEER),
        (("Forwarded: for=6.6.6.6",), PEER),  # not the field that was configured
    ],
)
def test_x_forwarded_for(lines: tuple[str, ...], client: str) -> None:
    assert told("x-forwarded-for", *lines) == client


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("for=9.9.9.9", "9.9.9.9"),
        ("For=9.9.9.9;Proto=https;by=203.0.113.43", "9.9.9.9"),
        ("for=6.6.6.6, for=9.9.9.9", "9.9.9.9"),
        ('for="[2001:db8::1]:4711"', "2001:db8::1"),
        ('for="9.9.9.9:80"', "9.9.9.9"),
        ('for="9\\.9.9.9"', "9.9.9.9"),
        ("for=6.6.6.6, proto=https", PEER),
        ("for=_hidden, for=10.0.0.9", "10.0.0.9"),
        ("for=unknown", PEER),
        ('for=9.9.9.9;host="a,b;c"', "9.9.9.9"),
    ],
)
def test_forwarded(value: str, client: str) -> None:
    assert told("forwarded", f"Forwarded: {value}") == client
    assert told("forwarded", f"Forwarded: {value}", "X-Forwarded-For: 6.6.6.6") == client


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("x-forwarded-for", value) for value in (
            "", ",", "9.9.9.9,", ",9.9.9.9", "9.9.9", "9.9.9.9.9", "localhost", "09.9.9.9", "9.9.9.9:", "9.9.9.9:x",
            "9.9.9.9 8.8.8.8", "for=9.9.9.9", "[::1", "::1]", "[9.9.9.9]x", "\"9.9.9.9\"", "9.9.9.9%0d%0a", "\u00e9",
            ", ".join(["9.9.9.9"] * (MAX_HOPS + 1)),
        )),
        *(("forwarded", value) for value in (
            "", ",", ";", "for", "for=", "for=9.9.9.9;", "for=9.9.9.9,", "for=9.9.9.9;;by=a", "for= 9.9.9.9",
            "for=9.9.9.9;for=8.8.8.8", "for=9.9.9.9 by=a", "for=\"9.9.9.9", "for=9.9.9.9\"", "for=[::1]", "9.9.9.9",
            "for=example.com", "for=\"\"", ", ".join(["for=9.9.9.9"] * (MAX_HOPS + 1)),
        )),
    ],
)  # fmt: skip
def test_what_is_not_well_formed_is_refused(field: str, value: str) -> None:
    with pytest.raises(FramingError) as caught:
        told(field, f"{field}: {value}")
    assert (caught.value.code, caught.value.status) == ("bad_forwarded", 400)


def test_networks() -> None:
    trust = Trust(("10.0.0.0/24", "2001:db8::/32", "192.0.2.1"), "x-forwarded-for")
    for address in ("10.0.0.255", "2001:db8:1::5", "192.0.2.1", "::ffff:10.0.0.3", "2001:db8::1%eth0"):
        assert trust.covers(address), address
    for address in ("10.0.1.0", "2001:db9::", "192.0.2.2", "", "/run/socket", "::1", "127.0.0.1"):
        assert not trust.covers(address), address


@pytest.mark.parametrize("peer", ["", "10.0.0.1/24", "example.com", "10.0.0.0/33", "*"])
def test_peers_are_addresses_or_networks(peer: str) -> None:
    with pytest.raises(ConfigError):
        Trust((peer,), "x-forwarded-for")


def test_one_spelling() -> None:
    assert normal("2001:0DB8::0001%eth0") == "2001:db8::1"
    assert normal("::ffff:1.2.3.4") == "1.2.3.4"


def test_memory_of_what_was_seen_is_bounded() -> None:
    trust = Trust(("10.0.0.0/8",), "x-forwarded-for")
    for number in range(3000):
        head = scan_request(
            b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 9.9.%d.%d\r\n\r\n" % divmod(number, 250), 0, 999, 9
        )
        assert head is not None
        trust.client(head, PEER)
    assert len(trust._seen) <= 1024 and len(trust._covered) <= 1024


@given(
    st.sampled_from(["x-forwarded-for", "forwarded"]),
    st.text(st.sampled_from('for=;,"\\[]:. \t0123456789abcdef_-%'), max_size=80),
)
@example("forwarded", 'for="' + "\\\\" * 2000)
@example("forwarded", "a=b;" * 3000)
@example("x-forwarded-for", "1," * 9000)
def test_any_value_is_an_address_or_a_refusal(field: str, value: str) -> None:
    try:
        client = told(field, f"{field}: {value}")
    except FramingError as error:
        assert error.code in ("bad_forwarded", "bad_field_value")
    else:
        assert normal(client) == client, "one spelling, and nothing that a record would have to escape"
