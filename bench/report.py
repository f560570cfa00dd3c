"""What every benchmark says about itself: the machine, the commit, and how far repeated measurements lie apart."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

T = TypeVar("T")


def machine() -> dict[str, Any]:
    """Processor, cores, kernel, Python, commit, date, and the load average before the run ended."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    """Short id of the checked-out commit, with ``+`` when the tree differs from it; empty outside a checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def headline(result: dict[str, Any]) -> str:
    return f"{result['date']}  {result['cpu']}, {result['cores']} cores, Python {result['python']}, {result['commit']}"


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned text; the first column to the left, the others to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def interleaved(items: Sequence[T], rounds: int, measured: Callable[[T], None]) -> None:
    """Each item once a round; every other round in reverse, so that a drift of the machine hits all of them."""
    for number in range(rounds):
        for item in items if number % 2 == 0 else reversed(items):
            measured(item)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)


def write(path: Path, result: dict[str, Any], text: str, svg: str) -> None:
    """The three forms of a result: JSON at ``path``, the plot beside it, the table on stdout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".svg").write_text(svg)
    print(f"{text}\n\n{path}  {path.with_suffix('.svg')}")
