"""What the kernel says about a process and its descendants: CPU time, resident memory, open descriptors."""

from __future__ import annotations

import os
import time
from pathlib import Path


def tree(pid: int) -> list[int]:
    """A process and its live descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


def cpu_s(pid: int) -> float:
    """User and system time of the whole tree in seconds, by the scheduler's clock: nanoseconds, not ticks.

    What a process used that has ended meanwhile is not in it: between two calls the tree must not change.
    """
    return sum(time.clock_gettime(_cpu_clock(each)) for each in tree(pid))


def _cpu_clock(pid: int) -> int:
    """clock_getcpuclockid(3) as Linux makes it: all threads of a process, by what the scheduler gave them."""
    return (~pid << 3) | 2


def reaped_s(pid: int) -> float:
    """User and system time of children of one process that have ended and were waited for; in ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def allow(pid: int, cores: set[int]) -> None:
    """Every thread of the tree may run on these."""
    for each in tree(pid):
        for task in Path(f"/proc/{each}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


def rss_kb(pid: int) -> int:
    """Resident memory of one process, in units of 1,024 bytes (proc(5), statm)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def descriptors(pid: int) -> int:
    """Open descriptors of one process."""
    return len(os.listdir(f"/proc/{pid}/fd"))
