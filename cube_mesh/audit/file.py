"""``durability = "write"``: the kernel has an event before the last byte of its answer is released.

The events of one turn of the event loop share one write(2): it happens when the turn's reads are done, and only then
are the answers of these requests released. Nothing waits for a timer. An event survives the death of the process, not
of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from typing import TypeAlias

from cube_mesh._fastpath import EventQueue
from cube_mesh.audit.outcome import Outcome, settle
from cube_mesh.audit.trail import Trail
from cube_mesh.errors import DependencyError

Soon: TypeAlias = Callable[[Callable[[], None]], object]
_log = getLogger("cube_mesh.audit")


class FileSink(EventQueue):
    """An ``AuditSink``, and the Recording of what it was given last.

    A Recording ends with DependencyError 503 ``audit_unavailable`` when its event is not in the file; then no part of
    it is.
    """

    def __init__(self, trail: Trail, outcome: Outcome, soon: Soon) -> None:
        """``soon`` arranges the flush of a turn: the running loop's ``call_soon``."""
        super().__init__(soon)
        self.trail, self.outcome = trail, outcome

    def flush(self) -> None:
        """Write what was appended since the last time, and say so to who waits."""
        lines, events, waiting = self.take()
        refusal: DependencyError | None = None
        if events:
            try:
                self.trail.write(lines)
                self.outcome.good(events)
            except OSError as error:
                refusal = self.outcome.bad(events, error)
        settle(waiting, refusal)

    def tick(self) -> None:
        """Every now and then: begin a new file when this one is old."""
        _try(self.trail.rotate_old, "rotated")

    def reopen(self) -> None:
        """Somebody may have moved the file away."""
        _try(self.trail.reopen, "reopened")

    def close(self) -> None:
        self.flush()
        self.trail.close()


def _try(job: Callable[[], None], done: str) -> None:
    try:
        job()
    except OSError as error:
        not_done(done, error)


def not_done(what: str, error: OSError) -> None:
    """Rotating and reopening on request: when it fails, the file that is open stays in use."""
    _log.error("the audit trail could not be %s: %s", what, error.strerror or error)
