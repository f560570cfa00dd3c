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
_STEP = 1 << 20  # less than this, and what is new may stay: a page that still grows is not written every second
_LOOKS = 10  # at a file that has grown: until then the disk has it


class DropBehind:
    """Looks every second, on a thread: starting to write pages to a disk may wait for it.

    What is dirty at one look is dropped at the next, so a shipper that follows closely reads from memory.
    """

    def __init__(self, trail: Path | None, log_fd: int) -> None:
        """``trail``: as ``audit.path``, of all workers; None: this node has none."""
        self._trail = trail
        self._log_fd = log_fd if stat.S_ISREG(os.fstat(log_fd).st_mode) else -1
        self._seen: dict[Path | None, tuple[int, int]] = {}  # size when it had grown, looks left; None is the log
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
        """Start writing what is dirty, drop what is not, of each file that has grown by a MiB within the last looks."""
        with suppress(OSError):  # what cannot be dropped stays
            if self._log_fd >= 0 and self._is_due(None, os.fstat(self._log_fd).st_size):
                _drop(self._log_fd)
        with suppress(OSError):  # a file was moved away meanwhile, or cannot be read: its writer will say so
            if self._trail is not None:
                self._look_at(self._trail)

    def _look_at(self, trail: Path) -> None:
        members = spool.members(trail)
        for path in self._seen.keys() - {None, *(member.path for member in members)}:
            del self._seen[path]
        for member in members:
            if self._is_due(member.path, member.size):
                fd = os.open(member.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _drop(fd)
                finally:
                    os.close(fd)

    def _is_due(self, path: Path | None, size: int) -> bool:
        grown, left = self._seen.get(path, (0, 0))
        grown, left = (size, _LOOKS) if abs(size - grown) >= _STEP else (grown, max(left - 1, 0))
        self._seen[path] = grown, left
        return left > 0


def _drop(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
