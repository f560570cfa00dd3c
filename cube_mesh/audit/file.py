"""The audit trail as a file of JSON lines, written before the answer's last byte is released.

The events of one turn of the event loop share one write(2): it happens when the turn's reads are done, and only then
are the answers of these requests released. Nothing waits for a timer.
``durability = "write"``: an event survives the death of the process, not of the kernel. A line is in the file whole
or not at all: what a full disk cut short is taken back, and what a crash cut short is moved aside at the next start.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from logging import getLogger
from pathlib import Path

from cube_mesh.errors import ConfigError, DependencyError
from cube_mesh.ports import Done, Recording
from cube_mesh.settings import Audit
from cube_mesh.text import describe

_BLOCK = 65_536
_log = getLogger("cube_mesh.audit")
_UNAVAILABLE = "The audit trail cannot be written, so the request was not answered."


class FileSink:
    """An ``AuditSink``, and the Recording of what it was given last. ``recovered`` is how many bytes of a torn line
    were moved to ``<path>.torn`` at the start.

    A Recording ends with DependencyError 503 ``audit_unavailable`` when its event is not in the file; then no part of
    it is.
    """

    def __init__(self, settings: Audit, soon: Callable[[Callable[[], None]], object] | None = None) -> None:
        """``soon`` arranges the flush of a turn; by default the running loop's ``call_soon``."""
        path = Path(settings.path)
        try:
            self._fd = _open(path)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", key="audit.path") from None
        try:
            self.recovered = _recover(self._fd, path)
        except OSError as error:
            os.close(self._fd)
            raise ConfigError(f"{path} cannot be recovered: {error.strerror}", key="audit.path") from None
        if self.recovered:
            _log.warning("the last line of %s was torn; its %d bytes are in %s.torn", path, self.recovered, path)
        self._torn = 0  # bytes of an unfinished line at the end of the file
        self._soon = soon or _call_soon
        self._events: list[bytes] = []
        self._waiting: list[Done] = []
        self.written = 0
        self.failed = 0

    def append(self, event: bytes) -> Recording:
        """Take one event; it is written in this turn of the running loop."""
        if not self._events:
            self._soon(self.flush)
        self._events.append(event)
        return self

    def then(self, done: Done) -> None:
        self._waiting.append(done)

    def flush(self) -> None:
        """Write what was appended since the last time, and say so to who waits."""
        events, self._events = self._events, []
        waiting, self._waiting = self._waiting, []
        refusal: DependencyError | None = None
        if events:
            try:
                self._write(b"".join(events))
                self.written += len(events)
            except OSError as error:
                self.failed += len(events)
                refusal = _unavailable(error)
        for done in waiting:
            try:
                done(refusal)
            except Exception as error:
                _log.error("an exchange could not be finished: %s", describe(error))

    def _write(self, lines: bytes) -> None:
        """All or nothing. Python restarts an interrupted write by itself (PEP 475)."""
        if self._torn:
            self._take_back()
        taken = os.write(self._fd, lines)
        if taken != len(lines):
            self._rest(lines, taken)

    def _rest(self, lines: bytes, taken: int) -> None:
        """The file took a part. Write the rest, or take the part back, so that no half line stays."""
        self._torn = taken
        try:
            while self._torn < len(lines):
                taken = os.write(self._fd, lines[self._torn :])
                if taken == 0:
                    raise OSError(errno.EIO, "nothing written")
                self._torn += taken
        except OSError:
            self._take_back()
            raise
        self._torn = 0

    def _take_back(self) -> None:
        size = os.fstat(self._fd).st_size
        os.ftruncate(self._fd, size - self._torn)
        self._torn = 0

    def counts(self) -> dict[str, int]:
        """For the metrics."""
        return {"written": self.written, "failed": self.failed}

    def close(self) -> None:
        self.flush()
        os.fsync(self._fd)
        os.close(self._fd)


def _call_soon(flush: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(flush)


def _open(path: Path) -> int:
    """The file for appending, 0600 and ours alone: two nodes in one file could cut each other's lines."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(fd, 0o600)
        _sync_folder(path.parent)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise OSError(error.errno, "another process writes this trail") from None
        raise
    return fd


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _recover(fd: int, path: Path) -> int:
    """Move what follows the last newline to ``<path>.torn``, kept for the auditor; returns its size."""
    size = os.fstat(fd).st_size
    end = _last_newline(fd, size) + 1
    if end == size:
        return 0
    aside = os.open(f"{path}.torn", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for at in range(end, size, _BLOCK):
            _write_all(aside, os.pread(fd, min(_BLOCK, size - at), at))
        _write_all(aside, b"\n")
        os.fsync(aside)
    finally:
        os.close(aside)
    os.ftruncate(fd, end)
    os.fsync(fd)
    return size - end


def _last_newline(fd: int, size: int) -> int:
    """Offset of the last newline, -1 if there is none."""
    stop = size
    while stop > 0:
        start = max(0, stop - _BLOCK)
        found = os.pread(fd, stop - start, start).rfind(b"\n")
        if found >= 0:
            return start + found
        stop = start
    return -1


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _unavailable(error: OSError) -> DependencyError:
    detail = f"audit: {error.strerror or error}"
    return DependencyError("audit_unavailable", _UNAVAILABLE, detail=detail, status=503)
