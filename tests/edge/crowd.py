"""Crowds of clients that are slow, or leave: in tens for the tests, in thousands for a proof. Numbers are arguments."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from tests.edge.door import CHAT, RED, answer, request, status
from tests.support.client import bearer, chat

LARGE_BYTES = 64 * 1024 * 1024
_PIECE = b"x" * 65_536
_SMALL = b'{"id":"1","usage":{"prompt_tokens":1,"completion_tokens":1}}'


class Backend:
    """Answers at once; a request whose body says "large" with LARGE_BYTES, one that says "stream" with events that do
    not end, both as fast as they are taken. ``sent`` is what was written of large answers.
    """

    def __init__(self) -> None:
        self.sent = 0
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 131_072)  # filling megabytes for nobody takes its time
        server = await asyncio.start_server(self._serve, sock=sock)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in self._open:
            writer.transport.abort()
        if self._open:
            await asyncio.wait(self._open.values())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = asyncio.current_task()  # type: ignore[assignment]
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                body = await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                if b"large" in body:
                    await self._large(writer)
                elif b'"stream"' in body:
                    await self._stream(writer)
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(_SMALL) + _SMALL)
        writer.close()
        del self._open[writer]

    async def _large(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % LARGE_BYTES)
        for _ in range(LARGE_BYTES // len(_PIECE)):
            writer.write(_PIECE)
            await writer.drain()
            self.sent += len(_PIECE)

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"9\r\ndata: 1\n\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)


# -- slow clients


@dataclass(frozen=True)
class Ended:
    """How the node got rid of one client: the status it was told (0: none, the connection just ended), and when."""

    status: int
    after_s: float


async def slow_head(port: int, gap_s: float = 0.1) -> Ended:
    """A head, a byte at a time."""
    head = request()[: -len(chat())].replace(b"\r\n\r\n", b"\r\nx-padding: " + b"a" * 20_000)
    return await _trickle(port, b"", head, gap_s)


async def slow_body(port: int, gap_s: float = 0.1) -> Ended:
    """A whole head with a credential that is good, then a body, a byte at a time."""
    whole = request(body=chat("a" * 20_000))
    at = whole.index(b"\r\n\r\n") + 4
    return await _trickle(port, whole[:at], whole[at:], gap_s)


async def slow_upload(port: int, gap_s: float = 0.1) -> Ended:
    """The same for an endpoint whose body is not read whole."""
    whole = request(f"/{RED.domain}/v1/audio/transcriptions", b"a" * 1_000_000)
    at = whole.index(b"\r\n\r\n") + 4
    return await _trickle(port, whole[:at], whole[at:], gap_s)


async def _trickle(port: int, start: bytes, rest: bytes, gap_s: float) -> Ended:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    reading = asyncio.create_task(answer(reader))
    with suppress(ConnectionError):
        writer.write(start)
        for at in range(len(rest)):
            if reading.done():
                break
            writer.write(rest[at : at + 1])
            await asyncio.wait([reading], timeout=gap_s)
    ended = Ended(status(await reading), time.perf_counter() - began)
    writer.close()
    return ended


async def slow_reader(port: int, longest_s: float, path: str = CHAT) -> Ended:
    """Asks for a large answer and reads nothing; it learns by its socket's error that it was cut."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    began = time.perf_counter()
    try:
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, request(path, chat("large")))
        while time.perf_counter() - began < longest_s:
            await asyncio.sleep(0.25)
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _hung_up(sock):
                return Ended(0, time.perf_counter() - began)
        return Ended(-1, longest_s)
    finally:
        sock.close()


def _hung_up(sock: socket.socket) -> bool:
    """Whether TCP left the established state, without reading a byte of what waits."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return info[0] != 1


# -- honest clients


@dataclass
class Honest:
    """What honest clients saw. Delays are from when a request was due, so that a stall counts for all it delays."""

    delays_s: list[float] = field(default_factory=list)
    errors: int = 0

    def quantile_ms(self, share: float) -> float:
        ordered = sorted(self.delays_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000


async def honest(port: int, per_second: int, stop: asyncio.Event, connections: int = 8) -> Honest:
    """Requests at a fixed rate over a few kept connections, until ``stop``."""
    result = Honest()
    start = time.perf_counter()
    await asyncio.gather(
        *(_honest(port, per_second / connections, start + n / per_second, stop, result) for n in range(connections))
    )
    return result


async def _honest(port: int, per_second: float, due: float, stop: asyncio.Event, result: Honest) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = request()
    while not stop.is_set():
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        writer.write(data)
        if status(await answer(reader)) == 200:
            result.delays_s.append(time.perf_counter() - due)
        else:
            result.errors += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        due += 1 / per_second
    writer.close()


# -- clients that leave

MID_HEAD = request()[:60]
MID_BODY = request(body=chat("a" * 5000))[:-2000]
MID_STREAM = request(body=chat(stream=True))
MID_UPLOAD = (
    f"POST /{RED.domain}/v1/audio/transcriptions HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\n"
    f"authorization: {bearer(RED.key)['authorization']}\r\n\r\n"
).encode() + b"a" * 1000
LEAVING = {"head": MID_HEAD, "body": MID_BODY, "stream": MID_STREAM, "upload": MID_UPLOAD}


async def leave(port: int, data: bytes, *, reset: bool) -> None:
    """Connect, send, wait for the first bytes of a stream or a moment, and go: with a reset or an orderly end."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, data)
        if data is MID_STREAM:
            await loop.sock_recv(sock, 100)
        else:
            await asyncio.sleep(0.02)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        sock.close()


async def leave_all(port: int, count: int, at_once: int = 50) -> None:
    """``count`` connections, every place to leave and both ways in turn."""
    gate = asyncio.Semaphore(at_once)
    places = list(LEAVING.values())

    async def one(number: int) -> None:
        async with gate:
            await leave(port, places[number % len(places)], reset=number // len(places) % 2 == 0)

    await asyncio.gather(*(one(number) for number in range(count)))
