"""The whole path as processes: a proxy and an agent of one mesh, and a scripted backend in the caller's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cube_mesh.demo.backend import ScriptedBackend
from tests.support.mesh import Mesh, Tenant, read_events
from tests.support.node import Node

TIMEOUTS = {"first_byte_s": 1.0, "stream_gap_s": 1.0, "head_s": 2.0, "body_s": 1.0}  # of the proxy: tests wait for them


@dataclass
class Way:
    """Client side of the path, and what can be seen at its end."""

    mesh: Mesh
    directory: Path
    backend: ScriptedBackend
    agent: Node
    proxy: Node

    @property
    def red(self) -> Tenant:
        return self.mesh.tenants[0]

    @property
    def blue(self) -> Tenant:
        return self.mesh.tenants[1]

    def events(self, request_id: str = "") -> list[dict[str, Any]]:
        """The audit events, of one request or all."""
        found = read_events(self.directory / "proxy")
        return [event for event in found if not request_id or event["request_id"] == request_id]


@asynccontextmanager
async def whole_way(mesh: Mesh, directory: Path) -> AsyncIterator[Way]:
    """Start the three, the backend first; stop them in the opposite order."""
    async with ScriptedBackend() as backend:
        agent = await asyncio.to_thread(mesh.agent, directory / "agent", backend.url)
        try:
            proxy = await asyncio.to_thread(mesh.proxy, directory / "proxy", agent.port, timeouts=TIMEOUTS)
            try:
                yield Way(mesh, directory, backend, agent, proxy)
            finally:
                await asyncio.to_thread(proxy.close)
        finally:
            await asyncio.to_thread(agent.close)
