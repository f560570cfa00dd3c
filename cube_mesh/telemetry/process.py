"""The standard ``process_*`` families of this process.

Not by prometheus_client's ProcessCollector: that lists every descriptor to count them, which for some thousand
connections holds the event loop for milliseconds. Linux 6.2 and later know the number.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class ProcessFamilies(Collector):
    """What the process is made of when it is scraped; made in the process that it tells of."""

    def __init__(self) -> None:
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        self._started = float(booted.split()[1]) + int(_stat()[19]) / _TICKS

    def describe(self) -> Iterator[Metric]:
        yield from ()

    def collect(self) -> Iterator[Metric]:
        stat = _stat()
        spent = (int(stat[11]) + int(stat[12])) / _TICKS
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield CounterMetricFamily(
            "process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", spent
        )
        for name, text, value in (
            ("virtual_memory_bytes", "Virtual memory size in bytes.", float(stat[20])),
            ("resident_memory_bytes", "Resident memory size in bytes.", float(stat[21]) * _PAGE),
            ("start_time_seconds", "Start time of the process since unix epoch in seconds.", self._started),
            ("open_fds", "Number of open file descriptors.", float(open_descriptors())),
            ("max_fds", "Maximum number of open file descriptors.", float(most)),
        ):
            yield GaugeMetricFamily(f"process_{name}", text, value)


def open_descriptors() -> int:
    """How many this process has open (proc(5): the size of /proc/PID/fd, 0 before Linux 6.2)."""
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))


def _stat() -> list[str]:
    """The fields of /proc/self/stat behind the name, which may hold anything; the third of proc(5) is the first."""
    return Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
