"""Timing of event streams: how long after the backend wrote it each event reached the client.

The backend (its own process, ``--stamp``) puts its monotonic clock into every event; all processes of a machine share
that clock. The client runs on uvloop. Streams begin a little apart, as those of different users do.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import uvloop

from tests.support.client import bearer, chat
from tests.support.mesh import Mesh, Tenant
from tests.support.process import Child

STREAMS, EVENTS, GAP_S = 50, 20, 0.05
_STAMP = re.compile(rb'"sent_at":([0-9.e+-]+)')


@dataclass(frozen=True)
class Timings:
    """Of all events of all streams. ``delays_s`` is sorted; ``merged`` counts reads with more than one event."""

    delays_s: list[float]
    merged: int
    broken: int

    def quantile_ms(self, share: float) -> float:
        return self.delays_s[min(len(self.delays_s) - 1, int(len(self.delays_s) * share))] * 1000


@contextmanager
def stamping_backend(directory: Path) -> Iterator[str]:
    """URL of a backend whose streams have ``EVENTS`` words, ``GAP_S`` apart."""
    flags = ("--events", str(EVENTS), "--gap-s", str(GAP_S), "--stamp")
    argv = (sys.executable, "-m", "cube_mesh.demo.backend", "--port", "0", *flags)
    with Child(argv, directory / "backend.log") as child:
        yield child.first_line()


@dataclass(frozen=True)
class Added:
    """What the nodes add, in ms: a quantile through both nodes less the same quantile straight from the backend."""

    median_ms: float
    p99_ms: float
    merged: int
    broken: int

    @property
    def within(self) -> bool:
        """The bound of the specification."""
        return self.median_ms <= 1.0 and self.p99_ms <= 5.0 and self.merged == 0 and self.broken == 0


def added_by_nodes(mesh: Mesh, directory: Path) -> Generator[Added]:
    """One round after the other, direct and through fresh nodes, until the caller stops."""
    with (
        stamping_backend(directory) as url,
        mesh.agent(directory / "agent", url) as agent,
        mesh.proxy(directory / "proxy", agent.port) as proxy,
    ):
        while True:
            direct = measure(int(url.rpartition(":")[2]), None)
            through = measure(proxy.port, mesh.tenants[0])
            median, p99 = (through.quantile_ms(share) - direct.quantile_ms(share) for share in (0.5, 0.99))
            yield Added(round(median, 3), round(p99, 3), through.merged, through.broken + direct.broken)


def measure(port: int, tenant: Tenant | None) -> Timings:
    """``STREAMS`` at once; through the nodes as ``tenant``, or straight to the backend without one."""
    path = f"/{tenant.domain}/v1/chat/completions" if tenant else "/v1/chat/completions"
    fields = bearer(tenant.key if tenant else "none")
    body = chat("one two three", stream=True)
    lines = [f"POST {path} HTTP/1.1", "host: test", *(f"{k}: {v}" for k, v in fields.items())]
    request = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body
    gc.collect()
    gc.disable()
    try:
        return uvloop.run(_measure(port, request))
    finally:
        gc.enable()


async def _measure(port: int, request: bytes) -> Timings:
    loop = asyncio.get_running_loop()
    readers = []
    for _ in range(STREAMS):
        _, reader = await loop.create_connection(lambda: _Reader(request), "127.0.0.1", port)
        readers.append(reader)
        await asyncio.sleep(GAP_S / STREAMS)
    async with asyncio.timeout(EVENTS * GAP_S + 20):
        await asyncio.gather(*(reader.ended for reader in readers))
    for reader in readers:
        reader.transport.close()
    delays = sorted(delay for reader in readers for delay in reader.delays)
    broken = sum(1 for reader in readers if len(reader.delays) != EVENTS + 2)  # and the role, and the finish reason
    return Timings(delays, sum(reader.merged for reader in readers), broken)


class _Reader(asyncio.Protocol):
    """Takes the time of each read before it looks at what came."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.delays: list[float] = []
        self.merged = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        stamps = _STAMP.findall(data)
        self.delays += [now - json.loads(stamp) for stamp in stamps]
        self.merged += len(stamps) > 1
        if b"[DONE]" in data and not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
