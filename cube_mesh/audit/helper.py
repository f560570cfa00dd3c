"""One thread beside the event loop, for calls that wait for a disk. They give up the GIL while they wait."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from logging import getLogger
from queue import SimpleQueue
from typing import TypeAlias

from cube_mesh.text import describe

Job: TypeAlias = Callable[[], None]
Landed: TypeAlias = Callable[[OSError | None], None]
_log = getLogger("cube_mesh.audit")


class Helper:
    """Runs one job after the other. ``post`` brings the end of each back to the loop: ``post(landed, error)``."""

    def __init__(self, post: Callable[[Landed, OSError | None], object]) -> None:
        self._post = post
        self._jobs: SimpleQueue[tuple[Job, Landed] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def submit(self, job: Job, landed: Landed) -> None:
        """``landed`` gets None, or the OSError of the job; a bug in it counts as an OSError, EIO."""
        self._jobs.put((job, landed))

    def close(self) -> None:
        """Wait until all that was submitted is done."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, landed = item
            self._post(landed, _error_of(job))


def _error_of(job: Job) -> OSError | None:
    try:
        job()
    except OSError as error:
        return error
    except Exception as error:
        _log.error("a mistake in the audit trail: %s", describe(error))
        return OSError(errno.EIO, type(error).__name__)
    return None
