"""Clients that leave in the middle of everything leave nothing behind. ``crowd`` takes larger numbers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.edge.crowd import LEAVING, Backend, leave_all
from tests.edge.door import descriptors, metric, open_door, resident, until
from tests.support.mesh import read_events

FIRST, THEN = 100, 400


@pytest.mark.slow
async def test_dropped_connections_leave_no_descriptor_no_request_and_no_memory(tmp_path: Path) -> None:
    async with Backend().serve() as url:
        upstream = {"name": "model", "url": url, "pool": {"idle_timeout_s": 0.3}}
        with open_door(tmp_path, url, upstreams=[upstream]) as proxy:

            async def settled() -> None:
                await until(lambda: metric(proxy, "cube_connections") == 0)
                await until(lambda: metric(proxy, "cube_requests_in_flight") == 0)
                await asyncio.sleep(0.6)  # the pool's idle connections go

            await settled()
            before = descriptors(proxy.pid)
            await leave_all(proxy.port, FIRST)
            await settled()
            assert descriptors(proxy.pid) == before
            memory = resident(proxy.pid)
            await leave_all(proxy.port, THEN)
            await settled()
            assert descriptors(proxy.pid) == before
            grown = resident(proxy.pid) - memory
            assert grown < 3 * 2**20, f"{grown / 2**20:.1f} MiB"
            events = read_events(tmp_path)
    whole_heads = (FIRST + THEN) * (len(LEAVING) - 1) // len(LEAVING)
    assert len(events) == whole_heads, "an event for each that was a request"
    assert {event["outcome"] for event in events} == {"cancelled"}
