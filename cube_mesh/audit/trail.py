"""One worker's files of the trail: whole lines or none, full files set aside, a bound on all of them together.

Knows no event loop and no thread; its owner calls it from one thread at a time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from logging import getLogger
from pathlib import Path

from cube_mesh.audit import spool
from cube_mesh.settings import Audit

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_RESCAN_S = 1.0
_PATIENCE_S = 2.0  # for the process before this one, should it still be dying
_FIRST = re.compile(rb'^\{"timestamp":"([0-9T:.Z-]+)"')
_log = getLogger("cube_mesh.audit")


class Trail:
    """The trail of worker ``worker``. The methods raise OSError; nothing of what they were given is in the file then.

    Numbers for the metrics: ``rotated`` and ``removed`` files, ``torn`` ends that were mended and their ``torn_bytes``,
    ``syncs`` that worked and ``sync_failures``. ``on_sync``, if set, gets the seconds that each sync took.
    """

    def __init__(self, settings: Audit, worker: int = 0) -> None:
        """Opens, locks and mends. ConfigError when that cannot be done, or another process writes this trail."""
        self.on_sync: Callable[[float], None] | None = None
        self._settings, self._base, self._worker = settings, Path(settings.path), worker
        # Never more than half of the spool, or removing what is full could not make room.
        self._full_at = min(settings.rotate_bytes, settings.max_spool_bytes // 2)
        self.path = spool.live(self._base, worker)
        self.rotated = self.removed = self.torn = self.torn_bytes = 0
        self.syncs = self.sync_failures = 0
        self._fd = -1
        self._half = 0  # bytes at the end of the file that must not stay
        self._names_changed = False
        self._last = 0  # number of the newest full file
        self._scanned = 0.0
        try:
            self._lock = _lock(self.path)
        except OSError as error:
            raise spool.unusable(self.path, error) from None
        try:
            self._mend()
            self._use(_open(self.path))
            self._scan()
            spool.sync_folder(self.path.parent)
        except OSError as error:
            os.close(self._lock)
            raise spool.unusable(self.path, error) from None

    # -- writing

    def write(self, lines: bytes) -> None:
        """Append whole lines; they are the kernel's then. Python restarts an interrupted write by itself (PEP 475)."""
        if self._half:
            self._take_back()
        size = len(lines)
        if self._size + size > self._room:
            self._make_way(size)
        taken = os.write(self._fd, lines)
        if taken != size:
            self._rest(lines, taken)
        self._size += size

    def commit(self, lines: bytes) -> None:
        """Append whole lines and wait until they, and the name of their file, are on the disk."""
        self.write(lines)
        try:
            self._sync()
        except OSError:
            self._half = len(lines)
            self._size -= self._half
            with suppress(OSError):  # else before the next line
                self._take_back()
            raise

    def _sync(self) -> None:
        started = time.perf_counter()
        try:
            os.fdatasync(self._fd)
            if self._names_changed:
                spool.sync_folder(self.path.parent)
                self._names_changed = False
        except OSError:
            self.sync_failures += 1
            raise
        self.syncs += 1
        if self.on_sync is not None:
            self.on_sync(time.perf_counter() - started)

    def _rest(self, lines: bytes, taken: int) -> None:
        """The file took a part. Write the rest, or take the part back, so that no half line stays."""
        self._half = taken
        try:
            while self._half < len(lines):
                taken = os.write(self._fd, lines[self._half :])
                if taken == 0:
                    raise OSError(errno.EIO, "nothing written")
                self._half += taken
        except OSError:
            self._take_back()
            raise
        self._half = 0

    def _take_back(self) -> None:
        size = os.fstat(self._fd).st_size
        os.ftruncate(self._fd, max(0, size - self._half))
        self._half = 0

    # -- files

    def counts(self) -> dict[str, int]:
        """Files by what befell them."""
        return {
            "rotated": self.rotated,
            "removed": self.removed,
            "mended": self.torn,
            "unsynced": self.sync_failures,
        }

    @property
    def bytes(self) -> int:
        """All files of this worker together."""
        return self._full + self._size

    def rotate_old(self) -> None:
        """Set the file aside when its first event is older than ``rotate_s``."""
        if self._size and time.time() - _first_event(self._fd) >= self._settings.rotate_s:
            self.rotate()

    def rotate(self) -> None:
        """Set the file aside and begin a new one; an empty file stays."""
        if not self._size:
            return
        fresh = self.path.with_name(self.path.name + ".new")
        fd = _open(fresh)  # first what may fail
        try:
            if self._is_in_place():
                os.rename(self.path, spool.full(self._base, self._worker, self._last + 1))
                self._last += 1
            os.rename(fresh, self.path)
        except OSError:
            os.close(fd)
            raise
        self.rotated += 1
        self._replace(fd)

    def reopen(self) -> None:
        """After somebody has moved files away: write to the file that has the name now, and count what is there."""
        if not self._is_in_place():
            self._replace(_open(self.path))
        self._scan()

    def close(self) -> None:
        fd, self._fd = self._fd, -1  # the number may soon be another file's
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
            os.close(self._lock)

    def _make_way(self, size: int) -> None:
        """There is no room for ``size`` bytes: rotate, or remove the oldest if the operator wants that, or refuse."""
        settings = self._settings
        if self._size and self._size + size > self._full_at:
            self.rotate()
        if self.bytes + size <= settings.max_spool_bytes:
            return
        now = time.perf_counter()
        if settings.remove_oldest or now - self._scanned > _RESCAN_S:  # somebody may have taken files away
            self._scan()
        while self.bytes + size > settings.max_spool_bytes:
            if not settings.remove_oldest or not self._remove_oldest():
                raise OSError(errno.ENOSPC, "audit.max_spool_bytes is reached")

    def _remove_oldest(self) -> bool:
        for member in self._own():
            if member.number:
                member.path.unlink()
                self.removed += 1
                self._scan()
                _log.warning("removed the oldest file of the audit trail, %s, %d bytes", member.path, member.size)
                return True
        return False

    def _own(self) -> list[spool.Member]:
        return [member for member in spool.members(self._base) if member.worker == self._worker]

    def _scan(self) -> None:
        full = [member for member in self._own() if member.number]
        self._full = sum(member.size for member in full)
        self._last = max([member.number for member in full], default=self._last)
        self._scanned = time.perf_counter()
        self._bound()

    def _bound(self) -> None:
        self._room = min(self._full_at, self._settings.max_spool_bytes - self._full)

    def _replace(self, fd: int) -> None:
        before, self._fd = self._fd, -1
        os.close(before)
        self._names_changed = True
        self._use(fd)
        self._scan()

    def _use(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _mend(self) -> None:
        """What a crash left unfinished. Full files were whole when they were set aside."""
        if not self.path.is_file():
            return
        fd = _open(self.path)
        try:
            self.torn_bytes = spool.recover(fd, self.path)
        finally:
            os.close(fd)
        if self.torn_bytes:
            self.torn = 1
            _log.warning("the end of %s was torn; its %d bytes are in %s.torn", self.path, self.torn_bytes, self.path)


def _lock(path: Path) -> int:
    """Two processes in one file could cut each other's lines. The lock is its own file: the trail's are renamed."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.perf_counter() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.perf_counter() > until:
                os.close(fd)
                raise OSError(errno.EWOULDBLOCK, "another process writes this trail") from None
        except OSError:
            os.close(fd)
            raise
        time.sleep(0.02)


def _open(path: Path) -> int:
    """A regular file for appending, 0600."""
    fd = os.open(path, _FLAGS, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        os.fchmod(fd, 0o600)
    except OSError:
        os.close(fd)
        raise
    return fd


def _first_event(fd: int) -> float:
    """Unix time of a file's first event; now, if it has none."""
    found = _FIRST.match(os.pread(fd, 64, 0))
    if found is not None:
        with suppress(ValueError):
            return datetime.fromisoformat(found[1].decode()).timestamp()
    return time.time()
