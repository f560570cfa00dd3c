"""Workers of both sides over their keepers' links, in one process but over the real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from attest.errors import AttestError
from attest.evidence import Part
from cube_mesh import keeper_link
from cube_mesh.errors import DependencyError
from cube_mesh.keeper import Keeper
from cube_mesh.keeper_process import KeeperServer
from cube_mesh.remote_keeper import RemoteKeeper
from cube_mesh.tls.connector import AttestedConnector, AttestedServer
from cube_mesh.tls.reasons import Refusal
from tests.tls.mesh import AGENT, POLICY, PROXY, SETTINGS, Mesh, Recorder, control_link, upstream


class SlowTpm:
    """A second for each quote, one at a time, as hardware takes."""

    scheme = "vtpm"

    def __init__(self, mesh: Mesh, delay_s: float) -> None:
        self._tpm, self.delay_s = mesh.tpm, delay_s

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        time.sleep(self.delay_s)
        return self._tpm.parts(data_hash)


class Side:
    """A keeper behind its rendezvous, and workers in front of it."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.workers_end, self.keepers_end = keeper_link.rendezvous()
        self.server = KeeperServer(keeper, self.keepers_end, (AGENT,))
        self.workers: list[RemoteKeeper] = []

    async def worker(self) -> RemoteKeeper:
        made = RemoteKeeper(self.workers_end, self.keeper.node_id, self.keeper.roots, 5.0)
        await made.start()
        self.workers.append(made)
        return made

    async def close(self) -> None:
        for worker in self.workers:
            await worker.close()
        await self.server.close()
        await self.keeper.close()
        await asyncio.sleep(0.05)
        self.workers_end.close()
        self.keepers_end.close()


@asynccontextmanager
async def sides(mesh: Mesh, collector: Any = None) -> AsyncIterator[tuple[Side, Side, list[AttestedConnector]]]:
    """An agent with two workers that accept on a port each, a proxy with two workers that dial one each."""
    agent, proxy = Side(mesh.agent_keeper(collector)), Side(mesh.proxy_keeper())
    servers, dials, inner = [], [], []
    loop = asyncio.get_running_loop()

    def made() -> Recorder:
        inner.append(Recorder(echo=True))
        return inner[-1]

    for side in (agent, proxy):
        side.server.start()
        await side.keeper.start()
    for _ in range(2):
        server = AttestedServer(await agent.worker(), made, SETTINGS, (PROXY,))
        servers.append(await loop.create_server(server, "127.0.0.1", 0))
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    proxy.keeper.sessions.add_link(control_link(proxy.keeper, ports[0]))
    for port in ports:
        dials.append(AttestedConnector(upstream(port, mode="session"), await proxy.worker(), SETTINGS))
    try:
        yield agent, proxy, dials
    finally:
        for one in inner:
            one.transport.abort()
        for server in servers:
            server.close()
        await proxy.close()
        await agent.close()


async def echo(dial: AttestedConnector) -> Recorder:
    made = await dial.connect(Recorder)
    assert isinstance(made, Recorder)
    made.transport.write(b"hello")
    assert await made.until(5) == b"hello"
    return made


async def test_any_worker_to_any_worker_under_one_quote(mesh: Mesh) -> None:
    """With quotes that take 0.3 s: every first request waits for the one, and no longer."""
    slow = SlowTpm(mesh, 0.0)
    async with sides(mesh, slow) as (agent, _, dials):
        slow.delay_s, before, started = 0.3, agent.keeper.quotes, time.monotonic()
        made = await asyncio.gather(*(echo(dial) for dial in dials for _ in range(3)))
        assert agent.keeper.quotes - before == 1
        assert 0.3 <= time.monotonic() - started < 0.6
        assert {one.transport.get_extra_info("attestation").session_generation for one in made} == {1}


async def test_a_renewal_extends_and_a_revocation_ends_connections_of_every_worker(mesh: Mesh) -> None:
    async with sides(mesh) as (agent, proxy, dials):
        made = [await echo(dial) for dial in dials]
        await proxy.keeper.sessions._links[AGENT].attest()
        await asyncio.sleep(0.05)
        for one in made:
            assert one.transport.get_extra_info("attestation").session_generation == 2
        assert agent.keeper.sessions.active == 1
        proxy.keeper.sessions.revoke(AGENT)
        async with asyncio.timeout(2):
            for one in made:
                assert isinstance(await one.lost, ConnectionError)


async def test_without_the_keeper_what_stands_goes_on_and_what_needs_it_is_refused(mesh: Mesh) -> None:
    async with sides(mesh) as (_, proxy, dials):
        standing = await echo(dials[0])
        await proxy.server.close()
        await asyncio.sleep(0.05)
        standing.received.clear()
        standing.transport.write(b"still")
        assert await standing.until(5) == b"still"
        with pytest.raises(DependencyError) as caught:
            await dials[0].connect(Recorder)
        assert (caught.value.code, caught.value.retryable) == ("atls_keeper", True)
        with pytest.raises(Refusal, match="keeper"):
            await proxy.workers[0].appraise(b"", None, "")  # type: ignore[arg-type]
        proxy.server = KeeperServer(proxy.keeper, proxy.keepers_end, (AGENT,))
        proxy.server.start()
        await asyncio.sleep(0.3)
        await echo(dials[0])


async def test_an_agent_without_its_keeper_refuses_for_now(mesh: Mesh) -> None:
    async with sides(mesh) as (agent, _, dials):
        await echo(dials[0])
        await agent.server.close()
        await asyncio.sleep(0.05)
        assert [worker.not_ready for worker in agent.workers] == ["no keeper"] * len(agent.workers)
        with pytest.raises(DependencyError, match="refused in phase attach.*: keeper") as caught:
            await dials[0].connect(Recorder)
        assert (caught.value.code, caught.value.retryable) == ("atls_refused", True)


async def test_a_workers_further_policy_is_asked_of_the_keeper(mesh: Mesh) -> None:
    """The evidence stays with the keeper: workers name the session and the policy, and get a verdict."""
    async with sides(mesh) as (_, proxy, dials):
        made = await echo(dials[0])
        worker, name = proxy.workers[1], made.transport.get_extra_info("attestation").session
        assert (await worker.appraise_session(name, POLICY)).policy_id == "test"
        assert all(session.agreed.evidence == b"" for session in worker.sessions._by_id.values())
        with pytest.raises(AttestError, match="no evidence policy"):
            await worker.appraise_session(name, "other.toml")
        with pytest.raises(Refusal, match="session_unknown"):
            await worker.appraise_session("0" * 16, POLICY)


async def test_keys_go_when_they_end_in_every_process(mesh: Mesh) -> None:
    async with sides(mesh) as (_, proxy, dials):
        await echo(dials[0])
        session = next(iter(proxy.keeper.sessions._table))
        ending = msgspec.structs.replace(session, expires_at=time.time() + 0.1)
        await proxy.keeper.sessions.register(ending)
        await asyncio.sleep(0.05)
        assert all(list(worker.sessions._by_id) == [session.id] for worker in proxy.workers)
        await asyncio.sleep(0.15)
        assert not list(proxy.keeper.sessions._table)
        assert not any(worker.sessions._by_id for worker in proxy.workers)
