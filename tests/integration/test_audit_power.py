"""A power cut, a full disk and a slow one, with a real proxy: the order of its writes, syncs and sends is on record."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cube_mesh.audit import spool
from cube_mesh.demo.backend import ScriptedBackend
from tests.support.audit_shim import Order, build, ids_in, judge
from tests.support.client import bearer, chat, once
from tests.support.load import Ledger, keep_busy
from tests.support.mesh import identity, make_tenant
from tests.support.node import Config, Node

RED = make_tenant("red")
PATH = f"/{RED.domain}/v1/chat/completions"


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shim"))


def config(backend_url: str, folder: Path, **audit: Any) -> Config:
    return {
        "workers": 0,
        "upstreams": [{"name": "model", "url": backend_url}],
        "routes": [{"name": "all", "upstream": "model", "match": {"path_prefix": "/"}}],
        "identity": identity(RED),
        "audit": {"path": folder / "audit.jsonl", **audit},
        "log": {"format": "json"},
    }


@dataclass
class Recorded:
    node: Node
    log: Path
    spool: Path

    def judge(self) -> Order:
        return judge(self.log, self.spool.stat().st_ino)


def start(shim: Path, directory: Path, backend: ScriptedBackend, environ: dict[str, str], **audit: Any) -> Recorded:
    """A proxy under the shim, ready."""
    trail, log = directory / "spool", directory / "order.log"
    trail.mkdir(mode=0o700, parents=True)
    more = {"LD_PRELOAD": str(shim), "CUBE_ORDER_LOG": str(log), **environ}
    node = Node("proxy", config(backend.url, trail, **audit), directory, environ=more).wait_ready()
    return Recorded(node, log, trail)


async def load(recorded: Recorded, seconds: float) -> Ledger:
    ledger, stop = Ledger(), asyncio.Event()
    busy = asyncio.create_task(keep_busy(recorded.node.port, RED, ledger, stop))
    await asyncio.sleep(seconds)
    recorded.node.kill()
    stop.set()
    await busy
    return ledger


async def run(shim: Path, directory: Path, backend: ScriptedBackend, durability: str) -> tuple[Recorded, Ledger]:
    recorded = await asyncio.to_thread(
        start, shim, directory, backend, {"CUBE_ORDER_SYNC_MS": "2"}, durability=durability, rotate_bytes=20_000
    )
    try:
        return recorded, await load(recorded, 1.2)
    finally:
        recorded.node.close()


@pytest.mark.parametrize("durability", ["batch", "each"])
async def test_no_last_byte_precedes_the_sync_of_its_event(
    shim: Path, backend: ScriptedBackend, tmp_path: Path, durability: str
) -> None:
    """Also what a power cut would leave: the files, cut back to their last sync, hold every answered request."""
    recorded, ledger = await run(shim, tmp_path, backend, durability)
    order = recorded.judge()
    assert order.unsafe == []
    assert len(ledger.whole) > 30 and set(ledger.whole) <= set(order.answered)
    files = spool.members(recorded.spool / "audit.jsonl")
    assert len(files) > 2, "it was to rotate meanwhile"
    for member in files:
        kept = order.durable.get(member.path.stat().st_ino, b"")
        assert member.path.read_bytes().startswith(kept)
        member.path.write_bytes(kept)
    left = [request_id for line in spool.lines(recorded.spool / "audit.jsonl") for request_id in ids_in(line)]
    assert set(ledger.whole) <= set(left)
    assert len(left) == len(set(left))


async def test_without_syncs_the_same_test_fails(shim: Path, backend: ScriptedBackend, tmp_path: Path) -> None:
    """ "write" promises nothing about power: if this passed, the two above would prove nothing."""
    recorded, ledger = await run(shim, tmp_path, backend, "write")
    order = recorded.judge()
    assert set(ledger.whole) <= set(order.unsafe)
    left = {request_id for kept in order.durable.values() for request_id in ids_in(kept)}
    assert not set(ledger.whole) <= left


@pytest.mark.parametrize(("durability", "least", "most"), [("batch", 2, 12), ("each", 40, 41)])
async def test_requests_that_come_together_share_syncs(
    shim: Path, backend: ScriptedBackend, tmp_path: Path, durability: str, least: int, most: int
) -> None:
    """Forty at once with a disk that takes 30 ms: a few syncs in "batch", one each in "each"."""
    recorded = await asyncio.to_thread(
        start, shim, tmp_path, backend, {"CUBE_ORDER_SYNC_MS": "30"}, durability=durability
    )
    with recorded.node:
        before = recorded.judge().syncs
        replies = await asyncio.gather(
            *(once(recorded.node.port, "POST", PATH, bearer(RED.key), chat()) for _ in range(40))
        )
        syncs = recorded.judge().syncs - before
    assert [reply.status for reply in replies] == [200] * 40
    assert least <= syncs <= most


@pytest.mark.parametrize("durability", ["write", "batch", "each", "async"])
@pytest.mark.parametrize("on_error", ["refuse", "shed"])
async def test_a_full_disk(
    shim: Path, backend: ScriptedBackend, tmp_path: Path, durability: str, on_error: str
) -> None:
    full = tmp_path / "full"
    recorded = await asyncio.to_thread(
        start, shim, tmp_path / "p", backend, {"CUBE_ORDER_FULL": str(full)}, durability=durability, on_error=on_error
    )

    async def ask() -> int:
        reply = await once(recorded.node.port, "POST", PATH, bearer(RED.key), chat())
        return reply.status if reply.whole else 503  # broken off: its head had been sent

    async def reads(sample: str) -> bool:
        return sample in (await asyncio.to_thread(recorded.node.local, "/metrics"))[1]

    written = 'cube_audit_events_total{result="written"}'
    missed = f'cube_audit_events_total{{result="{"shed" if on_error == "shed" else "failed"}"}}'
    with recorded.node as node:
        assert await ask() == 200
        async with asyncio.timeout(20):  # "async" answers before it writes, and the disk takes its time
            while await reads(f"{written} 0.0"):
                await asyncio.sleep(0.02)
            full.touch()
            statuses = [await ask() for _ in range(4)]
            while durability == "async" and await reads(f"{missed} 0.0"):
                statuses.append(await ask())
            full.unlink()
            while durability == "async" and await reads(f"{written} 1.0"):
                await ask()  # one of these finds out
        assert await ask() == 200
        assert await reads(missed) and not await reads(f"{missed} 0.0")
        await asyncio.to_thread(node.stop)
    events = len(list(spool.lines(recorded.spool / "audit.jsonl")))
    if on_error == "shed":
        assert set(statuses) == {200} and events >= 2
    elif durability == "async":  # the first was answered before anyone could know; it is written later
        assert statuses[0] == 200 and statuses[-1] == 503
    else:
        assert statuses == [503] * 4 and events == 2
