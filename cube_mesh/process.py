"""What the processes of a node ask of the kernel: to be unreadable, to die with their parent, to be made by exec.

Linux only. A process is made by exec of a fresh interpreter with the descriptors that it needs and no others; never by
fork alone, which would copy threads' locks, and keys.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_OWN_VARIABLES = "CUBE_MESH_"


def harden() -> None:
    """No core file, and no other process of this user may read this one's memory or descriptors (prctl(2)
    PR_SET_DUMPABLE). Not kept over exec: each program calls it first. It stops neither root nor the kernel.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with(parent: int) -> None:
    """SIGKILL for this process when ``parent``, which made it, ends; SystemExit when it has already.

    So that nothing serves that nobody watches. The signals that the parent had blocked are let through.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def cores(files: Path = Path("/")) -> int:
    """How many cores' time this process may have: those it may run on, and no more than the CPU quota of its control
    group and of those above it (cgroup v2, ``cpu.max``), rounded up; at least 1. ``files``: where proc and sys are.

    What cannot be read limits nothing. In a container the groups above its own cannot be seen.
    """
    found = len(os.sched_getaffinity(0))
    try:
        lines = (files / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    top = files / "sys/fs/cgroup"
    group = top / next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
    for place in (group, *group.parents):
        if place.is_relative_to(top):
            found = min(found, _quota(place / "cpu.max", found))
    return found


def _quota(file: Path, otherwise: int) -> int:
    try:
        quota, period = map(int, file.read_text().split())
        return max(1, -(-quota // period))
    except (OSError, ValueError, ZeroDivisionError):  # "max 100000": no limit
        return otherwise


def sealed(data: bytes) -> int:
    """An inheritable descriptor of memory that holds ``data`` and cannot be changed: not in argv, environment, disk."""
    fd = os.memfd_create("cube-mesh", os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def unsealed(fd: int) -> bytes:
    """What ``sealed`` was given. Every process reads it from the start: the offset that they share is not used."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def command(module: str, *numbers: int) -> list[str]:
    """The command line of ``python -m module``. It finds its modules where this process has found them: the current
    folder is only searched if it was (-P).
    """
    here = [] if os.getcwd() in sys.path or "" in sys.path else ["-P"]
    return [sys.executable, *here, "-m", module, *map(str, numbers)]


def environment() -> dict[str, str]:
    """This process's, without our own settings: they are in the plan, and some are secret."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OWN_VARIABLES)}


def spawn(module: str, *numbers: int, pass_fds: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start ``python -m module pid numbers...``; the pid is this process's, for ``die_with``."""
    return subprocess.Popen(
        command(module, os.getpid(), *numbers), stdin=subprocess.DEVNULL, env=environment(), pass_fds=pass_fds
    )
