"""``python -m tests.fuzz --seconds 60`` or ``--runs 20000000``: fuzz the parser.

The last line is what was done; the exit code is 1 when something was found, and var/fuzz/ then holds the input. What is
new is in var/fuzz/found; ``--keep`` merges it into tests/fuzz/corpus. An input is run again with ``--input FILE``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz import seeds
from tests.fuzz.build import OUTPUT, build, environment

MAX_LEN = 480
# Short stacks for allocations and a small quarantine: three times the executions. --input has whole ones. With fewer
# than two frames the leak sanitizer would take every leak for reachable. It looks after an execution that kept memory;
# at exit it would find libFuzzer's own.
_FAST = "malloc_context_size=2:leak_check_at_exit=0:quarantine_size_mb=8:max_malloc_fill_size=0:max_redzone=16"
_STATS = re.compile(r"^stat::(\w+): +(\d+)$", re.MULTILINE)


def fuzz(*flags: str, fast: bool = True) -> tuple[int, str]:
    """Run the program; its exit code and what it printed."""
    env = environment() | ({"ASAN_OPTIONS": _FAST} if fast else {})
    argv = [str(build()), f"-max_len={MAX_LEN}", "-timeout=5", "-rss_limit_mb=1024", *flags]
    done = subprocess.run(argv, env=env, cwd=OUTPUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def search(*, seconds: int = 0, runs: int = -1) -> tuple[int, str, dict[str, int]]:
    """Fuzz until one of the bounds: exit code, output, and the statistics (executions, per second, peak memory)."""
    seeds.write(OUTPUT / "seeds")
    (OUTPUT / "found").mkdir(exist_ok=True)
    bounds = (f"-max_total_time={seconds}", f"-runs={runs}", "-print_final_stats=1", "-verbosity=0", "-entropic=0")
    code, output = fuzz(*bounds, "found", "seeds", str(seeds.CORPUS))
    return code, output, {name: int(value) for name, value in _STATS.findall(output)}


def keep() -> None:
    """Merge what was found into the corpus: one small input for every edge of the code that is reached."""
    code, output = fuzz("-merge=1", "-use_counters=0", "-use_cmp=0", str(seeds.CORPUS), "found", "seeds")
    if code:
        raise SystemExit(output)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=0, help="stop after this time")
    parser.add_argument("--runs", type=int, default=-1, help="stop after this many executions")
    parser.add_argument("--keep", action="store_true", help="merge what is new into the corpus afterwards")
    parser.add_argument("--input", type=Path, help="run this one input only")
    options = parser.parse_args()
    if options.input is not None:
        code, output = fuzz(str(options.input.absolute()), fast=False)
        print(output)
        return int(code != 0)
    if options.seconds <= 0 and options.runs < 0:
        parser.error("give --seconds or --runs")
    code, output, stats = search(seconds=options.seconds, runs=options.runs)
    if code:
        print(output[-8000:])
    elif options.keep:
        keep()
    print(
        f"fuzz: {stats.get('number_of_executed_units', 0)} executions, "
        f"{stats.get('average_exec_per_sec', 0)} a second, peak {stats.get('peak_rss_mb', 0)} MB, "
        f"{'FOUND SOMETHING, see var/fuzz' if code else 'nothing found'}"
    )
    return int(code != 0)


if __name__ == "__main__":
    sys.exit(main())
