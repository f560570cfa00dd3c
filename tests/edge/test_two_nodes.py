"""A backend that breaks the rules, behind a real agent and a real proxy: what the client gets of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.connection.test_upstream import BROKEN, NO_ANSWER
from tests.edge.door import metric, request, until
from tests.support.mesh import Mesh, read_events

LIMITS = {"max_head_bytes": 4096, "max_fields": 20}


class RawBackend:
    """Answers every request with the same bytes, and closes."""

    def __init__(self) -> None:
        self.answer = b""

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            writer.write(self.answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def to_the_end(port: int, data: bytes) -> bytes:
    """Everything that comes until the connection closes; the request asks for that."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


async def test_what_a_backend_does_wrong_is_told_once(mesh: Mesh, tmp_path: Path) -> None:
    backend = RawBackend()
    async with backend.serve() as url:
        with (
            mesh.agent(tmp_path / "agent", url, limits=LIMITS) as agent,
            mesh.proxy(tmp_path / "proxy", agent.port, limits=LIMITS) as proxy,
        ):
            for name, answer in NO_ANSWER.items():
                backend.answer = answer
                got = await to_the_end(proxy.port, request(tenant=mesh.tenants[0], connection="close"))
                assert got.startswith(b"HTTP/1.1 502 ") and got.count(b"HTTP/1.1") == 1, name
                assert got.count(b'"error"') == 1, name
            for name, case in BROKEN.items():
                backend.answer = case.head + case.body
                got = await to_the_end(proxy.port, request(tenant=mesh.tenants[0], connection="close"))
                whole = got.startswith(b"HTTP/1.1 502 ")  # head and fault came in one read: nothing had been sent yet
                frames = b"event-stream" in case.head and not whole
                assert whole or got.startswith(b"HTTP/1.1 200 "), name
                assert got.count(b'data: {"error"') == frames and not got.endswith(b"0\r\n\r\n"), name
            events = read_events(tmp_path / "proxy")
            assert len(events) == len(NO_ANSWER) + len(BROKEN)
            for node in (agent, proxy):
                await until(lambda node=node: metric(node, "cube_requests_in_flight") == 0)  # type: ignore[misc]
