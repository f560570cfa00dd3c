"""The first process of a node: holds the listening sockets, passes signals on, starts the supervisor again.

It reads no request, no settings and no key, and does so little that little can end it. While the supervisor is being
replaced the sockets stay open, so that connections wait and are not refused. What it cannot survive (kill -9 of itself)
ends the whole node; then the service manager starts it again.

A signal that ends the supervisor is an accident; an exit code is an answer, and becomes the node's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from cube_mesh import process
from cube_mesh.restarts import Slot

DRAIN, NOW, RELOAD = b"D", b"N", b"H"  # to the supervisor, and from it to the workers
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_PATIENCE_S = 5.0  # for a supervisor that was told to stop at once


class Launcher:
    """The descriptors that the supervisor inherits: the plan, the slab that all count in, both ends of the socket for
    spans, the memory of whose turn it is to accept, the listening sockets. -1: there is none.
    """

    def __init__(self, plan_fd: int, slab_fd: int, spans_fd: int, export_fd: int, turns_fd: int, *sockets: int) -> None:
        self._plan_fd = plan_fd
        # Kept open here, so that no count and no waiting span goes with a supervisor.
        self._kept = [fd for fd in (slab_fd, spans_fd, export_fd, turns_fd) if fd >= 0]
        self._sockets = [fd for fd in sockets if fd >= 0]
        self._slot = Slot()
        self._child: subprocess.Popen[bytes] | None = None
        self._commands = -1
        self._stopping = 0  # signals to stop so far
        self._kill_at = float("inf")

    def run(self) -> int:
        """Until the supervisor ends by itself. Returns the exit code of the node."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        while True:
            now = time.monotonic()
            if self._child is None and now >= self._slot.due_at:
                self._start()
            if now >= self._kill_at and self._child is not None:
                self._child.kill()
            self._wait(now)
            code = self._reap()
            if code is not None and (code >= 0 or self._stopping):
                return code if code >= 0 else 1
            if code is not None:
                self._ended(code)
            elif self._child is None and self._stopping:
                return 0

    def _start(self) -> None:
        ours, theirs = os.pipe()
        try:
            self._child = process.spawn(
                "cube_mesh.supervisor", self._plan_fd, ours, self._slot.restarts,
                pass_fds=(self._plan_fd, ours, *self._kept, *self._sockets),
            )  # fmt: skip
        finally:
            os.close(ours)
        self._commands = theirs
        self._slot.started()
        self._slot.up(time.monotonic())  # it has no way to say more, and needs none

    def _wait(self, now: float) -> None:
        due = self._slot.due_at if self._child is None else self._kill_at
        patience = min(max(due - now, 0.0), 3600.0)
        received = signal.sigtimedwait(_SIGNALS, patience)
        if received is None or received.si_signo == signal.SIGCHLD:
            return
        if received.si_signo == signal.SIGHUP:
            self._tell(RELOAD)
            return
        self._stopping += 1
        for fd in self._sockets if self._stopping == 1 else ():
            os.close(fd)  # the last process that closes them refuses the connections that wait
        self._tell(DRAIN if self._stopping == 1 else NOW)
        if self._stopping > 1:
            self._kill_at = time.monotonic() + _PATIENCE_S

    def _tell(self, command: bytes) -> None:
        if self._child is not None:
            with suppress(BrokenPipeError):  # it has ended: SIGCHLD follows
                os.write(self._commands, command)

    def _reap(self) -> int | None:
        """Take away every process that has ended: as the first of a container there are orphans, too. The supervisor's
        exit code, negative for a signal, if it was among them.
        """
        found = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if pid == 0:
                return found
            if self._child is not None and pid == self._child.pid:
                found = self._child.returncode = os.waitstatus_to_exitcode(status)

    def _ended(self, code: int) -> None:
        os.close(self._commands)
        self._child = None
        pause = self._slot.ended(time.monotonic())
        print(f"cube-mesh: the supervisor was killed by signal {-code}; next in {pause:.1f} s", file=sys.stderr)


def main() -> int:
    process.harden()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return Launcher(*map(int, sys.argv[1:])).run()


if __name__ == "__main__":
    sys.exit(main())
