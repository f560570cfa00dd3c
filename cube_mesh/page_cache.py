"""What the node appended to its trail and its log leaves the page cache about a second after it was written.

Nobody on the node reads it again, and the kernel would keep every page until memory is short. At full speed that is
45 MB/s, which push out what others on the machine read, a model's weights say; and in a virtual machine whose host
takes free memory back, each new page has to be given by the host: 15 to 18 us where we measured, 1.5 for a page that
was in use before. What an event survives does not change: a page goes when it is on the disk.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from pathlib import Path

from cube_mesh.audit import spool

EVERY_S = 1.0
_LOOKS = 10  # at a file that no longer grows: until then the disk has it


class DropBehind:
    """Looks every second, on a thread: starting to write pages to a disk may wait for it.

    What is dirty at one look is dropped at the next, so a shipper that follows closely reads from memory.
    """

    def __init__(self, trail: Path | None, log_fd: int) -> None:
        """``trail``: as ``audit.path``, of all workers; None: this node has none."""
        self._trail = trail
        self._log_fd = log_fd if stat.S_ISREG(os.fstat(log_fd).st_mode) else -1
        self._seen: dict[Path, tuple[int, int]] = {}  # size at the last look, looks that are left
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Until ``stop``, in the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Start writing what is dirty, drop what is not, of each file that has grown within the last looks."""
        if self._log_fd >= 0:
            _drop(self._log_fd)
        if self._trail is not None:
            with suppress(OSError):  # a file was moved away meanwhile, or cannot be read: its writer will say so
                self._look_at(self._trail)

    def _look_at(self, trail: Path) -> None:
        seen: dict[Path, tuple[int, int]] = {}
        for member in spool.members(trail):
            size, left = self._seen.get(member.path, (-1, 0))
            left = max(left - 1, 0) if size == member.size else _LOOKS
            if left:
                fd = os.open(member.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _drop(fd)
                finally:
                    os.close(fd)
            seen[member.path] = member.size, left
        self._seen = seen


def _drop(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
