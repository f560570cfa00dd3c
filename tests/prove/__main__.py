"""``python -m tests.prove 01``: carry out every line of that issue and write ``docs/proofs/01.json``.

With ``--short``, the forms that CI has time for, and nothing is written. ``--only NAME`` renews single lines in the
file. The exit code is 0 when every line that was carried out held.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report import machine
from tests.prove.proof import ROOT, Held, Line


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description=__doc__)
    parser.add_argument("issue", choices=sorted(p.stem[1:] for p in Path(__file__).parent.glob("p[0-9][0-9].py")))
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", action="append", metavar="NAME")
    options = parser.parse_args(argv)
    lines: list[Line] = importlib.import_module(f"tests.prove.p{options.issue}").LINES
    names = [line.name for line in lines]
    unknown = set(options.only or ()) - set(names)
    if unknown:
        parser.error(f"no line is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    file = ROOT / "docs" / "proofs" / f"{options.issue}.json"
    results: dict[str, Any] = {row["name"]: row for row in _kept(file)} if options.only else {}
    done = []
    for line in lines:
        if line.name not in (options.only or names) or (options.short and not line.short):
            continue
        row = carry_out(line, full=not options.short)
        done.append(row)
        results[line.name] = row
        if not options.short:
            rows = [results[name] for name in names if name in results]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"issue": options.issue, "lines": rows}, indent=1) + "\n")
    return 0 if all(row["held"] for row in done) else 1


def carry_out(line: Line, *, full: bool) -> dict[str, Any]:
    """One line's row. A proof that raises did not hold, and says why."""
    print(f"== {line.name}: {line.says}", file=sys.stderr, flush=True)
    about = machine()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="prove-") as scratch:
        try:
            done = line.run(full, Path(scratch))
        except Exception as error:
            done = Held(False, {"error": f"{type(error).__name__}: {error}"}, "")
    words = "held" if done.held else "DID NOT HOLD"
    print(f"   {words}: {json.dumps(done.figures)[:600]}", file=sys.stderr, flush=True)
    seconds = round(time.monotonic() - start, 1)
    row = {"name": line.name, "says": line.says, "held": done.held, "figures": done.figures, "command": done.command}
    return {**row, "seconds": seconds, **about}


def _kept(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text())["lines"] if file.exists() else []


if __name__ == "__main__":
    sys.exit(main())
