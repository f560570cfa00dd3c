"""``durability = "batch"``, ``"each"`` and ``"async"``: events are written and synced beside the event loop.

One sync runs at a time, and starts at once when none is running. What comes in meanwhile is the next group: with
"batch" each request waits for two syncs at most, however many there are. The answers of a group are released after the
sync that covers them. An event that was answered survives the loss of power, as far as the disk keeps what it says.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

from cube_mesh.audit.file import Soon, not_done
from cube_mesh.audit.helper import Helper, Landed
from cube_mesh.audit.outcome import Outcome, settle
from cube_mesh.audit.trail import Trail
from cube_mesh.errors import DependencyError
from cube_mesh.ports import Done, Recording

_CLOSED = OSError(errno.ESHUTDOWN, "the node is being stopped")


class Committer:
    """What both sinks do: gather events, and hand them to the helper group by group."""

    def __init__(
        self, trail: Trail, outcome: Outcome, soon: Soon, post: Callable[[Landed, OSError | None], object], group: int
    ) -> None:
        """``soon``: the running loop's ``call_soon``, ``post``: its ``call_soon_threadsafe``. ``group``: events that
        share a sync at most.
        """
        self.trail, self.outcome = trail, outcome
        self._soon, self._group = soon, group
        self._helper = Helper(post)
        self._events: list[bytes] = []
        self._busy = self._closed = False

    def tick(self) -> None:
        """Every now and then: begin a new file when this one is old."""
        self._helper.submit(self.trail.rotate_old, partial(_say, "rotated"))

    def reopen(self) -> None:
        """Somebody may have moved the file away."""
        self._helper.submit(self.trail.reopen, partial(_say, "reopened"))

    def _start(self) -> None:
        raise NotImplementedError

    def _wake(self) -> None:
        """Start a sync at the end of this turn, when none is running: its events belong together."""
        self._busy = True
        self._soon(self._start)

    def _next(self) -> None:
        if self._events:
            self._start()
        else:
            self._busy = False

    def _write_rest(self) -> tuple[int, OSError | None]:
        """At the end, on the loop's thread: the helper has finished what it had. What was left, and how it ended."""
        self._closed = True
        self._helper.close()
        events, self._events = self._events, []
        if events:
            try:
                self.trail.commit(b"".join(events))
            except OSError as error:
                return len(events), error
            self.outcome.good(len(events))
        return len(events), None


class CommitSink(Committer):
    """An ``AuditSink``, and the Recording of what it was given last: done when a sync covers its event.

    It ends with DependencyError 503 ``audit_unavailable`` when writing or syncing failed: the event was taken back.
    """

    def __init__(
        self, trail: Trail, outcome: Outcome, soon: Soon, post: Callable[[Landed, OSError | None], object], group: int
    ) -> None:
        super().__init__(trail, outcome, soon, post, group)
        self._waiting: list[Done] = []

    def append(self, event: bytes) -> Recording:
        """Take one event; a sync of it starts in this turn, or when the one that runs is over."""
        if not self._busy:
            self._wake()
        self._events.append(event)
        return self

    def then(self, done: Done) -> None:
        self._waiting.append(done)

    def _start(self) -> None:
        if self._closed:
            self._busy = False
            waiting, self._waiting, self._events = self._waiting, [], []
            settle(waiting, self.outcome.bad(len(waiting), _CLOSED))
            return
        group = self._group
        events, self._events = self._events[:group], self._events[group:]
        waiting, self._waiting = self._waiting[:group], self._waiting[group:]
        lines = b"".join(events)
        self._helper.submit(partial(self.trail.commit, lines), partial(self._landed, len(events), waiting))

    def _landed(self, events: int, waiting: list[Done], error: OSError | None) -> None:
        if not self._closed:
            self._next()  # first: the disk is the slowest
        settle(waiting, self._judge(events, error))

    def _judge(self, events: int, error: OSError | None) -> DependencyError | None:
        if error is not None:
            return self.outcome.bad(events, error)
        self.outcome.good(events)
        return None

    def close(self) -> None:
        waiting, self._waiting = self._waiting, []
        events, error = self._write_rest()
        self._busy = False  # who comes now is refused by _start
        settle(waiting, self.outcome.bad(events, error) if error is not None else None)
        self.trail.close()


class AsyncSink(Committer):
    """An ``AuditSink`` that says yes at once: what is not yet synced is lost with the process. Bounded: above
    ``max_unwritten`` bytes, and while the trail cannot be written, it refuses or sheds like the others.
    """

    def __init__(
        self,
        trail: Trail,
        outcome: Outcome,
        soon: Soon,
        post: Callable[[Landed, OSError | None], object],
        max_unwritten: int,
    ) -> None:
        super().__init__(trail, outcome, soon, post, group=0)
        self._max = max_unwritten
        self._unwritten = 0
        self._error: OSError | None = None

    def append(self, event: bytes) -> None:
        """Take one event. Raises DependencyError 503 ``audit_unavailable``, or drops and counts it."""
        if not self._busy and not self._closed:
            self._wake()  # also the attempt whether it works again
        error = self._error or (_CLOSED if self._closed else None)
        if error is None and self._unwritten + len(event) > self._max:
            error = OSError(errno.ENOBUFS, "audit.max_unwritten_bytes wait to be written")
        if error is None:
            self._events.append(event)
            self._unwritten += len(event)
            return
        refusal = self.outcome.bad(1, error)
        if refusal is not None:
            raise refusal

    def _start(self) -> None:
        if self._closed:
            return
        events, self._events = self._events, []
        self._helper.submit(partial(self.trail.commit, b"".join(events)), partial(self._landed, events))

    def _landed(self, events: list[bytes], error: OSError | None) -> None:
        self._error = error
        if error is not None and self._closed:
            self.outcome.gone(len(events), error)
            return
        if error is not None:  # they were answered: keep them, and try again with the next request
            self._events[:0] = events
            self._busy = False
            return
        self._unwritten -= sum(map(len, events))
        self.outcome.good(len(events))
        if not self._closed:
            self._next()

    def close(self) -> None:
        """What still cannot be written is lost, and said to be."""
        events, error = self._write_rest()
        if error is not None:
            self.outcome.gone(events, error)
        self.trail.close()


def _say(what: str, error: OSError | None) -> None:
    if error is not None:
        not_done(what, error)
