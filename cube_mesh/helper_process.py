"""A process beside the workers, as the supervisor sees it: made by exec, and made again when it ends, with pauses."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Callable, Sequence

from cube_mesh import process
from cube_mesh.restarts import Slot

_log = logging.getLogger("cube_mesh.supervisor")


class HelperProcess:
    """``python -m module numbers...`` with ``fds`` inherited. ``on_end`` is called with the exit code when it is gone.

    It has no way to say that it does its work, and counts as up from its start.
    """

    def __init__(
        self,
        name: str,
        module: str,
        numbers: Sequence[int],
        fds: Sequence[int],
        on_end: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._name, self._module, self._numbers, self._fds = name, module, numbers, fds
        self._on_end = on_end
        self._slot = Slot()
        self._popen: subprocess.Popen[bytes] | None = None
        self._gone = asyncio.Event()
        self._closing = False

    @property
    def restarts(self) -> int:
        return self._slot.restarts

    def start(self) -> None:
        """Make the process, unless there is to be none any more."""
        if self._closing:
            return
        loop = asyncio.get_running_loop()
        self._popen = process.spawn(self._module, *self._numbers, pass_fds=self._fds)
        self._slot.started()
        self._slot.up(loop.time())
        self._gone.clear()
        ended = os.pidfd_open(self._popen.pid)
        loop.add_reader(ended, self._ended, ended)

    def _ended(self, pidfd: int) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(pidfd)
        os.close(pidfd)
        assert self._popen is not None
        code, self._popen = self._popen.wait(), None
        self._gone.set()
        self._on_end(code)
        if self._closing:
            return
        pause = self._slot.ended(loop.time())
        _log.error("the %s ended with %d; the next one starts in %.1f s", self._name, code, pause)
        loop.call_later(pause, self.start)

    async def close(self, ask: Callable[[subprocess.Popen[bytes]], None], patience_s: float) -> bool:
        """No further one; ``ask`` this one to end, wait, then kill it. Whether it ended by itself, in time."""
        self._closing = True
        if self._popen is None:
            return True
        try:
            ask(self._popen)
            await asyncio.wait_for(self._gone.wait(), patience_s)
        except (OSError, TimeoutError):
            if self._popen is not None:
                self._popen.kill()
            return False
        return True
