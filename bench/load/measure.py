"""One round: drive a gateway for a few seconds and say what it cost. CPU is the kernel's figure, not the gateway's."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.load.systems import System

_TICKS = os.sysconf("SC_CLK_TCK")
CONNECTIONS = 32
GENERATOR_CORE = "1"


class BenchError(Exception):
    """The round measured something else than it should: errors, other statuses, a tool that failed."""


@dataclass(frozen=True)
class Load:
    """A round at full speed. ``cpu_us`` is by measured process: microseconds per request."""

    requests: int
    rps: float
    cpu_us: dict[str, float]


@dataclass(frozen=True)
class Request:
    """What every request of a run is: the body's file, and the credential."""

    body: Path
    authorization: str
    path: str


def cpu_s(pid: int) -> float:
    """User and system time of a process and its live descendants, in seconds (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / _TICKS
    return own + sum(cpu_s(child) for child in _children(pid))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def full_speed(system: System, request: Request, seconds: int) -> Load:
    """wrk as fast as the gateway lets it. Raises BenchError unless every answer was 2xx."""
    environ = {**os.environ, "BENCH_BODY": str(request.body), "BENCH_AUTHORIZATION": request.authorization}
    script = Path(__file__).with_name("post.lua")
    before = {name: cpu_s(pid) for name, pid in system.measured.items()}
    argv = ("taskset", "-c", GENERATOR_CORE, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "-s", str(script))
    said = _run(*argv, system.url + request.path, environ=environ)
    after = {name: cpu_s(pid) for name, pid in system.measured.items()}
    total = re.search(r"(\d+) requests in ([\d.]+)(m?s)", said)
    if total is None or "Non-2xx" in said or "Socket errors" in said or int(total[1]) == 0:
        raise BenchError(f"{system.name}:\n{said}")
    requests = int(total[1])
    elapsed_s = float(total[2]) / (1000 if total[3] == "ms" else 1)
    cpu_us = {name: (after[name] - before[name]) / requests * 1e6 for name in before}
    return Load(requests, requests / elapsed_s, cpu_us)


def latencies_us(system: System, request: Request, rps: float, seconds: int, scratch: Path) -> list[int]:
    """h2load at a fixed rate over kept-alive HTTP/1.1 connections; each request's latency, sorted."""
    log = scratch / "h2load.log"
    log.unlink(missing_ok=True)
    _run(
        "taskset", "-c", GENERATOR_CORE, "h2load", "--h1", "-t1", f"-c{CONNECTIONS}", f"-D{seconds}",
        f"--rps={max(1, round(rps / CONNECTIONS))}", f"--log-file={log}", "-d", str(request.body),
        "-H", "content-type: application/json", "-H", f"authorization: {request.authorization}",
        system.url + request.path,
    )  # fmt: skip
    rows = [line.split() for line in log.read_text().splitlines()]
    bad = [row for row in rows if row[1] != "200"]
    if bad or not rows:
        raise BenchError(f"{system.name}: {len(bad)} of {len(rows)} answers were not 200")
    return sorted(int(row[2]) for row in rows)


def _run(*argv: str, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise BenchError(f"{argv[3]} failed ({done.returncode}): {done.stderr}{done.stdout}")
    return done.stdout
