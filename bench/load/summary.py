"""From one value a round to the result: medians, what a gateway adds, ratios to nginx, noise, and whether it counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, TypeAlias

from bench import plot, report
from bench.load.systems import AGAIN, DIRECT, PLAIN

MIN_NGINX_RPS = 50_000  # below this the machine was not quiet, or nginx not the yardstick
MIN_ROUNDS = 7  # a median of fewer is no figure
MAX_NOISE = 0.10  # nginx against itself
MIN_BUSY = 0.90  # a gateway that used less of its cores was not the limit: its requests/s are a lower bound
Figures: TypeAlias = dict[str, dict[str, list[float]]]  # row -> kind -> one value a round
Result: TypeAlias = dict[str, Any]
ADDED = {"one_p50_us": "one_added_us", "frame_p50_us": "frame_added_p50_us", "frame_p99_us": "frame_added_p99_us"}
COLUMNS = (
    ("rps", "requests/s"),
    ("cpu_us", "CPU us/request"),
    ("p50_us", "p50 us"),
    ("p99_us", "p99 us"),
    ("one_added_us", "added p50 us, 1 conn."),
    ("frame_cpu_us", "CPU us/event"),
    ("frame_added_p50_us", "added p50 us/event"),
    ("frame_added_p99_us", "added p99 us/event"),
)


def summary(
    figures: Figures,
    against: Mapping[str, str],
    *,
    must_be_fast: bool,
    faults: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
) -> Result:
    """``must_be_fast``: the run is plain JSON at full speed, where nginx under 50,000 requests/s means noise.
    ``about`` is kept as it is; ``faults`` are what the run itself found."""
    figures = with_added(figures)
    rows: dict[str, Any] = {}
    for name, of in figures.items():
        base = figures[against[name]]
        rows[name] = {kind: report.spread(values) for kind, values in of.items() if values}
        rows[name]["ratio"] = {kind: _ratio(of[kind], base[kind]) for kind in of if kind in base and kind != "busy"}
        rows[name]["against"] = against[name]
    noise = dict(rows[AGAIN]["ratio"]) if AGAIN in rows else {}
    rounds = min(len(values) for values in figures[PLAIN].values())
    found = [*dict.fromkeys(faults), *invalid(figures, noise, rounds, must_be_fast=must_be_fast)]
    head = {**report.machine(), "valid": not found, "faults": found, "rounds": rounds, "noise": noise}
    return {**head, "scaling": scaling(rows), **(about or {}), "rows": rows}


def scaling(rows: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each row of several workers, against the same with one: requests/s, CPU per request at full speed and with
    the same load for every worker, and whether the gateway was the limit in both. Where it was not, the CPU at the same
    load says how it scales."""
    found = {}
    for name, row in rows.items():
        one = rows.get(one_of(name))
        if one is None or one is row or "rps" not in row:
            continue
        times = {kind: _ratio_of(row, one, kind) for kind in ("rps", "cpu_us", "even_cpu_us") if kind in row}
        found[name] = {**times, "gateway_was_the_limit": min(row["busy"]["median"], one["busy"]["median"]) >= MIN_BUSY}
    return found


def one_of(name: str) -> str:
    """The row of the same with one worker."""
    return re.sub(r", \d+ workers$", "", name)


def _ratio_of(row: Mapping[str, Any], one: Mapping[str, Any], kind: str) -> float:
    return float(row[kind]["median"] / one[kind]["median"])


def with_added(figures: Figures) -> Figures:
    """What a gateway adds to the latency without it, round by round; the row without a gateway is then left out."""
    straight = figures.get(DIRECT, {})
    added: Figures = {}
    for name, of in figures.items():
        if name == DIRECT:
            continue
        added[name] = dict(of)
        for kind in ADDED.keys() & of.keys():
            pairs = zip(of[kind], straight[kind], strict=True)
            added[name][ADDED[kind]] = [through - without for through, without in pairs]
    return added


def _ratio(values: Sequence[float], base: Sequence[float]) -> float:
    below = median(base)
    return median(values) / below if below else float("nan")


def invalid(figures: Figures, noise: Mapping[str, float], rounds: int, *, must_be_fast: bool) -> list[str]:
    """Why the run does not count; empty when it does."""
    found = []
    nginx_rps = median(figures[PLAIN].get("rps", [0.0]))
    if must_be_fast and nginx_rps < MIN_NGINX_RPS:
        found.append(f"nginx did {nginx_rps:,.0f} requests/s, under {MIN_NGINX_RPS:,}: the machine was not quiet")
    if rounds < MIN_ROUNDS:
        found.append(f"{rounds} rounds, and a figure is the median of at least {MIN_ROUNDS}")
    if not noise:
        found.append("nginx was not measured twice: the noise is not known")
    found += [
        f"nginx against itself: {noise[kind]:.2f} in {kind}, more than {MAX_NOISE:.0%} apart"
        for kind in ("cpu_us", "frame_cpu_us")
        if kind in noise and not abs(noise[kind] - 1) <= MAX_NOISE
    ]
    return found


# -- for people --------------------------------------------------------------------------------------------------------


def table(result: Result) -> str:
    present = [(kind, title) for kind, title in COLUMNS if kind in result["rows"][PLAIN]]
    rows = [["", *(title for _, title in present), "to"]]
    for name, row in result["rows"].items():
        rows.append([name, *(_cell(row, kind) for kind, _ in present), row["against"]])
    lines = [report.headline(result), "", *report.columns(rows), ""]
    lines.append(f"Median of {result['rounds']} interleaved rounds (least-most), x ratio to the row named last.")
    noise = ", ".join(f"{result['noise'][kind]:.2f} {title}" for kind, title in present if kind in result["noise"])
    lines.append(f"Noise floor, nginx against itself: {noise or 'not measured'}.")
    if any("busy" in row and row["busy"]["median"] < MIN_BUSY for row in result["rows"].values()):
        lines.append(">: the gateway was not the limit: its requests/s are a lower bound, its CPU per request holds.")
    for name, times in result["scaling"].items():
        limit = "" if times["gateway_was_the_limit"] else ", which generator or upstream limited"
        even = f", with the same load a worker {times['even_cpu_us']:.2f}" if "even_cpu_us" in times else ""
        cpu = f"CPU per request {times['cpu_us']:.2f}{even}"
        lines.append(f"{name}: {times['rps']:.2f} times the requests/s of one{limit}; {cpu}.")
    for group, rate in sorted(result.get("latency_rps", {}).items()):
        lines.append(f"Latency, {group} upstream: at {rate:,} requests/s.")
    lines += [f"Not run: {name}: {why}." for name, why in result.get("absent", {}).items()]
    lines += [f"INVALID: {fault}." for fault in result["faults"]]
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], kind: str) -> str:
    if kind not in row:
        return "-"
    spread, ratio = row[kind], row["ratio"].get(kind)
    digits = 0 if spread["median"] >= 1000 else 1
    bound = "> " if kind == "rps" and "busy" in row and row["busy"]["median"] < MIN_BUSY else ""
    text = f"{bound}{spread['median']:,.{digits}f} ({spread['min']:,.{digits}f}-{spread['max']:,.{digits}f})"
    return text if ratio is None else f"{text} x{_short(ratio)}"


def _short(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.4f}" if ratio < 0.1 else f"{ratio:.2f}"


def svg(result: Result) -> str:
    """CPU, the one figure that the gateway's neighbours hardly disturb."""
    kind, title = next(
        (kind, title) for kind, title in COLUMNS if kind in ("cpu_us", "frame_cpu_us") and kind in result["rows"][PLAIN]
    )
    rows = [(name, row[kind]) for name, row in result["rows"].items() if kind in row]
    doubt = "" if result["valid"] else ", INVALID RUN"
    return plot.bars(f"{title}, median and range of {result['rounds']} rounds{doubt}", rows)
