"""Attested nodes of several processes: one keeper for all workers, and what happens when it is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

from cube_mesh.demo.backend import ScriptedBackend
from tests.support.client import bearer, chat, once
from tests.support.mesh import Mesh
from tests.support.node import Node

MISSED = "the keeper is gone"  # what each worker logs


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
                os.kill(node.keeper_pid, signal.SIGKILL)
                missed = partial(lambda node: node.output.count(MISSED) == 2, node)
                await asyncio.to_thread(node.wait_until, "both workers to miss it", missed)
                await asyncio.to_thread(node.wait_ready)
                assert [await ask(proxy) for _ in range(8)] == [200] * 8
            assert await asyncio.to_thread(proxy.stop) == 0
        assert await asyncio.to_thread(agent.stop) == 0
