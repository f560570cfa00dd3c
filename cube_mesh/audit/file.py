"""The audit trail as a file of JSON lines: one write(2) per event, before the answer's last byte is released.

``durability = "write"``: an event survives the death of the process, not of the kernel. A line is in the file whole
or not at all: what a full disk cut short is taken back, and what a crash cut short is moved aside at the next start.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from logging import getLogger
from pathlib import Path

from cube_mesh.errors import ConfigError, DependencyError
from cube_mesh.settings import Audit

_BLOCK = 65_536
_log = getLogger("cube_mesh.audit")
_UNAVAILABLE = "The audit trail cannot be written, so the request was not answered."


class FileSink:
    """An ``AuditSink``. ``recovered`` is how many bytes of a torn line were moved to ``<path>.torn`` at the start.

    ``append`` raises DependencyError 503 ``audit_unavailable`` when the event is not in the file; then no part of it
    is.
    """

    def __init__(self, settings: Audit) -> None:
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
        self.written = 0
        self.failed = 0

    def append(self, event: bytes) -> None:
        """Write one line. Python restarts an interrupted write by itself (PEP 475)."""
        try:
            if self._torn:
                self._take_back()
            taken = os.write(self._fd, event)
            if taken != len(event):
                self._rest(event, taken)
        except OSError as error:
            self.failed += 1
            raise _unavailable(error) from None
        self.written += 1

    def _rest(self, event: bytes, taken: int) -> None:
        """The file took a part. Write the rest, or take the part back, so that no half line stays."""
        self._torn = taken
        try:
            while self._torn < len(event):
                taken = os.write(self._fd, event[self._torn :])
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
        os.fsync(self._fd)
        os.close(self._fd)


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
