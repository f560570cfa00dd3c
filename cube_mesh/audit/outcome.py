"""What became of the events, and what those who wait for them are told."""

from __future__ import annotations

from logging import getLogger

from cube_mesh import _fastpath
from cube_mesh.errors import DependencyError
from cube_mesh.ports import Done
from cube_mesh.text import describe

_log = getLogger("cube_mesh.audit")
_UNAVAILABLE = "The audit trail cannot be written, so the request was not answered."


class Outcome:
    """Counts of events by what became of them: ``written``; ``failed``, whose answers were refused; ``shed``, whose
    answers were given nevertheless, because the operator wants that; ``lost`` after their answers, with "async".
    """

    def __init__(self, *, shed: bool) -> None:
        self._may_shed = shed
        self.written = self.failed = self.shed = self.lost = 0
        self.failing = False

    def good(self, events: int) -> None:
        self.written += events
        if self.failing:
            self.failing = False
            _log.warning("the audit trail is written again: %d refused, %d shed so far", self.failed, self.shed)

    def bad(self, events: int, error: OSError) -> DependencyError | None:
        """None when the answers are to be given without their events."""
        if not self.failing:
            self.failing = True
            then = "requests are answered without a record" if self._may_shed else "requests are refused"
            _log.error("the audit trail cannot be written, %s: %s", then, error.strerror or error)
        if self._may_shed:
            self.shed += events
            return None
        self.failed += events
        detail = f"audit: {error.strerror or error}"
        return DependencyError("audit_unavailable", _UNAVAILABLE, detail=detail, status=503)

    def gone(self, events: int, error: OSError) -> None:
        """They were answered and cannot be written."""
        self.lost += events
        _log.error("%d events of answered requests are lost: %s", events, error.strerror or error)

    def counts(self) -> dict[str, int]:
        return {"written": self.written, "failed": self.failed, "shed": self.shed, "lost": self.lost}


def settle(waiting: list[Done], refusal: DependencyError | None) -> None:
    """Tell everyone; a bug of one does not hold up the others."""
    _fastpath.settle(waiting, refusal, _not_finished)


def _not_finished(error: Exception) -> None:
    _log.error("an exchange could not be finished: %s", describe(error))
