"""Whose turn it is to accept: how many connections each worker has, in memory that all workers of a node share.

All are told when a connection waits, and the one that is awake already takes it before another has woken up: without
this one worker may take a whole burst. Numbers are advice: each worker writes its own, any could write others'.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

PATIENCE_S = 0.005  # for the others; then whoever is awake takes what waits
REST_S = 0.001  # until the next look
_AWAY = -1
_CELL_BYTES = 4


def create(workers: int) -> int:
    """The descriptor of such memory, closed on exec unless it is passed on. Nobody accepts yet."""
    fd = os.memfd_create("cube-turns", os.MFD_CLOEXEC)
    os.pwrite(fd, _AWAY.to_bytes(_CELL_BYTES, "little", signed=True) * workers, 0)
    return fd


class Turns:
    """Of the worker ``index``. ``count()``: the connections that it has now. The supervisor asks for no turn, and says
    by ``leave`` that a worker has ended.
    """

    def __init__(self, fd: int, index: int, count: Callable[[], int] = int) -> None:
        self._cells = memoryview(mmap.mmap(fd, os.fstat(fd).st_size)).cast("i")
        self._index = index
        self._count = count
        self._waits_since = float("-inf")

    def wait(self, now: float) -> bool:
        """Whether another worker has clearly fewer connections and should have the next one.

        For ``PATIENCE_S`` in four times that: it may be busy. ``now``: seconds of any monotonic clock.
        """
        mine = self.say()
        others = [cell for index, cell in enumerate(self._cells) if index != self._index and cell != _AWAY]
        least = min(others, default=mine)
        if mine <= least + max(1, least // 8):
            return False
        if now - self._waits_since > 4 * PATIENCE_S:
            self._waits_since = now
        return now - self._waits_since < PATIENCE_S

    def say(self) -> int:
        """Tell the others how many there are."""
        mine = self._cells[self._index] = self._count()
        return mine

    def leave(self) -> None:
        """Accept no more."""
        self._cells[self._index] = _AWAY
