"""Deadlines without a timer per request: objects carry the time of their next deadline, one sweep finds who is over it.

An event-loop timer costs about a microsecond to set and cancel; a float attribute costs nothing. The price is
resolution: a deadline is noticed up to ``SWEEP_S`` late.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Protocol

from cube_mesh._fastpath import overdue

SWEEP_S = 0.1
_AT_ONCE = 4  # ended before others get their turn: a thousand that came together are over together
NEVER = float("inf")


class Mortal(Protocol):
    """Something with a deadline (``time.perf_counter()`` seconds, NEVER for none)."""

    deadline: float

    def on_deadline(self, now: float) -> None: ...


class Sweeper:
    """Calls ``on_deadline`` once for each member whose deadline has passed; the member sets its next one itself."""

    def __init__(self) -> None:
        self._members: set[Mortal] = set()
        self._over: list[Mortal] = []
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self.add = self._members.add
        self.discard = self._members.discard

    def __len__(self) -> int:
        return len(self._members)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer = loop.call_later(SWEEP_S, self._sweep)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        self._over = overdue(self._members, perf_counter())
        self._end_some()

    def _end_some(self) -> None:
        now, over = perf_counter(), self._over
        try:
            for _ in range(min(_AT_ONCE, len(over))):
                member = over.pop()
                if member.deadline < now:  # it may have moved on since
                    member.deadline = NEVER
                    member.on_deadline(now)
        finally:  # whatever one of them raised, the others have their deadlines
            if over:
                self._timer = self._loop.call_soon(self._end_some)
            else:
                self._timer = self._loop.call_later(SWEEP_S, self._sweep)
