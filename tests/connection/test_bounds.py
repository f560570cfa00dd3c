"""Bounds and deadlines of one connection: every limit by a case where only it is exceeded, and what stays behind."""

from __future__ import annotations

import asyncio
import math

import pytest

from cube_mesh.connection import Downstream
from cube_mesh.message import Response
from cube_mesh.settings import Limits, Timeouts
from tests.connection.test_downstream import ANSWER, BODY, OK, POST, SENT, SSE, error_of
from tests.connection.wire import OTHER, Rig, Wire, settle

UPLOAD = b"POST /v1/audio HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n"
LATER = math.inf  # past every deadline
BEFORE = -math.inf  # before that of the whole request


# -- connections


def another(rig: Rig) -> tuple[Downstream, Wire]:
    down, wire = Downstream(rig.service), Wire()
    down.connection_made(wire)
    return down, wire


@pytest.mark.parametrize(
    ("limits", "limit"),
    [(Limits(max_connections=2), "connections"), (Limits(max_connections_per_address=2), "address")],
)
async def test_one_connection_too_many_is_answered_503_and_the_next_may_come(limits: Limits, limit: str) -> None:
    rig = Rig(limits=limits)
    second, wire = another(rig)
    third, refused = another(rig)
    assert not rig.wire.closed and not wire.closed and refused.closed
    assert refused.sent.startswith(b"HTTP/1.1 503 ") and error_of(refused.sent)["code"] == "overloaded"
    assert b"retry-after: 1\r\nx-should-retry: true\r\n" in refused.sent
    third.connection_lost(None)
    second.connection_lost(None)
    assert not another(rig)[1].closed
    assert rig.service.admission.refused[limit] == 1
    assert rig.service.admission.connections == 2


async def test_what_a_closed_connection_does_not_take_is_not_kept_for_ever() -> None:
    rig = Rig(limits=Limits(max_connections=1))
    down, wire = another(rig)
    assert wire.closed and down.deadline < math.inf
    down.on_deadline(BEFORE)
    assert wire.aborted


async def test_the_counts_end_at_zero_however_connections_end() -> None:
    rig = Rig()
    admission = rig.service.admission
    others = [another(rig)[0] for _ in range(3)]
    others[0].data_received(POST)
    others[1].data_received(POST[:50])
    others[2].data_received(b"nonsense\r\n\r\n")
    assert (admission.connections, admission.running) == (4, 1)
    await rig.send(POST)
    assert admission.running == 2
    for down in [*others, rig.down]:
        down.connection_lost(None)
    assert (admission.connections, admission.running, admission._by_address) == (0, 0, {})


# -- pipelining


async def test_refused_pipelining_answers_the_first_and_closes() -> None:
    rig = Rig(pipelining=False)
    await rig.send(POST + POST)
    assert rig.up.take() == SENT
    await rig.answer(OK)
    assert rig.wire.sent.count(b"HTTP/1.1 ") == 1 and b"connection: close\r\n" in rig.wire.sent
    assert rig.wire.eof and len(rig.chain.ended) == 1 and rig.protocol_errors == ["pipelining_refused"]


@pytest.mark.parametrize("wait", [False, True], ids=["while it runs", "after a refusal"])
async def test_refused_pipelining_in_a_read_of_its_own(wait: bool) -> None:
    rig = Rig(pipelining=False)
    if wait:
        rig.chain.verdict = Response(403, b"{}")
        rig.chain.on_leave = lambda exchange, done: None
    await rig.send(POST, POST)
    assert rig.protocol_errors == ["pipelining_refused"]
    assert len(rig.upstreams.wires) == (0 if wait else 1)


async def test_without_pipelining_requests_one_after_the_other_are_served() -> None:
    rig = Rig(pipelining=False)
    for _ in range(3):
        await rig.send(POST[:40], POST[40:])
        await rig.answer(OK)
    assert rig.wire.sent == ANSWER * 3 and not rig.protocol_errors and not rig.wire.closed


async def test_a_body_behind_a_waiting_gate_is_not_pipelining() -> None:
    rig = Rig(pipelining=False)
    admitted = asyncio.Event()

    async def later() -> None:
        await admitted.wait()

    rig.chain.verdict = later()
    await rig.send(POST[: -len(BODY)], BODY)
    admitted.set()
    await settle()
    assert rig.up.sent == SENT and not rig.protocol_errors


async def test_a_large_body_behind_a_waiting_gate_is_read_on() -> None:
    """It pauses reading at the bound, and goes on when the gate has answered."""
    rig = Rig()
    admitted = asyncio.Event()

    async def later() -> None:
        await admitted.wait()

    rig.chain.verdict = later()
    body = b'{"model":"m","x":"' + b"a" * 100_000 + b'"}'
    await rig.send(POST[: POST.index(b"Content-Length")] + b"Content-Length: %d\r\n\r\n" % len(body), body[:60_000])
    assert rig.wire.paused
    admitted.set()
    await settle()
    assert not rig.wire.paused
    await rig.send(body[60_000:])
    assert rig.up.sent.endswith(body)


# -- the pace of bodies, and the whole request


async def test_a_streamed_body_must_keep_its_pace_in_every_window() -> None:
    rig = Rig(OTHER, Limits(min_body_bytes_per_s=10), Timeouts(body_s=10.0))
    await rig.send(UPLOAD + b"a" * 100)
    rig.down.on_deadline(BEFORE)
    assert not rig.wire.sent and rig.down.deadline < math.inf
    await rig.send(b"a" * 99)
    rig.down.on_deadline(BEFORE)
    assert error_of(rig.wire.sent)["code"] == "request_timeout" and rig.ended.status == 408
    assert rig.up.aborted and rig.wire.eof


async def test_a_client_that_may_not_send_keeps_any_pace() -> None:
    rig = Rig(OTHER)
    await rig.send(UPLOAD + b"a")
    rig.upstreams.connections[0].pause_writing()
    assert rig.wire.paused
    rig.down.on_deadline(BEFORE)
    assert not rig.wire.sent and rig.down.deadline < math.inf


async def test_an_upstream_that_does_not_take_the_request_fails_it() -> None:
    rig = Rig(OTHER, timeouts=Timeouts(write_s=3.0))
    await rig.send(UPLOAD + b"a")
    up = rig.upstreams.connections[0]
    assert up.deadline == math.inf
    up.pause_writing()
    assert up.deadline < math.inf
    up.resume_writing()
    assert up.deadline == math.inf and not rig.wire.paused
    up.pause_writing()
    up.on_deadline(LATER)
    assert rig.ended.status == 504 and rig.up.aborted


async def test_a_body_that_is_read_whole_has_one_window() -> None:
    rig = Rig(limits=Limits(min_body_bytes_per_s=1))
    await rig.send(POST[:-1])
    rig.down.on_deadline(BEFORE)
    assert rig.ended.status == 408


async def test_every_stage_of_a_request_has_the_deadline_of_the_whole() -> None:
    """Whatever is awaited: a gate, a body, a connection, an answer, the rest of an answer."""
    timeouts = Timeouts(total_s=1.0)

    async def for_ever() -> None:
        await asyncio.Event().wait()

    gate = Rig(timeouts=timeouts)
    gate.chain.verdict = for_ever()
    body, connection, first, stream = (Rig(timeouts=timeouts) for _ in range(4))
    connection.upstreams.gate.clear()
    await gate.send(POST[:-1])
    await body.send(POST[:-1])
    for rig in (connection, first, stream):
        await rig.send(POST)
    await stream.answer(SSE + b"9\r\ndata: 1\n\n\r\n")
    for rig in (gate, body, connection, first, stream):
        deadline = rig.down.deadline
        assert deadline < math.inf
        rig.down.on_deadline(deadline + 0.001)
        await settle()
        (ended,) = rig.chain.ended
        assert ended.error is not None and ended.error.code == "request_deadline", rig
        assert rig.service.admission.running == 0 and all(wire.aborted for wire in rig.upstreams.wires)
        assert rig.wire.sent.count(b"request_deadline") == 1
    for rig in (gate, body):
        assert rig.wire.sent.startswith(b"HTTP/1.1 504 ") and b"connection: close" in rig.wire.sent and rig.wire.eof
    for rig in (connection, first):
        assert rig.wire.sent.startswith(b"HTTP/1.1 504 ") and not rig.wire.closed
    assert stream.wire.closed and stream.ended.status == 200 and stream.ended.outcome == "failed"


async def test_the_deadline_of_the_whole_does_not_outlive_the_request() -> None:
    rig = Rig(timeouts=Timeouts(total_s=1.0, idle_s=1000.0))
    await rig.send(POST)
    await rig.answer(OK)
    assert rig.down.deadline > rig.ended.started_at + 100


# -- slow readers


async def test_a_reader_that_takes_nothing_is_given_no_second_answer() -> None:
    """Pipelined requests of a client that does not read wait: else each adds an answer to what is unsent."""
    rig = Rig()
    await rig.send(POST + POST + POST)
    rig.upstreams.connections[0].data_received(OK)
    rig.down.pause_writing()
    await settle()
    assert rig.wire.sent == ANSWER and rig.up.sent == SENT and rig.wire.paused
    rig.down.data_received(POST)  # what the loop had read already
    await settle()
    assert rig.wire.sent == ANSWER and rig.up.sent == SENT
    rig.down.resume_writing()
    await settle()
    assert rig.up.sent == SENT * 2


async def test_a_large_answer_holds_the_next_request_back() -> None:
    rig = Rig()
    rig.wire.write = _pausing(rig)  # type: ignore[method-assign]
    await rig.send(POST + POST)
    await rig.answer(OK)
    assert rig.up.sent == SENT and rig.wire.paused, "the answer filled the buffer: no further request, no reading"
    assert rig.down.deadline < math.inf
    rig.down.resume_writing()
    await settle()
    assert rig.up.sent == SENT * 2 and not rig.wire.paused


def _pausing(rig: Rig):  # type: ignore[no-untyped-def]
    real = Wire.write

    def write(data: bytes) -> None:
        real(rig.wire, data)
        rig.down.pause_writing()

    return write


# -- lingering


async def test_lingering_is_bounded_in_bytes() -> None:
    rig = Rig(limits=Limits(max_json_body=10, max_linger_bytes=1000, max_body_bytes=10))
    await rig.send(
        POST[: POST.index(b"Content-Length")] + b"Transfer-Encoding: chunked\r\n\r\n" + b"b\r\n{          \r\n"
    )
    assert error_of(rig.wire.sent)["code"] == "body_too_large" and rig.wire.eof and not rig.wire.closed
    await rig.send(b"x" * 1000)
    assert not rig.wire.aborted
    await rig.send(b"x")
    assert rig.wire.aborted


async def test_lingering_is_bounded_in_time() -> None:
    rig = Rig()
    await rig.send(b"nonsense\r\n\r\n")
    assert rig.down.deadline < math.inf and not rig.wire.closed
    await rig.send(b"more")
    rig.down.on_deadline(BEFORE)
    assert rig.wire.aborted


async def test_lingering_without_half_close_waits_for_the_client() -> None:
    """Over TLS a half-close would end both directions; the answer's framing and ``connection: close`` tell its end."""
    rig = Rig()
    rig.wire.can_write_eof = lambda: False  # type: ignore[method-assign]
    await rig.send(b"nonsense\r\n\r\n")
    assert b"connection: close\r\n" in rig.wire.sent and not rig.wire.eof and not rig.wire.closed
    rig.down.on_deadline(BEFORE)
    assert rig.wire.aborted
