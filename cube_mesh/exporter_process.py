"""The exporter as the supervisor sees it: there when spans are wanted, ended last."""

from __future__ import annotations

import logging
import os
import socket
import subprocess

from cube_mesh.helper_process import HelperProcess
from cube_mesh.plan import Plan
from cube_mesh.telemetry.spans import END

_PATIENCE_S = 8.0  # for it to send what it has: the SDK tries for five seconds
_log = logging.getLogger("cube_mesh.supervisor")


class ExporterProcess:
    """While there is none, spans wait in the socket and are lost when it is full."""

    def __init__(self, plan: Plan, plan_fd: int) -> None:
        self._plan = plan
        fds = (plan_fd, plan.export_fd)
        self._process = HelperProcess("exporter of spans", "cube_mesh.exporter", (plan_fd,), fds)

    @property
    def restarts(self) -> int:
        return self._process.restarts

    def start(self) -> None:
        """Make the process, if a trace endpoint is configured."""
        if self._plan.export_fd >= 0:
            self._process.start()

    async def close(self) -> None:
        """When no worker is left: let it send what it has, for a few seconds."""
        if not await self._process.close(self._end, _PATIENCE_S):
            _log.warning("the exporter of spans did not end in time: what it had is lost")

    def _end(self, _: subprocess.Popen[bytes]) -> None:
        with socket.socket(fileno=os.dup(self._plan.spans_fd)) as end:
            end.send(END, socket.MSG_DONTWAIT)
