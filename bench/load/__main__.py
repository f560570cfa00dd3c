"""``python -m bench.load``: the table, and the same as JSON in ``var/bench/load.json``.

Every round measures each system once, in an order that turns round by round, so that a drift of the machine hits all of
them. nginx runs twice: what the second one differs by from the first is what this machine cannot tell apart. Latency is
measured at one fixed rate for all: half of what the slowest of them can do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from bench import report
from bench.load import measure, systems
from tests.support.mesh import make_tenant

MIN_NGINX_RPS = 50_000  # below this the machine was not quiet, or nginx not the yardstick
BASELINE, AGAIN = "nginx", "nginx again"
T = TypeVar("T")
Figures = dict[str, dict[str, list[float]]]  # row -> figure -> one value a round


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--stream", action="store_true", help="ask for event streams instead of JSON")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("var/bench/load.json"))
    options = parser.parse_args(argv)
    absent = [tool for tool in ("taskset", "wrk", "h2load") if not shutil.which(tool)]
    if absent or not Path(systems.NGINX).exists():
        print(f"bench.load needs nginx, wrk, h2load and taskset; missing: {absent or ['nginx']}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        figures, rate = run(Path(name), options.rounds, options.seconds, options.stream, not options.no_latency)
    result = summary(figures, rate, stream=options.stream)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"\n{options.json}")
    return 0 if result["valid"] else 1


def run(scratch: Path, rounds: int, seconds: int, stream: bool, latency: bool) -> tuple[Figures, float]:
    """Start everything, measure, stop everything. The figures, and the rate of the latency rounds."""
    tenant = make_tenant("bench")
    request = measure.Request(scratch / "body.json", f"Bearer {tenant.key}", f"/{tenant.domain}/v1/chat/completions")
    request.body.write_bytes(body(stream))
    figures: Figures = {}
    with ExitStack() as stack:
        port = stack.enter_context(systems.upstream(scratch))
        running = [
            stack.enter_context(systems.nginx(BASELINE, scratch, port)),
            stack.enter_context(systems.cube_mesh(scratch, port, tenant)),
            stack.enter_context(systems.nginx(AGAIN, scratch, port)),
        ]
        for system in running:  # warm: connections, caches, allocators
            measure.full_speed(system, request, 1)
        interleaved(running, rounds, lambda system: _load(figures, system, request, seconds))
        rate = min(median(of["rps"]) for of in figures.values()) / 2
        if latency:
            interleaved(running, rounds, lambda system: _latency(figures, system, request, rate, seconds, scratch))
    return figures, rate


def interleaved(items: Sequence[T], rounds: int, measured: Callable[[T], None]) -> None:
    """Each item once a round; every other round in reverse."""
    for number in range(rounds):
        for item in items if number % 2 == 0 else reversed(items):
            measured(item)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)


def _load(figures: Figures, system: systems.System, request: measure.Request, seconds: int) -> None:
    got = measure.full_speed(system, request, seconds)
    for name, cpu_us in got.cpu_us.items():
        of = figures.setdefault(name, {"rps": [], "cpu_us": [], "p50_us": [], "p99_us": []})
        of["rps"].append(got.rps)
        of["cpu_us"].append(cpu_us)


def _latency(
    figures: Figures, system: systems.System, request: measure.Request, rate: float, seconds: int, scratch: Path
) -> None:
    times = measure.latencies_us(system, request, rate, seconds, scratch)
    for name in system.measured:
        figures[name]["p50_us"].append(times[len(times) // 2])
        figures[name]["p99_us"].append(times[len(times) * 99 // 100])


def body(stream: bool) -> bytes:
    """A chat request of about 0.7 KB."""
    system = "You are a careful assistant. Answer in one short paragraph and name your sources. "
    user = "Why does a gateway between tenants and model servers have to verify evidence before it forwards anything? "
    messages = [{"role": "system", "content": system * 3}, {"role": "user", "content": user * 3}]
    request = {"model": "canned-model", "messages": messages, "temperature": 0.2, "max_tokens": 128, "stream": stream}
    return json.dumps(request).encode()


def summary(figures: Figures, rate: float, *, stream: bool) -> dict[str, Any]:
    """Medians, ratios of medians to nginx, and whether the run counts."""
    base = figures[BASELINE]
    rows = {}
    for name, of in figures.items():
        kinds = [kind for kind in of if of[kind]]
        rows[name] = {kind: report.spread(of[kind]) for kind in kinds}
        rows[name]["ratio"] = {kind: median(of[kind]) / median(base[kind]) for kind in kinds}
    valid = stream or median(base["rps"]) >= MIN_NGINX_RPS
    rounds = len(base["rps"])
    return {**report.machine(), "stream": stream, "valid": valid, "rounds": rounds, "latency_rps": rate, "rows": rows}


def table(result: dict[str, Any]) -> str:
    lines = [report.headline(result), ""]
    columns = [("rps", "requests/s"), ("cpu_us", "CPU us/request"), ("p50_us", "p50 us"), ("p99_us", "p99 us")]
    present = [(kind, title) for kind, title in columns if kind in result["rows"][BASELINE]]
    rows = [["", *(title for _, title in present)]]
    for name, row in result["rows"].items():
        rows.append([name, *(_cell(row[kind], row["ratio"][kind]) for kind, _ in present)])
    lines += report.columns(rows)
    lines.append(f"\nMedian of {result['rounds']} interleaved rounds (least to most), and the ratio to nginx.")
    lines.append(f'Noise floor: the row "{AGAIN}". Latency at {result["latency_rps"]:,.0f} requests/s.')
    if not result["valid"]:
        lines.append(f"INVALID: nginx did under {MIN_NGINX_RPS:,} requests/s; the machine was not quiet.")
    return "\n".join(lines)


def _cell(spread: dict[str, float], ratio: float) -> str:
    digits = 0 if spread["median"] >= 1000 else 1
    return f"{spread['median']:,.{digits}f} ({spread['min']:,.{digits}f}-{spread['max']:,.{digits}f}) x{ratio:.2f}"


if __name__ == "__main__":
    sys.exit(main())
