"""A small HTTPS client for what others publish: h11, one request, no redirect, no proxy, bounded in time and size.

What a status means is the caller's matter. TLS is verified against the system's roots, or the caller's context.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

import h11
import msgspec

from cube_mesh.errors import ConfigError
from cube_mesh.listener import is_loopback

__all__ = ["LINK_LOCAL", "Answer", "FetchError", "check_url", "get", "send"]

LINK_LOCAL = "169.254.169.254"  # a cloud's metadata service: the hypervisor answers, and speaks no TLS
_MAX_HEAD_BYTES = 32_768  # Intel sends certificate chains in its header fields


class Answer(msgspec.Struct, frozen=True):
    """A whole answer. ``fields`` by lower-case name; of a repeated one, the last."""

    status: int
    fields: dict[str, str]
    body: bytes


class FetchError(Exception):
    """No answer. ``kind``: ``unreachable`` (connect, TLS, time, cut short) or ``oversize``."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def check_url(url: str, key: str, *, link_local: bool = False) -> SplitResult:
    """An ``https`` URL, or ``http`` to loopback (or ``LINK_LOCAL``, where the caller says so): who can change what
    others publish can be anyone. Raises ConfigError.
    """
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.username is None and not parts.fragment and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"not a plain URL: {url!r}", key=key)
    plain = is_loopback(parts.hostname or "") or (link_local and parts.hostname == LINK_LOCAL)
    if parts.scheme != "https" and not (parts.scheme == "http" and plain):
        raise ConfigError("must be https (http only to loopback)", key=key)
    return parts


async def get(
    url: str,
    *,
    timeout_s: float,
    max_bytes: int,
    fields: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """One GET, whatever its status. ``max_bytes`` bounds the body; raises FetchError. The URL is a checked one."""
    return await send(url, timeout_s=timeout_s, max_bytes=max_bytes, fields=fields, tls=tls)


async def send(
    url: str,
    *,
    timeout_s: float,
    max_bytes: int,
    method: str = "GET",
    fields: Mapping[str, str] | None = None,
    body: bytes = b"",
    unix_socket: str = "",
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """As ``get``, with any method and a request body. ``unix_socket``: path of the socket to use, where the URL only
    names the resource.
    """
    parts = urlsplit(url)
    context = None if parts.scheme == "http" else tls or ssl.create_default_context()
    try:
        async with asyncio.timeout(timeout_s):
            if unix_socket:
                reader, writer = await asyncio.open_unix_connection(unix_socket)
            else:
                port = parts.port or (443 if context else 80)
                reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
            try:
                return await _exchange(reader, writer, _request(method, parts, fields or {}, body), body, max_bytes)
            finally:
                writer.close()
    except (OSError, TimeoutError, h11.ProtocolError) as error:
        raise FetchError("unreachable", f"{type(error).__name__}: {error}") from None


def _request(method: str, parts: SplitResult, fields: Mapping[str, str], body: bytes) -> h11.Request:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = {"host": parts.netloc, "connection": "close", "accept": "*/*"}
    if body:
        lines["content-length"] = str(len(body))
    return h11.Request(method=method, target=target, headers=[*(lines | dict(fields)).items()])


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: h11.Request, sent: bytes, max_bytes: int
) -> Answer:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
    for event in (request, h11.Data(data=sent), h11.EndOfMessage()):
        writer.write(connection.send(event) or b"")
    status, answered, body = 0, dict[str, str](), bytearray()
    while True:
        got = connection.next_event()
        if got is h11.NEED_DATA:
            connection.receive_data(await reader.read(65_536))
        elif isinstance(got, h11.Response):
            status = got.status_code
            answered = {name.decode("latin-1"): value.decode("latin-1") for name, value in got.headers}
        elif isinstance(got, h11.Data):
            body += got.data
            if len(body) > max_bytes:
                raise FetchError("oversize", f"more than {max_bytes} bytes")
        elif isinstance(got, h11.EndOfMessage):
            return Answer(status, answered, bytes(body))
        elif isinstance(got, h11.ConnectionClosed):
            raise FetchError("unreachable", "closed early")
