"""One real proxy with a plain backend behind it: the front door alone, without attestation."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.client import bearer, chat
from tests.support.mesh import Tenant, identity, make_tenant
from tests.support.node import Node

RED = make_tenant("red")
CHAT = f"/{RED.domain}/v1/chat/completions"
STREAM = f"/{RED.domain}/v1/audio/transcriptions"  # a request body that is not read whole


def open_door(directory: Path, backend_url: str, *, launcher: tuple[str, ...] = (), **changes: Any) -> Node:
    """A ready proxy. ``changes`` are whole sections."""
    config = {
        "upstreams": [{"name": "model", "url": backend_url}],
        "routes": [{"name": "all", "upstream": "model", "match": {"path_prefix": "/"}}],
        "identity": identity(RED),
        "audit": {"path": directory / "audit.jsonl"},
        "log": {"format": "json"},
        **changes,
    }
    return Node("proxy", config, directory, launcher=launcher).wait_ready()


def request(
    path: str = CHAT, body: bytes = chat(), *, tenant: Tenant = RED, method: str = "POST", **fields: str
) -> bytes:
    """A whole request as bytes; ``x_request_id`` is written ``x-request-id``."""
    lines = [f"{method} {path} HTTP/1.1", "host: test"]
    lines += [f"{name}: {value}" for name, value in (bearer(tenant.key) | _dashed(fields)).items()]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


def _dashed(fields: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in fields.items()}


async def ask(
    port: int, data: bytes, *, tls: ssl.SSLContext | None = None, source: str = "127.0.0.1", before: bytes = b""
) -> bytes:
    """Send, and read one answer with a Content-Length; b"" when the connection broke. ``before``: ahead of TLS."""
    try:
        first = None if before else tls
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0), ssl=first)
        if before:
            writer.write(before)
            if tls is not None:
                await writer.drain()
                await writer.start_tls(tls, server_hostname="localhost")
    except OSError:
        return b""
    try:
        async with asyncio.timeout(10):
            writer.write(data)
            return await answer(reader)
    except (OSError, asyncio.IncompleteReadError):
        return b""
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> bytes:
    """One answer with a Content-Length; b"" when the connection ends first."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return head + (await reader.readexactly(int(length[0].split(b":")[1])) if length else b"")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


def status(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1]) if reply else 0


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    """Bytes of memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def metric(node: Node, name: str) -> float:
    """One sample, its labels written as the exposition does; 0 if there is none."""
    for line in node.local("/metrics")[1].splitlines():
        if line.startswith(name + " "):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


async def until(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait for it; TimeoutError when it does not come."""
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.05)
