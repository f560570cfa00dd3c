"""A worker as the supervisor sees it: its process, its reports, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence

from cube_mesh import process
from cube_mesh.worker_link import ASK, Report, read_report

_NOTHING = Report({})


class WorkerProcess:
    """Made with its process running. ``report`` is the last one. ``on_report()`` is called after each report,
    ``on_end(exit code)`` once, when process and link are over; both by ``watch``.
    """

    def __init__(
        self,
        index: int,
        fds: Sequence[int],
        keeper_fd: int,
        on_report: Callable[[], None],
        on_end: Callable[[int], None],
    ) -> None:
        """``fds``: what it inherits, the plan first; -1 counts as none. ``keeper_fd``: to meet the keeper, or -1."""
        self.index = index
        self.report = _NOTHING
        self._on_report, self._on_end = on_report, on_end
        self._ours, theirs = socket.socketpair()
        with theirs:
            inherited = [fd for fd in (*fds, theirs.fileno(), keeper_fd) if fd >= 0]
            self._popen = process.spawn(
                "cube_mesh.worker", fds[0], theirs.fileno(), index, keeper_fd, pass_fds=inherited
            )
        self._ended = os.pidfd_open(self._popen.pid)
        self._asked: list[asyncio.Future[bool]] = []
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def watch(self) -> None:
        """Read reports until the link ends, wait for the process, say so."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._ours)
        try:
            while True:
                self.report = await read_report(reader)
                self._answered(True)
                self._on_report()
        except (asyncio.IncompleteReadError, OSError):
            pass  # the end of the link
        except ValueError:
            self.kill()
        self._answered(False)
        await self._gone()
        self._writer.close()
        self._on_end(self._popen.wait())

    async def _gone(self) -> None:
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._ended, over.set)
        await over.wait()
        loop.remove_reader(self._ended)
        os.close(self._ended)

    def _answered(self, answer: bool) -> None:
        asked, self._asked = self._asked, []
        for future in asked:
            if not future.done():
                future.set_result(answer)

    async def ask(self, patience_s: float) -> bool:
        """Have a fresh report; whether it came in time."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self.tell(ASK)
        try:
            async with asyncio.timeout(patience_s):
                return await future
        except TimeoutError:
            return False

    def tell(self, command: bytes) -> None:
        if self._writer is not None:
            self._writer.write(command)
        else:
            self._ours.send(command)  # before it is watched

    def kill(self) -> None:
        self._popen.send_signal(signal.SIGKILL)
