"""Chunked bodies and JSON members: tables run whole, byte by byte, with trailing data; h11 and json as oracles."""

from __future__ import annotations

import json

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube_mesh._fastpath import ChunkedReader, frame_chunk, scan_members, value_end
from cube_mesh.errors import FramingError

WANTED = {b"model": "model", b"stream": "stream", b"max_tokens": "max_tokens"}

CHUNKED = {
    b"0\r\n\r\n": b"",
    b"5\r\nhello\r\n0\r\n\r\n": b"hello",
    b"5;a=b\r\nhello\r\n00\r\n\r\n": b"hello",
    b"A\r\n0123456789\r\n1\r\nx\r\n0\r\nX-Sum: v\r\nB: \r\n\r\n": b"0123456789x",
}
BAD_CHUNKED = [
    b"\r\n",
    b"g\r\n",
    b"-1\r\n",
    b"0x5\r\nhello",
    b" 5\r\nhello",
    b"5 \r\nhello",
    b"5\nhello",
    b"5\rhello",
    b"5\r\nhello0",
    b"5\r\nhello\n",
    b"5\r\nhello\r0",
    b"1000000000000\r\n",
    b"5;" + b"a" * 300 + b"\r\n",
    b"5;\x00\r\n",
    b"5;\xc3\xa4\r\n",
    b"1;" + b"a" * 200 + b"\r\nx\r\n" + (b"1;" + b"a" * 200 + b"\r\nx\r\n") * 90,
    b"0\r\nContent-Length: 5\r\n\r\n",
    b"0\r\ncontent_length: 5\r\n\r\n",
    b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"0\r\nHost: h\r\n\r\n",
    b"0\r\nAuthorization: x\r\n\r\n",
    b"0\r\nContent-Type: x\r\n\r\n",
    b"0\r\nX-Cube-Domain: x\r\n\r\n",
    b"0\r\nX: y\r\n z\r\n\r\n",
    b"0\r\n: v\r\n\r\n",
    b"0\r\nA b: v\r\n\r\n",
    b"0\r\nA\r\n\r\n",
    b"0\r\nA: \x00\r\n\r\n",
    b"0\r\nA: " + b"v" * 5000 + b"\r\n\r\n",
    b"0\r\n\rX",
]


def decode(pieces: list[bytes]) -> tuple[bytes, bytes, bool]:
    reader, payload, rest = ChunkedReader(), b"", b""
    for piece in pieces:
        if reader.done:
            rest += piece
            continue
        payload += reader.feed(piece, 0)
        rest += piece[reader.pos :] if reader.done else b""
    return payload, rest, reader.done


@pytest.mark.parametrize(("data", "payload"), CHUNKED.items())
def test_chunked(data: bytes, payload: bytes) -> None:
    assert decode([data]) == (payload, b"", True)
    assert decode([data[i : i + 1] for i in range(len(data))]) == (payload, b"", True)
    assert decode([data + b"NEXT"]) == (payload, b"NEXT", True)
    assert not decode([data[:-1]])[2]


@pytest.mark.parametrize("data", BAD_CHUNKED)
def test_chunked_refused(data: bytes) -> None:
    with pytest.raises(FramingError):
        decode([data])
    with pytest.raises(FramingError):
        decode([data[i : i + 1] for i in range(len(data))])


@given(st.lists(st.binary(min_size=1, max_size=300)), st.lists(st.integers(1, 50)))
def test_our_chunks_are_read_alike_by_us_and_h11(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frame_chunk(p, False) for p in payloads) + frame_chunk(b"", True)
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    pieces.append(data[at:])
    assert decode(pieces) == (b"".join(payloads), b"", True)
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    peer.next_event()
    read = b""
    while isinstance(event := peer.next_event(), h11.Data):
        read += event.data
    assert read == b"".join(payloads)


MEMBERS = {
    b"{}": {},
    b' { "model" : "m" } ': {"model": b'"m"'},
    b'{"a":{"model":"inner"},"model":"m","stream":true}': {"model": b'"m"', "stream": b"true"},
    b'{"messages":[[],{},[{"a":[1,2.5e-3,null,"\\u00e4\\""]}]],"stream":null}': {"stream": b"null"},
    b'{"m\\u006fdel":"m"}': {"model": b'"m"'},
    b'{"a":' + b"[" * 64 + b"]" * 64 + b"}": {},
}
BAD_MEMBERS = {
    b"": "invalid_json",
    b"[]": "invalid_json",
    b'{"model":"m"': "invalid_json",
    b'{"model":"m",}': "invalid_json",
    b'{"model":"m"}x': "invalid_json",
    b'{"model":"m"}{}': "invalid_json",
    b"{'model':1}": "invalid_json",
    b'{"a":01}': "invalid_json",
    b'{"a":.5}': "invalid_json",
    b'{"a":1.}': "invalid_json",
    b'{"a":1e}': "invalid_json",
    b'{"a":-}': "invalid_json",
    b'{"a":NaN}': "invalid_json",
    b'{"a":[1,]}': "invalid_json",
    b'{"a":[1}': "invalid_json",
    b'{"a":"\n"}': "invalid_json",
    b'{"a":"\\x"}': "invalid_json",
    b'{"a":"\\u12g4"}': "invalid_json",
    b'{"a" "b"}': "invalid_json",
    b'\xef\xbb\xbf{"a":1}': "invalid_json",
    b'{"a":"\xff"}': "invalid_utf8",
    b'{"a":"\xc0\xaf"}': "invalid_utf8",
    b'{"a":"\xed\xa0\x80"}': "invalid_utf8",
    b'{"a":"\xf5\x80\x80\x80"}': "invalid_utf8",
    b'{"a":"\xe2\x82"}': "invalid_utf8",
    b'{"model":"a","model":"b"}': "ambiguous_member",
    b'{"Model":"a"}': "ambiguous_member",
    b'{"model":"a","MODEL":"b"}': "ambiguous_member",
    b'{"model":"a","mod\\u0065l":"b"}': "ambiguous_member",
    '{"\u017ftream":true}'.encode(): "ambiguous_member",
    b'{"\\u017ftream":true}': "ambiguous_member",
    '{"max_to\u212aens":1}'.encode(): "ambiguous_member",
    b'{"a":' + b"[" * 65 + b"]" * 65 + b"}": "json_too_deep",
}


@pytest.mark.parametrize(("data", "found"), MEMBERS.items())
def test_members(data: bytes, found: dict[str, bytes]) -> None:
    assert scan_members(data, 0, len(data), WANTED) == found
    assert scan_members(b"xx" + data + b"}}", 2, 2 + len(data), WANTED) == found
    json.loads(data)


@pytest.mark.parametrize(("data", "code"), BAD_MEMBERS.items())
def test_members_refused(data: bytes, code: str) -> None:
    with pytest.raises(FramingError) as refusal:
        scan_members(data, 0, len(data), WANTED)
    assert refusal.value.code == code


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), VALUES), st.booleans())
def test_every_json_object_is_accepted(value: dict[str, object], ascii_only: bool) -> None:
    value = {k: v for k, v in value.items() if k.lower() not in ("model", "stream", "max_tokens")}
    data = json.dumps({**value, "model": "m"}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    assert scan_members(data, 0, len(data), WANTED) == {"model": b'"m"'}
    assert value_end(data + b"]", 0) == len(data)


@given(st.binary(max_size=60))
def test_what_json_refuses_we_refuse(data: bytes) -> None:
    body = b'{"a":' + data + b"}"
    try:
        scan_members(body, 0, len(body), WANTED)
    except FramingError:
        return
    json.loads(body.decode())


@given(st.dictionaries(st.sampled_from("ab"), VALUES, max_size=2), st.integers(0, 200), st.integers(0, 255))
def test_one_changed_byte_never_slips_past_json(value: dict[str, object], at: int, byte: int) -> None:
    data = bytearray(json.dumps(value).encode())
    data[at % len(data)] = byte
    body = bytes(data)
    try:
        scan_members(body, 0, len(body), WANTED)
    except FramingError:
        return
    json.loads(body.decode())
