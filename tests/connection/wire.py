"""A downstream connection with both its ends in memory: what is fed in, what comes out, nothing in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from cube_mesh.connection import Downstream
from cube_mesh.deadlines import Sweeper
from cube_mesh.exchange import Exchange
from cube_mesh.hops import Hop
from cube_mesh.message import Response
from cube_mesh.ports import Done, Endpoint
from cube_mesh.service import Service
from cube_mesh.settings import Limits, Timeouts
from cube_mesh.settings import Pool as PoolSettings
from cube_mesh.upstream import Pool, UpstreamConnection

CHAT = Endpoint("chat", "POST", "/v1/chat/completions", "llm", "chat", "json")
OTHER = Endpoint("other", "POST", "/v1/audio", "llm")


class Wire:
    """A transport that only remembers."""

    def __init__(self) -> None:
        self.sent = b""
        self.writes: list[bytes] = []
        self.closed = self.aborted = self.paused = self.eof = False

    def write(self, data: bytes) -> None:
        self.sent += bytes(data)
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 4711) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return None

    def take(self) -> bytes:
        sent, self.sent = self.sent, b""
        return sent


class Upstreams:
    """A connector whose connections are Wires; ``fail`` raises, ``slow`` waits for ``opened``."""

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self.connections: list[UpstreamConnection] = []
        self.fail: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def connect(self, factory: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        await self.gate.wait()
        if self.fail is not None:
            raise self.fail
        protocol, wire = factory(), Wire()
        protocol.connection_made(wire)  # type: ignore[arg-type]
        self.wires.append(wire)
        self.connections.append(protocol)  # type: ignore[arg-type]
        return protocol


class Steps:
    """The chain: admits by default, and keeps every exchange that ended."""

    def __init__(self, hop: Hop, endpoint: Endpoint) -> None:
        self.hop, self.endpoint = hop, endpoint
        self.ended: list[Exchange] = []
        self.verdict: Response | None | Awaitable[Response | None] = None
        self.on_leave: Callable[[Exchange, Done], None] = lambda exchange, done: done(None)

    def enter(self, exchange: Exchange) -> Response | None | Awaitable[Response | None]:
        exchange.request_id = "r1"
        exchange.trace_id, exchange.span_id = "0" * 31 + "1", "0" * 15 + "2"
        exchange.upstream_target = exchange.head.target
        exchange.endpoint = self.endpoint
        exchange.target = self.hop
        return self.verdict

    def leave(self, exchange: Exchange, done: Done) -> None:
        self.ended.append(exchange)
        self.on_leave(exchange, done)


class Rig:
    """One downstream connection, its chain and its upstreams."""

    def __init__(
        self,
        endpoint: Endpoint = CHAT,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        *,
        mesh: bool = False,
        pipelining: bool = True,
    ) -> None:
        limits, timeouts, self.sweeper = limits or Limits(), timeouts or Timeouts(), Sweeper()
        self.upstreams = Upstreams()
        self.pool = Pool(self.upstreams, PoolSettings(), timeouts, limits, self.sweeper)
        self.chain = Steps(Hop("u", "up:1", self.pool, mesh=mesh), endpoint)
        self.protocol_errors: list[str] = []
        self.service = Service(
            self.chain, limits, timeouts, self.sweeper, {}, self.protocol_errors.append, pipelining=pipelining
        )
        self.wire = Wire()
        self.down = Downstream(self.service)
        self.down.connection_made(self.wire)

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.down.data_received(piece)
            await settle()

    async def answer(self, *pieces: bytes, at: int = -1) -> None:
        for piece in pieces:
            self.upstreams.connections[at].data_received(piece)
            await settle()

    @property
    def up(self) -> Wire:
        return self.upstreams.wires[-1]

    @property
    def ended(self) -> Exchange:
        assert len(self.chain.ended) == 1
        return self.chain.ended[0]


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(6):
        await asyncio.sleep(0)
