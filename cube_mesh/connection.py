"""The downstream connection: bytes in, through the chain, to an upstream, and bytes out. The only loop of its kind.

One exchange at a time; pipelined bytes wait. Everything runs in the callbacks of the event loop: a request that is
whole in one read, has a cached credential and finds a warm upstream connection is scanned, decided and forwarded in a
single call, with no task and no suspension. The exchange ends exactly once, in ``_end``, whatever ended it: observers
run there, and the last byte of the answer is written only after they (the audit event) are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from cube_mesh._fastpath import (
    FRAMING_CHUNKED,
    FRAMING_LENGTH,
    FRAMING_NONE,
    DownstreamCore,
    RequestHead,
    ResponseHead,
    frame_chunk,
)
from cube_mesh.bodies import IncomingBody, UsageTail, ends_in_error, ends_stream, read_members, read_usage
from cube_mesh.deadlines import NEVER
from cube_mesh.errors import CubeMeshError, DependencyError, FramingError, InternalError, PeerError
from cube_mesh.exchange import Exchange
from cube_mesh.forwarded import tls_facts
from cube_mesh.hops import AGENT_ERROR, TO_CLIENT, agent_error
from cube_mesh.message import Response, error_frame, error_response, render
from cube_mesh.ports import Transport
from cube_mesh.service import Service, drop
from cube_mesh.upstream import UpstreamConnection

_END_S = 1.0  # from [DONE] to the end of the body
_TINY = 16  # a piece that is too short to tell what it ends
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Downstream(DownstreamCore, asyncio.Protocol):
    """One client connection. ``address``: the client's, when the acceptor knows it and has counted the connection."""

    __slots__ = ()
    _service: Service
    _upstream: UpstreamConnection | None

    def __init__(self, service: Service, address: str = "") -> None:
        self._service = service
        self._to_client = TO_CLIENT
        self._client_ip = address
        self._admitted = address != ""
        self._trusted = False
        self.connected = False
        self._exchange: Exchange | None = None
        self._pending = b""
        self._head_started = False
        self._read_body: Callable[[bytes, int], None] | None = None
        self._upstream: UpstreamConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._reading_paused = False
        self._write_paused = False
        self._close_after = False
        self._lingering = False
        self._lingered = 0
        self._skip = 0  # bytes of a refused request's body that have not come yet
        self._gone = False
        self._usage: UsageTail | None = None
        self._held = b""  # the end of a stream, as its client sees it, until the event is on record
        self.deadline = NEVER

    # -- life of the connection

    @property
    def busy(self) -> bool:
        return self._exchange is not None

    def connection_made(self, transport: Any) -> None:
        self.transport: Transport = transport
        self.connected = True
        service = self._service
        if not self._client_ip:
            peer = transport.get_extra_info("peername")
            self._client_ip = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        self._trusted = service.trust is not None and service.trust.covers(self._client_ip)
        self.peer_id: str = transport.get_extra_info("peer_id") or ""
        self.client_tls, self.client_subject = tls_facts(transport)
        transport.set_write_buffer_limits(service.limits.write_high_water, service.limits.write_low_water)
        service.connections.add(self)
        service.sweeper.add(self)
        self.deadline = perf_counter() + service.timeouts.head_s
        self._admitted = self._admitted or service.admission.enter(self._client_ip, exempt=self._trusted)
        if service.draining:
            self.drain()
        if not self._admitted:
            error = DependencyError("overloaded", "The server is at its limit.", status=503, retryable=True)
            self.transport.write(render(error_response(error), "", close=True))
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self.deadline = NEVER
        self._service.connections.discard(self)
        self._service.sweeper.discard(self)
        if self._admitted:
            self._service.admission.leave(self._client_ip)
        exchange = self._exchange
        if exchange is not None and not exchange.ended_at:
            if self._task is not None:
                self._task.cancel()
            self._cancel_upstream()
            exchange.error = PeerError("client_disconnected", "The client closed the connection.", status=499)
            exchange.status = exchange.status or 499
            self._end(exchange, "cancelled", None)

    def eof_received(self) -> None:
        return None  # a client that has stopped sending has left (as for nginx): the transport closes

    def pause_writing(self) -> None:
        self._write_paused = True
        self.deadline = perf_counter() + self._service.timeouts.write_s
        if self._exchange is None:
            self._pause_reading()
        elif self._upstream is not None:
            self._upstream.pause()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._exchange is None:
            if not (self._lingering or self.transport.is_closing()):
                self._await_next()
            return
        self.deadline = self._total_at
        if self._upstream is not None:
            self._upstream.resume()

    def drain(self) -> None:
        """One more request at most. It may be under way already: who was not told that the connection closes, by the
        head of an answer, has a moment for it.
        """
        if self.busy:
            self._close_after |= not self._head_written
        elif not (self._head_started or self._lingering or self._write_paused):
            self.deadline = min(self.deadline, perf_counter() + self._service.idle_s)

    def cut(self) -> None:
        exchange = self._exchange
        if exchange is None or exchange.ended_at:
            self.transport.abort()
        else:
            self._give_up(DependencyError("shutting_down", "The server is shutting down.", status=503, retryable=True))

    def on_deadline(self, now: float) -> None:
        exchange = self._exchange
        if exchange is None and self._head_started and not (self._write_paused or self.transport.is_closing()):
            self._reject(FramingError("request_timeout", "The request head did not arrive in time.", 408))
        elif exchange is None or exchange.ended_at or self._write_paused:
            drop(self.transport)  # idle, still sending what nobody reads, or not taking its answer
        elif now >= self._total_at:
            self._give_up(DependencyError("request_deadline", "The request took too long.", status=504))
        elif self._read_body is not None and not self._keeps_pace(now):
            self._fail(PeerError("request_timeout", "The request body did not arrive in time.", status=408))

    def _keeps_pace(self, now: float) -> bool:
        """At the end of a window: whether enough of a streamed body came in it. While we do not read, it need not."""
        timeouts = self._service.timeouts
        least = self._service.limits.min_body_bytes_per_s * timeouts.body_s
        if self._read_body != self._relay_body or (self._body.progress() < least and not self._reading_paused):
            return False
        self.deadline = min(now + timeouts.body_s, self._total_at)
        return True

    def _give_up(self, error: CubeMeshError) -> None:
        """End an exchange wherever it is."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if not self._exchange.body_at:  # type: ignore[union-attr]  # the rest of the request may still be coming
            self._close_after = self._lingering = True
        self._fail(error)

    # -- bytes in

    def _received(self, data: bytes) -> None:
        """Bytes that are not the begin of a request on an idle connection."""
        if self._lingering:
            self._lingered += len(data)
            if self._lingered > self._service.limits.max_linger_bytes:
                self.transport.abort()
            return
        if self._skip:
            data = self._skipped(data)
            if not data:
                return
        exchange = self._exchange
        if exchange is None and not self._write_paused:
            self.data_received(data)
        elif self._read_body is not None:
            self._read_body(data, 0)
        elif exchange is None or exchange.body_at or exchange.ended_at:
            self._hold_next(data)
        else:
            self._hold(data)

    def _skipped(self, data: bytes) -> bytes:
        """What lies behind the rest of a refused request's body."""
        skip = self._skip
        self._skip = max(0, skip - len(data))
        if self._exchange is None and not (self._skip or self._write_paused):
            self.deadline = perf_counter() + self._service.idle_s
        return data[skip:]

    def _hold_next(self, data: bytes) -> None:
        """Bytes behind a whole request: the next one, which its client did not wait to send."""
        if self._service.pipelining:
            self._hold(data)
        else:
            self._close_after = self._lingering = True
            self._service.on_protocol_error("pipelining_refused")

    def _hold(self, data: bytes) -> None:
        """Bytes wait for their turn, a bounded number of them."""
        self._pending += data
        if len(self._pending) > self._service.limits.max_head_bytes and not self._reading_paused:
            self._pause_reading()

    def _pause_reading(self) -> None:
        self._reading_paused = True
        self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self._gone:
            self._reading_paused = False
            self.transport.resume_reading()

    def _stopped(
        self, exchange: Exchange, verdict: Response | Awaitable[Response | None], data: bytes, pos: int
    ) -> None:
        """A gate refused, or has to wait."""
        if isinstance(verdict, Response):
            self._refuse(exchange, verdict, data, pos)
        else:
            self._pending = data[pos:]
            self._task = asyncio.get_running_loop().create_task(self._await_gates(exchange, verdict))

    async def _await_gates(self, exchange: Exchange, verdict: Awaitable[Response | None]) -> None:
        response = await verdict
        self._task = None
        data, self._pending = self._pending, b""
        if response is None:
            self._admit(exchange, data, 0)
        else:
            self._refuse(exchange, response, data, 0)

    # -- the request's body

    def _admit(self, exchange: Exchange, data: bytes, pos: int) -> None:
        """All gates passed. The body is read whole for JSON endpoints, streamed for the rest."""
        head = exchange.head
        if head.framing == FRAMING_NONE:
            if pos < len(data):
                self._hold_next(data[pos:])
            self._dispatch(exchange, b"", 0, 0, head.content_length, complete=True)
            return
        whole = exchange.endpoint is not None and exchange.endpoint.body == "json"
        if head.expect_continue and pos == len(data):
            self.transport.write(_CONTINUE)
        limits = self._service.limits
        if not whole:
            self._body = IncomingBody(head, limits.max_body_bytes)
            self._stream_body(exchange, data, pos)
            return
        if head.framing == FRAMING_LENGTH and len(data) - pos >= head.content_length:
            end = pos + head.content_length
            if end < len(data):
                self._hold_next(data[end:])
            self._whole(exchange, data, pos, end)
            return
        self.deadline = min(perf_counter() + self._service.timeouts.body_s, self._total_at)
        self._body = IncomingBody(head, limits.max_json_body)
        self._collected: list[bytes] = []
        self._read_body = self._collect
        self._resume_reading()  # it paused if much of the body came while a gate waited
        self._collect(data, pos)

    def _collect(self, data: bytes, pos: int) -> None:
        exchange = self._exchange
        assert exchange is not None
        try:
            payload, rest, last = self._body.take(data, pos)
        except FramingError as error:
            self._fail(PeerError(error.code, error.message, status=error.status))
            return
        self._collected.append(payload)
        exchange.request_size = self._body.size
        if last:
            self._read_body = None
            self.deadline = self._total_at
            if rest:
                self._hold_next(rest)
            body = b"".join(self._collected)
            self._collected = []
            self._whole(exchange, body, 0, len(body))

    def _whole(self, exchange: Exchange, data: bytes, pos: int, end: int) -> None:
        try:
            read_members(exchange, data, pos, end)
        except (FramingError, PeerError) as error:
            refusal = error if isinstance(error, PeerError) else PeerError(error.code, error.message)
            self._fail(refusal)
            return
        self._dispatch(exchange, data, pos, end, end - pos, complete=True)

    def _stream_body(self, exchange: Exchange, data: bytes, pos: int) -> None:
        """Send the head on; the body follows as it arrives."""
        length = exchange.head.content_length if exchange.head.framing == FRAMING_LENGTH else -2
        self._pending = data[pos:]
        self._pause_reading()
        self._dispatch(exchange, b"", 0, 0, length, complete=False)

    def _relay_body(self, data: bytes, pos: int) -> None:
        exchange, upstream = self._exchange, self._upstream
        assert exchange is not None
        try:
            payload, rest, last = self._body.take(data, pos)
        except FramingError as error:
            self._fail(PeerError(error.code, error.message, status=error.status))
            return
        exchange.request_size = self._body.size
        if last:
            self._read_body = None
            self.deadline = self._total_at
            exchange.body_at = perf_counter()
            if rest:
                self._hold_next(rest)
        if upstream is not None and (payload or last):
            upstream.send_body(payload, chunked=exchange.head.framing == FRAMING_CHUNKED, last=last)

    # -- to the upstream

    def _dispatch(self, exchange: Exchange, data: bytes, pos: int, end: int, length: int, *, complete: bool) -> None:
        if complete:
            exchange.request_size = end - pos
            exchange.body_at = perf_counter()
        target = exchange.target
        if target is None:
            self._no_target()
            return
        connection = target.acquire()
        if isinstance(connection, UpstreamConnection):
            self._start(exchange, connection, data, pos, end, length, complete=complete)
        else:
            self._wait_for_upstream(exchange, connection, data[pos:end], length, complete)

    def _no_target(self) -> None:
        self._fail(InternalError("no_target", "The server made a mistake."))

    def _wait_for_upstream(
        self, exchange: Exchange, connecting: Awaitable[UpstreamConnection], data: bytes, length: int, complete: bool
    ) -> None:
        waiting = self._await_upstream(exchange, connecting, data, length, complete)
        self._task = asyncio.get_running_loop().create_task(waiting)

    async def _await_upstream(
        self, exchange: Exchange, connecting: Awaitable[UpstreamConnection], data: bytes, length: int, complete: bool
    ) -> None:
        try:
            connection = await connecting
        except CubeMeshError as error:
            self._task = None
            self._fail(error)
            return
        self._task = None
        self._start(exchange, connection, data, 0, len(data), length, complete=complete)

    def _start(
        self,
        exchange: Exchange,
        connection: UpstreamConnection,
        data: bytes,
        pos: int,
        end: int,
        length: int,
        *,
        complete: bool,
    ) -> None:
        target = exchange.target
        assert target is not None
        exchange.forwarded_at = perf_counter()
        exchange.upstream = connection.peer
        exchange.attestation = connection.attestation
        self._upstream = connection
        head = target.head(exchange, length, data, pos, end)
        connection.request(self, head, to_head=exchange.method == "HEAD", complete=complete)
        if not complete:
            self._read_body = self._relay_body
            self.deadline = min(exchange.forwarded_at + self._service.timeouts.body_s, self._total_at)
            held, self._pending = self._pending, b""
            self._resume_reading()
            if held:
                self._relay_body(held, 0)

    def _cancel_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.cancel()

    def upstream_paused(self, paused: bool) -> None:
        if self._read_body is None:
            return
        if paused:
            self._pause_reading()
        else:
            self._resume_reading()

    # -- the response

    def _respond(self, head: ResponseHead, payload: bytes, done: bool) -> None:
        exchange = self._exchange
        assert exchange is not None
        exchange.first_byte_at = perf_counter()
        exchange.status = exchange.upstream_status = head.status
        exchange.streamed = head.event_stream
        exchange.response_size = len(payload)
        self._last = payload
        if exchange.attestation is not None:
            exchange.error = agent_error(head)
        counted = exchange.endpoint is not None and exchange.endpoint.operation != ""
        if counted and done:
            exchange.input_tokens, exchange.output_tokens = read_usage(payload)
        elif counted:
            self._usage = UsageTail()
            self._usage.add(payload)
        if done:
            length = len(payload)
            if head.framing == FRAMING_NONE and length == 0:
                length = head.content_length if head.status >= 200 else -1
            self._chunked_out = False
        else:
            self._chunked_out = head.framing != FRAMING_LENGTH and exchange.head.minor == 1
            length = head.content_length if head.framing == FRAMING_LENGTH else -2 if self._chunked_out else -1
            self._close_after |= length == -1
        self._close_after |= self._read_body is not None or self._service.draining
        if not done and head.event_stream and ends_stream(b"", payload):
            self._hold_end(payload)
            payload = b""
        out = self._render(exchange, head, length, payload)
        if done:
            self._end(exchange, _outcome(exchange), out)
        else:
            self._head_written = True
            self.transport.write(out)

    def _read_usage(self, exchange: Exchange, payload: bytes) -> None:
        exchange.input_tokens, exchange.output_tokens = read_usage(payload)

    def _pass_on(self, payload: bytes, done: bool) -> None:
        exchange = self._exchange
        assert exchange is not None
        exchange.response_size += len(payload)
        if self._usage is not None:
            self._usage.add(payload)
        if self._held:
            payload, self._held = self._held + payload, b""
        if not done and exchange.streamed and ends_stream(self._last, payload):
            self._hold_end(payload)
            return
        self._last = payload if len(payload) >= _TINY else (self._last + payload)[-1024:]
        out = frame_chunk(payload, done) if self._chunked_out else payload
        if done:
            self._end(exchange, _outcome(exchange), out)
        else:
            self.transport.write(out)

    def _hold_end(self, payload: bytes) -> None:
        """A client stops reading at ``[DONE]``: what it takes for the end goes out when the event is on record. The
        rest of the framing follows at once; if it does not, the answer is whole without it.
        """
        self._held = payload
        if self._upstream is not None:
            self._upstream.deadline = perf_counter() + _END_S

    def upstream_failed(self, error: DependencyError) -> None:
        self._upstream = None
        self._fail(error)

    # -- the end

    def _refuse(self, exchange: Exchange, response: Response, data: bytes, pos: int) -> None:
        """A gate said no. A body of moderate, known length is skipped; behind any other the connection closes. The head
        alone decides: how much of the body is already here is chance."""
        head = exchange.head
        length = max(0, head.content_length)
        known = head.framing != FRAMING_CHUNKED and not head.expect_continue
        if known and response.status != 413 and length <= self._service.limits.max_linger_bytes:
            self._skip = max(0, length - (len(data) - pos))
            if len(data) - pos > length:
                self._hold_next(data[pos + length :])
        else:
            self._close_after = self._lingering = True
        exchange.status = response.status
        exchange.response_size = len(response.body)
        self._end(exchange, exchange.outcome or "refused", self._own_answer(exchange, response))

    def _own_answer(self, exchange: Exchange, response: Response) -> bytes:
        extra = exchange.answer_fields
        if self.peer_id and exchange.error is not None:  # the proxy puts on record whose error it was
            extra += b"%b: %b\r\n" % (AGENT_ERROR, exchange.error.code.encode("ascii"))
        return render(
            response, exchange.request_id, close=self._close_after, head_only=exchange.method == "HEAD", extra=extra
        )

    def _fail(self, error: CubeMeshError) -> None:
        """The exchange failed after the gates. Before the response head that is an error answer, after it the terminal
        frame of an event stream; any other body just stops short, which its framing shows."""
        exchange = self._exchange
        if exchange is None:
            return
        self._cancel_upstream()
        if self._held:
            held, self._held = self._held, b""
            self._close_after |= not self._chunked_out
            self._end(exchange, _outcome(exchange), frame_chunk(held, True) if self._chunked_out else held)
            return
        exchange.error = error
        outcome = "refused" if isinstance(error, PeerError) else "failed"
        unread = self._read_body is not None
        self._read_body = None
        self._close_after |= unread
        if not self._head_written:
            response = error_response(error)
            exchange.status = response.status
            exchange.response_size = len(response.body)
            self._lingering |= unread
            self._end(exchange, outcome, self._own_answer(exchange, response))
            return
        self._close_after = True
        frame = b""  # an agent's terminal frame has come through already: one is enough
        if exchange.streamed and not ends_in_error(self._last):
            frame = error_frame(error)
            if self._chunked_out:
                frame = frame_chunk(frame, False)
        self._end(exchange, "failed", frame, cut=True)

    def _not_audited(self, exchange: Exchange, error: CubeMeshError) -> None:
        """What is not on record is not answered."""
        self._close_after = True
        if self._head_written or self._gone:
            self._forget()
            self.transport.abort()
        else:
            self._release(self._own_answer(exchange, error_response(error)), cut=False)

    def _await_next(self) -> None:
        """Ready for the next request, unless too much of the last answer still waits for its reader."""
        if self._write_paused:
            self._pause_reading()
            return
        timeouts = self._service.timeouts
        self.deadline = perf_counter() + (timeouts.linger_s if self._skip else self._service.idle_s)
        self._resume_reading()
        if self._pending:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._exchange is None and self._pending and not (self._gone or self._write_paused or self._lingering):
            data, self._pending = self._pending, b""
            self._read_head(data)

    def _close(self) -> None:
        """Close; what is not yet sent has a limited time to leave."""
        self.deadline = perf_counter() + self._service.timeouts.write_s
        self.transport.close()

    def _finish_connection(self, cut: bool) -> None:
        """Close. A client that may still be sending is read out for a moment, or the kernel would reset the answer."""
        if not self._lingering or cut:
            self._close()
            return
        self._pending = b""
        self.deadline = perf_counter() + self._service.timeouts.linger_s
        self._resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()  # over TLS the answer's own framing has to tell that it is whole

    # -- without an exchange

    def _reject(self, error: FramingError) -> None:
        """Bytes that are no request: an answer, and the connection closes, since nothing behind them can be trusted."""
        self._service.on_protocol_error(error.code)
        self._lingering = self._close_after = True
        self._head_started = False
        self._pending = b""
        response = error_response(PeerError(error.code, error.message, status=error.status))
        self.transport.write(render(response, "", close=True))
        self._finish_connection(False)

    def _answer_local(self, head: RequestHead, local: Callable[[bytes], Response], data: bytes) -> None:
        if head.method not in ("GET", "HEAD") or head.framing != FRAMING_NONE:
            error = PeerError("method_not_allowed", "Only GET is answered here.", status=405)
            response, close = error_response(error), True
        else:
            response, close = local(head.query), not head.keep_alive or self._service.draining
        self.transport.write(render(response, "", close=close, head_only=head.method == "HEAD"))
        if close:
            self._close()
            return
        self._pending = data[head.end :]
        self._await_next()


def _outcome(exchange: Exchange) -> str:
    """Of an answer that came whole: the backend's, or one in which an agent says that it could not get one."""
    if exchange.error is None:
        return "completed"
    return "failed" if exchange.status >= 500 else "refused"
