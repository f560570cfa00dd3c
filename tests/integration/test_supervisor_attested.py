"""Attested nodes of several processes: one keeper for all workers, and what happens when it is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from cube_mesh.demo.backend import ScriptedBackend
from tests.support.client import bearer, chat, once
from tests.support.mesh import Mesh
from tests.support.node import Node, children


def keeper_pid(node: Node) -> int:
    return next(iter(children(node.supervisor_pid, "cube_mesh.keeper_main")), 0)


async def test_two_workers_on_both_sides_with_one_keeper_each(
    mesh: Mesh, backend: ScriptedBackend, tmp_path: Path
) -> None:
    """Served by whatever worker; after kill -9 of either keeper there is another, and requests are answered."""
    red = mesh.tenants[0]

    async def ask(node: Node) -> int:
        fields = bearer(red.key)
        return (await once(node.port, "POST", f"/{red.domain}/v1/chat/completions", fields, chat())).status

    with await asyncio.to_thread(mesh.agent, tmp_path / "agent", backend.url, workers=2) as agent:
        with await asyncio.to_thread(mesh.proxy, tmp_path / "proxy", agent.port, workers=2) as proxy:
            assert [await ask(proxy) for _ in range(8)] == [200] * 8
            for node in (agent, proxy):
                before = keeper_pid(node)
                assert before
                os.kill(before, signal.SIGKILL)
                await asyncio.to_thread(node.wait_until, "a keeper", lambda: keeper_pid(node) not in (0, before))  # noqa: B023
                for each in (agent, proxy):
                    await asyncio.to_thread(each.wait_ready)
                assert [await ask(proxy) for _ in range(8)] == [200] * 8
            assert await asyncio.to_thread(proxy.stop) == 0
        assert await asyncio.to_thread(agent.stop) == 0
