"""Slow clients, all at once, while honest ones go on: each is gone at its deadline, and memory stays within its bound.

The short form; ``crowd`` takes larger numbers.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.edge.crowd import Backend, Ended, honest, slow_body, slow_head, slow_reader, slow_upload
from tests.edge.door import metric, open_door, resident, until

EACH = 50
TIMEOUTS = {"head_s": 1.0, "body_s": 1.5, "write_s": 1.5, "linger_s": 0.5}
LATE_S = 2.0  # a sweep, and a machine that is busy with the crowd
WATER = 65_536 + 65_536  # unsent at most, and one read of the upstream that goes on top


@pytest.mark.slow
async def test_slow_clients_hurt_nobody_and_are_gone_in_time(tmp_path: Path) -> None:
    backend = Backend()
    async with backend.serve() as url:
        with open_door(tmp_path, url, timeouts=TIMEOUTS) as proxy:
            stop = asyncio.Event()
            going = asyncio.create_task(honest(proxy.port, 100, stop))
            await asyncio.sleep(0.5)
            before = resident(proxy.pid)
            crowd = [
                *(slow_head(proxy.port) for _ in range(EACH)),
                *(slow_body(proxy.port) for _ in range(EACH)),
                *(slow_upload(proxy.port) for _ in range(EACH)),
                *(slow_reader(proxy.port, 10.0) for _ in range(EACH)),
            ]
            watch = asyncio.create_task(_highest(proxy.pid, stop))
            ended = await asyncio.gather(*crowd)
            stop.set()
            seen, highest = await going, await watch
            await until(lambda: metric(proxy, "cube_connections") == 0)
            assert metric(proxy, "cube_requests_in_flight") == 0
    heads, bodies, uploads, readers = (ended[at : at + EACH] for at in range(0, 4 * EACH, EACH))
    _all(heads, 408, TIMEOUTS["head_s"])
    _all(bodies, 408, TIMEOUTS["body_s"])
    _all(uploads, 408, TIMEOUTS["body_s"])
    _all(readers, 0, TIMEOUTS["write_s"])
    assert seen.errors == 0 and len(seen.delays_s) > 100
    assert highest - before < EACH * WATER + 16 * 2**20, f"{(highest - before) / 2**20:.1f} MiB"
    print(f"\nhonest p50 {seen.quantile_ms(0.5):.1f} ms, p99 {seen.quantile_ms(0.99):.1f} ms; "
          f"memory +{(highest - before) / 2**20:.1f} MiB; upstream sent {backend.sent / 2**20:.0f} MiB")  # fmt: skip


def _all(ended: list[Ended], status: int, deadline_s: float) -> None:
    assert {one.status for one in ended} == {status}
    assert all(deadline_s - 0.2 < one.after_s < deadline_s + LATE_S for one in ended), sorted(e.after_s for e in ended)


async def _highest(pid: int, stop: asyncio.Event) -> int:
    """Most memory until ``stop``."""
    highest = 0
    while not stop.is_set():
        highest = max(highest, resident(pid))
        await asyncio.sleep(0.05)
    return highest
