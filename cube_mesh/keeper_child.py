"""The keeper as the supervisor sees it: made when the node attests or is attested to, made again when it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Callable

from cube_mesh import keeper_link, process
from cube_mesh.plan import Plan
from cube_mesh.restarts import Slot

_PATIENCE_S = 2.0
_log = logging.getLogger("cube_mesh.supervisor")


def has_keeper(plan: Plan) -> bool:
    """An agent always has one; a proxy has one when an upstream is attested."""
    return plan.role == "agent" or any(upstream.url.startswith("atls:") for upstream in plan.settings.upstreams)


class KeeperChild:
    """``workers_fd``: the end of the rendezvous that workers inherit, -1 without a keeper. It outlives the keeper, so
    that what workers offer waits for the next one. ``on_end`` is called with the exit code
    when its process is gone.
    """

    def __init__(self, plan: Plan, plan_fd: int, on_end: Callable[[int], None] = lambda _: None) -> None:
        self._slab_fd = plan.slab_fd
        self._on_end = on_end
        self._plan_fd = plan_fd
        self._slot = Slot()
        self._popen: subprocess.Popen[bytes] | None = None
        self._gone = asyncio.Event()
        self._closing = not has_keeper(plan)
        self._ends = None if self._closing else keeper_link.rendezvous()

    @property
    def workers_fd(self) -> int:
        return self._ends[0].fileno() if self._ends is not None else -1

    @property
    def restarts(self) -> int:
        return self._slot.restarts

    def start(self) -> None:
        """Make the process, unless there is to be none."""
        if self._closing or self._ends is None:
            return
        loop = asyncio.get_running_loop()
        fds = (self._plan_fd, self._ends[1].fileno())
        self._popen = process.spawn("cube_mesh.keeper_main", *fds, pass_fds=(*fds, self._slab_fd))
        self._slot.started()
        self._slot.up(loop.time())  # workers say whether it does its work: they are not ready before
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
        _log.error("the keeper ended with %d; the next one starts in %.1f s", code, pause)
        loop.call_later(pause, self.start)

    async def close(self) -> None:
        """When no worker is left."""
        self._closing = True
        if self._popen is None:
            return
        self._popen.terminate()
        try:
            await asyncio.wait_for(self._gone.wait(), _PATIENCE_S)
        except TimeoutError:
            if self._popen is not None:
                self._popen.kill()
