"""``kill -9`` of a proxy at random moments under load, and what the audit trail says afterwards."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

from tests.support.load import Ledger, keep_busy
from tests.support.mesh import Mesh
from tests.support.process import free_port


@dataclass(frozen=True)
class Crashes:
    kills: int
    whole: int
    cut: int  # answered in part or not at all
    wrong: list[str]


async def kill_at_random(mesh: Mesh, agent_port: int, directory: Path, kills: int, seed: int) -> Crashes:
    """Start, load, kill, ``kills`` times over the same audit file and port. ``seed`` makes the moments repeatable."""
    moments = random.Random(seed)
    ledger = Ledger()
    port = free_port()
    for _ in range(kills):
        proxy = await asyncio.to_thread(mesh.proxy, directory, agent_port, listen={"port": port})
        try:
            stop = asyncio.Event()
            load = asyncio.create_task(keep_busy(port, mesh.tenants[0], ledger, stop))
            await asyncio.sleep(moments.uniform(0.02, 0.4))
            proxy.kill()
            stop.set()
            await load
        finally:
            proxy.close()
    cut = len(ledger.broken) + len(ledger.unanswered)
    return Crashes(kills, len(ledger.whole), cut, ledger.wrongly_recorded(directory))
