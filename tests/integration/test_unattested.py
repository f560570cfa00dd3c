"""Between real nodes: an agent that does not prove what policy asks gets nothing, and everyone learns the reason."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cube_mesh.demo.backend import ScriptedBackend
from cube_mesh.tls.ca import init_ca, issue_leaf
from tests.support.client import bearer, chat, once
from tests.support.mesh import AGENT_ID, Mesh, read_events
from tests.support.node import Node
from tests.support.process import free_port

CHAT = "/v1/chat/completions"


@pytest.fixture
async def agent(mesh: Mesh, backend: ScriptedBackend, tmp_path: Path) -> AsyncIterator[Node]:
    with await asyncio.to_thread(mesh.agent, tmp_path / "agent", backend.url) as running:
        yield running


@dataclass(frozen=True)
class Wrong:
    """One thing wrong in the proxy's view of the mesh. ``reason``: the audit event's."""

    name: str
    reason: str
    change: Callable[[Mesh, Path, dict[str, Any]], None]


def other_pcrs(mesh: Mesh, directory: Path, config: dict[str, Any]) -> None:
    policy = directory / "other.toml"
    policy.write_text(mesh.policy.read_text().replace("0" * 64, "ab" * 32, 1))
    config["upstreams"][0]["policy"] = policy


def other_ak(mesh: Mesh, directory: Path, config: dict[str, Any]) -> None:
    name = next(word for word in mesh.policy.read_text().replace('"', " ").split() if word.startswith("000b"))
    policy = directory / "other.toml"
    policy.write_text(mesh.policy.read_text().replace(name, "000b" + "cd" * 32))
    config["upstreams"][0]["policy"] = policy


def hardware_demanded(mesh: Mesh, directory: Path, config: dict[str, Any]) -> None:
    policy = directory / "other.toml"
    lines = mesh.policy.read_text().splitlines()
    policy.write_text("\n".join(line for line in lines if not line.startswith("unsafe_accept_vtpm_only")) + "\n")
    config["upstreams"][0]["policy"] = policy


def other_node(mesh: Mesh, directory: Path, config: dict[str, Any]) -> None:
    config["upstreams"][0]["node_id"] = AGENT_ID.replace("a1", "a2")


def unlisted_proxy(mesh: Mesh, directory: Path, config: dict[str, Any]) -> None:
    files = issue_leaf(mesh.directory / "ca", "proxy", "p2", directory, 1)
    config["mesh"] |= {"node_id": "p2", "cert_file": files.cert_file, "key_file": files.key_file}


def foreign_ca(mesh: Mesh, directory: Path, config: dict[str, Any]) -> None:
    init_ca(directory / "ca", "cube")
    files = issue_leaf(directory / "ca", "proxy", "p1", directory, 1)
    config["mesh"] |= {"ca_file": directory / "ca/ca.crt", "cert_file": files.cert_file, "key_file": files.key_file}


WRONGS = [
    Wrong("other PCR value", "pcr", other_pcrs),
    Wrong("other AK", "ak_not_pinned", other_ak),
    Wrong("hardware demanded", "not_confidential", hardware_demanded),
    Wrong("other node", "not_allowed", other_node),
    Wrong("proxy not on the list", "refused", unlisted_proxy),
    Wrong("proxy of another CA", "refused", foreign_ca),
]


@pytest.mark.parametrize("wrong", WRONGS, ids=lambda wrong: wrong.name)
async def test_one_thing_wrong_and_nothing_passes(
    mesh: Mesh, agent: Node, backend: ScriptedBackend, tmp_path: Path, wrong: Wrong
) -> None:
    config = mesh.proxy_config(agent.port, audit={"path": tmp_path / "proxy/audit.jsonl"})
    wrong.change(mesh, tmp_path, config)
    with Node("proxy", config, tmp_path / "proxy") as proxy:
        await asyncio.to_thread(proxy.wait_until, "an answer", lambda: proxy.local("/livez")[0] == 200)
        request_id = uuid.uuid4().hex
        red = mesh.tenants[0]
        fields = bearer(red.key, x_request_id=request_id)
        reply = await once(proxy.port, "POST", f"/{red.domain}{CHAT}", fields, chat())
        status, ready = await asyncio.to_thread(proxy.local, "/readyz")
    (event,) = read_events(tmp_path / "proxy")
    assert backend.received_bytes == 0
    assert (reply.status, reply.json["error"]["code"]) == (503, f"atls_{wrong.reason}")
    assert (status, "upstream agent" in ready) == (503, True)
    assert (event["request_id"], event["attestation_ok"], event["attestation_error"]) == (
        request_id,
        False,
        wrong.reason,
    )


async def test_nothing_is_sent_in_the_clear_to_what_is_no_agent(
    mesh: Mesh, backend: ScriptedBackend, tmp_path: Path
) -> None:
    """The attested target's address is a plain HTTP server: it sees a ClientHello, and no request."""
    config = mesh.proxy_config(backend.port, audit={"path": tmp_path / "proxy/audit.jsonl"})
    with Node("proxy", config, tmp_path / "proxy") as proxy:
        await asyncio.to_thread(proxy.wait_until, "an answer", lambda: proxy.local("/livez")[0] == 200)
        red = mesh.tenants[0]
        reply = await once(proxy.port, "POST", f"/{red.domain}{CHAT}", bearer(red.key), chat("secret"))
    assert reply.status in (502, 503)
    assert backend.requests == []


async def test_an_agent_that_goes_and_comes_back(mesh: Mesh, backend: ScriptedBackend, tmp_path: Path) -> None:
    """Gone: 502 or 503 and not ready. Back at the same address: attested anew, and served without a restart."""
    port, red = free_port(), mesh.tenants[0]

    async def ask(proxy: Node) -> int:
        return (await once(proxy.port, "POST", f"/{red.domain}{CHAT}", bearer(red.key), chat())).status

    with await asyncio.to_thread(mesh.agent, tmp_path / "one", backend.url, listen={"port": port}) as first:
        proxy = await asyncio.to_thread(mesh.proxy, tmp_path / "proxy", port)
        with proxy:
            assert await ask(proxy) == 200
            await asyncio.to_thread(first.stop)
            assert await ask(proxy) in (502, 503)
            with await asyncio.to_thread(mesh.agent, tmp_path / "two", backend.url, listen={"port": port}):
                await asyncio.to_thread(proxy.wait_until, "ready again", lambda: proxy.local("/readyz")[0] == 200)
                assert await ask(proxy) == 200
    outcomes = [(event["status_code"], event["outcome"]) for event in read_events(tmp_path / "proxy")]
    assert [outcome for _, outcome in outcomes] == ["completed", "failed", "completed"]
