"""The whole path as processes: a proxy and an agent of the session's mesh, and a backend in the test's own loop.

Fixtures and tests here share one event loop per module, because the nodes keep connections to the backend.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from cube_mesh.demo.backend import Script, ScriptedBackend
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

    def openai(self, tenant: Tenant, key: str = "") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.proxy.url}/{tenant.domain}/v1", api_key=key or tenant.key, max_retries=0, timeout=60
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def way(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Way]:
    directory = tmp_path_factory.mktemp("way")
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


@pytest.fixture(autouse=True)
def _fresh_script(request: pytest.FixtureRequest) -> None:
    """Every test finds the backend as it comes, with nothing in its memory."""
    if "way" in request.fixturenames:
        way: Way = request.getfixturevalue("way")
        way.backend.script = Script()
        way.backend.requests.clear()
