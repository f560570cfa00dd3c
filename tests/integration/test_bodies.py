"""Bodies through both nodes: whole, in pieces, large, refused; always the same bytes at the other end."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from cube_mesh.demo.backend import Script
from tests.support.client import Client, bearer, chat, once
from tests.support.way import Way

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = "/v1/chat/completions"
AUDIO = "/v1/audio/transcriptions"  # streamed, not read whole


@pytest.mark.parametrize("size", [0, 1, 1000, 70_000, 1_000_000, 4_000_000])
async def test_json_arrives_as_it_was_sent(way: Way, size: int) -> None:
    body = chat("é" * (size // 6), z={"deep": [1, 2.50, "\u2028"]})
    reply = await once(way.proxy.port, "POST", f"/{way.red.domain}{CHAT}", bearer(way.red.key), body)
    assert reply.status == 200
    assert bytes(way.backend.requests[0].body) == body


@pytest.mark.parametrize("path", [CHAT, AUDIO])
async def test_a_body_in_many_pieces_is_one_body(way: Way, path: str) -> None:
    """Content-Length and chunked, cut at random places, in chunks of random size."""
    pick = random.Random(path)
    body = chat("in pieces " * 3000)
    for chunked in (False, True):
        way.backend.requests.clear()
        async with await Client.connect(way.proxy.port) as client:
            framing = "transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"
            head = f"POST /{way.red.domain}{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {way.red.key}\r\n"
            wire = f"{head}{framing}\r\n\r\n".encode() + (chunks(body, pick) if chunked else body)
            at = 0
            while at < len(wire):
                size = pick.choice((1, 7, 300, 5000))
                await client.write(wire[at : at + size])
                at += size
            status = await client.status()
        (seen,) = way.backend.requests
        assert hashlib.sha256(seen.body).digest() == hashlib.sha256(body).digest()
        assert status == (200 if path == CHAT else 404)  # the scripted backend transcribes nothing


def chunks(body: bytes, pick: random.Random) -> bytes:
    out, at = b"", 0
    while at < len(body):
        piece = body[at : at + pick.choice((1, 16, 4000))]
        out += b"%x\r\n%b\r\n" % (len(piece), piece)
        at += len(piece)
    return out + b"0\r\n\r\n"


@pytest.mark.parametrize("piece_bytes", [1, 3, 1000])
async def test_a_stream_cut_anywhere_is_the_same_stream(way: Way, piece_bytes: int) -> None:
    target, fields, body = f"/{way.red.domain}{CHAT}", bearer(way.red.key), chat("cut", stream=True)
    whole = await once(way.proxy.port, "POST", target, fields, body)
    way.backend.script = Script(piece_bytes=piece_bytes)
    pieces = await once(way.proxy.port, "POST", target, fields, body)
    assert (whole.whole, pieces.whole) == (True, True)
    assert pieces.body.endswith(b"data: [DONE]\n\n")
    assert texts(pieces.body) == texts(whole.body)


def texts(stream: bytes) -> list[str]:
    """The words of a stream; ids and times differ from one to the next."""
    frames = [json.loads(frame[6:]) for frame in stream.split(b"\n\n") if frame.startswith(b"data: {")]
    return [frame["choices"][0]["delta"].get("content", "") for frame in frames]


async def test_too_large_is_413_and_never_begun(way: Way) -> None:
    body = chat("x" * 4_200_000)
    reply = await once(way.proxy.port, "POST", f"/{way.red.domain}{CHAT}", bearer(way.red.key), body)
    assert (reply.status, reply.json["error"]["code"]) == (413, "body_too_large")
    assert way.backend.requests == []


async def test_100_continue_is_given_when_the_body_is_wanted_and_not_before(way: Way) -> None:
    body = chat("later")
    head = (
        f"POST /{way.red.domain}{CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\nexpect: 100-continue\r\n"
    )
    async with await Client.connect(way.proxy.port) as client:
        await client.write(f"{head}authorization: Bearer {way.red.key}\r\n\r\n".encode())
        assert await client.status() == 100
        await client.write(body)
        assert await client.status() == 200
    async with await Client.connect(way.proxy.port) as client:
        await client.write(f"{head}authorization: Bearer none\r\n\r\n".encode())
        assert await client.status() == 401
    assert len(way.backend.requests) == 1


async def test_pipelined_requests_are_answered_in_order(way: Way) -> None:
    way.backend.script = Script(first_byte_s=0.02)
    one = f"GET /{way.red.domain}/v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {way.red.key}\r\n"
    async with await Client.connect(way.proxy.port) as client:
        await client.write("".join(f"{one}x-request-id: pipe-{n}\r\n\r\n" for n in range(5)).encode())
        heads = [await client.head() for _ in range(5)]
    assert [head.split("x-request-id: ")[1].split("\r\n")[0] for head in heads] == [f"pipe-{n}" for n in range(5)]
    assert all(head.startswith("HTTP/1.1 200") for head in heads)
