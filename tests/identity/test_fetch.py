"""The small HTTPS client against a server that answers as it is told, wrongly too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cube_mesh.errors import ConfigError, DependencyError
from cube_mesh.identity.fetch import check_url, fetch

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@asynccontextmanager
async def server(answer: bytes, *, hang: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    seen: list[bytes] = []
    release = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        if hang:
            await release.wait()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/jwks?v=1", seen
    finally:
        release.set()
        listening.close()
        await listening.wait_closed()


async def test_a_good_answer_and_what_was_asked() -> None:
    async with server(OK) as (url, seen):
        assert await fetch(url, timeout_s=2, max_bytes=100) == b"{}"
    assert seen[0].startswith(b"GET /jwks?v=1 HTTP/1.1\r\n")
    assert b"authorization" not in seen[0].lower()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://evil.example/\r\ncontent-length: 0\r\n\r\n", "status 302"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\n" + b"x" * 200, "more than 100"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nc8\r\n" + b"x" * 200 + b"\r\n0\r\n\r\n",
            "more than 100",
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{}", "ProtocolError"),
        (b"SSH-2.0-OpenSSH\r\n", "ProtocolError"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000, "ProtocolError"),
        (b"", "ProtocolError"),
    ],
)
async def test_wrong_answers(answer: bytes, why: str) -> None:
    async with server(answer) as (url, _):
        with pytest.raises(DependencyError) as caught:
            await fetch(url, timeout_s=2, max_bytes=100)
    assert why in caught.value.detail and caught.value.code == "fetch_failed"


async def test_a_server_that_hangs_and_one_that_is_not_there() -> None:
    async with server(OK[:-1], hang=True) as (url, _):
        with pytest.raises(DependencyError) as caught:
            await fetch(url, timeout_s=0.05, max_bytes=100)
    assert "TimeoutError" in caught.value.detail
    with pytest.raises(DependencyError):
        await fetch(url, timeout_s=2, max_bytes=100)


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://id.example/jwks", True), ("http://127.0.0.1:1/x", True), ("http://[::1]:1/x", True),
        ("http://localhost/x", True), ("http://localhost.evil.example/x", False), ("http://10.0.0.1/x", False),
        ("ftp://id.example/", False), ("https:///x", False), ("https://a@b/", False), ("https://id.example/#f", False),
        ("https://id.example:x/", False), ("", False), ("//id.example/", False),
    ],
)  # fmt: skip
def test_urls(url: str, good: bool) -> None:
    if good:
        check_url(url, "k")
        return
    with pytest.raises(ConfigError):
        check_url(url, "k")
