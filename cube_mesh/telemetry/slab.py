"""Where the slab's regions lie: in memory of one process alone, or in one sealed file that a node's processes share.

The rows are ``_fastpath.Slab``'s; here is what they mean. A key is a JSON array of strings: the kind, then the labels.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from struct import Struct

import msgspec

from cube_mesh._fastpath import SLAB_ROW_BYTES, Slab
from cube_mesh.errors import InternalError

ROWS = 4_096
REGION_BYTES = ROWS * SLAB_ROW_BYTES  # 2 MiB of address space; only rows in use take memory
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

COUNTS = Struct("=20Q")  # numbers of a row that counts
TIMES = Struct("=19Qd")  # of a histogram: counts by bucket, then the sum in seconds
GAUGE = Struct("=dQ144x")  # of a gauge: the value, and whether it is one
GAUGE_KIND, PROCESS_KIND = "gauge", "process"  # end with the process that wrote them
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def row_key(kind: str, *labels: str) -> bytes:
    """The key of a row."""
    return msgspec.json.encode((kind, *labels))


def anonymous(rows: int = ROWS) -> Slab:
    """A region for the only process of a node."""
    return Slab(mmap.mmap(-1, rows * SLAB_ROW_BYTES), SECONDS)


def create(regions: int) -> int:
    """The descriptor of a new slab, closed on exec unless it is passed on.

    No process can change its size, so none can take memory from under another. Each can write to all of it: what is
    read from it is as good as the least of them.
    """
    fd = os.memfd_create("cube-metrics", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, regions * REGION_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def regions(fd: int) -> tuple[Slab, ...]:
    """All regions of an inherited slab, for the process that renders them. The descriptor may be closed afterwards."""
    return tuple(_region(fd, index) for index in range(os.fstat(fd).st_size // REGION_BYTES))


def retire(slab: Slab) -> None:
    """The owner of this region has ended: its gauges end with it, what it counted stays. Call when it is dead."""
    for row in slab.rows():
        if row.key.startswith(_ENDING):
            row.put(1, 0)


def attach(fd: int, index: int, patience_s: float = 0.0) -> Slab:
    """This process's region of an inherited slab, with all that earlier owners counted. ``patience_s``: how long the
    last owner may take to die.

    Raises InternalError when a live process owns it or when it is no slab of this version. The lock that says so is
    this process's until it ends, as long as it keeps ``fd`` open and closes no other descriptor of the file.
    """
    try:
        _lock(fd, index, time.monotonic() + patience_s)
        return _region(fd, index)
    except (OSError, ValueError) as error:
        detail = f"region {index} of the metrics slab: {error}"
        raise InternalError("internal", "The server made a mistake.", detail=detail) from error


def _lock(fd: int, index: int, until: float) -> None:
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
        time.sleep(0.02)


def _region(fd: int, index: int) -> Slab:
    return Slab(mmap.mmap(fd, REGION_BYTES, offset=index * REGION_BYTES), SECONDS)


_ENDING = tuple(row_key(kind)[:-1] + b"," for kind in (GAUGE_KIND, PROCESS_KIND))
