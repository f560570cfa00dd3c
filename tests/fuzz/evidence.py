"""``python -m tests.fuzz.evidence --runs 1000000``: fuzz every parser of evidence, each in a process of its own.

``--seconds 60`` shares that time among them. ``--parser NAME`` takes that one alone; ``--seed`` decides every input,
together with the seeds that the last run of all parsers has minted (signatures differ from one minting to the next).
``--parser NAME --input FILE`` runs one input again. What is found is in var/fuzz/evidence, and the exit code is 1.

A parser may raise what it says and nothing else, must end within a second of processor time, and has 512 MB.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.evidence_mutate import Mutator, in_bytes, mutate_bytes, splice
from tests.fuzz.evidence_targets import ROOT, TARGETS, Target

OUTPUT = ROOT / "var" / "fuzz" / "evidence"
MAX_BYTES = 1 << 18
MEMORY = 512 << 20
DEADLINE_S = 1.0
_BATCH = 512  # between looks at the clock


class Hang(Exception):
    """One execution took longer than the deadline."""


class Watch:
    """Ticks with the process's own time, so that a busy machine makes no hang. Code that never comes back to Python is
    ended by the kernel, a minute of processor time after the last tick.
    """

    def __init__(self) -> None:
        self.executions = self._seen = 0

    def __enter__(self) -> Watch:
        signal.signal(signal.SIGPROF, self._tick)
        signal.setitimer(signal.ITIMER_PROF, DEADLINE_S, DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _end_at(None)

    def _tick(self, *_: object) -> None:
        _end_at(int(time.process_time()) + 60)
        seen, self._seen = self._seen, self.executions
        if seen == self.executions:
            raise Hang(f"more than {DEADLINE_S:g} s of processor time")


def _end_at(seconds: int | None) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (hard if seconds is None else seconds, hard))


def mutators(target: Target, seeds: Sequence[bytes]) -> list[Mutator]:
    """Half of all inputs come from the bytes of a seed, half from its form where the target has one."""
    found = [in_bytes(seed) for seed in seeds] + [splice(seeds)]
    if target.form is not None:
        inner = [target.form(seed) for seed in seeds]
        found += inner + [_then_bytes(mutate) for mutate in inner]
    return found


def _then_bytes(mutate: Mutator) -> Mutator:
    def both(rng: Random) -> bytes:
        raw = mutate(rng)
        return mutate_bytes(rng, raw) if rng.random() < 0.2 else raw

    return both


def fuzz(
    target: Target,
    seeds: Sequence[bytes],
    seed: str,
    *,
    runs: int = 0,
    seconds: float = 0,
    last: mmap.mmap | None = None,
) -> dict[str, Any]:
    """Run until one of the bounds, or the first find. ``last`` always holds the present input."""
    rng, choose = Random(seed), mutators(target, seeds)
    accepted, places, found = 0, set(), None
    start, raw = time.monotonic(), b""
    with Watch() as watch:
        try:
            while (not runs or watch.executions < runs) and (not seconds or time.monotonic() - start < seconds):
                for _ in range(min(_BATCH, runs - watch.executions) if runs else _BATCH):
                    watch.executions += 1
                    raw = choose[int(rng.random() * len(choose))](rng)[:MAX_BYTES]
                    if last is not None:
                        last[: 4 + len(raw)] = len(raw).to_bytes(4, "big") + raw
                    try:
                        target.parse(raw)
                        accepted += 1
                    except target.allowed as error:
                        step = error.__traceback__
                        while step is not None and step.tb_next is not None:
                            step = step.tb_next
                        places.add((step.tb_frame.f_code, step.tb_lineno) if step is not None else None)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of an extension module is no Exception
            found = {
                "error": f"{type(error).__name__}: {error}"[:300],
                "trace": traceback.format_exc()[-3000:],
                "input": raw,
            }
    passed = time.monotonic() - start
    return {"executions": watch.executions, "seconds": round(passed, 1), "accepted": accepted,
            "refused_at": len(places), "found": found}  # fmt: skip


def seeds_of(name: str, *, fresh: bool = False) -> list[bytes]:
    """The target's seeds, as the last run of all parsers left them."""
    directory = OUTPUT / "seeds" / name
    if fresh or not directory.exists():
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.iterdir():
            old.unlink()
        for number, raw in enumerate(TARGETS[name].seeds()):
            (directory / f"{number:03}").write_bytes(raw)
    return [file.read_bytes() for file in sorted(directory.iterdir())]


def one(name: str, seed: int, runs: int, seconds: float) -> dict[str, Any]:
    """One parser, in this process."""
    seeds = seeds_of(name)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + _address_space(), resource.RLIM_INFINITY))
    with (OUTPUT / f"{name}.last").open("a+b") as file:  # not cut first: another run may have it mapped
        file.truncate(4 + MAX_BYTES)
        with mmap.mmap(file.fileno(), 4 + MAX_BYTES) as last:
            row = fuzz(TARGETS[name], seeds, f"{name} {seed}", runs=runs, seconds=seconds, last=last)
    if row["found"] is not None:
        path = OUTPUT / f"{name}.found"
        path.write_bytes(row["found"]["input"])
        row["found"]["input"] = str(path.relative_to(ROOT))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"parser": name, "seed": seed, **row, "peak_mb": peak}


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def everything(
    seed: int, *, runs: int = 0, seconds: float = 0, parsers: Sequence[str] = (), processes: int = 0
) -> list[dict[str, Any]]:
    """Every parser once, as many at a time as there are cores. ``seconds``: of all of them together."""
    names, cores = parsers or tuple(TARGETS), processes or len(os.sched_getaffinity(0))
    for name in names:
        seeds_of(name, fresh=True)
    each = seconds * cores / len(names)

    def child(name: str) -> dict[str, Any]:
        argv = ["--parser", name, "--seed", str(seed), "--runs", str(runs), "--seconds", f"{each:.2f}", "--json"]
        command = [sys.executable, "-m", "tests.fuzz.evidence", *argv]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        try:
            row: dict[str, Any] = json.loads(done.stdout)
        except ValueError:  # it died: its input is still in the file that both share
            raw = (OUTPUT / f"{name}.last").read_bytes()
            path = OUTPUT / f"{name}.found"
            path.write_bytes(raw[4 : 4 + int.from_bytes(raw[:4], "big")])
            found = {
                "error": f"exit code {done.returncode}",
                "trace": done.stderr[-3000:],
                "input": str(path.relative_to(ROOT)),
            }
            row = {
                "parser": name,
                "seed": seed,
                "executions": 0,
                "seconds": 0,
                "accepted": 0,
                "refused_at": 0,
                "found": found,
                "peak_mb": 0,
            }
        print(words(row), file=sys.stderr, flush=True)
        return row

    with ThreadPoolExecutor(cores) as threads:
        return list(threads.map(child, names))


def words(row: dict[str, Any]) -> str:
    rate = row["executions"] / row["seconds"] if row["seconds"] else 0
    text = f"{row['parser']:24} {row['executions']:>9,} executions, {rate:>8,.0f} a second, "
    text += f"{row['accepted']:>8,} accepted, refused in {row['refused_at']:>3} places, {row['peak_mb']} MB"
    if row["found"] is not None:
        text += f"\nFOUND {row['found']['error']}: {row['found']['input']}\n{row['found']['trace']}"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.evidence", description=__doc__)
    parser.add_argument("--parser", choices=sorted(TARGETS), help="this one alone, in this process")
    parser.add_argument("--runs", type=int, default=0, help="executions of each parser")
    parser.add_argument("--seconds", type=float, default=0, help="time for all together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=Path, help="run this one input only")
    parser.add_argument("--json", action="store_true", help="print the figures alone")
    options = parser.parse_args(argv)
    warnings.simplefilter("error", append=True)  # as the tests do; what the library knows of, it has silenced itself
    if options.input is not None and options.parser:
        print(TARGETS[options.parser].parse(options.input.read_bytes()))
        return 0
    if not options.runs and not options.seconds:
        parser.error("give --runs or --seconds")
    bounds = {"runs": options.runs, "seconds": options.seconds}
    rows = [one(options.parser, options.seed, **bounds)] if options.parser else everything(options.seed, **bounds)
    if options.json:
        print(json.dumps(rows[0] if options.parser else rows))
    elif options.parser:
        print(words(rows[0]))
    else:
        print(f"{sum(row['executions'] for row in rows):,} executions of {len(rows)} parsers")
    return int(any(row["found"] is not None for row in rows))


if __name__ == "__main__":
    sys.exit(main())
