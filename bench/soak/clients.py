"""Clients that keep a proxy busy with a fixed mixture: whole answers, event streams, refusals and cancels.

Each connection sends one request at a time and checks the end of each answer. No task, no parser: a client that costs
more than the proxy would measure itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """``wire`` is the request. ``status`` begins its answer; ``cancel``: the client leaves when the answer begins."""

    name: str
    wire: bytes
    status: bytes
    cancel: bool = False


class Crowd:
    """``connections`` clients that share ``left`` requests, taken from ``mixture`` in turn.

    ``done`` counts by the name of the kind, ``odd`` what did not end as its kind says. ``on_one`` is called after each.
    """

    def __init__(self, port: int, mixture: tuple[Kind, ...], on_one: Callable[[], None] = lambda: None) -> None:
        self.done: Counter[str] = Counter()
        self.odd: Counter[str] = Counter()
        self._port, self._mixture, self._on_one = port, mixture, on_one
        self._taken = self._left = self._open = 0
        self._idle = asyncio.Event()

    async def send(self, requests: int, connections: int) -> None:
        """Send so many, wait for the end of all, and close every connection. Raises OSError when none can be made."""
        self._left = requests
        self._idle.clear()
        self._open = min(connections, requests)
        await asyncio.gather(*(self._connect() for _ in range(self._open)))
        await self._idle.wait()

    async def _connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: Client(self), "127.0.0.1", self._port)

    def take(self) -> Kind | None:
        """The next request; None when there is none left."""
        if not self._left:
            return None
        self._left -= 1
        self._taken += 1
        return self._mixture[self._taken % len(self._mixture)]

    def ended(self, kind: Kind, fault: str = "") -> None:
        if fault:
            self.odd[f"{kind.name}: {fault}"] += 1
        else:
            self.done[kind.name] += 1
        self._on_one()

    def lost(self) -> None:
        """A connection is closed: another takes its place while there is work."""
        if self._left:
            self._task = asyncio.ensure_future(self._again())
        else:
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def _again(self) -> None:
        try:
            await self._connect()
        except OSError as error:
            self.odd[f"connect: {error.strerror}"] += 1
            self._left = 0  # nobody is there: the run has failed, and must end
            self.lost()


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._kind: Kind | None = None
        self._data = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._next()

    def _next(self) -> None:
        self._kind, self._data = self._crowd.take(), b""
        if self._kind is None:
            self._transport.close()
        else:
            self._transport.write(self._kind.wire)

    def data_received(self, data: bytes) -> None:
        kind = self._kind
        if kind is None:
            return
        self._data = data = self._data + data if self._data else data
        if kind.cancel:
            if b"data:" in data:
                self._end(kind)
                self._transport.abort()
        elif whole(data):
            self._end(kind, "" if data.startswith(kind.status, 9) else f"answered {data[9:12].decode('latin-1')}")
            if b"\r\nconnection: close" in data.lower():
                self._transport.close()
            else:
                self._next()

    def _end(self, kind: Kind, fault: str = "") -> None:
        self._kind = None
        self._crowd.ended(kind, fault)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._kind is not None:
            self._end(self._kind, "cut" if self._data else "no answer")
        self._crowd.lost()


def whole(data: bytes) -> bool:
    """Whether a response has come to its end: by its Content-Length, or a last chunk and ``[DONE]``."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return False
    fields = data[:head].lower()
    at = fields.find(b"\r\ncontent-length:")
    if at >= 0:
        return len(data) >= head + 4 + int(fields[at + 17 :].split(b"\r\n", 1)[0])
    return data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
