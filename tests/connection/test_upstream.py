"""What an upstream may send and what becomes of it, as a proxy sees agents and as an agent sees backends."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from cube_mesh.settings import Limits
from tests.connection.test_downstream import OK, POST, SSE, USAGE, error_of
from tests.connection.wire import OTHER, Rig

LIMITS = Limits(max_head_bytes=4096, max_fields=20)
HEAD = b"HTTP/1.1 200 OK\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
both = pytest.mark.parametrize("mesh", [True, False], ids=["of a proxy", "of an agent"])

NO_ANSWER = {
    "nothing": b"",
    "half a head": HEAD + b"Content-Le",
    "garbage": b"\x16\x03\x01\x02\x00garbage\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"<html>hello</html>\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "a status that is none": b"HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n",
    "control bytes in the reason": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
    "a bare line feed": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "a fold": HEAD + b"X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "space before a colon": HEAD + b"Content-Length : 0\r\n\r\n",
    "NUL in a value": HEAD + b"X-A: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "a length and chunks": HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": HEAD + b"Content-Length: 3, 3\r\n\r\nabc",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "another transfer coding": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a head that is too large": HEAD + b"X-A: " + b"a" * 5000,
    "too many fields": HEAD + b"X-A: a\r\n" * 21 + b"Content-Length: 0\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "a flood of 1xx": CONTINUE * 9 + OK,
    "a flood of 1xx in pieces": CONTINUE * 5 + HINTS * 4 + OK,
    "nothing but 1xx": CONTINUE,
    "a large 1xx": b"HTTP/1.1 103 Early Hints\r\nX-A: " + b"a" * 5000 + b"\r\n\r\n" + OK,
}


@both
@pytest.mark.parametrize("cut", [0, 1, 7])
@pytest.mark.parametrize("answer", NO_ANSWER.values(), ids=NO_ANSWER.keys())
async def test_what_is_no_answer_is_a_502(answer: bytes, mesh: bool, cut: int) -> None:
    """Whole or in pieces; the client's connection, which is sound, lives on."""
    rig = Rig(limits=LIMITS, mesh=mesh)
    await rig.send(POST)
    upstream = rig.upstreams.connections[0]
    for at in range(0, len(answer), cut or len(answer) or 1):
        if rig.chain.ended:
            break
        upstream.data_received(answer[at : at + (cut or len(answer))])
    upstream.connection_lost(None)
    assert rig.wire.sent.startswith(b"HTTP/1.1 502 Bad Gateway\r\n") and rig.wire.sent.count(b"HTTP/1.1") == 1
    assert error_of(rig.wire.sent)["code"] in ("upstream_closed", "upstream_protocol_error")
    assert (rig.ended.status, rig.ended.outcome, rig.wire.closed) == (502, "failed", False)
    assert rig.service.admission.running == 0
    await rig.send(POST)
    await rig.answer(OK)
    assert rig.wire.sent.endswith(USAGE), "and a next request is served"


@dataclass(frozen=True)
class Broken:
    """A body that ends wrong after a good head."""

    head: bytes
    body: bytes
    lost: bool = False  # the upstream closes; else the bytes themselves are the fault


BROKEN = {
    "a stream that stops": Broken(SSE, b"9\r\ndata: 1\n\n\r\n", lost=True),
    "a stream within a chunk": Broken(SSE, b"9\r\ndata:", lost=True),
    "a stream that stops before its last chunk ends": Broken(SSE, b"9\r\ndata: 1\n\n\r\n0\r\n", lost=True),
    "a stream with a chunk that is none": Broken(SSE, b"9\r\ndata: 1\n\n\r\nzz\r\n"),
    "a stream with a chunk size beyond reason": Broken(SSE, b"9\r\ndata: 1\n\n\r\nfffffffffffffffff\r\n"),
    "a stream with a negative chunk": Broken(SSE, b"9\r\ndata: 1\n\n\r\n-1\r\n"),
    "a stream with a bare line feed": Broken(SSE, b"9\r\ndata: 1\n\n\n"),
    "a stream with an endless extension": Broken(SSE, b"9\r\ndata: 1\n\n\r\n1;" + b"a" * 20_000),
    "a stream with an endless trailer": Broken(SSE, b"0\r\n" + b"X-A: " + b"a" * 70_000),
    "a stream with a trailer that frames": Broken(SSE, b"9\r\ndata: 1\n\n\r\n0\r\nContent-Length: 5\r\n\r\n"),
    "a body that stops": Broken(OK[: -len(USAGE)], USAGE[:-1], lost=True),
    "chunks that stop": Broken(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", lost=True),
    "chunks that are none": Broken(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabcX"),
}


@both
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN.keys())
async def test_a_body_that_breaks_never_ends_cleanly(case: Broken, mesh: bool, cut: bool) -> None:
    """One terminal frame in a stream of events, a body that stops short otherwise; never the last chunk."""
    rig = Rig(limits=LIMITS, mesh=mesh)
    await rig.send(POST)
    upstream = rig.upstreams.connections[0]
    upstream.data_received(case.head)
    pieces = [case.body[i : i + 1] for i in range(len(case.body))] if cut else [case.body]
    for piece in pieces:
        if not rig.chain.ended:
            upstream.data_received(piece)
    if case.lost:
        upstream.connection_lost(None)
    assert (rig.ended.status, rig.ended.outcome) == (200, "failed") and rig.wire.closed
    assert not rig.wire.sent.endswith(b"0\r\n\r\n")
    frames = [line for line in rig.wire.sent.split(b"\n") if line.startswith(b'data: {"error"')]
    assert len(frames) == (1 if case.head is SSE else 0)
    assert all(json.loads(frame[6:])["error"]["code"].startswith("upstream_") for frame in frames)
    assert b"[DONE]" not in rig.wire.sent and rig.service.admission.running == 0


@both
async def test_1xx_within_reason_are_dropped(mesh: bool) -> None:
    rig = Rig(mesh=mesh)
    await rig.send(POST)
    await rig.answer(CONTINUE + HINTS, HINTS * 6 + OK)
    assert rig.wire.sent.startswith(b"HTTP/1.1 200 OK\r\n") and rig.wire.sent.count(b"HTTP/1.1") == 1
    assert b"link" not in rig.wire.sent.lower()


HEADLESS = b"HEAD /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"


@both
async def test_the_answer_to_head_has_a_length_and_no_body(mesh: bool) -> None:
    rig = Rig(OTHER, mesh=mesh)
    await rig.send(HEADLESS)
    await rig.answer(OK[: -len(USAGE)])
    assert rig.wire.sent.endswith(b"content-length: 51\r\n\r\n") and not rig.up.closed
    await rig.send(HEADLESS)
    await rig.answer(OK)
    assert rig.up.closed and USAGE not in rig.wire.sent, "a body where none may be: this connection is not used"
    assert rig.wire.sent.count(b"HTTP/1.1 200") == 2


@both
@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_statuses_without_a_body(status: bytes, mesh: bool) -> None:
    rig = Rig(OTHER, mesh=mesh)
    await rig.send(HEADLESS.replace(b"HEAD", b"GET"))
    await rig.answer(b"HTTP/1.1 " + status + b"\r\n\r\n" + b"surplus")
    assert rig.wire.sent.startswith(b"HTTP/1.1 " + status[:3]) and b"surplus" not in rig.wire.sent
    assert rig.up.closed and not rig.wire.closed


@both
async def test_an_answer_that_overtakes_its_request(mesh: bool) -> None:
    """It is passed on, and neither connection is used again: what is left of the request must not be read as one."""
    rig = Rig(OTHER, mesh=mesh)
    await rig.send(b"POST /v1/audio HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\n\r\nabcd")
    await rig.answer(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
    assert rig.wire.sent.startswith(b"HTTP/1.1 413 ") and rig.up.aborted and rig.wire.eof


@both
async def test_an_upstream_that_leaves_in_the_middle_of_a_request(mesh: bool) -> None:
    rig = Rig(OTHER, mesh=mesh)
    await rig.send(b"POST /v1/audio HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\n\r\nabcd")
    rig.upstreams.connections[0].connection_lost(ConnectionResetError("reset"))
    assert rig.wire.sent.startswith(b"HTTP/1.1 502 ") and rig.wire.eof and rig.ended.status == 502
    await rig.send(b"efgh" + POST)
    assert len(rig.chain.ended) == 1, "what followed was the rest of a body"


INTERNAL = (
    b"X-Attestation-Ok: true", b"x-cube-domain: d", b"X-ATLS-Mode: m", b"X-Tls-Version: 9",
    b"X-Guardrails-Result: pass",
    b"X-Event-Type: e", b"X-Domain-Id: d", b"X-Request-Id: theirs", b"Set-Cookie: a=b", b"Alt-Svc: h3",
    b"Access-Control-Allow-Origin: *", b"Keep-Alive: 5", b"Proxy-Authenticate: x", b"Trailer: x", b"Connection: x-mine",
    b"X-Mine: named by connection",
)  # fmt: skip


@both
@pytest.mark.parametrize("field", INTERNAL, ids=lambda field: field.partition(b":")[0].decode().lower())
async def test_fields_that_do_not_cross_to_the_client(field: bytes, mesh: bool) -> None:
    rig = Rig(mesh=mesh)
    await rig.send(POST)
    named = b"Connection: x-mine\r\n" if field.startswith(b"X-Mine") else b""
    await rig.answer(OK.replace(b"Content-Type", named + field + b"\r\nX-Passes: yes\r\nContent-Type"))
    name = field.partition(b":")[0].lower()
    lines = [line.partition(b":")[0].lower() for line in rig.wire.sent.split(b"\r\n")]
    assert b"x-passes" in lines
    assert name not in lines or (name == b"x-request-id" and b"theirs" not in rig.wire.sent)
