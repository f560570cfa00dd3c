"""``python -m bench.peers``: requests/s on one core and CPU per request, beside HAProxy, vLLM's router and LiteLLM.

The same rounds, request, upstream, nginx and figures as ``bench.load``; cube-mesh runs with its whole chain, the peers
with the chain that they have by default. A peer that is not on this machine is named as not run. ``--install`` puts
them there, each apart from cube-mesh (apt, or an environment under ``var/peers``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from bench import report
from bench.load.__main__ import OUT, missing_tools, scratch
from bench.load.run import Run, Starts, plain
from bench.load.summary import summary, svg, table
from bench.load.systems import BenchError, System, Variant
from bench.peers.systems import PEERS, Peer, install


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--install", action="store_true", help="install what is missing, and end")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="peers whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--json", type=Path, default=OUT / "peers.json")
    options = parser.parse_args(argv)
    wanted = [peer for peer in PEERS if _named(peer, options.only)]
    if options.install:
        return _install(wanted)
    missing = missing_tools("taskset", "wrk")
    if missing:
        print(f"bench.peers cannot run without {', '.join(missing)}", file=sys.stderr)
        return 1
    with scratch() as directory:
        run = Run(directory, options.seconds)
        try:
            run.at_full_speed(options.rounds, _beside(wanted), latency=False)
        except (BenchError, RuntimeError) as error:  # a round that failed, a system that did not start
            print(f"the run ended: {error}", file=sys.stderr)
            return 1
    about = {"bench": "peers", "stream": False, "seconds": options.seconds, "absent": run.absent}
    result = summary(run.figures, run.against, must_be_fast=True, faults=run.faults, about=about)
    report.write(options.json, result, table(result), svg(result))
    return 0 if result["valid"] else 1


def _named(peer: Peer, words: Sequence[str] | None) -> bool:
    return words is None or any(word.lower() in peer.name.lower() for word in words)


def _beside(wanted: Sequence[Peer]) -> Starts:
    def starts(run: Run, port: int) -> Iterable[AbstractContextManager[System]]:
        yield from plain([Variant()])(run, port)
        for peer in wanted:
            if peer.here:
                yield peer.start(run.scratch, port)
            else:
                run.absent[peer.name] = "not installed (python -m bench.peers --install)"

    return starts


def _install(wanted: Sequence[Peer]) -> int:
    failed = 0
    for peer in wanted:
        fault = "" if peer.here else install(peer)
        failed += bool(fault)
        print(f"{peer.name}: {fault or peer.program}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
