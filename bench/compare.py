"""``python -m bench.compare BASE.json NEW.json``: has CPU per request, as a ratio to nginx in the same run, grown?

Machines differ, and nginx differs with them: only the ratio is compared. A row is worse when its ratio has grown by
more than the bound and the noise of both runs together. Exit 0: no row is worse; 1: one is, or is gone; 2: the two
cannot be compared, or a run was too noisy to tell. A run that is invalid for its requests/s may still be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench import report

KINDS = ("cpu_us", "frame_cpu_us")
MAX_NOISE = 0.25  # nginx against itself; beyond this nothing can be told
BOUND = 0.15


class CannotTell(Exception):
    """The two results do not say which is better."""


@dataclass(frozen=True)
class Verdict:
    row: str
    base: float
    new: float  # NaN: the row is gone
    allowed: float  # the largest ratio that is not worse

    @property
    def word(self) -> Literal["gone", "worse", "better", "same"]:
        if self.new != self.new:
            return "gone"
        if self.new > self.allowed:
            return "worse"
        return "better" if self.new < self.base * self.base / self.allowed else "same"


def verdicts(base: Mapping[str, Any], new: Mapping[str, Any], bound: float) -> list[Verdict]:
    """One for each row of ``base`` that has a ratio to nginx. Raises CannotTell."""
    for what in ("bench", "stream"):
        if base.get(what) != new.get(what):
            raise CannotTell(f"{what}: {base.get(what)} in one, {new.get(what)} in the other")
    kind = next((kind for kind in KINDS if kind in base["noise"]), None)
    if kind is None:
        raise CannotTell("no CPU per request of nginx against itself in the first file")
    allowance = 1 + bound + sum(_noise(result, kind) for result in (base, new))
    found = []
    for name, row in base["rows"].items():
        if row["against"] == name or name == "nginx again":
            continue
        ratio = row["ratio"][kind]
        there = new["rows"].get(name, {}).get("ratio", {}).get(kind, float("nan"))
        found.append(Verdict(name, ratio, there, ratio * allowance))
    if not found:
        raise CannotTell("the first file has no row to compare")
    return found


def _noise(result: Mapping[str, Any], kind: str) -> float:
    ratio = result["noise"].get(kind, float("nan"))
    noise: float = abs(ratio - 1)
    if not noise <= MAX_NOISE:
        raise CannotTell(f"nginx against itself was {ratio:.2f} in the run of {result['date']}")
    return noise


def table(found: Sequence[Verdict]) -> str:
    rows = [["CPU per request to nginx", "base", "new", "change", "allowed", ""]]
    for each in found:
        change = f"{(each.new / each.base - 1) * 100:+.1f} %"
        rows.append([each.row, f"{each.base:.2f}", f"{each.new:.2f}", change, f"{each.allowed:.2f}", each.word])
    return "\n".join(report.columns(rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--bound", type=float, default=BOUND, help=f"growth that is let pass; default {BOUND}")
    parser.add_argument("--noise-passes", action="store_true", help="exit 0 when the runs cannot tell; for CI machines")
    options = parser.parse_args(argv)
    base, new = (json.loads(path.read_text()) for path in (options.base, options.new))
    print(f"base  {report.headline(base)}\nnew   {report.headline(new)}\n")
    try:
        found = verdicts(base, new, options.bound)
    except CannotTell as reason:
        print(f"cannot tell: {reason}")
        return 0 if options.noise_passes else 2
    print(table(found))
    return 1 if any(each.word in ("worse", "gone") for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
