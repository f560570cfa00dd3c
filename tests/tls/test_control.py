"""Control links: readiness follows attestation, ahead of the first request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from cube_mesh.errors import DependencyError
from cube_mesh.settings import Attestation
from cube_mesh.tls import control
from tests.tls.mesh import AGENT, Mesh, control_link, running_agent


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_FIRST_RETRY_S", 0.05)


async def test_ready_once_the_agent_has_attested(mesh: Mesh) -> None:
    async with running_agent(mesh.agent_keeper()) as agent:
        link = control_link(mesh.proxy_keeper(), agent.port)
        assert (link.ready, link.reason) == (False, "not attested yet")
        link.start()
        await until(lambda: link.ready)
        assert link.attestation is not None
        assert (link.attestation.mode, link.attestation.peer_id, link.reason) == ("control", AGENT, "")
        assert agent.inner == []  # no application behind it
        await link.close()
        assert not link.ready


async def test_re_attests_before_the_interval_ends_without_a_gap(mesh: Mesh) -> None:
    short = Attestation(attester="vtpm", interval_s=2.0, handshake_timeout_s=5.0)
    async with running_agent(mesh.agent_keeper(), settings=short) as agent:
        link = control_link(mesh.proxy_keeper(), agent.port, settings=short)
        link.start()
        await until(lambda: link.ready)
        ends = time.monotonic() + 2.5
        while time.monotonic() < ends:
            assert link.ready
            await asyncio.sleep(0.01)
        assert len(agent.events) >= 2
        await link.close()


async def test_an_agent_that_is_lost_and_comes_back(mesh: Mesh) -> None:
    keeper = mesh.proxy_keeper()
    async with running_agent(mesh.agent_keeper()) as agent:
        link = control_link(keeper, agent.port)
        link.start()
        await until(lambda: link.ready)
        assert link._end is not None and link._end.transport is not None
        link._end.transport.abort()
        await until(lambda: not link.ready)
        assert link.reason == "control connection lost"
        await until(lambda: link.ready)
        await link.close()


async def test_the_reason_of_a_refusal_is_the_links(mesh: Mesh) -> None:
    other = "spiffe://cube/agent/a2"
    async with running_agent(mesh.agent_keeper()) as agent:
        link = control_link(mesh.proxy_keeper(), agent.port, node_id=other)
        link.start()
        await until(lambda: link.reason == "atls_not_allowed")
        assert not link.ready
        with pytest.raises(DependencyError):
            await link.attest()
        await link.close()
