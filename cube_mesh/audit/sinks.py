"""From settings to the sink that keeps the promise they name."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Protocol

from cube_mesh.audit.commit import AsyncSink, CommitSink
from cube_mesh.audit.file import FileSink
from cube_mesh.audit.outcome import Outcome
from cube_mesh.audit.trail import Trail
from cube_mesh.ports import Recording
from cube_mesh.settings import Audit

_TICK_S = 60.0
_UNBOUNDED = 1 << 62


class Sink(Protocol):
    """An ``AuditSink`` as the node sees it. ``reopen``: files may have been moved away (SIGHUP)."""

    trail: Trail
    outcome: Outcome

    def append(self, event: bytes) -> Recording | None: ...
    def tick(self) -> None: ...
    def reopen(self) -> None: ...
    def close(self) -> None: ...


def open_sink(settings: Audit, worker: int = 0, loop: asyncio.AbstractEventLoop | None = None) -> Sink:
    """Open the trail of a worker. ``loop``: by default the one that runs. Raises ConfigError."""
    loop = loop or asyncio.get_running_loop()
    trail = Trail(settings, worker)
    outcome = Outcome(shed=settings.on_error == "shed")
    if settings.durability == "write":
        return FileSink(trail, outcome, loop.call_soon)
    if settings.durability == "async":
        return AsyncSink(trail, outcome, loop.call_soon, loop.call_soon_threadsafe, settings.max_unwritten_bytes)
    group = 1 if settings.durability == "each" else _UNBOUNDED
    return CommitSink(trail, outcome, loop.call_soon, loop.call_soon_threadsafe, group)


class Ageing:
    """A member of the node's Sweeper: looks now and then whether the file is old enough for a new one."""

    def __init__(self, sink: Sink, rotate_s: float) -> None:
        self._sink = sink
        self._every = min(rotate_s, _TICK_S)
        self.deadline = perf_counter() + self._every

    def on_deadline(self, now: float) -> None:
        self.deadline = now + self._every
        self._sink.tick()
