"""When a process that has ended is started again, and what a node of several processes still waits for.

Rules only: no process, no clock, no I/O. Times are seconds of any monotonic clock. The launcher keeps one ``Slot`` for
the supervisor, the supervisor one for the keeper and each worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

STEADY_S = 2.0  # up for this long: what ended before is forgotten
FIRST_S = 0.1
LAST_S = 15.0  # of a process that does not come up: what stops it will not be gone in a second
LAST_AFTER_UP_S = 0.2  # of one that does: while it is up it serves, and its start costs more than this
LOOP = 5  # ends in a row that make a crash loop


class Slot:
    """One process that is to run as long as the node does.

    ``state``: "waiting" (start it at ``due_at``), "starting", "up". The first end is answered at once, later ones in a
    row after a pause that doubles.
    """

    def __init__(self) -> None:
        self.state = "waiting"
        self.due_at = 0.0
        self.failures = 0  # ends in a row
        self.restarts = 0
        self._up_at = 0.0

    def started(self) -> None:
        """The process has been made."""
        self.state = "starting"

    def up(self, now: float) -> None:
        """The process says that it does its work. Saying it again changes nothing."""
        if self.state != "up":
            self.state = "up"
            self._up_at = now

    def ended(self, now: float) -> float:
        """The process is gone, however it went. Returns the pause before the next one, which starts at ``due_at``."""
        self.failures = 1 if self.steady(now) else self.failures + 1
        longest = LAST_AFTER_UP_S if self.state == "up" else LAST_S
        pause = 0.0 if self.failures == 1 else min(FIRST_S * 2 ** min(self.failures - 2, 16), longest)
        self.state = "waiting"
        self.due_at = now + pause
        self.restarts += 1
        return pause

    def steady(self, now: float) -> bool:
        """Up for ``STEADY_S``."""
        return self.state == "up" and now - self._up_at >= STEADY_S

    def looping(self, now: float) -> bool:
        """It ended ``LOOP`` times in a row and has not been steady since."""
        return self.failures >= LOOP and not self.steady(now)


def unready(
    phase: str, slots: Sequence[Slot], answers: Mapping[int, Mapping[str, str] | None], now: float
) -> dict[str, str]:
    """Name of each check of the node with what it waits for, "" when it holds. One that does not hold: not ready.

    ``answers``: by the index of a worker that is up, its own checks in the same form; None when it did not answer. A
    worker that is being started again does not make the node unready as long as another serves; a crash loop does, and
    so does one worker that is up and not ready, since the kernel gives it connections.
    """
    checks = {"node": phase, "workers": ""}
    if not answers:
        checks["workers"] = "none is up"
    for index, slot in enumerate(slots):
        if slot.looping(now):
            checks["workers"] = f"worker {index} ended {slot.failures} times in a row"
        answer = answers.get(index, {})
        if answer is None:
            checks["workers"] = f"worker {index} does not answer"
            continue
        for name, reason in answer.items():
            checks[name] = checks.get(name) or reason
    return checks
