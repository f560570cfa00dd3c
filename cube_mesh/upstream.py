"""Upstream connections and their pool: one request at a time on each, kept for the next, cancelled by closing.

The connection parses responses and calls its handler (the downstream connection) directly: no task, no queue. A
response that does not keep to HTTP/1.1, ends early or comes late becomes one ``upstream_failed`` call with a
DependencyError.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import perf_counter, time
from typing import Any, Protocol, cast

from cube_mesh._fastpath import FRAMING_UNTIL_CLOSE, PoolCore, ResponseHead, UpstreamCore, frame_chunk
from cube_mesh.deadlines import NEVER, Sweeper
from cube_mesh.errors import DependencyError, FramingError
from cube_mesh.ports import ChannelAttestation, Connector, Transport
from cube_mesh.settings import Limits, Timeouts
from cube_mesh.settings import Pool as PoolSettings

MAX_INTERIM = 8  # 1xx responses before a final one
_LAST_SHARE = 0.2  # of an attested channel's life: it ends what is under way, so nothing new begins there
_BAD_GATEWAY = "The upstream server did not give a valid answer."
_TOO_SLOW = "The upstream server did not answer in time."


class Handler(Protocol):
    """Who waits for a response. After ``done`` or ``upstream_failed`` no further call comes."""

    def on_response(self, head: ResponseHead, payload: bytes, done: bool) -> None: ...
    def on_body(self, payload: bytes, done: bool) -> None: ...
    def upstream_failed(self, error: DependencyError) -> None: ...
    def upstream_paused(self, paused: bool) -> None: ...


class UpstreamConnection(UpstreamCore, asyncio.BufferedProtocol):
    """One connection to an upstream. ``request`` starts an exchange; ``cancel`` ends it by closing the connection."""

    __slots__ = ()
    _pool: Pool

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.handler: Handler | None = None
        self.deadline = NEVER
        self._buffer = b""
        self._request_open = False
        self.attestation: ChannelAttestation | None = None
        self.usable_until = NEVER  # Unix time: a channel past its appraisal takes no new request
        self.peer = ""

    def connection_made(self, transport: Any) -> None:
        self.transport: Transport = transport
        peer = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer or "")
        attestation: ChannelAttestation | None = transport.get_extra_info("attestation")
        if attestation is not None:
            self.attestation_renewed(attestation)
        limits = self._pool.limits
        transport.set_write_buffer_limits(limits.write_high_water, limits.write_low_water)
        self._pool.opened(self)

    def attestation_renewed(self, attestation: ChannelAttestation) -> None:
        """What is accepted about the peer now, and for how long."""
        self.attestation = attestation
        self.usable_until = attestation.expires_at - (attestation.expires_at - time()) * _LAST_SHARE

    def send_body(self, payload: bytes, *, chunked: bool, last: bool) -> None:
        """The next piece of a streamed request body."""
        if chunked:
            self.transport.write(frame_chunk(payload, last))
        elif payload:
            self.transport.write(payload)
        if last:
            self._request_open = False
            self.deadline = perf_counter() + self._pool.timeouts.first_byte_s

    def cancel(self) -> None:
        """Give the exchange up: the upstream sees the connection close now."""
        self.handler = None
        self.transport.abort()

    def pause(self) -> None:
        self.transport.pause_reading()
        self.deadline = NEVER  # the client is slow, not the upstream

    def resume(self) -> None:
        self.transport.resume_reading()
        self.deadline = perf_counter() + self._pool.timeouts.stream_gap_s

    def _violated(self, error: FramingError) -> None:
        self._fail("upstream_protocol_error", _BAD_GATEWAY, error.code)

    def _check_interim(self) -> None:
        if self._interim > MAX_INTERIM:
            raise FramingError("too_many_interim_responses", "Too many 1xx responses.", 502)

    def pause_writing(self) -> None:
        if self.handler is not None:
            self.deadline = perf_counter() + self._pool.timeouts.write_s
            self.handler.upstream_paused(True)

    def resume_writing(self) -> None:
        if self.handler is not None:
            timeouts = self._pool.timeouts
            wait_s = timeouts.stream_gap_s if self._head_seen else timeouts.first_byte_s
            self.deadline = NEVER if self._request_open else perf_counter() + wait_s
            self.handler.upstream_paused(False)

    def eof_received(self) -> None:
        return None  # closes the transport; connection_lost tells the rest

    def connection_lost(self, exc: Exception | None) -> None:
        self.deadline = NEVER
        self._pool.closed(self)
        handler = self.handler
        if handler is None:
            return
        self.handler = None
        if self._head_seen and self._framing == FRAMING_UNTIL_CLOSE and exc is None:
            handler.on_body(b"", True)
        else:
            detail = str(exc) if exc else "connection closed before the response was whole"
            handler.upstream_failed(DependencyError("upstream_closed", _BAD_GATEWAY, detail=detail))

    def on_deadline(self, now: float) -> None:
        if self.handler is None:
            self.transport.close()
        else:
            code = "upstream_stream_timeout" if self._head_seen else "upstream_timeout"
            self._fail(code, _TOO_SLOW, "deadline passed", status=504)

    def _fail(self, code: str, message: str, detail: str, status: int = 502) -> None:
        handler = self.handler
        self.cancel()
        if handler is not None:
            handler.upstream_failed(DependencyError(code, message, detail=detail, status=status))


class Pool(PoolCore):
    """Connections of one target. Idle ones are used last in, first out, so that a quiet pool shrinks."""

    def __init__(
        self, connector: Connector, settings: PoolSettings, timeouts: Timeouts, limits: Limits, sweeper: Sweeper
    ) -> None:
        self._connector = connector
        self._settings = settings
        self._sweeper = sweeper
        self.timeouts = timeouts
        self.limits = limits
        self._idle: list[UpstreamConnection] = []
        self.max_idle, self.idle_s = settings.max_idle_per_host, settings.idle_timeout_s
        self.max_head, self.max_fields = limits.max_head_bytes, limits.max_fields
        self.first_byte_s, self.stream_gap_s = timeouts.first_byte_s, timeouts.stream_gap_s
        self._open: set[UpstreamConnection] = set()
        self._connecting = 0

    def __len__(self) -> int:
        return len(self._open)

    async def _connect(self) -> UpstreamConnection:
        if len(self._open) + self._connecting >= self._settings.max_connections_per_host:
            raise DependencyError("upstream_busy", "The upstream server is at its limit.", status=503, retryable=True)
        self._connecting += 1
        try:
            async with asyncio.timeout(self.timeouts.connect_s):
                protocol = await self._connector.connect(self._make)
        except TimeoutError:
            raise DependencyError("upstream_connect_timeout", _TOO_SLOW, status=504, retryable=True) from None
        except OSError as error:
            detail = f"{type(error).__name__}: {error.strerror or error}"
            raise DependencyError("upstream_unreachable", _BAD_GATEWAY, detail=detail, retryable=True) from None
        finally:
            self._connecting -= 1
        return cast(UpstreamConnection, cast(object, protocol))

    def _make(self) -> asyncio.Protocol:
        """It streams as well; being a BufferedProtocol bounds what one read brings (a loop would read 256 KiB)."""
        return cast(asyncio.Protocol, UpstreamConnection(self))

    def opened(self, connection: UpstreamConnection) -> None:
        self._open.add(connection)
        self._sweeper.add(connection)

    def closed(self, connection: UpstreamConnection) -> None:
        self._open.discard(connection)
        self._sweeper.discard(connection)
        if connection.handler is None:
            with suppress(ValueError):
                self._idle.remove(connection)

    def close(self) -> None:
        """Close every connection; exchanges still on them fail."""
        for connection in list(self._open):
            connection.transport.abort()
