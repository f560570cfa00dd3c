"""Attacks on an agent that listens: refused for their reason, no byte at the backend side, no quote for strangers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest
from OpenSSL import SSL

from attest.evidence import Part
from cube_mesh.tls import connector as connector_module
from cube_mesh.tls import contexts, gate, identity
from cube_mesh.tls.identity import Leaf
from tests.attacks.attacker import (
    LEAKED,
    PROMPT,
    ClientScript,
    Outcome,
    accepting,
    against_agent,
    raw_client,
    raw_context,
    send_prompt,
)
from tests.tls.mesh import AGENT, PROXY, Agent, Mesh, running_agent


class CountingTpm:
    """The software TPM, and how often it was asked."""

    scheme = "vtpm"

    def __init__(self, mesh: Mesh) -> None:
        self.quotes = 0
        self._tpm = mesh.tpm

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        self.quotes += 1
        return self._tpm.parts(data_hash)


@pytest.fixture
def tpm(mesh: Mesh) -> CountingTpm:
    return CountingTpm(mesh)


@pytest.fixture
async def agent(mesh: Mesh, tpm: CountingTpm) -> AsyncIterator[Agent]:
    async with running_agent(mesh.agent_keeper(tpm), echo=False) as running:
        tpm.quotes = 0  # the passport's
        yield running


async def whole_exchange(agent: Agent, leaf: Leaf, *, node_id: str = PROXY, **how: Any) -> Outcome:
    async def attack() -> None:
        with closing(await raw_client(agent.port, leaf, **how)) as raw:
            await send_prompt(raw, leaf, node_id=node_id)

    return await against_agent(agent, attack)


async def test_the_stage_itself_holds(mesh: Mesh, agent: Agent, tpm: CountingTpm) -> None:
    """The script with nothing wrong gets through: what an attack below lacks is exactly what it names."""
    assert await whole_exchange(agent, mesh.issue("proxy", "p1")) == Outcome("ok", LEAKED)
    assert tpm.quotes == 1


# --- A2: a quote for whoever asks ---


async def _a2_stranger(mesh: Mesh, agent: Agent) -> Outcome:
    """A member of the mesh that is not on this agent's list."""
    return await whole_exchange(agent, mesh.issue("proxy", "p2"), node_id="spiffe://cube/proxy/p2")


async def test_a2_no_quote_for_a_peer_that_is_not_listed(mesh: Mesh, agent: Agent, tpm: CountingTpm) -> None:
    assert await _a2_stranger(mesh, agent) == Outcome("not_allowed", 0)
    assert tpm.quotes == 0


async def test_a2_without_the_list(mesh: Mesh, agent: Agent, tpm: CountingTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "check_expected", lambda *_: None)
    assert await _a2_stranger(mesh, agent) == Outcome("ok", LEAKED)
    assert tpm.quotes == 1


async def _a2_forged_name(mesh: Mesh, agent: Agent) -> Outcome:
    """A proxy of the list by name, signed by a CA of the attacker's own."""
    from cube_mesh.tls import ca

    ca.init_ca(mesh.directory / "evil", "cube")
    return await whole_exchange(agent, mesh.issue("proxy", "p1", "evil"))


async def test_a2_no_quote_for_a_foreign_chain(mesh: Mesh, agent: Agent, tpm: CountingTpm) -> None:
    assert await _a2_forged_name(mesh, agent) == Outcome("chain", 0)
    assert tpm.quotes == 0


async def test_a2_without_the_chain(
    mesh: Mesh, agent: Agent, tpm: CountingTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "check_chain", lambda *_: None)
    assert await _a2_forged_name(mesh, agent) == Outcome("ok", LEAKED)
    assert tpm.quotes == 1


async def test_a2_no_certificate_at_all(agent: Agent, tpm: CountingTpm) -> None:
    async def attack() -> None:
        with closing(await raw_client(agent.port, None)) as raw:
            await raw.send(PROMPT)
            await raw.receive()

    assert await against_agent(agent, attack) == Outcome("handshake", 0)
    assert tpm.quotes == 0


# --- A8: resumption ---


def _resumes(context: SSL.Context) -> None:
    """A library that was not told to keep sessions out."""
    context.set_session_id(b"cube")


async def _session_of(agent: Agent, leaf: Leaf, context: SSL.Context) -> SSL.Session | None:
    """A whole first connection, and the session that its tickets left."""
    with closing(await raw_client(agent.port, leaf, context=context)) as raw:
        await send_prompt(raw, leaf)
        session = raw.tls.get_session()
        raw.tls.shutdown()  # OpenSSL spoils the session of a connection that ends without
        return session


async def _a8(mesh: Mesh, agent: Agent) -> Outcome:
    leaf = mesh.issue("proxy", "p1")
    context = raw_context(leaf)
    session = await _session_of(agent, leaf, context)
    agent.inner.clear()
    return await whole_exchange(agent, leaf, context=context, session=session)


async def test_a8_nothing_is_left_to_resume(mesh: Mesh, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the product's contexts the second connection is a full handshake, whatever the client offers."""
    seen: list[bool] = []
    monkeypatch.setattr(gate, "check_not_resumed", seen.append)
    assert (await _a8(mesh, agent)).reason == "ok"
    assert seen == [True, True]


async def test_a8_a_session_that_was_resumed_all_the_same(
    mesh: Mesh, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "forbid_resumption", _resumes)
    assert await _a8(mesh, agent) == Outcome("resumed", 0)


async def test_a8_without_either(mesh: Mesh, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "forbid_resumption", _resumes)
    seen: list[bool] = []
    monkeypatch.setattr(gate, "check_not_resumed", seen.append)
    assert await _a8(mesh, agent) == Outcome("ok", LEAKED)
    assert seen == [True, False]


# --- A9: application data before acceptance ---


async def _a9_behind_the_result(mesh: Mesh, agent: Agent) -> Outcome:
    """Everything is in order, but the prompt does not wait for the agent's RESULT."""
    leaf = mesh.issue("proxy", "p1")

    async def attack() -> None:
        with closing(await raw_client(agent.port, leaf)) as raw:
            script = ClientScript(raw, leaf)
            await script.ask(b"n" * 32)
            await raw.send(script.answer() + accepting() + PROMPT)
            await raw.receive()

    return await against_agent(agent, attack)


async def test_a9_behind_the_result(mesh: Mesh, agent: Agent) -> None:
    assert await _a9_behind_the_result(mesh, agent) == Outcome("early_data", 0)


async def test_a9_without_the_check(mesh: Mesh, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "check_no_early_data", lambda _buffered: None)
    assert await _a9_behind_the_result(mesh, agent) == Outcome("ok", LEAKED)


@pytest.mark.parametrize("listed", [True, False])
async def test_a9_right_behind_the_handshake(mesh: Mesh, agent: Agent, tpm: CountingTpm, listed: bool) -> None:
    """A TLS 1.3 client can finish and send before the server has looked at its certificate."""
    leaf = mesh.issue("proxy", "p1" if listed else "p2")

    async def attack() -> None:
        with closing(await raw_client(agent.port, leaf)) as raw:
            await raw.send(PROMPT)
            await raw.receive()

    assert await against_agent(agent, attack) == Outcome("frame_type" if listed else "not_allowed", 0)
    assert tpm.quotes == 0


async def test_a9_application_data_on_a_control_connection(mesh: Mesh, agent: Agent) -> None:
    """The gate opens, and there is no application behind it."""
    outcome = await whole_exchange(agent, mesh.issue("proxy", "p1"), alpn=contexts.ALPN_CONTROL)
    assert outcome == Outcome("ok", 0)
    assert agent.inner == []


# --- A10: downgrade, as a client ---


@pytest.mark.parametrize("alpn", [b"", contexts.ALPN_CERT, b"http/1.1"])
async def test_a10_protocols_that_are_not_served(mesh: Mesh, agent: Agent, tpm: CountingTpm, alpn: bytes) -> None:
    assert await whole_exchange(agent, mesh.issue("proxy", "p1"), alpn=alpn) == Outcome("alpn", 0)
    assert tpm.quotes == 0


@pytest.mark.parametrize("alpn", [b"", contexts.ALPN_CERT])
async def test_a10_when_the_protocol_is_not_checked(
    mesh: Mesh, agent: Agent, alpn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "check_protocol", lambda *_: None)
    assert await whole_exchange(agent, mesh.issue("proxy", "p1"), alpn=alpn) == Outcome("ok", LEAKED)


async def _a10_tls12(agent: Agent, leaf: Leaf) -> Outcome:
    return await whole_exchange(agent, leaf, context=raw_context(leaf, tls12=True))


async def test_a10_tls12(mesh: Mesh, agent: Agent) -> None:
    assert await _a10_tls12(agent, mesh.issue("proxy", "p1")) == Outcome("handshake", 0)


async def test_a10_tls12_has_three_walls(mesh: Mesh, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the context's limit the gate sees the version; without that, no suite of TLS 1.2 has a hash for us."""
    monkeypatch.setattr(contexts, "require_tls13", lambda _context: None)
    leaf = mesh.issue("proxy", "p1")
    assert await _a10_tls12(agent, leaf) == Outcome("tls_version", 0)
    monkeypatch.setattr(gate, "check_version", lambda _version: None)
    assert await _a10_tls12(agent, leaf) == Outcome("authenticator_malformed", 0)


# --- A20: an agent's leaf used as a proxy's ---


async def _a20(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """An operator's slip has put an agent on the list (the start-up check that refuses it is off in both runs); the
    agent's genuine, CA-signed leaf now tries to be a proxy."""
    monkeypatch.setattr(connector_module, "check_allow_list", lambda *_: None)
    async with running_agent(mesh.agent_keeper(), allowed=(AGENT,), echo=False) as agent:
        return await whole_exchange(agent, mesh.issue("agent", "a1"), node_id=AGENT)


async def test_a20_agents_leaf_as_a_proxys(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await _a20(mesh, monkeypatch) == Outcome("wrong_role", 0)


async def test_a20_without_roles(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "check_role", lambda *_: None)
    assert await _a20(mesh, monkeypatch) == Outcome("ok", LEAKED)


# --- the client's own authenticator ---


async def test_an_authenticator_of_another_connection(mesh: Mesh, agent: Agent) -> None:
    """A proxy sends no evidence, and still proves for each connection that it holds its key there and then."""
    leaf = mesh.issue("proxy", "p1")

    async def attack() -> None:
        with (
            closing(await raw_client(agent.port, leaf)) as first,
            closing(await raw_client(agent.port, leaf)) as second,
        ):
            elsewhere, here = ClientScript(first, leaf), ClientScript(second, leaf)
            await elsewhere.ask(b"n" * 32)
            await here.ask(b"n" * 32)
            await second.send(elsewhere.answer() + accepting())
            while await second.receive():
                pass
            seen.extend(event.reason for event in agent.events)

    seen: list[str] = []
    assert (await against_agent(agent, attack)).leaked == 0
    assert seen == ["authenticator_context"]
