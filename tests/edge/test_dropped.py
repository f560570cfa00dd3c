"""Clients that leave in the middle of everything leave nothing behind. ``crowd`` takes larger numbers."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.edge.crowd import LEAVING, Backend, leave_all
from tests.edge.door import descriptors, metric, open_door, resident, until
from tests.support.mesh import read_events

FIRST, THEN = 100, 400
GROWTH = 3 * 2**20


@pytest.mark.slow
async def test_dropped_connections_leave_no_descriptor_no_request_and_no_memory(tmp_path: Path) -> None:
    left = await drop(tmp_path, FIRST, THEN)
    assert left.descriptors == 0 and left.in_flight == 0
    assert left.grown < GROWTH, f"{left.grown / 2**20:.1f} MiB"
    assert left.outcomes == {"cancelled": left.whole_heads}, "an event for each that was a request"


@dataclass(frozen=True)
class Left:
    """What is there more than before, after everybody left; ``grown``: bytes of memory above what it was after the
    first ones. ``outcomes``: events by outcome."""

    descriptors: int
    in_flight: float
    grown: int
    outcomes: dict[str, int]
    whole_heads: int


async def drop(directory: Path, first: int, then: int) -> Left:
    async with Backend().serve() as url:
        upstream = {"name": "model", "url": url, "pool": {"idle_timeout_s": 0.3}}
        with open_door(directory, url, upstreams=[upstream]) as proxy:

            async def settled() -> int:
                await until(lambda: metric(proxy, "cube_connections") == 0)
                await asyncio.sleep(0.6)  # the pool's idle connections go
                return descriptors(proxy.pid)

            before = await settled()
            await leave_all(proxy.port, first)
            between = await settled()
            memory = resident(proxy.pid)
            await leave_all(proxy.port, then)
            after = await settled()
            running, grown = metric(proxy, "cube_requests_in_flight"), resident(proxy.pid) - memory
            outcomes = Counter(event["outcome"] for event in read_events(directory))
    whole_heads = (first + then) * (len(LEAVING) - 1) // len(LEAVING)
    return Left(max(abs(between - before), abs(after - before)), running, grown, dict(outcomes), whole_heads)
