"""A18: ATTACH with a session that is foreign, ended, replayed, of the other role, or of another leaf.

The attacker is a listed proxy, or holds one's leaf key, and has what the case names; never the control connection.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing

import msgspec
import pytest

from attest.binding import Role
from cube_mesh.tls import contexts, sessions
from cube_mesh.tls.frames import FrameType, encode_attach
from cube_mesh.tls.identity import Leaf
from cube_mesh.tls.sessions import Session, SessionTable, attach_value, prove
from tests.attacks.attacker import LEAKED, PROMPT, ClientScript, Outcome, RawTls, against_agent, raw_client
from tests.tls.mesh import AGENT, PROXY, Agent, Mesh, attaching, running_agent

OTHER = "spiffe://cube/proxy/p2"


@pytest.fixture
async def agent(mesh: Mesh) -> AsyncIterator[Agent]:
    async with running_agent(mesh.agent_keeper(), echo=False, allowed=(PROXY, OTHER)) as running:
        yield running


@pytest.fixture
def leaf(mesh: Mesh) -> Leaf:
    return mesh.issue("proxy", "p1")


@pytest.fixture
async def session(mesh: Mesh, agent: Agent, leaf: Leaf) -> AsyncIterator[Session]:
    """A genuine one between the proxy p1 and the agent, as the proxy has it."""
    keeper = mesh.proxy_keeper(leaf)
    attaching(keeper, agent.port)
    found = keeper.sessions.to(AGENT)
    assert isinstance(found, Awaitable)
    made = await found
    agent.events.clear()
    yield made
    await keeper.close()


def attach_frame(raw: RawTls, leaf: Leaf, session: Session) -> bytes:
    agreed = session.agreed
    value = attach_value(raw.export, agreed.id, ClientScript(raw, leaf).hashes())
    return encode_attach(agreed.id, prove(agreed.client_key, value))


async def attach(agent: Agent, leaf: Leaf, session: Session, recorded: bytes = b"") -> Outcome:
    """ATTACH with what the attacker has, then the prompt."""

    async def attack() -> None:
        with closing(await raw_client(agent.port, leaf, alpn=contexts.ALPN_ATTACH)) as raw:
            await raw.send(recorded or attach_frame(raw, leaf, session))
            await raw.frame(FrameType.ATTACHED)
            await raw.send(PROMPT)

    return await against_agent(agent, attack)


async def test_the_stage_itself_holds(agent: Agent, leaf: Leaf, session: Session) -> None:
    assert await attach(agent, leaf, session) == Outcome("ok", LEAKED)


def forged(session: Session) -> Session:
    """The attacker's own keys under an id of its own."""
    agreed = msgspec.structs.replace(session.agreed, id=b"f" * 16, client_key=b"c" * 32, server_key=b"s" * 32)
    return msgspec.structs.replace(session, agreed=agreed)


async def test_a18_foreign(agent: Agent, leaf: Leaf, session: Session) -> None:
    assert await attach(agent, leaf, forged(session)) == Outcome("session_unknown", 0)


async def test_a18_foreign_when_any_id_is_taken(
    agent: Agent, leaf: Leaf, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = forged(session)
    as_agent = msgspec.structs.replace(mine, agreed=msgspec.structs.replace(mine.agreed, role=Role.SERVER))
    monkeypatch.setattr(SessionTable, "find", lambda *_: as_agent)
    assert await attach(agent, leaf, mine) == Outcome("ok", LEAKED)


async def test_a18_an_id_without_its_keys(agent: Agent, leaf: Leaf, session: Session) -> None:
    guess = msgspec.structs.replace(session, agreed=msgspec.structs.replace(session.agreed, client_key=b"c" * 32))
    assert await attach(agent, leaf, guess) == Outcome("session_proof", 0)


async def _replayed(agent: Agent, leaf: Leaf, session: Session) -> Outcome:
    with closing(await raw_client(agent.port, leaf, alpn=contexts.ALPN_ATTACH)) as raw:
        recorded = attach_frame(raw, leaf, session)
        await raw.send(recorded)
        await raw.frame(FrameType.ATTACHED)
    return await attach(agent, leaf, session, recorded)


async def test_a18_replayed(agent: Agent, leaf: Leaf, session: Session) -> None:
    assert await _replayed(agent, leaf, session) == Outcome("session_proof", 0)


async def test_a18_replayed_without_the_exporter(
    agent: Agent, leaf: Leaf, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "attach_value", lambda _exporter, session_id, leaves: session_id + leaves[0])
    monkeypatch.setitem(globals(), "attach_value", sessions.attach_value)
    assert await _replayed(agent, leaf, session) == Outcome("ok", LEAKED)


def _turned(agent: Agent, session: Session) -> None:
    """The agent's end of the session, as if the agent had been its client."""
    table = agent.keeper.sessions._table
    own = table.find(session.id, time.time())
    agreed = msgspec.structs.replace(own.agreed, role=Role.CLIENT)
    table._by_id[session.id] = msgspec.structs.replace(own, agreed=agreed)


async def test_a18_other_role(agent: Agent, leaf: Leaf, session: Session) -> None:
    _turned(agent, session)
    assert await attach(agent, leaf, session) == Outcome("session_role", 0)


async def test_a18_without_the_role(
    agent: Agent, leaf: Leaf, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    _turned(agent, session)
    monkeypatch.setattr(sessions, "check_role", lambda *_: None)
    assert await attach(agent, leaf, session) == Outcome("ok", LEAKED)


async def test_a18_other_leaf(mesh: Mesh, agent: Agent, session: Session) -> None:
    """Another listed proxy has the session's keys."""
    assert await attach(agent, mesh.issue("proxy", "p2"), session) == Outcome("session_leaf", 0)


async def test_a18_without_the_leaves(
    mesh: Mesh, agent: Agent, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "check_leaves", lambda *_: None)
    assert await attach(agent, mesh.issue("proxy", "p2"), session) == Outcome("ok", LEAKED)


def _ended(agent: Agent, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session has ended and the table has not noticed (its own check is off in both runs)."""
    monkeypatch.setattr(SessionTable, "expire", lambda *_: None)
    table = agent.keeper.sessions._table
    table._by_id[session.id] = msgspec.structs.replace(table._by_id[session.id], expires_at=time.time() - 1)


async def test_a18_ended(agent: Agent, leaf: Leaf, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    _ended(agent, session, monkeypatch)
    assert await attach(agent, leaf, session) == Outcome("session_expired", 0)


async def test_a18_ended_without_the_clock(
    agent: Agent, leaf: Leaf, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate opens; the channel's own timer is the wall behind it."""
    _ended(agent, session, monkeypatch)
    monkeypatch.setattr(sessions, "check_expiry", lambda *_: None)
    assert (await attach(agent, leaf, session)).reason == "ok"


async def test_a18_replaced(mesh: Mesh, agent: Agent, leaf: Leaf, session: Session) -> None:
    """A renewal: the old id takes no more connections."""
    keeper = mesh.proxy_keeper(leaf)
    attaching(keeper, agent.port)
    await keeper.sessions._links[AGENT].attest()
    agent.events.clear()
    assert await attach(agent, leaf, session) == Outcome("session_unknown", 0)
    await keeper.close()


async def test_a18_early_data(agent: Agent, leaf: Leaf, session: Session) -> None:
    """The prompt behind ATTACH, not waiting for the agent's proof."""

    async def attack() -> None:
        with closing(await raw_client(agent.port, leaf, alpn=contexts.ALPN_ATTACH)) as raw:
            await raw.send(attach_frame(raw, leaf, session) + PROMPT)
            await raw.receive()

    assert await against_agent(agent, attack) == Outcome("early_data", 0)


async def test_a18_attach_twice(agent: Agent, leaf: Leaf, session: Session) -> None:
    async def attack() -> None:
        with closing(await raw_client(agent.port, leaf, alpn=contexts.ALPN_ATTACH)) as raw:
            await raw.send(attach_frame(raw, leaf, session) * 2)
            await raw.receive()

    assert await against_agent(agent, attack) == Outcome("early_data", 0)
