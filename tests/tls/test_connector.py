"""Connecting and listening: what is refused at the start, what a failed attempt says, and what it leaves behind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from attest.evidence import Part
from cube_mesh.errors import ConfigError, DependencyError
from cube_mesh.settings import Attestation
from cube_mesh.tls import contexts
from cube_mesh.tls.connector import AttestedConnector, AttestedServer
from cube_mesh.tls.port import GateEvent
from tests.tls.mesh import AGENT, PROXY, SETTINGS, Mesh, Recorder, connector, running_agent, upstream


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"policy": ""}, "policy"),
        ({"node_id": ""}, "node_id"),
        ({"node_id": PROXY}, "node_id"),
        ({"node_id": "spiffe://other/agent/a1"}, "node_id"),
        ({"mode": "cert"}, "mode"),
        ({"url": "http://127.0.0.1:1"}, "url"),
        ({"url": "atls://127.0.0.1"}, "url"),
        ({"url": "atls://127.0.0.1:x"}, "url"),
        ({"server_name": "a" * 256}, "server_name"),
        ({"server_name": "bücher.example"}, "server_name"),
        ({"url": f"atls://{'a' * 256}:1"}, "server_name"),
    ],
)
def test_a_target_that_is_not_fully_named(mesh: Mesh, change: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AttestedConnector(upstream(1, **change), mesh.proxy_keeper(), SETTINGS)
    assert caught.value.key == f"upstreams.u.{key}"


@pytest.mark.parametrize(
    "allowed", [(), (AGENT,), (PROXY, "spiffe://other/proxy/p1"), ("p1",), ("",), ("spiffe://cube/proxy/*",)]
)
def test_an_allow_list_names_proxies_of_the_trust_domain(mesh: Mesh, allowed: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        AttestedServer(mesh.agent_keeper(boot_id=bytes(16)), asyncio.Protocol, SETTINGS, allowed)
    assert caught.value.key == "mesh.allowed_proxies"


async def test_the_server_name_reaches_the_agent(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[bytes | None] = []
    plain = contexts.make_context

    def observed(leaf: Any, *, server: bool) -> Any:
        context = plain(leaf, server=server)
        if server:
            context.set_tlsext_servername_callback(lambda connection: names.append(connection.get_servername()))
        return context

    monkeypatch.setattr(contexts, "make_context", observed)
    async with running_agent(mesh.agent_keeper()) as agent:
        for name in ("", "n" * 255):
            made = await connector(mesh.proxy_keeper(), agent.port, server_name=name).connect(Recorder)
            made.transport.abort()  # type: ignore[attr-defined]
            mesh.directory.joinpath("proxy-p1.crt").unlink()
            mesh.directory.joinpath("proxy-p1.key").unlink()
    assert names == [None, b"n" * 255]


async def test_nobody_listens(mesh: Mesh) -> None:
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(DependencyError) as caught:
        await connector(mesh.proxy_keeper(), port).connect(Recorder)
    assert (caught.value.code, caught.value.status, caught.value.retryable) == ("upstream_connect", 502, True)


class Silent(asyncio.Protocol):
    """Accepts and never speaks."""

    made: list[asyncio.BaseTransport]

    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def test_a_peer_that_never_speaks_costs_the_deadline_and_no_more(mesh: Mesh) -> None:
    ends: list[Silent] = []
    server = await asyncio.get_running_loop().create_server(lambda: ends.append(Silent()) or ends[-1], "127.0.0.1", 0)  # type: ignore[func-returns-value]
    keeper = mesh.proxy_keeper()
    dial = AttestedConnector(upstream(server.sockets[0].getsockname()[1]), keeper, SETTINGS, timeout_s=0.2)
    started = time.monotonic()
    with pytest.raises(DependencyError) as caught:
        await dial.connect(Recorder)
    assert (caught.value.code, caught.value.status) == ("atls_timeout", 504)
    assert time.monotonic() - started < 1
    await ends[0].lost
    server.close()


async def test_giving_up_closes_the_connection(mesh: Mesh) -> None:
    ends: list[Silent] = []
    server = await asyncio.get_running_loop().create_server(lambda: ends.append(Silent()) or ends[-1], "127.0.0.1", 0)  # type: ignore[func-returns-value]
    dial = connector(mesh.proxy_keeper(), server.sockets[0].getsockname()[1])
    attempt = asyncio.ensure_future(dial.connect(Recorder))
    while not ends:
        await asyncio.sleep(0.005)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    async with asyncio.timeout(2):
        await ends[0].lost
    server.close()


async def test_the_agent_drops_a_client_that_never_speaks(mesh: Mesh) -> None:
    quick = Attestation(attester="vtpm", handshake_timeout_s=0.3)
    async with running_agent(mesh.agent_keeper(), settings=quick) as agent:
        reader, writer = await asyncio.open_connection("127.0.0.1", agent.port)
        async with asyncio.timeout(2):
            assert await reader.read() == b""
        writer.close()
        assert await agent.reason() == "timeout"


async def test_rubbish_instead_of_tls(mesh: Mesh) -> None:
    async with running_agent(mesh.agent_keeper()) as agent:
        reader, writer = await asyncio.open_connection("127.0.0.1", agent.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(2):
            await reader.read()
        writer.close()
        assert await agent.reason() == "handshake"
        assert agent.inner == []


async def test_more_openings_than_allowed_are_turned_away_and_counted_down(mesh: Mesh) -> None:
    events: list[GateEvent] = []
    keeper = mesh.agent_keeper()
    await keeper.start()
    factory = AttestedServer(keeper, Recorder, SETTINGS, (PROXY,), on_gate=events.append, max_opening=2)
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    await asyncio.sleep(0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(2):
        assert await _read(reader) == b""
    for _, held_writer in (*held, (reader, writer)):
        held_writer.close()
    while len(events) < 2:
        await asyncio.sleep(0.005)
    made = await connector(mesh.proxy_keeper(), port).connect(Recorder)
    made.transport.abort()  # type: ignore[attr-defined]
    server.close()
    await keeper.close()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


class BrokenTpm:
    """Works for the passport, fails afterwards."""

    scheme = "vtpm"

    def __init__(self, mesh: Mesh, error: Exception) -> None:
        self._tpm, self._error, self._calls = mesh.tpm, error, 0

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        self._calls += 1
        if self._calls > 1:
            raise self._error
        return self._tpm.parts(data_hash)


async def test_an_agent_that_cannot_make_evidence_says_so(mesh: Mesh) -> None:
    from attest.errors import CollectionFailed

    async with running_agent(mesh.agent_keeper(BrokenTpm(mesh, CollectionFailed("device gone")))) as agent:
        with pytest.raises(DependencyError) as caught:
            await connector(mesh.proxy_keeper(), agent.port).connect(Recorder)
        assert caught.value.code == "atls_refused"
        assert "evidence_unavailable" in caught.value.detail
        assert "device gone" not in caught.value.detail
        assert await agent.reason() == "evidence_unavailable"


async def test_a_fault_of_the_keeper_is_internal_and_closes(mesh: Mesh) -> None:
    async with running_agent(mesh.agent_keeper(BrokenTpm(mesh, RuntimeError("bug")))) as agent:
        with pytest.raises(DependencyError):
            await connector(mesh.proxy_keeper(), agent.port).connect(Recorder)
        assert await agent.reason() == "internal"
        assert agent.application_bytes == 0


async def test_the_reason_for_a_listed_name_is_told_and_for_a_stranger_is_not(mesh: Mesh) -> None:
    from cube_mesh.tls import ca

    ca.init_ca(mesh.directory / "other", "cube")
    async with running_agent(mesh.agent_keeper()) as agent:
        for leaf, told in ((mesh.issue("proxy", "p2"), "not_allowed"), (mesh.issue("proxy", "p3", "other"), "refused")):
            with pytest.raises(DependencyError) as caught:
                await connector(mesh.proxy_keeper(leaf), agent.port).connect(Recorder)
            assert caught.value.code == "atls_refused"
            assert caught.value.detail.endswith(f": {told}")


async def test_a_fault_before_the_handshake_ends_the_attempt(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a protocol's connection_made is only logged by the loop: it must not leave anyone waiting."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("bug")

    async with running_agent(mesh.agent_keeper()) as agent:
        monkeypatch.setattr(contexts, "make_context", broken)
        with pytest.raises(DependencyError) as caught:
            await connector(mesh.proxy_keeper(), agent.port).connect(Recorder)
        assert caught.value.code == "atls_internal"
