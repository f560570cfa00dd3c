"""Heads as tables of bytes: each run whole, byte by byte, and with trailing data."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube_mesh._fastpath import (
    FRAMING_CHUNKED,
    FRAMING_LENGTH,
    FRAMING_NONE,
    FRAMING_UNTIL_CLOSE,
    FieldSet,
    RequestHead,
    scan_request,
    scan_response,
)
from cube_mesh.errors import FramingError

HOST = b"Host: h\r\n"


def request(data: bytes, max_head: int = 8192, max_fields: int = 100) -> RequestHead | None:
    return scan_request(data, 0, max_head, max_fields)


def outcome(data: bytes) -> object:
    """What the scanner makes of the bytes: the head's facts, "more", or the refusal."""
    try:
        head = request(data)
    except FramingError as error:
        return error.status, error.code
    if head is None:
        return "more"
    return head.method, head.target, head.path, head.framing, head.content_length, head.keep_alive, head.fields()


ACCEPTED = {
    b"GET / HTTP/1.1\r\n" + HOST + b"\r\n": ("GET", FRAMING_NONE, -1, True),
    b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n": ("GET", FRAMING_NONE, -1, True),
    b"GET /a/b?x=/../%2f HTTP/1.1\r\n" + HOST + b"\r\n": ("GET", FRAMING_NONE, -1, True),
    b"POST /v1 HTTP/1.1\r\nhOsT:h\r\nContent-Length: 12\r\n\r\n": ("POST", FRAMING_LENGTH, 12, True),
    b"POST /v1 HTTP/1.1\r\n" + HOST + b"Content-Length:\t0 \r\n\r\n": ("POST", FRAMING_NONE, 0, True),
    b"POST /v1 HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: Chunked\r\n\r\n": ("POST", FRAMING_CHUNKED, -1, True),
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n": ("GET", FRAMING_NONE, -1, False),
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: x-a, Close\r\n\r\n": ("GET", FRAMING_NONE, -1, False),
    b"GET / HTTP/1.0\r\n\r\n": ("GET", FRAMING_NONE, -1, False),
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n": ("GET", FRAMING_NONE, -1, True),
    b"DELETE /v1/models/a%20b HTTP/1.1\r\n" + HOST + b"\r\n": ("DELETE", FRAMING_NONE, -1, True),
    b"GET /%c3%a4/%e2%82%ac/%f0%9f%8e%89?%c3%a4 HTTP/1.1\r\n" + HOST + b"\r\n": ("GET", FRAMING_NONE, -1, True),
    b"GET /...;/.a/a.. HTTP/1.1\r\nHost: [::1]:80\r\n\r\n": ("GET", FRAMING_NONE, -1, True),
    b"GET / HTTP/1.1\r\n" + HOST + "A: häß\r\n\r\n".encode(): ("GET", FRAMING_NONE, -1, True),
    b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n": ("GET", FRAMING_NONE, 0, True),
}

REFUSED = {
    b"GET / HTTP/1.1\r\n\r\n": "bad_host",
    b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n": "bad_host",
    b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n": "bad_host",
    b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n": "bad_host",
    b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET http://h/ HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"CONNECT h:1 HTTP/1.1\r\n" + HOST + b"\r\n": "method_not_implemented",
    b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n": "method_not_implemented",
    b"get / HTTP/1.1\r\n" + HOST + b"\r\n": "method_not_implemented",
    b"G@T / HTTP/1.1\r\n" + HOST + b"\r\n": "bad_request_line",
    b"GET / HTTP/2.0\r\n" + HOST + b"\r\n": "version_not_supported",
    b"GET / HTTP/1.2\r\n" + HOST + b"\r\n": "version_not_supported",
    b"GET / http/1.1\r\n" + HOST + b"\r\n": "bad_request_line",
    b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n": "bad_request_line",
    b"GET /\r\n" + HOST + b"\r\n": "bad_target",
    b"GET //x HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /a//b HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /a/../b HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /a/.. HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /./b HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /a/.?x HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /a%2fb HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /a%2E%2e/b HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /a%00 HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /a?%0a HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /a%5cb HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /a% HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /a%g0 HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /\xc3\xa4 HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /#f HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET / HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n": "bad_field_name",
    b"GET / HTTP/1.1\r\n" + HOST + b": b\r\n\r\n": "bad_field_name",
    b"GET / HTTP/1.1\r\n" + HOST + b"A\r\n\r\n": "bad_field_name",
    b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n": "bad_field_name",
    b"GET / HTTP/1.1\r\n A: b\r\n" + HOST + b"\r\n": "bad_field_name",
    b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x00c\r\n\r\n": "bad_field_value",
    b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x7fc\r\n\r\n": "bad_field_value",
    b"GET / HTTP/1.1\r\n" + HOST + b"A: b\rc\r\n\r\n": "bad_field_value",
    b"GET / HTTP/1.1\r\n" + HOST + b"A: b\nC: d\r\n\r\n": "bare_lf",
    b"GET / HTTP/1.1\n" + HOST + b"\r\n": "bare_lf",
    b"GET / HTTP/1.1\r\n" + HOST + b"\n": "bare_lf",
    b"GET / HTTP/1.1\r\n" + HOST + b"\rA: b\r\n\r\n": "bad_head",
    b"GET / HTTP/1.1\r\n" + HOST + b"A: \xff\r\n\r\n": "bad_field_value",
    b"GET / HTTP/1.1\r\n" + HOST + b"A: 0123456789\xed\xa0\x80\r\n\r\n": "bad_field_value",
    b"GET / HTTP/1.1\r\nHost:\r\n\r\n": "bad_host",
    b"GET / HTTP/1.1\r\nHost: h:\r\n\r\n": "bad_host",
    b"GET / HTTP/1.1\r\nHost: h:1:2\r\n\r\n": "bad_host",
    b"GET / HTTP/1.1\r\nHost: h:123456\r\n\r\n": "bad_host",
    b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n": "bad_host",
    b"GET / HTTP/1.1\r\nHost: []\r\n\r\n": "bad_host",
    b"GET / HTTP/1.1\r\nHost: h/x\r\n\r\n": "bad_host",
    b"GET / HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n": "bad_host",
    b"GET /%ff HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /%c0%af HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /%e2%82 HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /?%e2%82x HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /%ed%a0%80 HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /v1/%63hat HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET /a/..;x/b HTTP/1.1\r\n" + HOST + b"\r\n": "bad_target",
    b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\n": "unexpected_body",
    b"HEAD / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n": "unexpected_body",
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close, a b\r\n\r\n": "bad_connection",
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Content-Type\r\n\r\n": "bad_connection",
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: host\r\n\r\n": "bad_connection",
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: " + b"a," * 17 + b"\r\n\r\n": "bad_connection",
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: " + b"a" * 513 + b"\r\n\r\n": "bad_connection",
    b"GET / HTTP/1.1\r\n" + HOST + b"Content_Length: 1\r\n\r\n": "bad_field_name",
    b"GET / HTTP/1.1\r\n" + HOST + b"Transfer_Encoding: x\r\n\r\n": "bad_field_name",
    b"GET / HTTP/1.1\r\n" + HOST + b"Content-Type: a\r\nContent-Type: b\r\n\r\n": "repeated_field",
    b"GET / HTTP/1.1\r\n" + HOST + b"Content-Encoding: a\r\ncontent-encoding: b\r\n\r\n": "repeated_field",
    b"GET / HTTP/1.1\r\n" + HOST + b"Authorization: a\r\nAuthorization: b\r\n\r\n": "repeated_field",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n": "repeated_content_length",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 1\r\n\r\n": "bad_content_length",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\n": "bad_content_length",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x1\r\n\r\n": "bad_content_length",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: \r\n\r\n": "bad_content_length",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1234567890123456789\r\n\r\n": "bad_content_length",
    b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": "ambiguous_framing",
    b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n": "bad_transfer_encoding",
    b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n": "bad_transfer_encoding",
    b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n": (
        "bad_transfer_encoding"
    ),
    b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n": "bad_transfer_encoding",
    b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 200-ok\r\n\r\n": "expectation_failed",
    b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nExpect: 100-continue\r\n\r\n": "expectation_failed",
    b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\n\r\n": "upgrade_not_supported",
}


@pytest.mark.parametrize("data", ACCEPTED)
def test_accepted(data: bytes) -> None:
    head = request(data)
    assert head is not None
    assert (head.method, head.framing, head.content_length, head.keep_alive) == ACCEPTED[data]
    assert head.end == len(data)


@pytest.mark.parametrize("data", REFUSED)
def test_refused(data: bytes) -> None:
    with pytest.raises(FramingError) as refusal:
        request(data)
    assert refusal.value.code == REFUSED[data]


@pytest.mark.parametrize("data", [*ACCEPTED, *REFUSED])
def test_however_it_is_cut_the_outcome_is_the_same(data: bytes) -> None:
    """Refusals come with the first byte that makes the head wrong, so code and status cannot depend on the cut."""
    whole = outcome(data)
    verdict: object = "more"
    for size in range(len(data) + 1):
        verdict = outcome(data[:size])
        if verdict != "more":
            break
    assert verdict == whole
    assert outcome(data + b"trailing \x00 bytes") == whole


def test_bounds_are_exact() -> None:
    data = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
    assert request(data, max_head=len(data)) is not None
    for cut in range(len(data) - 1, len(data) + 1):
        with pytest.raises(FramingError) as refusal:
            request(data[:cut], max_head=len(data) - 2)
        assert (refusal.value.status, refusal.value.code) == (431, "head_too_large")
    two = b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n\r\n"
    assert request(two, max_fields=2) is not None
    with pytest.raises(FramingError) as refusal:
        request(two, max_fields=1)
    assert (refusal.value.status, refusal.value.code) == (431, "too_many_fields")


def test_more_fields_than_the_scanner_has_room_for() -> None:
    data = b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"X%d: y\r\n" % i for i in range(200)) + b"\r\n"
    with pytest.raises(FramingError) as refusal:
        request(data, max_fields=1000)
    assert refusal.value.status == 431


def test_rendering_drops_what_must_not_cross() -> None:
    data = (
        b"POST /d/v1?q=1 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer s\r\nX-Cube-Domain: evil\r\nX-Keep: 1\r\n"
        b"Connection: X-Drop, keep-alive\r\nx-drop: 2\r\nContent-Length: 2\r\n\r\n{}rest"
    )
    head = request(data)
    assert head is not None
    drop = FieldSet(names=(b"host", b"authorization", b"connection", b"content-length"), prefixes=(b"x-cube-",))
    out = head.render(b"/v1?q=1", b"host: up\r\n", drop, 2, data, head.end, head.end + 2)
    assert out == b"POST /v1?q=1 HTTP/1.1\r\nhost: up\r\nX-Keep: 1\r\ncontent-length: 2\r\n\r\n{}"


def test_rendering_drops_names_with_underscores() -> None:
    """To CGI and WSGI x_cube_domain is x-cube-domain."""
    data = b"POST / HTTP/1.1\r\nHost: h\r\nx_cube_domain: evil\r\nX-Keep: 1\r\n_: 2\r\n\r\n"
    head = request(data)
    assert head is not None
    out = head.render(b"/", b"", FieldSet(names=(b"host",)), -1)
    assert out == b"POST / HTTP/1.1\r\nX-Keep: 1\r\ncontent-length: 0\r\n\r\n"


def test_offsets_outside_the_data_are_errors_of_the_caller() -> None:
    data = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
    head = request(data)
    assert head is not None
    for pos, end in ((-1, 0), (2, 1), (0, 4)):
        with pytest.raises(ValueError):
            head.render(b"/", b"", FieldSet(), -1, b"abc", pos, end)
    for pos in (-1, len(data) + 1):
        with pytest.raises(ValueError):
            scan_request(data, pos, 100, 10)
        with pytest.raises(ValueError):
            scan_response(data, pos, 100, 10, False)


RESPONSES = {
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", False): (200, FRAMING_LENGTH, True),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", True): (200, FRAMING_NONE, True),
    (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", False): (200, FRAMING_NONE, True),
    (b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", False): (204, FRAMING_NONE, True),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", False): (304, FRAMING_NONE, True),
    (b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", False): (200, FRAMING_UNTIL_CLOSE, False),
    (b"HTTP/1.0 200 OK\r\nX: y\r\n\r\n", False): (200, FRAMING_UNTIL_CLOSE, False),
    (b"HTTP/1.1 503 \r\nTransfer-Encoding: chunked\r\n\r\n", False): (503, FRAMING_CHUNKED, True),
    (b"HTTP/1.1 100 Continue\r\n\r\n", False): (100, FRAMING_NONE, True),
    (b"HTTP/1.1 200\r\n\r\n", False): (200, FRAMING_UNTIL_CLOSE, False),
    (b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nHost: a b\r\nContent-Length: 1\r\n\r\n", False): (200, FRAMING_LENGTH, True),
}


@pytest.mark.parametrize(("case", "expected"), RESPONSES.items())
def test_responses(case: tuple[bytes, bool], expected: tuple[int, int, bool]) -> None:
    head = scan_response(case[0], 0, 8192, 100, case[1])
    assert head is not None
    assert (head.status, head.framing, head.keep_alive) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 99 Low\r\nX: y\r\n\r\n",
        b"HTTP/1.1 600 High\r\nX: y\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\nX: y\r\n\r\n",
        b"HTTP/2 200 OK\r\nX: yyyyyy\r\n\r\n",
        b"ICY 200 OK\r\nX: yyyyyyyy\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nX: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 O\x00K\r\nX: y\r\n\r\n",
        b"HTTP/1.1 200 \xff\r\nX: y\r\n\r\n",
        b"HTTP/1.1 200 OK\nX: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent_Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Type: b\r\n\r\n",
        b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 20x OK\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_responses_refused(data: bytes) -> None:
    with pytest.raises(FramingError):
        scan_response(data, 0, 8192, 100, False)


@given(st.binary(max_size=300))
def test_any_bytes_give_an_answer(data: bytes) -> None:
    outcome(data)
    outcome(b"GET / HTTP/1.1\r\nHost: h\r\n" + data + b"\r\n\r\n")


NAMES = st.text("abcXYZ019-_!", min_size=1, max_size=12).map(str.encode)
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(str.encode)


@given(st.lists(st.tuples(NAMES.map(lambda n: b"x" + n), VALUES), max_size=20))
def test_fields_agree_with_h11(fields: list[tuple[bytes, bytes]]) -> None:
    data = b"GET /p HTTP/1.1\r\nHost: h\r\n" + b"".join(b"%b: %b\r\n" % f for f in fields) + b"\r\n"
    head = request(data)
    assert head is not None
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(data)
    event = peer.next_event()
    assert isinstance(event, h11.Request)
    assert head.fields() == [(bytes(n), bytes(v)) for n, v in event.headers]


@given(st.sets(NAMES.map(bytes.lower), max_size=40), st.sets(NAMES.map(bytes.lower), max_size=3), NAMES)
def test_field_sets_are_sets(names: set[bytes], prefixes: set[bytes], asked: bytes) -> None:
    kept = FieldSet(tuple(names), tuple(prefixes))
    for name in (asked, asked.upper(), *names, b""):
        low = name.lower()
        assert (name in kept) == (low in names or any(low.startswith(prefix) for prefix in prefixes))


@pytest.mark.parametrize("names", [("A",), ("",), ("a" * 64,), tuple(f"n{i}" for i in range(256))])
def test_field_sets_refuse_what_they_cannot_hold(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError):
        FieldSet(tuple(name.encode() for name in names))
