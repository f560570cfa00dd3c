"""``kill -9`` of one process of a node, at random moments under load: who was answered, and who comes back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.client import Client, bearer, chat
from tests.support.load import Ledger, keep_busy
from tests.support.mesh import Tenant
from tests.support.node import Node

RETRY_S, PATIENCE_S = 0.02, 10.0


@dataclass
class Kills:
    """``back_s``: from each kill until a request on a new connection is answered."""

    kills: int = 0
    whole: int = 0
    cut: int = 0  # answered in part, with an error, or not at all
    wrong: list[str] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)


def victim(node: Node, kind: str, moments: random.Random) -> int:
    """The pid of one ``worker``, the ``keeper`` or the ``supervisor``; 0 when there is none at the moment."""
    if kind == "worker":
        pids = list(node.worker_pids().values())
        return moments.choice(pids) if pids else 0
    return node.supervisor_pid if kind == "supervisor" else node.keeper_pid


async def kill_under_load(node: Node, tenant: Tenant, directory: Path, kind: str, *, kills: int, seed: int) -> Kills:
    """``directory`` has the trail. Raises TimeoutError when the service does not return."""
    moments, ledger, found = random.Random(seed), Ledger(), Kills()
    stop = asyncio.Event()
    load = asyncio.create_task(keep_busy(node.port, tenant, ledger, stop))
    try:
        while found.kills < kills:
            await asyncio.sleep(moments.uniform(0.05, 3.0))
            pid = await asyncio.to_thread(victim, node, kind, moments)
            if pid:
                os.kill(pid, signal.SIGKILL)
                found.kills += 1
                found.back_s.append(await _back(node.port, tenant))
    finally:
        stop.set()
        await load
    found.whole, found.cut = len(ledger.whole), len(ledger.broken) + len(ledger.unanswered) + len(ledger.odd)
    found.wrong = ledger.wrongly_recorded(directory)
    return found


async def _back(port: int, tenant: Tenant) -> float:
    began = time.monotonic()
    path = f"/{tenant.domain}/v1/chat/completions"
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(OSError):
                client = await Client.connect(port)
                reply = await client.request("POST", path, bearer(tenant.key), chat())
                await client.close()
                if reply.status == 200 and reply.whole:
                    return time.monotonic() - began
            await asyncio.sleep(RETRY_S)
