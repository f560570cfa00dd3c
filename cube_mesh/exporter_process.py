"""The exporter as the supervisor sees it: started when spans are wanted, started again when it ends, ended last."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess

from cube_mesh import process
from cube_mesh.plan import Plan
from cube_mesh.restarts import Slot
from cube_mesh.telemetry.spans import END

_PATIENCE_S = 8.0  # for it to send what it has: the SDK tries for five seconds
_log = logging.getLogger("cube_mesh.supervisor")


class ExporterProcess:
    """Nothing but ``close`` happens while no trace endpoint is configured."""

    def __init__(self, plan: Plan, plan_fd: int) -> None:
        self._plan, self._plan_fd = plan, plan_fd
        self._slot = Slot()
        self._popen: subprocess.Popen[bytes] | None = None
        self._gone = asyncio.Event()
        self._closing = False

    @property
    def restarts(self) -> int:
        return self._slot.restarts

    def start(self) -> None:
        """Make the process. While there is none, spans wait in the socket and are lost when it is full."""
        if self._plan.export_fd < 0 or self._closing:
            return
        loop = asyncio.get_running_loop()
        fds = (self._plan_fd, self._plan.export_fd)
        self._popen = process.spawn("cube_mesh.exporter", self._plan_fd, pass_fds=fds)
        self._slot.started()
        self._slot.up(loop.time())  # it has no way to say more
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
        if self._closing:
            return
        pause = self._slot.ended(loop.time())
        _log.error("the exporter of spans ended with %d; the next one starts in %.1f s", code, pause)
        loop.call_later(pause, self.start)

    async def close(self) -> None:
        """When no worker is left: let it send what it has, for a few seconds."""
        self._closing = True
        if self._popen is None:
            return
        with socket.socket(fileno=os.dup(self._plan.spans_fd)) as end:
            try:
                end.send(END, socket.MSG_DONTWAIT)
                await asyncio.wait_for(self._gone.wait(), _PATIENCE_S)
            except (OSError, TimeoutError):
                _log.warning("the exporter of spans did not end in time: what it had is lost")
                if self._popen is not None:
                    self._popen.kill()
