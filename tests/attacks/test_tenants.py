"""A19: a tenant served over a session that fails its own policy.

Two tenants share a proxy's warm connections to one agent. The agent passes the upstream's policy, which is all that the
first tenant asks for; the second has a policy of its own that this agent does not satisfy, and must not send it a byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from attest.appraise import AttestationResult
from attest.attester import NoEvidence
from attest.policy import parse_policy
from attest.verifier import Verifier
from cube_mesh.connection import Downstream
from cube_mesh.deadlines import Sweeper
from cube_mesh.errors import ConfigError
from cube_mesh.exchange import Exchange
from cube_mesh.hops import Hop
from cube_mesh.keeper import Keeper
from cube_mesh.ports import Done, Target
from cube_mesh.service import Service
from cube_mesh.settings import Domain, Limits, Timeouts
from cube_mesh.settings import Pool as PoolSettings
from cube_mesh.tls.connector import AttestedServer
from cube_mesh.tls.identity import Leaf, parse_spiffe_id
from cube_mesh.tls.live import LiveChannels
from cube_mesh.tls.reasons import Refusal
from cube_mesh.tls.tenant import TenantPolicy, TenantTarget, tenant_targets
from cube_mesh.upstream import Pool
from tests.attacks.attacker import Outcome
from tests.connection.wire import CHAT, Wire
from tests.tls.mesh import POLICY, PROXY, SETTINGS, Mesh, Recorder, connector, control_link

OWN = "tenant.toml"
STRICT, RELAXED = "11" * 32, "00" * 32  # PCR 1 as the tenant wants it; the software TPM has zero
PROMPT = b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Backend(Recorder):
    """What stands behind the agent's gate: answers every request."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(ANSWER)


class Gates:
    """The chain, as far as it matters: the target, and how each exchange ended."""

    def __init__(self) -> None:
        self.ended: list[Exchange] = []
        self.target: Target | None = None

    def enter(self, exchange: Exchange) -> None:
        exchange.request_id = "r1"
        exchange.trace_id, exchange.span_id = "0" * 31 + "1", "0" * 15 + "2"
        exchange.upstream_target, exchange.endpoint, exchange.target = exchange.head.target, CHAT, self.target

    def leave(self, exchange: Exchange, done: Done) -> None:
        self.ended.append(exchange)
        done(None)


class Stage:
    """A proxy's pool in front of the agent, the tenant's target on it, and what the tenants' requests came to."""

    def __init__(self, behind: list[Backend], port: int, keeper: Keeper, mode: str) -> None:
        self.behind, self.keeper = behind, keeper
        self.link = control_link(keeper, port)
        keeper.sessions.add_link(self.link)
        sweeper, limits, timeouts = Sweeper(), Limits(), Timeouts()
        pool = Pool(connector(keeper, port, mode=mode), PoolSettings(), timeouts, limits, sweeper)
        self.hop = Hop("u", "up:1", pool, mesh=True)
        self.own = TenantTarget(self.hop, TenantPolicy(OWN, keeper))
        self._gates = Gates()
        self._service = Service(self._gates, limits, timeouts, sweeper, {}, lambda _: None)  # type: ignore[arg-type]

    async def request(self, target: Target) -> tuple[Outcome, Exchange]:
        """One request; the reason, and what of it arrived behind the agent's gate."""
        before, ended = self._arrived, len(self._gates.ended)
        self._gates.target = target
        down = Downstream(self._service)
        down.connection_made(Wire())
        down.data_received(PROMPT)
        async with asyncio.timeout(5):
            while len(self._gates.ended) == ended:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)  # whatever may still arrive
        exchange = self._gates.ended[-1]
        reason = exchange.error.code.removeprefix("atls_") if exchange.error is not None else "ok"
        return Outcome(reason, self._arrived - before), exchange

    @property
    def _arrived(self) -> int:
        return sum(len(inner.received) for inner in self.behind)


@pytest.fixture
def leaf(mesh: Mesh) -> Leaf:
    return mesh.issue("proxy", "p1")


@asynccontextmanager
async def staged(mesh: Mesh, leaf: Leaf, pcr: str, mode: str = "session") -> AsyncIterator[Stage]:
    own = parse_policy(mesh.default_policy(pcrs={0: "00" * 32, 1: pcr}).replace('id = "test"', 'id = "own"'))
    verifiers = {POLICY: mesh.verifier(), OWN: Verifier(own, allow_simulated=True)}
    keeper = Keeper(parse_spiffe_id(PROXY), NoEvidence(), verifiers, mesh.roots, leaf=leaf)
    agents = mesh.agent_keeper()
    await agents.start()
    behind: list[Backend] = []

    def make_inner() -> Backend:
        behind.append(Backend())
        return behind[-1]

    factory = AttestedServer(agents, make_inner, SETTINGS, (PROXY,))
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    stage = Stage(behind, server.sockets[0].getsockname()[1], keeper, mode)
    try:
        yield stage
    finally:
        stage.hop.pool.close()
        await keeper.close()
        server.close()
        await agents.close()
        await asyncio.sleep(0.01)


async def test_the_stage_itself_holds(mesh: Mesh, leaf: Leaf) -> None:
    """A policy that this agent satisfies: the tenant is served, on the connection of the other, and it is on record."""
    async with staged(mesh, leaf, RELAXED) as stage:
        first, plain = await stage.request(stage.hop)
        second, exchange = await stage.request(stage.own)
        assert first.reason == second.reason == "ok"
        assert first.leaked and second.leaked and len(stage.behind) == 1
        assert plain.attestation is not None and exchange.attestation is not None
        assert (plain.attestation.tenant_policy_id, exchange.attestation.tenant_policy_id) == ("", "own")
        assert len(exchange.attestation.tenant_policy_digest) == 64
        assert exchange.attestation.session == plain.attestation.session


@pytest.mark.parametrize("warm", [True, False], ids=["pooled", "new"])
async def test_a19_a_session_that_fails_the_tenants_policy(
    mesh: Mesh, leaf: Leaf, warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(mesh, leaf, STRICT) as stage:
        if warm:
            assert (await stage.request(stage.hop))[0].reason == "ok"
        outcome, exchange = await stage.request(stage.own)
        assert outcome == Outcome("tenant_policy", 0)
        assert exchange.error is not None and exchange.error.status == 503 and "pcr" in exchange.error.detail
        assert (await stage.request(stage.hop))[0].reason == "ok"  # others go on
        assert len(stage.behind) == 1  # on the same connection: it was given back, not closed

    async def of_the_upstream(keeper: Keeper, session: str, policy_name: str) -> AttestationResult:
        agreed = keeper.sessions.named(session).agreed
        assert agreed.expected is not None
        return await keeper.appraise(agreed.evidence, agreed.expected, POLICY)

    monkeypatch.setattr(Keeper, "appraise_session", of_the_upstream)
    async with staged(mesh, leaf, STRICT) as stage:
        outcome, _ = await stage.request(stage.own)
        assert outcome.reason == "ok" and outcome.leaked


async def test_a19_a_connection_without_a_session(mesh: Mesh, leaf: Leaf) -> None:
    """A quote of its own was appraised under the upstream's policy, and not kept for any other."""
    async with staged(mesh, leaf, RELAXED, "quote") as stage:
        assert (await stage.request(stage.hop))[0].reason == "ok"
        assert (await stage.request(stage.own))[0] == Outcome("tenant_policy", 0)


async def test_a19_each_generation_is_asked_about_once(mesh: Mesh, leaf: Leaf, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    appraise = Keeper.appraise_session

    async def counted(keeper: Keeper, session: str, policy_name: str) -> AttestationResult:
        asked.append(session)
        return await appraise(keeper, session, policy_name)

    monkeypatch.setattr(Keeper, "appraise_session", counted)
    async with staged(mesh, leaf, RELAXED) as stage:
        for _ in range(3):
            assert (await stage.request(stage.own))[0].reason == "ok"
        assert len(asked) == 1
        await stage.link.attest()  # a renewal: the pooled connection goes on under it, and is judged anew
        assert (await stage.request(stage.own))[0].reason == "ok"
        assert len(asked) == len(set(asked)) == 2 and len(stage.behind) == 1


async def test_a19_a_connection_of_the_past_is_closed_and_not_used(mesh: Mesh, leaf: Leaf) -> None:
    async with staged(mesh, leaf, RELAXED) as stage:
        assert (await stage.request(stage.hop))[0].reason == "ok"
        live, stage.keeper.sessions.live = stage.keeper.sessions.live, LiveChannels()
        await stage.link.attest()  # nobody extends the pooled connection: it stays on the session before
        stage.keeper.sessions.live = live
        outcome, exchange = await stage.request(stage.own)
        assert outcome.reason == "ok" and len(stage.behind) == 2
        assert exchange.attestation is not None and exchange.attestation.session_generation == 2


async def test_a19_a_keeper_that_is_gone_is_a_refusal(mesh: Mesh, leaf: Leaf, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(keeper: Keeper, session: str, policy_name: str) -> AttestationResult:
        raise Refusal("keeper", "it is gone")

    async with staged(mesh, leaf, RELAXED) as stage:
        assert (await stage.request(stage.hop))[0].reason == "ok"
        monkeypatch.setattr(Keeper, "appraise_session", gone)
        assert (await stage.request(stage.own))[0] == Outcome("keeper", 0)
        monkeypatch.undo()
        assert (await stage.request(stage.own))[0].reason == "ok"  # nothing of it was kept


async def test_a_domain_with_a_policy_and_nothing_attested_does_not_start(mesh: Mesh, leaf: Leaf) -> None:
    own = Domain(id="a0000000-0000-4000-8000-000000000001", evidence_policy=OWN)
    with pytest.raises(ConfigError, match="attested"):
        tenant_targets((own,), {}, None)
