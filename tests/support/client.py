"""A plain HTTP/1.1 client for tests: h11 on one asyncio connection, which tells what arrived and when."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import h11


@dataclass
class Reply:
    """``whole``: the response ended as its framing says."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection, one request after the other; what breaks it shows as a reply that is not whole."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None) -> Self:
        """``tls``: of a server called localhost."""
        name = "localhost" if tls is not None else None
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Leave at once, with a reset when something is under way."""
        self._writer.transport.abort()

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        fields = [("host", "test"), *headers.items()]
        if body:
            fields.append(("content-length", str(len(body))))
        data = self._http.send(h11.Request(method=method, target=target, headers=fields))
        parts = [data, self._http.send(h11.Data(data=body)) if body else b"", self._http.send(h11.EndOfMessage())]
        self._writer.write(b"".join(part for part in parts if part))

    async def pieces(self, reply: Reply) -> AsyncIterator[tuple[float, bytes]]:
        """The body as it arrives: (``perf_counter`` of the read, what it brought). ``reply`` fills up meanwhile."""
        while not reply.whole:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if not await self._read(reply):
                    return
            elif isinstance(event, h11.Response):
                reply.status = event.status_code
                reply.headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            elif isinstance(event, h11.Data):
                reply.body += event.data
                yield self._read_at, bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                reply.whole = True
            elif isinstance(event, h11.ConnectionClosed):
                return
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()

    async def _read(self, reply: Reply) -> bool:
        """More bytes; False when the connection broke. The end of one may be what ends a response."""
        try:
            data = await self._reader.read(1 << 16)
        except OSError:
            return False
        self._read_at = time.perf_counter()
        try:
            self._http.receive_data(data)
            return bool(data) or self._http.their_state is not h11.ERROR
        except h11.RemoteProtocolError:
            return False

    async def request(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """One exchange. A connection that breaks gives a reply with ``whole`` false."""
        reply = Reply()
        try:
            self.send(method, target, headers, body)
            async for _ in self.pieces(reply):
                pass
        except (OSError, h11.ProtocolError):
            reply.whole = False
        return reply

    # -- raw, without h11: for bytes that no client library would send

    async def write(self, data: bytes) -> None:
        """These bytes, in a segment of their own where the kernel agrees."""
        self._writer.write(data)
        await self._writer.drain()
        await asyncio.sleep(0)

    async def head(self) -> str:
        """The next response's head; its body is read and dropped."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lower = head.lower()
        if "content-length: " in lower:
            await self._reader.readexactly(int(lower.split("content-length: ")[1].split("\r\n")[0]))
        return head

    async def status(self) -> int:
        return int((await self.head()).split()[1])

    @property
    def reusable(self) -> bool:
        return self._http.our_state is h11.IDLE


def chat(text: str = "hello", **more: Any) -> bytes:
    """A chat completion request body."""
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()


def bearer(key: str, **more: str) -> dict[str, str]:
    """Credential and content type; further fields with ``_`` for ``-``."""
    extra = {name.replace("_", "-"): value for name, value in more.items()}
    return {"authorization": f"Bearer {key}", "content-type": "application/json", **extra}


async def once(port: int, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
    """One exchange on a connection of its own."""
    async with await Client.connect(port) as client:
        return await client.request(method, target, headers, body)
