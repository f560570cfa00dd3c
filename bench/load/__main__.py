"""``python -m bench.load``: the table, and the same as JSON in ``var/bench/load.json``.

Every round measures each system once, in an order that turns round by round, so that a drift of the machine hits all of
them. nginx runs twice: what the second one differs by from the first is what this machine cannot tell apart. Latency is
measured at a fixed rate, the same for all with the same kind of upstream: half of what the slowest of them can do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from bench import report
from bench.load import measure, systems
from tests.support.mesh import make_tenant

MIN_NGINX_RPS = 50_000  # below this the machine was not quiet, or nginx not the yardstick
T = TypeVar("T")
Figures = dict[str, dict[str, list[float]]]  # row -> figure -> one value a round


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--stream", action="store_true", help="ask for event streams instead of JSON")
    parser.add_argument(
        "--attested", action="store_true", help="also proxy and agent, beside two nginx with mutual TLS"
    )
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("var/bench/load.json"))
    options = parser.parse_args(argv)
    absent = [tool for tool in ("taskset", "wrk", "h2load") if not shutil.which(tool)]
    if absent or not Path(systems.NGINX).exists():
        print(f"bench.load needs nginx, wrk, h2load and taskset; missing: {absent or ['nginx']}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        run = Run(Path(name), options.seconds, stream=options.stream)
        run.carry_out(options.rounds, attested=options.attested, latency=not options.no_latency)
    result = summary(run.figures, run.against, run.rates, stream=options.stream)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"\n{options.json}")
    return 0 if result["valid"] else 1


class Run:
    """``figures``: one value a round. ``against``: the row each is compared with. ``rates``: of latency, by group."""

    def __init__(self, scratch: Path, seconds: int, *, stream: bool) -> None:
        self.figures: Figures = {}
        self.against: dict[str, str] = {}
        self.rates: dict[str, float] = {}
        self._scratch, self._seconds = scratch, seconds
        self._tenant = tenant = make_tenant("bench")
        file = scratch / "body.json"
        file.write_bytes(body(stream))
        self._request = measure.Request(file, f"Bearer {tenant.key}", f"/{tenant.domain}/v1/chat/completions")

    def carry_out(self, rounds: int, *, attested: bool, latency: bool) -> None:
        """Start everything, measure, stop everything."""
        with ExitStack() as stack:
            running = [stack.enter_context(system) for system in self._systems(stack, attested)]
            for system in running:
                self.against |= system.against
                measure.full_speed(system, self._request, 1)  # warm: connections, caches, allocators
            interleaved(running, rounds, self._load)
            if latency:
                self.rates = {group: self._half_of_the_slowest(group, running) for group in {s.group for s in running}}
                interleaved(running, rounds, self._latency)

    def _systems(self, stack: ExitStack, attested: bool) -> Iterator[AbstractContextManager[systems.System]]:
        scratch = self._scratch
        port = stack.enter_context(systems.upstream(scratch))
        yield systems.nginx(systems.PLAIN, scratch, port)
        yield systems.cube_mesh(scratch, port, self._tenant)
        yield systems.nginx(systems.AGAIN, scratch, port)
        if attested:
            yield systems.nginx_pair(scratch, port)
            yield systems.cube_mesh_pair(scratch, port, self._tenant)

    def _load(self, system: systems.System) -> None:
        got = measure.full_speed(system, self._request, self._seconds)
        for name, cpu_us in got.cpu_us.items():
            of = self.figures.setdefault(name, {"rps": [], "cpu_us": [], "p50_us": [], "p99_us": []})
            of["rps"].append(got.rps)
            of["cpu_us"].append(cpu_us)

    def _half_of_the_slowest(self, group: str, running: Sequence[systems.System]) -> float:
        names = [name for system in running if system.group == group for name in system.measured]
        return min(median(self.figures[name]["rps"]) for name in names) / 2

    def _latency(self, system: systems.System) -> None:
        rate = self.rates[system.group]
        times = measure.latencies_us(system, self._request, rate, self._seconds, self._scratch)
        for name in system.measured:
            self.figures[name]["p50_us"].append(times[len(times) // 2])
            self.figures[name]["p99_us"].append(times[len(times) * 99 // 100])


def interleaved(items: Sequence[T], rounds: int, measured: Callable[[T], None]) -> None:
    """Each item once a round; every other round in reverse."""
    for number in range(rounds):
        for item in items if number % 2 == 0 else reversed(items):
            measured(item)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)


def body(stream: bool) -> bytes:
    """A chat request of about 0.7 KB."""
    system = "You are a careful assistant. Answer in one short paragraph and name your sources. "
    user = "Why does a gateway between tenants and model servers have to verify evidence before it forwards anything? "
    messages = [{"role": "system", "content": system * 3}, {"role": "user", "content": user * 3}]
    request = {"model": "canned-model", "messages": messages, "temperature": 0.2, "max_tokens": 128, "stream": stream}
    return json.dumps(request).encode()


def summary(figures: Figures, against: dict[str, str], rates: dict[str, float], *, stream: bool) -> dict[str, Any]:
    """Medians, ratios of medians to the nginx in the same place, and whether the run counts."""
    rows: dict[str, dict[str, Any]] = {}
    for name, of in figures.items():
        base = figures[against[name]]
        kinds = [kind for kind in of if of[kind]]
        rows[name] = {kind: report.spread(of[kind]) for kind in kinds}
        rows[name]["ratio"] = {kind: median(of[kind]) / median(base[kind]) for kind in kinds}
        rows[name]["against"] = against[name]
    plain = figures[systems.PLAIN]["rps"]
    valid = stream or median(plain) >= MIN_NGINX_RPS
    about = {"stream": stream, "valid": valid, "rounds": len(plain)}
    latency_rps = {group: round(rate) for group, rate in rates.items()}
    return {**report.machine(), **about, "latency_rps": latency_rps, "rows": rows}


def table(result: dict[str, Any]) -> str:
    columns = [("rps", "requests/s"), ("cpu_us", "CPU us/request"), ("p50_us", "p50 us"), ("p99_us", "p99 us")]
    present = [(kind, title) for kind, title in columns if kind in result["rows"][systems.PLAIN]]
    rows = [["", *(title for _, title in present), "to"]]
    for name, row in result["rows"].items():
        rows.append([name, *(_cell(row[kind], row["ratio"][kind]) for kind, _ in present), row["against"]])
    lines = [report.headline(result), "", *report.columns(rows), ""]
    lines.append(f"Median of {result['rounds']} interleaved rounds (least-most), x ratio to the row named last.")
    lines.append(f'Noise floor: the row "{systems.AGAIN}".')
    for group, rate in sorted(result["latency_rps"].items()):
        lines.append(f"Latency, {group} upstream: at {rate:,} requests/s.")
    if not result["valid"]:
        lines.append(f"INVALID: nginx did under {MIN_NGINX_RPS:,} requests/s; the machine was not quiet.")
    return "\n".join(lines)


def _cell(spread: dict[str, float], ratio: float) -> str:
    digits = 0 if spread["median"] >= 1000 else 1
    return f"{spread['median']:,.{digits}f} ({spread['min']:,.{digits}f}-{spread['max']:,.{digits}f}) x{ratio:.2f}"


if __name__ == "__main__":
    sys.exit(main())
