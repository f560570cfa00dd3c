"""Issue 02, the strict edge: what it must show."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median

from bench.load import measure, systems
from bench.load.run import body, interleaved
from bench.micro import parse
from tests.edge.door import CHAT, RED, open_door
from tests.edge.test_dropped import GROWTH, drop
from tests.fuzz.__main__ import search
from tests.fuzz.build import build
from tests.prove import crowded
from tests.prove.proof import ROOT, Figures, Held, Line, run_tests
from tests.smuggling.cases import CASES
from tests.support.client import bearer

EXECUTIONS = 20_000_000
SPINE = "bf6bbd6"  # the last commit of issue 01
P99_RATIO, CPU_RATIO = 1.5, 1.0
CLASSES, EACH_CLASS, INPUTS = 30, 5, 300


def smuggling(full: bool, scratch: Path) -> Held:
    """Outcomes, the README's list, and h11, httptools, nginx and llama.cpp on what we send on."""
    classes: dict[str, int] = {}
    for case in CASES:
        name = case.name.partition(":")[0]
        classes[name] = classes.get(name, 0) + 1
    files = ("cases", "peers", "differences", "responses")
    done = run_tests(*(f"tests/smuggling/test_{name}.py" for name in files), least=800)
    enough = len(CASES) >= INPUTS and len(classes) >= CLASSES and min(classes.values()) >= EACH_CLASS
    figures = {
        **done.figures,
        "inputs": len(CASES),
        "classes": len(classes),
        "fewest_of_a_class": min(classes.values()),
    }
    return Held(done.held and enough, figures, done.command)


def invariance(full: bool, scratch: Path) -> Held:
    return run_tests("tests/smuggling/test_invariance.py", "tests/fuzz", least=len(CASES))


def fuzz(full: bool, scratch: Path) -> Held:
    """In full on every core at once: they share the corpus and what is found."""
    build()  # once, before all of them look for it
    cores = len(os.sched_getaffinity(0)) if full else 1
    bound = {"runs": EXECUTIONS // cores + 1} if full else {"seconds": 10}
    with ThreadPoolExecutor(cores) as threads:
        done = list(threads.map(lambda _: search(**bound), range(cores)))
    executions = sum(stats.get("number_of_executed_units", 0) for _, _, stats in done)
    figures = {
        "executions": executions,
        "per_second": sum(stats.get("average_exec_per_sec", 0) for _, _, stats in done),
        "peak_mb": max(stats.get("peak_rss_mb", 0) for _, _, stats in done),
        "exit_codes": [code for code, _, _ in done],
        "sanitizers": "address, undefined, leak",
    }
    held = not any(code for code, _, _ in done) and executions >= (EXECUTIONS if full else 10_000)
    return Held(held, figures, f"python -m tests.fuzz --runs {EXECUTIONS}")


def slow(full: bool, scratch: Path) -> Held:
    """p99 is judged where the noise allows; otherwise what an honest request costs while all slow clients are there."""
    rounds, each = (10, 1_000) if full else (1, 100)
    with crowded.scene(scratch) as proxy:
        run = crowded.Rounds(proxy, scratch, each)
        for number in range(rounds):
            run.carry_out(number)
    figures = run.figures()
    judged = "p99" if 1 + 2 * figures["noise"] <= P99_RATIO else "cpu"
    cpu = figures["proxy_cpu_us_per_honest_request"]
    ratio = figures["p99_ratio"] if judged == "p99" else cpu["crowd"] / cpu["base"]
    bound = each * crowded.WATER + 4 * each * crowded.SPACE
    figures |= {"judged": judged, "bound_mib": round(bound / 2**20, 1)}
    in_time = not run.wrong() and run.together >= 3 * each
    held = in_time and run.grown <= bound and (ratio <= P99_RATIO or not full)
    return Held(held, figures, "python -m tests.prove 02 --only slow")


def dropped(full: bool, scratch: Path) -> Held:
    first, then = (1_000, 9_000) if full else (100, 400)
    left = asyncio.run(drop(scratch, first, then))
    clean = left.descriptors == 0 and left.in_flight == 0 and left.grown <= GROWTH
    figures = {**asdict(left), "connections": first + then}
    return Held(clean and left.outcomes == {"cancelled": left.whole_heads}, figures, "tests/edge/test_dropped.py")


def injection(full: bool, scratch: Path) -> Held:
    return run_tests("tests/edge/test_injection.py", "tests/edge/test_forwarded.py", least=10)


def parsing(full: bool, scratch: Path) -> Held:
    found = parse.run(rounds=31 if full else 3)
    ratios = {name: round(ways["with 5 get()"] / ways["httptools"], 3) for name, ways in found.items()}
    return Held(max(ratios.values()) <= 1.0, {"ns": found, "of_httptools": ratios}, "python -m bench.micro.parse")


def cost(full: bool, scratch: Path) -> Held:
    """The full chain now beside the last commit before this issue, in turns; it again is the noise."""
    rounds, seconds = (7, 3) if full else (1, 1)
    file = scratch / "body.json"
    file.write_bytes(body(False))
    request = measure.Request(file, bearer(RED.key)["authorization"], CHAT)
    cpu: dict[str, list[float]] = {}

    def one(system: systems.System) -> None:
        (spent,) = measure.full_speed(system, request, seconds).cpu_us.values()
        cpu.setdefault(system.name, []).append(spent)

    with ExitStack() as stack:
        url = f"http://127.0.0.1:{stack.enter_context(systems.upstream(scratch))}"
        before, running = stack.enter_context(spine(scratch)), []
        for name, tree in (("before", before), ("now", ROOT), ("before again", before)):
            launcher = (*systems.GATEWAY, "env", "-C", str(tree))
            workers = 0 if tree is ROOT else None
            node = stack.enter_context(
                open_door(scratch / name.replace(" ", "-"), url, launcher=launcher, workers=workers)
            )
            running.append(systems.System(name, node.url, {name: node.pid}, {}))
        for system in running:
            measure.full_speed(system, request, 1)
        interleaved(running, rounds, one)
    middle = {name: round(median(values), 2) for name, values in cpu.items()}
    ratio, noise = middle["now"] / middle["before"], abs(middle["before again"] / middle["before"] - 1)
    figures: Figures = {"cpu_us": middle, "rounds": cpu, "ratio": round(ratio, 3), "noise": round(noise, 3)}
    held = ratio <= CPU_RATIO + max(0.02, 2 * noise) or not full
    return Held(held, {**figures, "before": SPINE}, "python -m tests.prove 02 --only cost")


@contextmanager
def spine(scratch: Path) -> Iterator[Path]:
    """That commit, checked out and built beside this one."""
    tree = scratch / "spine"
    subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree), SPINE], cwd=ROOT, check=True)
    try:
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=tree, check=True, stdout=subprocess.DEVNULL)
        yield tree
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
        shutil.rmtree(tree, ignore_errors=True)


LINES = [
    Line("smuggling", ">= 300 inputs in named classes; what we accept is framed identically by four others", smuggling),
    Line("invariance", "every input byte by byte, in random cuts, with trailing data: the same outcome", invariance),
    Line("fuzz", ">= 20,000,000 executions under sanitizers: no crash, hang, leak or report", fuzz),
    Line("slow", "3 x 1,000 slow clients at once: gone in time, honest ones unhurt, memory bounded", slow),
    Line("dropped", "10,000 dropped connections leave no descriptor, no request, no memory", dropped),
    Line("injection", "nothing that a client controls becomes structure anywhere", injection),
    Line("parse", "a head takes no longer than in httptools, on its own ground", parsing),
    Line("cost", "CPU per request of the full chain as before this issue, within the noise", cost),
]  # fmt: skip
