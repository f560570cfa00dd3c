"""The keeper as the supervisor sees it: there when the node attests or is attested to."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from cube_mesh import keeper_link
from cube_mesh.helper_process import HelperProcess
from cube_mesh.plan import Plan

_PATIENCE_S = 2.0


def has_keeper(plan: Plan) -> bool:
    """An agent always has one; a proxy has one when an upstream is attested."""
    return plan.role == "agent" or any(upstream.url.startswith("atls:") for upstream in plan.settings.upstreams)


class KeeperChild:
    """``workers_fd``: the end of the rendezvous that workers inherit, -1 without a keeper. It outlives the keeper, so
    that what workers offer waits for the next one. ``on_end`` is called with the exit code when its process is gone.
    """

    def __init__(self, plan: Plan, plan_fd: int, on_end: Callable[[int], None] = lambda _: None) -> None:
        self._ends = keeper_link.rendezvous() if has_keeper(plan) else None
        self._process: HelperProcess | None = None
        if self._ends is not None:
            numbers = (plan_fd, self._ends[1].fileno())
            fds = (*numbers, plan.slab_fd)
            self._process = HelperProcess("keeper", "cube_mesh.keeper_main", numbers, fds, on_end)

    @property
    def workers_fd(self) -> int:
        return self._ends[0].fileno() if self._ends is not None else -1

    @property
    def restarts(self) -> int:
        return self._process.restarts if self._process is not None else 0

    def start(self) -> None:
        """Make the process. Workers say whether it does its work: they are not ready before."""
        if self._process is not None:
            self._process.start()

    async def close(self) -> None:
        """When no worker is left."""
        if self._process is not None:
            await self._process.close(subprocess.Popen.terminate, _PATIENCE_S)
