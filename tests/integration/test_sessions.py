"""Attested sessions as real processes, two workers on both sides: how many quotes are made, and who waits for them.

The agent's ``tpm2_quote`` is a script that notes when it runs, and for how long, before it calls the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from cube_mesh.demo.backend import ScriptedBackend
from tests.support.client import Client, Reply, bearer, chat, once
from tests.support.mesh import Mesh, read_events
from tests.support.node import Node


@dataclass
class Quotes:
    """The real ``tpm2_quote`` behind a script that takes ``delay_s`` more."""

    directory: Path
    delay_s: float

    def environ(self) -> dict[str, str]:
        real = shutil.which("tpm2_quote")
        assert real
        self.directory.mkdir()
        script, log, delay = (self.directory / name for name in ("tpm2_quote", "log", "delay"))
        log.touch()
        self.take(self.delay_s)
        script.write_text(f'#!/bin/sh\nsleep "$(cat {delay})"\n"{real}" "$@" || exit $?\ndate +%s.%N >> "{log}"\n')
        script.chmod(0o755)
        return {"PATH": f"{self.directory}:{os.environ['PATH']}"}

    def take(self, delay_s: float) -> None:
        """From the next quote on."""
        (self.directory / "delay").write_text(f"{delay_s}\n")

    @property
    def made(self) -> list[float]:
        """When each quote was ready."""
        return [float(line) for line in (self.directory / "log").read_text().split()]


def agent_of(mesh: Mesh, quotes: Quotes, directory: Path, backend: ScriptedBackend, interval_s: float = 600.0) -> Node:
    config = mesh.agent_config(backend.url, workers=2)
    config["attestation"] |= {"interval_s": interval_s}
    return Node("agent", config, directory, environ=quotes.environ()).wait_ready()


async def ask(proxy: Node, mesh: Mesh, count: int = 1) -> list[Reply]:
    """``count`` requests, one after the other, on a connection of their own."""
    red = mesh.tenants[0]
    async with await Client.connect(proxy.port) as client:
        path = f"/{red.domain}/v1/chat/completions"
        return [await client.request("POST", path, bearer(red.key), chat()) for _ in range(count)]


async def crowd(proxy: Node, mesh: Mesh, clients: int, count: int = 1) -> None:
    answers = await asyncio.gather(*(ask(proxy, mesh, count) for _ in range(clients)))
    assert {reply.status for replies in answers for reply in replies} == {200}


def number(node: Node, row: str) -> float:
    """A sample of the node's metrics; 0 when there is none."""
    _, text = node.local("/metrics")
    found = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(row + " ")]
    return float(found[0]) if found else 0.0


def sessions_of(directory: Path) -> set[tuple[str | None, int | None]]:
    return {(event["attested_session"], event["attested_session_generation"]) for event in read_events(directory)}


async def test_one_quote_for_all_workers_of_both_sides(mesh: Mesh, backend: ScriptedBackend, tmp_path: Path) -> None:
    quotes = Quotes(tmp_path / "quotes", 0)
    with await asyncio.to_thread(agent_of, mesh, quotes, tmp_path / "agent", backend) as agent:
        assert len(quotes.made) == 1  # for the passport in the leaf
        with await asyncio.to_thread(mesh.proxy, tmp_path / "proxy", agent.port, workers=2) as proxy:
            for _ in range(40):  # the kernel decides which worker takes a connection
                await crowd(proxy, mesh, 24, 2)
                if len([file for file in (tmp_path / "proxy").glob("audit*.jsonl") if file.stat().st_size]) == 2:
                    break
            else:
                raise AssertionError("one of the workers served nobody: this run says nothing")
            assert len(quotes.made) == 2
            assert len(sessions_of(tmp_path / "proxy")) == 1
            await asyncio.sleep(1.5)  # workers publish their numbers once a second
            read = asyncio.to_thread
            assert await read(number, agent, "cube_sessions_active") == 1
            assert await read(number, proxy, "cube_sessions_active") == 1
            assert await read(number, agent, 'cube_quotes_total{role="agent"}') == 2
            attached = await read(number, proxy, 'cube_session_attaches_total{reason="ok"}')
            assert 2 <= attached == await read(number, agent, 'cube_session_attaches_total{reason="ok"}')


async def test_first_requests_wait_for_one_quote_of_a_second(
    mesh: Mesh, backend: ScriptedBackend, tmp_path: Path
) -> None:
    quotes = Quotes(tmp_path / "quotes", 1)
    with await asyncio.to_thread(agent_of, mesh, quotes, tmp_path / "agent", backend) as agent:
        config = mesh.proxy_config(agent.port, workers=2, audit={"path": tmp_path / "proxy" / "audit.jsonl"})
        with Node("proxy", config, tmp_path / "proxy") as proxy:
            await asyncio.to_thread(proxy.wait_until, "the door", lambda: _listens(proxy))
            began = time.time()
            await crowd(proxy, mesh, 12)
            assert len(quotes.made) == 2
            assert time.time() - max(began, quotes.made[1]) < 0.9, "somebody waited for another"
            assert len(sessions_of(tmp_path / "proxy")) == 1
            began = time.time()
            await crowd(proxy, mesh, 12)
            assert time.time() - began < 0.9
            assert len(quotes.made) == 2


def _listens(proxy: Node) -> bool:
    """Whether the socket is there; workers that are not yet find in its queue what has come."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", proxy.port), 1):
        return True
    return False


async def test_at_most_one_quote_an_interval_and_nobody_notices_a_renewal(
    mesh: Mesh, backend: ScriptedBackend, tmp_path: Path
) -> None:
    interval_s = 4.0
    quotes = Quotes(tmp_path / "quotes", 0)
    ours = {"attester": "none", "interval_s": interval_s}
    with (
        await asyncio.to_thread(agent_of, mesh, quotes, tmp_path / "agent", backend, interval_s) as agent,
        await asyncio.to_thread(mesh.proxy, tmp_path / "proxy", agent.port, workers=2, attestation=ours) as proxy,
    ):
        until = quotes.made[1] + 2 * interval_s
        while time.time() < until:
            await crowd(proxy, mesh, 4, 5)
            await asyncio.sleep(0.05)
        renewals = len(quotes.made) - 2
        assert 1 <= renewals <= 3  # each at 0.8 of the session before
        generations = {generation for _, generation in sessions_of(tmp_path / "proxy")}
        assert {1, 2} <= generations <= {1, 2, 3, 4}


async def test_a_quote_for_each_connection_where_the_mode_says_so(
    mesh: Mesh, backend: ScriptedBackend, tmp_path: Path
) -> None:
    quotes = Quotes(tmp_path / "quotes", 0)
    with await asyncio.to_thread(agent_of, mesh, quotes, tmp_path / "agent", backend) as agent:
        upstream = {**mesh.proxy_config(agent.port)["upstreams"][0], "mode": "quote"}
        with await asyncio.to_thread(
            mesh.proxy, tmp_path / "proxy", agent.port, workers=2, upstreams=[upstream]
        ) as proxy:
            await crowd(proxy, mesh, 3)
            assert len(quotes.made) >= 3  # passport, control connection, and at least one of its own
            assert {event["attestation_mode"] for event in read_events(tmp_path / "proxy")} == {"quote"}
            assert sessions_of(tmp_path / "proxy") == {(None, None)}


async def test_a_tenant_whose_own_policy_the_agent_fails(mesh: Mesh, backend: ScriptedBackend, tmp_path: Path) -> None:
    """A19 as real processes: blue is served, red is not, whichever worker and whoever warmed the connection."""
    red, blue = mesh.tenants
    policy = mesh.policy.read_text()
    pcr = re.findall(r'"([0-9a-f]{64})"', policy)[-1]
    (tmp_path / "own.toml").write_text(policy.replace(pcr, "ab" * 32))
    with await asyncio.to_thread(mesh.agent, tmp_path / "agent", backend.url, workers=2) as agent:
        config = mesh.proxy_config(agent.port, workers=2)
        config["identity"]["domains"][0]["evidence_policy"] = tmp_path / "own.toml"
        with await asyncio.to_thread(
            mesh.proxy, tmp_path / "proxy", agent.port, workers=2, identity=config["identity"]
        ) as proxy:
            for tenant, status in ((blue, 200), (red, 503)) * 4:
                path = f"/{tenant.domain}/v1/chat/completions"
                reply = await once(proxy.port, "POST", path, bearer(tenant.key), chat())
                assert reply.status == status
    refused = [event for event in read_events(tmp_path / "proxy") if event["domain_id"] == red.domain]
    assert [(event["error_code"], event["attestation_error"]) for event in refused] == [
        ("atls_tenant_policy", "tenant_policy")
    ] * 4
    assert len(backend.requests) == 4
