"""``kill -9`` at random moments while files are set aside: every answer that came whole has exactly one event."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from cube_mesh.audit import spool
from cube_mesh.demo.backend import ScriptedBackend
from tests.integration.test_audit_power import RED, config
from tests.support.load import Ledger, keep_busy
from tests.support.node import Node


@pytest.mark.parametrize("durability", ["write", "batch", "each"])
async def test_kill_9_while_files_are_set_aside(backend: ScriptedBackend, tmp_path: Path, durability: str) -> None:
    moments, ledger = random.Random(durability), Ledger()
    settings = config(backend.url, tmp_path, durability=durability, rotate_bytes=8_192)
    for _ in range(4):
        node = await asyncio.to_thread(lambda: Node("proxy", settings, tmp_path).wait_ready())
        with node:
            stop = asyncio.Event()
            busy = asyncio.create_task(keep_busy(node.port, RED, ledger, stop))
            await asyncio.sleep(moments.uniform(0.1, 0.4))
            node.kill()
            stop.set()
            await busy
    assert ledger.wrongly_recorded(tmp_path) == []
    assert len(ledger.whole) > 20 and len(spool.members(tmp_path / "audit.jsonl")) > 3


async def test_sighup_leaves_a_moved_file_behind(backend: ScriptedBackend, tmp_path: Path) -> None:
    node = await asyncio.to_thread(lambda: Node("proxy", config(backend.url, tmp_path), tmp_path).wait_ready())
    path = tmp_path / "audit.jsonl"
    with node:
        path.rename(tmp_path / "taken")
        node.popen.send_signal(1)
        await asyncio.to_thread(node.wait_until, "a new file", path.exists, 5)
