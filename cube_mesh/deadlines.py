"""Deadlines without a timer per request: objects carry the time of their next deadline, one sweep finds who is over it.

An event-loop timer costs about a microsecond to set and cancel; a float attribute costs nothing. The price is
resolution: a deadline is noticed up to ``SWEEP_S`` late.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Protocol

SWEEP_S = 0.1
NEVER = float("inf")


class Mortal(Protocol):
    """Something with a deadline (``time.perf_counter()`` seconds, NEVER for none)."""

    deadline: float

    def on_deadline(self, now: float) -> None: ...


class Sweeper:
    """Calls ``on_deadline`` once for each member whose deadline has passed; the member sets its next one itself."""

    def __init__(self) -> None:
        self._members: set[Mortal] = set()
        self._timer: asyncio.TimerHandle | None = None
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
        now = perf_counter()
        for member in [m for m in self._members if m.deadline < now]:
            member.deadline = NEVER
            member.on_deadline(now)
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)
