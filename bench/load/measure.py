"""One round: drive a gateway for a few seconds and say what it cost. CPU is the kernel's figure, not the gateway's."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from bench.load.systems import OTHERS, BenchError, System
from bench.processes import cpu_s

CONNECTIONS = 32
WORKER_CONNECTIONS = 16  # of each worker, where several are compared with one
MIN_SENT = 0.9  # of what was to be sent at a fixed rate; with less, workers are not compared at one load


@dataclass(frozen=True)
class Load:
    """A round at full speed. ``cpu_us`` is by measured process: microseconds per request. ``busy``: the share of the
    gateway's cores that it used; well under 1, and something else was the limit."""

    requests: int
    rps: float
    cpu_us: dict[str, float]
    busy: float


@dataclass(frozen=True)
class Request:
    """What every request of a run is: the body's file, and the credential."""

    body: Path
    authorization: str
    path: str

    def on(self, system: System) -> tuple[str, str]:
        """(URL, Authorization) for ``system``, which may want others than cube-mesh."""
        return system.url + (system.path or self.path), system.authorization or self.authorization


class Meter:
    """CPU of a system's processes between two moments."""

    def __init__(self, system: System) -> None:
        self._pids = {name: pid for name, pid in system.measured.items() if pid}
        self._before = self._now()
        self._began = perf_counter()

    def stop(self) -> None:
        after = self._now()
        self.elapsed_s = perf_counter() - self._began
        self.used_s = {name: after[name] - self._before[name] for name in after}

    def _now(self) -> dict[str, float]:
        return {name: cpu_s(pid) for name, pid in self._pids.items()}


def full_speed(system: System, request: Request, seconds: int) -> Load:
    """wrk as fast as the gateway lets it. Raises BenchError unless every answer was 2xx."""
    url, authorization = request.on(system)
    environ = {**os.environ, "BENCH_BODY": str(request.body), "BENCH_AUTHORIZATION": authorization}
    script = Path(__file__).with_name("post.lua")
    os.sync()  # what earlier rounds wrote is not written back in this one
    meter = Meter(system)
    said = _run("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "-s", str(script), url, environ=environ)
    meter.stop()
    requests, elapsed_s = parse_wrk(said, system.name)
    cpu_us = {name: used / requests * 1e6 for name, used in meter.used_s.items()}
    busy = max(meter.used_s.values(), default=0.0) / meter.elapsed_s / system.cores
    return Load(requests, requests / elapsed_s, cpu_us, busy)


def parse_wrk(said: str, name: str) -> tuple[int, float]:
    """(requests, seconds) of what wrk printed; BenchError when it counted none, another status or a socket error."""
    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)\b", said)
    if total is None or "Non-2xx" in said or "Socket errors" in said or int(total[1]) == 0:
        raise BenchError(f"{name}:\n{said}")
    unit_s = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[total[3]]
    return int(total[1]), float(total[2]) * unit_s


def latencies_us(
    system: System, request: Request, seconds: int, scratch: Path, *, rps: float = 0.0, connections: int = CONNECTIONS
) -> list[int]:
    """h2load over kept-alive HTTP/1.1; each request's latency, sorted. ``rps`` 0: each connection as fast as it can."""
    log = scratch / "h2load.log"
    log.unlink(missing_ok=True)
    url, authorization = request.on(system)
    pace = (f"--rps={max(1, round(rps / connections))}",) if rps else ()
    _run(
        "h2load", "--h1", "-t1", f"-c{connections}", f"-D{seconds}", *pace, f"--log-file={log}",
        "-d", str(request.body), "-H", "content-type: application/json", "-H", f"authorization: {authorization}", url,
    )  # fmt: skip
    return parse_h2load(log.read_text(), system.name)


def together(systems: Sequence[System], request: Request, seconds: int, scratch: Path, rps: float) -> list[float]:
    """CPU, microseconds per request, of each system with all that is measured of it, at ``rps`` for each worker: all at
    the same time, so that what disturbs the machine disturbs all. BenchError when less than that was sent."""

    def one(number: int, system: System) -> float:
        own = scratch / f"together-{number}"
        own.mkdir(exist_ok=True)
        meter = Meter(system)
        total, connections = rps * system.workers, WORKER_CONNECTIONS * system.workers
        times = latencies_us(system, request, seconds, own, rps=total, connections=connections)
        meter.stop()
        if len(times) < MIN_SENT * total * seconds:
            raise BenchError(
                f"{system.name}: {len(times) / seconds:,.0f} of {total:,.0f} requests/s: h2load fell behind"
            )
        return sum(meter.used_s.values()) / len(times) * 1e6

    os.sync()
    with ThreadPoolExecutor(len(systems)) as pool:
        return list(pool.map(one, range(len(systems)), systems))


def parse_h2load(log: str, name: str) -> list[int]:
    """Microseconds of each request of a log (start, status, duration), sorted; BenchError unless all were 200."""
    rows = [line.split() for line in log.splitlines()]
    bad = [row for row in rows if row[1] != "200"]
    if bad or not rows:
        raise BenchError(f"{name}: {len(bad)} of {len(rows)} answers were not 200")
    return sorted(int(row[2]) for row in rows)


def quantile(ordered: list[int], share: float) -> float:
    """Of sorted values, the one below which ``share`` of them lie."""
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * share))])


# -- paced streams -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paced:
    """A round of paced streams. Delays run from the server's write of an event to the reader's read of it."""

    frames: int
    cpu_us: dict[str, float]
    p50_us: float
    p99_us: float
    reader_busy: float
    server_busy: float


@dataclass(frozen=True)
class Pace:
    """``program`` is paced.c compiled, ``server`` its running process; ``rate`` is events a second of each stream."""

    program: Path
    server: int
    streams: int
    rate: float
    seconds: float

    @property
    def events(self) -> float:
        return self.streams * self.rate * self.seconds


def paced_streams(system: System, request: Request, pace: Pace, scratch: Path) -> Paced:
    """Event streams at the server's pace through a gateway. Raises BenchError when a stream was lost, or more than one
    in fifty events did not come: then something was not measured but overrun."""
    url, authorization = request.on(system)
    port, path = re.match(r"http://127\.0\.0\.1:(\d+)(/.*)", url).groups()  # type: ignore[union-attr]
    wire = scratch / "request.bin"
    wire.write_bytes(on_the_wire(path, authorization, request.body.read_bytes()))
    argv = [*OTHERS, str(pace.program), "read", port, str(wire), str(pace.streams), str(pace.seconds)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None and reader.stderr is not None
        if reader.stdout.readline() != "start\n":
            raise BenchError(f"{system.name}: {reader.stderr.read()}")
        meter, before = Meter(system), cpu_s(pace.server)
        reader.stdout.readline()
        meter.stop()
        server_busy = (cpu_s(pace.server) - before) / meter.elapsed_s
        said = reader.stdout.read()
    return parse_paced(said, system.name, meter.used_s, server_busy, pace.events)


def parse_paced(said: str, name: str, used_s: dict[str, float], server_busy: float, expected: float) -> Paced:
    """The reader's line of JSON with the CPU of gateway and server in the same time."""
    found = json.loads(said) if said.strip() else {"frames": 0, "lost": 0}
    if found["lost"] or found["frames"] < expected * 0.98:
        raise BenchError(f"{name}: {found['frames']} of {expected:.0f} events came, {found['lost']} streams were lost")
    cpu_us = {row: used / found["frames"] * 1e6 for row, used in used_s.items()}
    return Paced(found["frames"], cpu_us, found["p50_us"], found["p99_us"], found["reader_cpu"], server_busy)


def on_the_wire(path: str, authorization: str, body: bytes) -> bytes:
    """The whole request as HTTP/1.1."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench.test\r\nContent-Type: application/json\r\n"
        f"Authorization: {authorization}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _run(*argv: str, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run([*OTHERS, *argv], env=environ, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise BenchError(f"{argv[0]} failed ({done.returncode}): {done.stderr}{done.stdout}")
    return done.stdout
