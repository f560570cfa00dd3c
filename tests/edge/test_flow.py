"""Bytes that one side sends faster than the other takes them, and answers to clients that are still sending: over real
sockets, plain and TLS.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from cube_mesh.demo.backend import ScriptedBackend
from tests.edge.crowd import Backend
from tests.edge.door import CHAT, STREAM, answer, metric, open_door, request, resident, status, until
from tests.edge.test_tls import Files
from tests.support.client import chat

UPLOAD_BYTES = 64 * 2**20
ROOM = 8 * 2**20  # buffers of both connections, and what a process takes by itself


@asynccontextmanager
async def deaf_backend() -> AsyncIterator[str]:
    """Accepts, and never reads."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        over.set()
        await asyncio.sleep(0.05)


async def test_an_upload_to_an_upstream_that_does_not_read_is_held_back_and_ends(tmp_path: Path) -> None:
    async with deaf_backend() as url:
        with open_door(tmp_path, url, timeouts={"write_s": 1.0}) as proxy:
            before = resident(proxy.pid)
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(request(STREAM, b"")[:-4].replace(b"content-length: 0", b"content-length: %d" % UPLOAD_BYTES))
            writer.write(b"\r\n\r\n")
            sending = asyncio.create_task(_send(writer, UPLOAD_BYTES))
            reply = await asyncio.wait_for(answer(reader), 10)
            grown = resident(proxy.pid) - before
            sending.cancel()
            writer.close()
            assert status(reply) == 504 and b"upstream_timeout" in reply
            assert grown < ROOM, f"{grown / 2**20:.1f} MiB"
            await until(lambda: metric(proxy, "cube_requests_in_flight") == 0)


async def _send(writer: asyncio.StreamWriter, size: int) -> int:
    """As fast as it is taken; the number of bytes that were."""
    sent = 0
    with suppress(ConnectionError):
        while sent < size:
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent += 65_536
    return sent


async def test_a_reader_that_stops_holds_the_upstream_back_and_may_go_on(tmp_path: Path) -> None:
    backend = Backend()
    async with backend.serve() as url:
        with open_door(tmp_path, url, timeouts={"write_s": 20.0}) as proxy:
            before = resident(proxy.pid)
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, limit=65_536)
            writer.write(request(body=chat("large")))
            head = await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(1.0)
            held = backend.sent
            await asyncio.sleep(0.5)
            assert backend.sent == held, "nothing moves"
            assert resident(proxy.pid) - before < ROOM
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            left = length
            while left:
                left -= len(await reader.read(1 << 20))
            assert backend.sent == length > 2 * held
            writer.close()


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("size", [100_000, 3_000_000])
async def test_a_client_that_is_still_sending_sees_why_it_is_refused(
    tmp_path: Path, backend: ScriptedBackend, size: int, over_tls: bool
) -> None:
    """It sends all of its body before it looks for the answer; a reset would have destroyed that."""
    tls, listen = _tls(tmp_path) if over_tls else (None, {})
    with open_door(tmp_path / "proxy", backend.url, listen=listen) as proxy:
        for target, credential, expected in ((CHAT, "Bearer wrong", 401), (CHAT + "x", "", 403)):
            fields = {"authorization": credential} if credential else {}
            data = request(target, b"x" * size, **fields)
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=tls)
            for at in range(0, len(data), 50_000):
                writer.write(data[at : at + 50_000])
                await writer.drain()
                await asyncio.sleep(0.005)
            reply = await asyncio.wait_for(answer(reader), 5)
            assert status(reply) == expected and b"connection: close" not in reply, "the rest is read and dropped"
            writer.close()
        await until(lambda: metric(proxy, "cube_connections") == 0, 8)


async def test_what_is_read_behind_a_refusal_has_an_end(tmp_path: Path, backend: ScriptedBackend) -> None:
    limits, timeouts = {"max_linger_bytes": 100_000}, {"linger_s": 1.0}
    with open_door(tmp_path, backend.url, limits=limits, timeouts=timeouts) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        data = request(body=b"", authorization="Bearer wrong").replace(
            b"content-length: 0", b"content-length: 900000000"
        )
        writer.write(data)
        sent = await asyncio.wait_for(_send(writer, 900_000_000), 5)
        assert sent < 50_000_000
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(data)
        assert status(await answer(reader)) == 401
        await until(lambda: metric(proxy, "cube_connections") == 0, 4)
        writer.close()


def _tls(directory: Path) -> tuple[ssl.SSLContext, dict[str, object]]:
    files = Files(directory)
    return files.client(), {"tls": files.tls()}
