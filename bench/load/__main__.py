"""``python -m bench.load``: the table, the same as JSON in ``var/bench/load.json``, and a plot beside it.

Every round measures each system once, in an order that turns round by round, so that a drift of the machine hits all of
them. nginx runs twice: what the second one differs by from the first is what this machine cannot tell apart. Latency is
measured at a fixed rate, the same for all with the same kind of upstream: half of what the slowest of them can do.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from bench import report
from bench.load import systems
from bench.load.run import Run, plain, with_attested
from bench.load.summary import summary, svg, table
from bench.load.systems import BenchError, Variant

OUT = Path("var/bench")


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    missing = missing_tools("cc", "taskset") if options.paced else missing_tools("taskset", "wrk", "h2load")
    if missing:
        print(f"bench.load cannot run without {', '.join(missing)}", file=sys.stderr)
        return 1
    wanted = list(variants(options.chain, options.durability, options.workers))
    with scratch() as directory:
        run = Run(directory, options.seconds, stream=options.stream or options.paced)
        try:
            if options.paced:
                run.paced(options.rounds, wanted, options.streams, options.rate)
            else:
                starts = with_attested(wanted) if options.attested else plain(wanted)
                run.at_full_speed(options.rounds, starts, latency=not options.no_latency)
        except (BenchError, RuntimeError) as error:  # a round that failed, a system that did not start
            print(f"the run ended: {error}", file=sys.stderr)
            return 1
    about = {
        "bench": "paced" if options.paced else "load",
        "stream": options.stream,
        "seconds": options.seconds,
        "latency_rps": {group: round(rate) for group, rate in run.rates.items()},
        "absent": run.absent,
    }
    if options.paced:
        about |= {"streams": options.streams, "events_per_s": options.rate}
    must_be_fast = not (options.stream or options.paced)
    result = summary(run.figures, run.against, must_be_fast=must_be_fast, faults=run.faults, about=about)
    report.write(options.json or OUT / f"{about['bench']}.json", result, table(result), svg(result))
    return 0 if result["valid"] or options.any_machine else 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--stream", action="store_true", help="ask for event streams instead of JSON")
    parser.add_argument("--attested", action="store_true", help="also proxy and agent, beside nginx with mutual TLS")
    parser.add_argument("--chain", nargs="+", choices=["full", "bare"], default=["full"])
    parser.add_argument("--durability", nargs="+", choices=["write", "batch", "each", "async"], default=["write"])
    parser.add_argument("--workers", nargs="+", type=int, default=[1])
    parser.add_argument("--paced", action="store_true", help="streams at a reader's pace: CPU and delay of each event")
    parser.add_argument("--streams", type=int, default=1000, help="at a time, of --paced")
    parser.add_argument("--rate", type=float, default=10.0, help="events a second of each stream, of --paced")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--any-machine", action="store_true", help="exit 0 also when the run is invalid")
    parser.add_argument("--json", type=Path, help=f"default {OUT}/load.json, or paced.json")
    return parser.parse_args(argv)


def variants(chains: Sequence[str], durabilities: Sequence[str], workers: Sequence[int]) -> Iterator[Variant]:
    """Every combination that differs: the bare chain has no audit."""
    for chain, durability, count in product(chains, durabilities, workers):
        if chain == "full" or durability == durabilities[0]:
            yield Variant(chain, durability if chain == "full" else "write", count)


def missing_tools(*names: str) -> list[str]:
    """Those of ``names``, and nginx, that this machine lacks."""
    absent = [name for name in names if not shutil.which(name)]
    return absent if Path(systems.NGINX).exists() else [*absent, "nginx"]


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory on the disk of the checkout: a sync in memory would cost nothing."""
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=OUT) as name:
        yield Path(name).resolve()


if __name__ == "__main__":
    sys.exit(main())
