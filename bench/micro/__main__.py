"""``python -m bench.micro``: the table, and the same as JSON in ``var/bench/micro.json``.

All cases run once in every round, so that what disturbs the machine for a moment disturbs all of them. The noise is the
distance between the quartiles of the rounds, as a share of the median. A case with a bar says in the JSON whether it
``held``.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench import report
from bench.micro.case import Case
from bench.micro.cases import all_cases, clock_ns

SLICE_NS = 4_000_000  # of one case in one round


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name contains one of these")
    parser.add_argument("--json", type=Path, default=Path("var/bench/micro.json"))
    options = parser.parse_args(argv)
    cases = [case for case in all_cases() if any(word in case.name for word in options.only)]
    if not cases:
        parser.error(f"no case is called like {' or '.join(options.only)}")
    result = {**report.machine(), "rounds": options.rounds, "rows": measure(cases, options.rounds)}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"\n{options.json}")
    return 0


def measure(cases: Sequence[Case], rounds: int) -> dict[str, dict[str, Any]]:
    """Each case's median ns, its noise, its ratio to the case it names, and whether that keeps its bar."""
    calls = {case.name: _calls(case) for case in cases}
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    gc.collect()
    gc.disable()  # its pauses belong to whatever made the garbage, not to the case that they hit
    try:
        for _ in range(rounds):
            for case in cases:
                times[case.name].append(clock_ns(case, calls[case.name]))
            gc.collect()
    finally:
        gc.enable()
    rows: dict[str, dict[str, Any]] = {}
    for case in cases:
        low, middle, high = quantiles(times[case.name], n=4)
        rows[case.name] = {"ns": round(middle, 1), "noise": round((high - low) / middle, 3)}
        if case.against in times:
            ratios = [a / b for a, b in zip(times[case.name], times[case.against], strict=True)]
            rows[case.name] |= {"against": case.against, "ratio": round(median(ratios), 3)}
        figure = rows[case.name].get("ratio" if case.against else "ns")
        if case.bar and figure is not None:
            rows[case.name] |= {"bar": case.bar, "held": figure <= case.bar}
    return rows


def _calls(case: Case) -> int:
    """How many calls fill a slice; this also warms the case up."""
    calls = 1
    while (taken := clock_ns(case, calls) * case.per * calls) < SLICE_NS / 4:
        calls *= 4
    return max(1, round(calls * SLICE_NS / taken))


def table(result: dict[str, Any]) -> str:
    rows = [["", "median ns", "noise", "ratio", "bar", "to"]]
    for name, row in result["rows"].items():
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        bar = f"{row['bar']:,g}{'' if row['held'] else ' MISSED'}" if "bar" in row else ""
        rows.append([name, f"{row['ns']:,.0f}", f"{row['noise']:.0%}", ratio, bar, row.get("against", "")])
    return "\n".join([report.headline(result), "", *report.columns(rows)])


if __name__ == "__main__":
    sys.exit(main())
