"""Playbooks of one connection: bytes in, bytes out, and one end for every exchange."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter

import pytest

from cube_mesh._fastpath import ChunkedReader, frame_chunk
from cube_mesh.errors import DependencyError
from cube_mesh.exchange import Exchange
from cube_mesh.message import Response
from cube_mesh.ports import Done
from cube_mesh.settings import Limits
from tests.connection.wire import OTHER, Rig, settle
from tests.middleware.fakes import channel

BODY = b'{"model":"m"}'
POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer secret\r\nContent-Length: 13\r\n\r\n"
    + BODY
)
SENT = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: up:1\r\nx-request-id: r1\r\n"
    b"traceparent: 00-00000000000000000000000000000001-0000000000000001-00\r\ncontent-length: 13\r\n\r\n" + BODY
)
USAGE = b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 51\r\n\r\n" + USAGE
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: r1\r\ncontent-length: 51\r\n\r\n" + USAGE
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def error_of(wire_bytes: bytes) -> dict[str, object]:
    error: dict[str, object] = json.loads(wire_bytes.partition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("cut", [len(POST), 1, 7, len(POST) - 1])
async def test_a_request_however_it_is_cut(cut: int) -> None:
    rig = Rig()
    await rig.send(*[POST[i : i + cut] for i in range(0, len(POST), cut)])
    assert rig.up.take() == SENT
    await rig.answer(*[OK[i : i + cut] for i in range(0, len(OK), cut)])
    assert rig.wire.take() == ANSWER
    assert (rig.ended.outcome, rig.ended.status, rig.ended.model) == ("completed", 200, "m")
    assert (rig.ended.input_tokens, rig.ended.output_tokens) == (3, 4)
    assert (rig.ended.request_size, rig.ended.response_size) == (13, 51)
    assert not rig.wire.closed


async def test_a_warm_connection_serves_without_a_task() -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(OK)
    tasks = asyncio.all_tasks()
    rig.down.data_received(POST)
    assert rig.up.sent == SENT * 2 and asyncio.all_tasks() == tasks
    rig.upstreams.connections[0].data_received(OK)
    assert rig.wire.sent == ANSWER * 2 and asyncio.all_tasks() == tasks
    assert len(rig.upstreams.wires) == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    rig = Rig()
    await rig.send(POST * 3)
    for turn in range(3):
        assert rig.up.take() == SENT
        await rig.answer(OK)
        assert rig.wire.take() == ANSWER
        assert len(rig.chain.ended) == turn + 1


async def test_many_pipelined_refusals_do_not_recurse() -> None:
    rig = Rig()
    rig.chain.verdict = Response(403, b"{}")
    await rig.send(POST * 3000)
    for _ in range(3000):
        await asyncio.sleep(0)
    assert len(rig.chain.ended) == 3000


async def test_a_chunked_json_body_goes_on_with_its_length() -> None:
    rig = Rig()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    await rig.send(head + b"6;x=y\r\n" + BODY[:6] + b"\r\n7\r\n", BODY[6:] + b"\r\n0\r\n\r\n")
    assert rig.up.take() == SENT


@pytest.mark.parametrize("chunked", [False, True])
async def test_other_bodies_stream(chunked: bool) -> None:
    rig = Rig(OTHER)
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 8"
    pieces = [b"4\r\nabcd\r\n", b"4\r\nefgh\r\n", b"0\r\n\r\n"] if chunked else [b"abcd", b"efgh"]
    await rig.send(b"POST /v1/audio HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n" + pieces[0])
    sent = rig.up.take()
    assert sent.endswith(framing.lower() + b"\r\n\r\n" + pieces[0])
    await rig.send(*pieces[1:])
    assert rig.up.take() == b"".join(pieces[1:])
    await rig.answer(OK)
    assert rig.ended.request_size == 8 and not rig.wire.closed


async def test_early_answer_to_a_streamed_body_closes_the_connection() -> None:
    rig = Rig(OTHER)
    await rig.send(b"POST /v1/audio HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\n\r\nabcd")
    await rig.answer(OK)
    assert b"connection: close\r\n" in rig.wire.sent and rig.wire.eof
    assert rig.up.closed, "a connection with half a request on it must not be used again"
    await rig.send(b"efgh" + POST)
    assert len(rig.chain.ended) == 1


async def test_expect_continue_is_answered_only_after_the_gates() -> None:
    rig = Rig()
    head = POST[: -len(BODY)].replace(b"Host", b"Expect: 100-continue\r\nHost")
    await rig.send(head)
    assert rig.wire.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    await rig.send(BODY)
    assert rig.up.take() == SENT
    refusing = Rig()
    refusing.chain.verdict = Response(401, b"{}")
    await refusing.send(head)
    assert refusing.wire.sent.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
    assert refusing.wire.eof and not refusing.upstreams.wires


@pytest.mark.parametrize("cut", [1, 7, len(POST) - len(BODY), len(POST)])
async def test_a_refused_body_is_skipped_however_it_comes(cut: int) -> None:
    rig = Rig()
    rig.chain.verdict = Response(403, b"{}")
    twice = POST * 2
    await rig.send(*[twice[i : i + cut] for i in range(0, len(twice), cut)])
    await settle()
    assert [one.status for one in rig.chain.ended] == [403, 403]
    rig.chain.verdict = None
    await rig.send(POST)
    assert rig.up.take() == SENT and not rig.wire.closed


@pytest.mark.parametrize(
    ("field", "status"),
    [(b"Content-Length: 4194305", 403), (b"Transfer-Encoding: chunked", 403), (b"Content-Length: 9", 413)],
)
async def test_a_refused_body_that_is_long_unbounded_or_too_much_closes(field: bytes, status: int) -> None:
    rig = Rig()
    rig.chain.verdict = Response(status, b"{}")
    await rig.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n" + field + b"\r\n\r\n")
    assert b"\r\nconnection: close\r\n" in rig.wire.take() and rig.wire.eof


async def test_a_refused_body_that_does_not_come_is_waited_for_a_moment() -> None:
    rig = Rig()
    rig.chain.verdict = Response(403, b"{}")
    await rig.send(POST[:-1])
    linger, idle = rig.service.timeouts.linger_s, rig.service.timeouts.idle_s
    assert rig.down.deadline < perf_counter() + linger
    await rig.send(POST[-1:])
    assert rig.down.deadline > perf_counter() + idle - linger


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"model":"a","Model":"b"}', "ambiguous_member"),
        (b'{"model":', "invalid_json"),
        (b'{"model":7}', "invalid_member"),
    ],
)
async def test_a_body_we_cannot_trust_is_refused_and_the_connection_lives(body: bytes, code: str) -> None:
    rig = Rig()
    await rig.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert rig.wire.sent.startswith(b"HTTP/1.1 400 ") and error_of(rig.wire.sent)["code"] == code
    assert rig.ended.outcome == "refused" and not rig.upstreams.wires and not rig.wire.closed


async def test_a_json_body_over_the_limit_is_refused_when_it_is_known() -> None:
    rig = Rig(limits=Limits(max_json_body=10))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    await rig.send(head + b"b\r\n{          \r\n")
    assert error_of(rig.wire.sent)["code"] == "body_too_large" and rig.wire.eof
    assert rig.ended.status == 413


async def test_no_request_at_all() -> None:
    rig = Rig()
    await rig.send(b"NONSENSE\r\n\r\n", POST)
    assert rig.wire.sent.startswith(b"HTTP/1.1 400 ") and rig.wire.eof
    assert rig.protocol_errors == ["bad_request_line"] and not rig.chain.ended


# -- streams


def unchunked(sent: bytes) -> bytes:
    """The body so far of a chunked answer."""
    return ChunkedReader().feed(sent, sent.index(b"\r\n\r\n") + 4)


async def test_events_go_out_as_they_come() -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(SSE + b"9\r\ndata: 1\n\n\r\n")
    head, _, first = rig.wire.take().partition(b"\r\n\r\n")
    assert b"x-accel-buffering: no" in head and first == b"9\r\ndata: 1\n\n\r\n"
    await rig.answer(b"9\r\ndata: 2\n\n\r\n")
    assert rig.wire.take() == b"9\r\ndata: 2\n\n\r\n"
    assert not rig.chain.ended
    await rig.answer(b"0\r\n\r\n")
    assert rig.wire.take() == b"0\r\n\r\n"
    assert rig.ended.streamed and rig.ended.outcome == "completed"


DONE = b"data: 1\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("cut", [1, 3, 13, 22, len(DONE)])
async def test_a_client_sees_done_only_when_the_event_is_on_record(cut: int) -> None:
    rig = Rig()
    waiting: list[Done] = []
    rig.chain.on_leave = lambda exchange, done: waiting.append(done)
    await rig.send(POST)
    await rig.answer(SSE, *[frame_chunk(DONE[i : i + cut], False) for i in range(0, len(DONE), cut)])
    assert b"[DONE]\n" not in unchunked(rig.wire.sent) and not waiting
    await rig.answer(b"0\r\n\r\n")
    assert b"[DONE]\n" not in unchunked(rig.wire.sent)
    waiting[0](None)
    assert unchunked(rig.wire.sent) == DONE and rig.wire.sent.endswith(b"0\r\n\r\n")
    assert (rig.ended.outcome, rig.ended.response_size) == ("completed", len(DONE))


async def test_a_stream_that_comes_in_one_piece_without_its_last_chunk() -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(SSE + frame_chunk(DONE, False))
    assert rig.wire.sent.endswith(b"\r\n\r\n") and unchunked(rig.wire.sent) == b""
    await rig.answer(b"0\r\n\r\n")
    assert unchunked(rig.wire.sent) == DONE


@pytest.mark.parametrize("how", ["closed", "silent"])
async def test_after_done_an_answer_is_whole_without_its_last_chunk(how: str) -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(SSE + frame_chunk(DONE, False))
    upstream = rig.upstreams.connections[0]
    assert upstream.deadline < 1e9, "it is not waited for without limit"
    upstream.connection_lost(None) if how == "closed" else upstream.on_deadline(0.0)
    assert unchunked(rig.wire.sent) == DONE and rig.wire.sent.endswith(b"0\r\n\r\n")
    assert (rig.ended.outcome, rig.ended.error) == ("completed", None) and not rig.wire.closed


async def test_a_stream_for_an_old_client_ends_with_the_connection() -> None:
    rig = Rig()
    await rig.send(POST.replace(b"HTTP/1.1", b"HTTP/1.0"))
    await rig.answer(SSE + b"9\r\ndata: 1\n\n\r\n", b"0\r\n\r\n")
    assert rig.wire.sent.endswith(b"connection: close\r\n\r\ndata: 1\n\n") and rig.wire.closed


async def test_the_event_is_written_before_the_last_byte() -> None:
    rig = Rig()
    order: list[bytes] = []

    def record(exchange: Exchange, done: Done) -> None:
        order.append(rig.wire.take())
        done(None)

    rig.chain.on_leave = record
    await rig.send(POST)
    await rig.answer(SSE + b"9\r\ndata: 1\n\n\r\n", b"0\r\n\r\n")
    assert order[0].endswith(b"data: 1\n\n\r\n") and rig.wire.sent == b"0\r\n\r\n"


async def test_an_answer_waits_for_a_durable_event() -> None:
    rig = Rig()
    waiting: list[Done] = []
    rig.chain.on_leave = lambda exchange, done: waiting.append(done)
    await rig.send(POST)
    await rig.answer(OK)
    assert rig.wire.sent == b""
    waiting[0](None)
    assert rig.wire.sent == ANSWER


@pytest.mark.parametrize("later", [False, True])
async def test_what_is_not_on_record_is_not_answered(later: bool) -> None:
    rig = Rig()
    waiting: list[Done] = []
    full = DependencyError("audit_unavailable", "Not now.", status=503)
    rig.chain.on_leave = lambda exchange, done: waiting.append(done) if later else done(full)
    await rig.send(POST)
    await rig.answer(OK)
    for done in waiting:
        done(full)
    assert error_of(rig.wire.sent)["code"] == "audit_unavailable" and rig.wire.closed
    assert USAGE not in rig.wire.sent


# -- failures


@pytest.mark.parametrize(
    ("answer", "code", "status"),
    [
        (b"", "upstream_closed", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "upstream_closed", 502),
        (b"garbage garbage garbage\r\n\r\n", "upstream_protocol_error", 502),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 9, "upstream_protocol_error", 502),
    ],
)
async def test_before_the_first_byte_a_failure_is_a_status(answer: bytes, code: str, status: int) -> None:
    rig = Rig()
    await rig.send(POST)
    if answer:
        await rig.answer(answer)
    rig.upstreams.connections[0].connection_lost(None)
    assert error_of(rig.wire.sent)["code"] == code
    assert (rig.ended.status, rig.ended.outcome) == (status, "failed")
    assert not rig.wire.closed, "the client's connection is sound"


async def test_after_the_first_byte_a_stream_ends_with_one_error_frame() -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(SSE + b"9\r\ndata: 1\n\n\r\n")
    rig.wire.take()
    rig.upstreams.connections[0].connection_lost(ConnectionResetError("reset"))
    size, _, rest = rig.wire.sent.partition(b"\r\n")
    assert rest[: int(size, 16)].startswith(b"data: ") and rest[: int(size, 16)].endswith(b"\n\n")
    assert json.loads(rest[6 : int(size, 16)])["error"]["code"] == "upstream_closed"
    assert rest[int(size, 16) :] == b"\r\n", "no last chunk: not a clean end"
    assert rig.wire.closed and rig.ended.outcome == "failed"


async def test_an_error_frame_of_the_upstream_is_the_only_one() -> None:
    rig = Rig()
    await rig.send(POST)
    frame = b'data: {"error":{"message":"m","type":"t","param":null,"code":"c"}}\n\n'
    await rig.answer(SSE + frame_chunk(b"data: 1\n\n" + frame, False))
    rig.upstreams.connections[0].connection_lost(None)
    assert rig.wire.sent.count(b'data: {"error"') == 1 and rig.wire.closed
    assert rig.ended.outcome == "failed"


async def test_after_the_first_byte_any_other_body_stops_short() -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(OK[:-10])
    rig.upstreams.connections[0].connection_lost(None)
    assert rig.wire.sent.endswith(USAGE[:-10]) and rig.wire.closed
    assert rig.ended.outcome == "failed"


async def test_bad_chunks_in_a_stream() -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(SSE + b"9\r\ndata: 1\n\n\r\n", b"zz\r\n")
    assert b"upstream_protocol_error" in rig.wire.sent and rig.up.aborted and rig.wire.closed


async def test_a_client_that_leaves_takes_the_upstream_with_it() -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(SSE)
    rig.down.connection_lost(None)
    assert rig.up.aborted and rig.ended.outcome == "cancelled" and rig.ended.status == 200
    early = Rig()
    await early.send(POST)
    early.down.connection_lost(None)
    assert early.up.aborted and early.ended.status == 499


async def test_a_client_that_leaves_while_we_connect() -> None:
    rig = Rig()
    rig.upstreams.gate.clear()
    await rig.send(POST)
    rig.down.connection_lost(None)
    rig.upstreams.gate.set()
    await settle()
    assert not rig.upstreams.wires and rig.ended.outcome == "cancelled"


async def test_a_client_that_leaves_while_its_event_is_made_durable() -> None:
    rig = Rig()
    waiting: list[Done] = []
    rig.chain.on_leave = lambda exchange, done: waiting.append(done)
    await rig.send(POST)
    await rig.answer(OK)
    rig.down.connection_lost(None)
    waiting[0](None)
    assert rig.ended.outcome == "completed" and not rig.up.aborted


@pytest.mark.parametrize(
    ("failure", "code", "status"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "upstream_unreachable", 502),
        (TimeoutError(), "upstream_connect_timeout", 504),
        (DependencyError("attestation_failed", "No.", status=503), "attestation_failed", 503),
    ],
)
async def test_no_connection(failure: Exception, code: str, status: int) -> None:
    rig = Rig()
    rig.upstreams.fail = failure
    await rig.send(POST)
    assert error_of(rig.wire.sent)["code"] == code and rig.ended.status == status


async def test_gates_may_wait() -> None:
    rig = Rig()
    admitted = asyncio.Event()

    async def later() -> Response | None:
        await admitted.wait()
        return None

    rig.chain.verdict = later()
    await rig.send(POST[:-5], POST[-5:])
    assert not rig.upstreams.wires
    admitted.set()
    await settle()
    assert rig.up.take() == SENT


# -- deadlines


async def test_deadlines() -> None:
    idle = Rig()
    idle.down.on_deadline(0.0)
    assert idle.wire.aborted and not idle.wire.sent

    head = Rig()
    await head.send(POST[:9])
    head.down.on_deadline(0.0)
    assert head.wire.sent.startswith(b"HTTP/1.1 408 ") and head.wire.eof
    head.down.on_deadline(0.0)
    assert head.wire.aborted, "lingering has an end"

    body = Rig()
    await body.send(POST[:-5])
    body.down.on_deadline(0.0)
    assert body.wire.sent.startswith(b"HTTP/1.1 408 ") and body.ended.status == 408

    first = Rig()
    await first.send(POST)
    first.upstreams.connections[0].on_deadline(0.0)
    assert error_of(first.wire.sent)["code"] == "upstream_timeout" and first.ended.status == 504

    gap = Rig()
    await gap.send(POST)
    await gap.answer(SSE)
    gap.upstreams.connections[0].on_deadline(0.0)
    assert b"upstream_stream_timeout" in gap.wire.sent and gap.up.aborted


async def test_a_slow_reader_pauses_the_upstream_and_is_cut_in_the_end() -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(SSE)
    rig.down.pause_writing()
    assert rig.up.paused
    rig.down.resume_writing()
    assert not rig.up.paused
    rig.down.pause_writing()
    rig.down.on_deadline(0.0)
    assert rig.wire.aborted


async def test_a_slow_upstream_pauses_a_streaming_client() -> None:
    rig = Rig(OTHER)
    await rig.send(b"POST /v1/audio HTTP/1.1\r\nHost: h\r\nContent-Length: 8\r\n\r\nabcd")
    rig.upstreams.connections[0].pause_writing()
    assert rig.wire.paused
    rig.upstreams.connections[0].resume_writing()
    assert not rig.wire.paused


# -- keeping connections


@pytest.mark.parametrize("surplus", [b"x", b"HTTP/1.1 200 OK\r\n"])
async def test_bytes_behind_a_response_end_the_connection(surplus: bytes) -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(OK + surplus)
    assert rig.wire.sent == ANSWER and rig.up.closed


async def test_unasked_bytes_end_an_idle_connection() -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(OK)
    await rig.answer(b"HTTP/1.1 408 Timeout\r\n\r\n")
    assert rig.up.aborted


async def test_a_connection_that_closed_while_idle_is_not_used() -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(OK)
    rig.up.closed = True
    await rig.send(POST)
    assert len(rig.upstreams.wires) == 2


@pytest.mark.parametrize(
    ("head", "framing"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"\r\nx-request-id: r1\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"content-length: 0\r\n\r\n"),
    ],
)
async def test_answers_without_a_body(head: bytes, framing: bytes) -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + head)
    assert rig.wire.sent.endswith(framing)


async def test_head_requests_keep_the_length_and_have_no_body() -> None:
    rig = Rig(OTHER)
    await rig.send(b"HEAD /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
    await rig.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 44\r\n\r\n")
    assert rig.wire.sent.endswith(b"content-length: 44\r\n\r\n")
    await rig.send(POST)
    assert rig.up.sent.endswith(BODY)


async def test_draining_finishes_what_runs() -> None:
    busy, idle = Rig(), Rig()
    await busy.send(POST)
    busy.service.drain()
    assert not busy.wire.closed
    await busy.answer(OK)
    assert b"connection: close" in busy.wire.sent and busy.wire.closed
    idle.service.drain()
    assert 0.5 < idle.down.deadline - perf_counter() <= 1.0
    idle.down.on_deadline(perf_counter())
    assert idle.wire.closed and not idle.wire.sent


async def test_a_stream_that_had_begun_before_draining_leaves_a_moment_for_the_next_request() -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(SSE)
    rig.service.drain()
    await rig.answer(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    assert not rig.wire.closed and rig.down.deadline - perf_counter() <= 1.0
    await rig.send(POST)
    await rig.answer(OK)
    assert b"connection: close" in rig.wire.sent and rig.wire.closed


async def test_a_request_that_was_under_way_when_draining_began_is_answered() -> None:
    rig = Rig()
    rig.service.drain()
    await rig.send(POST)
    await rig.answer(OK)
    assert rig.wire.sent.startswith(b"HTTP/1.1 200 ") and b"connection: close" in rig.wire.sent and rig.wire.closed


async def test_the_end_of_draining_cuts_with_an_honest_end() -> None:
    waiting, streaming = Rig(), Rig()
    await waiting.send(POST)
    waiting.service.cut()
    assert error_of(waiting.wire.sent)["code"] == "shutting_down" and waiting.ended.status == 503
    await streaming.send(POST)
    await streaming.answer(SSE + b"9\r\ndata: 1\n\n\r\n")
    streaming.service.cut()
    assert b'"code":"shutting_down"' in streaming.wire.sent and streaming.wire.closed
    assert streaming.ended.outcome == "failed" and streaming.up.aborted


async def test_claims_about_attestation_do_not_cross() -> None:
    rig = Rig()
    await rig.send(
        POST.replace(b"Host: h", b"Host: h\r\nX-Attestation-Ok: true\r\nX-Forwarded-For: 6.6.6.6\r\nCookie: c")
    )
    assert rig.up.take() == SENT
    await rig.answer(OK.replace(b"Content-Type", b"X-Attestation-Ok: true\r\nX-Request-Id: theirs\r\nContent-Type"))
    assert rig.wire.sent == ANSWER


async def test_an_agents_own_answer_is_put_on_record_as_its_error() -> None:
    rig = Rig()
    await rig.send(POST)
    rig.upstreams.connections[0].attestation = channel()
    rig.down._exchange.attestation = channel()  # type: ignore[union-attr]
    await rig.answer(b"HTTP/1.1 502 Bad Gateway\r\nX-Cube-Error: upstream_timeout\r\nContent-Length: 0\r\n\r\n")
    assert b"x-cube-error" not in rig.wire.sent.lower()
    assert rig.ended.error is not None and rig.ended.error.code == "upstream_timeout"
    assert (rig.ended.outcome, rig.ended.status) == ("failed", 502)


async def test_only_an_attested_upstream_is_believed() -> None:
    rig = Rig()
    await rig.send(POST)
    await rig.answer(b"HTTP/1.1 502 Bad Gateway\r\nX-Cube-Error: upstream_timeout\r\nContent-Length: 0\r\n\r\n")
    assert rig.ended.error is None and rig.ended.outcome == "completed"
