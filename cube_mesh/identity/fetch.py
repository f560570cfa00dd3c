"""A small HTTPS GET for key sets: h11, one request, no redirect, no proxy, bounded in time and size."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import SplitResult, urlsplit

import h11

from cube_mesh.errors import ConfigError, DependencyError
from cube_mesh.listener import is_loopback

_UNREADABLE = "A service that this server needs did not answer."


def check_url(url: str, key: str) -> SplitResult:
    """An ``https`` URL, or ``http`` to a loopback address: who can change a key set can be anyone. Raises
    ConfigError.
    """
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.username is None and not parts.fragment and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"not a plain URL: {url!r}", key=key)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ConfigError("must be https (http only to loopback)", key=key)
    return parts


async def fetch(url: str, *, timeout_s: float, max_bytes: int, tls: ssl.SSLContext | None = None) -> bytes:
    """The body of a 200 answer. Raises DependencyError ``fetch_failed`` for everything else, time and size included."""
    parts = check_url(url, "url")
    context = None if parts.scheme == "http" else tls or ssl.create_default_context()
    port = parts.port or (443 if context else 80)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
            try:
                return await _exchange(reader, writer, parts, max_bytes)
            finally:
                writer.close()
    except (OSError, TimeoutError, h11.ProtocolError) as error:
        raise _failed(f"{type(error).__name__}: {error}") from None


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parts: SplitResult, max_bytes: int
) -> bytes:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=16_384)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fields = [("host", parts.netloc), ("accept", "application/json"), ("connection", "close")]
    for event in (h11.Request(method="GET", target=target, headers=fields), h11.EndOfMessage()):
        writer.write(connection.send(event) or b"")
    body = bytearray()
    while True:
        got = connection.next_event()
        if got is h11.NEED_DATA:
            connection.receive_data(await reader.read(65_536))
        elif isinstance(got, h11.Response) and got.status_code != 200:
            raise _failed(f"status {got.status_code}")
        elif isinstance(got, h11.Data):
            body += got.data
            if len(body) > max_bytes:
                raise _failed(f"more than {max_bytes} bytes")
        elif isinstance(got, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(got, h11.ConnectionClosed):
            raise _failed("closed early")


def _failed(detail: str) -> DependencyError:
    return DependencyError("fetch_failed", _UNREADABLE, detail=detail, status=503, retryable=True)
