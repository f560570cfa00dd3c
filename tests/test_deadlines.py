"""The sweep: everyone whose time is over, a few at a time, whatever one of them does."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

from cube_mesh.deadlines import NEVER, SWEEP_S, Sweeper


class Member:
    def __init__(self, ended: list[Member], deadline: float = 0.0, *, fails: bool = False) -> None:
        self.deadline, self._ended, self._fails = deadline, ended, fails

    def on_deadline(self, now: float) -> None:
        assert now > 0 and self.deadline == NEVER
        self._ended.append(self)
        if self._fails:
            raise RuntimeError("a member")


@pytest.fixture
def raised() -> list[dict[str, Any]]:
    return []


async def swept(sweeper: Sweeper, members: list[Member], raised: list[dict[str, Any]]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: raised.append(context))
    for member in members:
        sweeper.add(member)
    sweeper.start(loop)
    with suppress(TimeoutError):
        async with asyncio.timeout(3 * SWEEP_S):
            await asyncio.Event().wait()
    sweeper.stop()


async def test_those_whose_time_is_over_and_only_they() -> None:
    ended: list[Member] = []
    over, later, never = Member(ended), Member(ended, 1e12), Member(ended, NEVER)
    await swept(Sweeper(), [over, later, never], [])
    assert ended == [over]


async def test_a_crowd_does_not_hold_up_others() -> None:
    ended: list[Member] = []
    seen: list[int] = []

    def look() -> None:
        seen.append(len(ended))
        if len(ended) < 1000:
            asyncio.get_running_loop().call_soon(look)

    asyncio.get_running_loop().call_soon(look)
    await swept(Sweeper(), [Member(ended) for _ in range(1000)], [])
    assert len(ended) == 1000
    assert max(after - before for before, after in pairwise(seen)) <= 32


async def test_one_that_moved_on_meanwhile_is_spared() -> None:
    ended: list[Member] = []

    class Saver(Member):
        def on_deadline(self, now: float) -> None:
            super().on_deadline(now)
            for other in others:
                other.deadline = NEVER

    others = [Member(ended) for _ in range(100)]
    savers = [Saver(ended) for _ in range(100)]
    await swept(Sweeper(), others + savers, [])
    assert len(ended) < 200


async def test_one_that_fails_stops_neither_the_others_nor_the_next_sweep(raised: list[dict[str, Any]]) -> None:
    ended: list[Member] = []
    await swept(Sweeper(), [Member(ended, fails=number % 3 == 0) for number in range(100)], raised)
    assert len(ended) == 100 and len(raised) == 34
