"""Issue 01, the spine: what it must show."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TypeVar

from cube_mesh.demo.backend import Script
from tests.prove.proof import ROOT, Figures, Held, Line, clone, run_tests, timed
from tests.support.client import Client, bearer, chat
from tests.support.crash import kill_at_random
from tests.support.mesh import Mesh
from tests.support.streams import added_by_nodes
from tests.support.tpm import software_tpm
from tests.support.way import Way, whole_way

T = TypeVar("T")
FIRST_DEMO_S, NEXT_DEMO_S, CANCEL_S = 240.0, 30.0, 0.1


def demo(full: bool, scratch: Path) -> Held:
    """In full: in a fresh clone, so that environment and extension are made on the way. Short: in this checkout."""
    directory = clone(scratch) if full else ROOT
    make = ["make", "demo"]
    first, again = timed(make, directory), timed(make, directory)
    model = timed([*make, "MODEL=smollm2"], directory) if full else None
    runs = [run for run in (first, again, model) if run is not None]
    said = all(re.search(r"accept \(", run.output) and "request_id" in run.output for run in runs)
    held = all(run.returncode == 0 for run in runs) and said
    held = held and first.seconds <= FIRST_DEMO_S and again.seconds <= NEXT_DEMO_S
    figures: Figures = {
        "first_s": first.seconds,
        "again_s": again.seconds,
        "smollm2_s": model.seconds if model else None,
    }
    figures |= {"fresh_clone": full, "verdict_and_event_shown": said}
    return Held(held, figures, "make demo; make demo; make demo MODEL=smollm2")


def ci(full: bool, scratch: Path) -> Held:
    """The whole of .ci/run in a fresh clone: lint, types, contracts, wheel in an empty environment, demo, all tests."""
    command = "git clone . /tmp/clone && cd /tmp/clone && bash .ci/run"
    done = timed(["bash", ".ci/run"], clone(scratch), CI="true")
    summary = done.output.strip().splitlines()[-1:]
    steps = re.findall(r"^== \[ *(\d+)s\] (.*)$", done.output, re.MULTILINE)
    passed = re.search(r"(\d+) passed", done.output)
    figures = {
        "exit_code": done.returncode,
        "seconds": done.seconds,
        "steps_began_at_s": {name: int(second) for second, name in steps},
        "passed": int(passed[1]) if passed else 0,
        "last_line": summary[0] if summary else "",
    }
    return Held(done.returncode == 0 and passed is not None, figures, command)


def clients(full: bool, scratch: Path) -> Held:
    return run_tests("tests/integration/test_openai.py", least=11)


def access(full: bool, scratch: Path) -> Held:
    return run_tests("tests/middleware/test_access.py", "tests/identity", least=60)


def attacks(full: bool, scratch: Path) -> Held:
    return run_tests("tests/attacks", least=26)


def outcomes(full: bool, scratch: Path) -> Held:
    return run_tests("tests/integration/test_outcomes.py", "tests/middleware/test_outcomes.py", least=49)


def streaming(full: bool, scratch: Path) -> Held:
    """Five rounds; the median of the rounds has to keep the bound, and no event of any round may be merged."""

    def measured(mesh: Mesh) -> Held:
        with closing(added_by_nodes(mesh, scratch / "streams")) as endless:
            rounds = list(islice(endless, 5 if full else 1))
        middle, high = median(r.median_ms for r in rounds), median(r.p99_ms for r in rounds)
        whole = all(r.merged == 0 and r.broken == 0 for r in rounds)
        figures = {"added_median_ms": middle, "added_p99_ms": high, "rounds": [asdict(r) for r in rounds]}
        return Held(middle <= 1.0 and high <= 5.0 and whole, figures, "python -m tests.prove 01 --only streaming")

    (scratch / "streams").mkdir()
    return with_mesh(scratch, measured)


def cancel(full: bool, scratch: Path) -> Held:
    """Clients leave at random moments, before the first byte and in the middle; when does the backend know?"""

    async def measured(way: Way) -> Held:
        delays = [await _leave(way, random.Random(n), streaming=n % 2 == 0) for n in range(200 if full else 20)]
        worst, middle = max(delays) * 1000, median(delays) * 1000
        figures = {"cancels": len(delays), "median_ms": round(middle, 2), "worst_ms": round(worst, 2)}
        return Held(worst <= CANCEL_S * 1000, figures, "python -m tests.prove 01 --only cancel")

    return _with_way(scratch, measured)


async def _leave(way: Way, moments: random.Random, *, streaming: bool) -> float:
    """Seconds from the client's reset to the backend's loss of the connection; infinite when it never comes."""
    way.backend.script = Script(events=40, gap_s=0.01, first_byte_s=0.0 if streaming else 1.0)
    way.backend.requests.clear()
    client = await Client.connect(way.proxy.port)
    client.send("POST", f"/{way.red.domain}/v1/chat/completions", bearer(way.red.key), chat(stream=streaming))
    while not way.backend.requests:
        await asyncio.sleep(0.001)
    await asyncio.sleep(moments.uniform(0.0, 0.2))
    left = asyncio.get_running_loop().time()
    client.abort()
    for _ in range(500):
        if way.backend.cancelled_at:
            return way.backend.cancelled_at[0] - left
        await asyncio.sleep(0.002)
    return float("inf")


def crashes(full: bool, scratch: Path) -> Held:
    async def measured(way: Way) -> Held:
        kills = 50 if full else 5
        found = await kill_at_random(way.mesh, way.agent.port, scratch / "killed", kills=kills, seed=1)
        figures = {**asdict(found), "wrong": len(found.wrong)}
        held = not found.wrong and found.whole > 10 * kills and found.cut > 0
        return Held(held, figures, "python -m tests.prove 01 --only crashes")

    return _with_way(scratch, measured)


def micro(full: bool, scratch: Path) -> Held:
    rounds = "31" if full else "5"
    out = scratch / "micro.json"
    command = ["python", "-m", "bench.micro", "--rounds", rounds]
    done = timed([sys.executable, *command[1:], "--json", str(out)], ROOT)
    rows = json.loads(out.read_text())["rows"] if done.returncode == 0 else {}
    return Held(done.returncode == 0 and len(rows) > 10, {"rows": rows}, " ".join(command))


def load(full: bool, scratch: Path) -> Held:
    """Held when it ran. Whether the machine was quiet enough for the run to be valid, and whether the ratio is the one
    that the third issue demands, is noted: this issue asks for the figures."""
    shape = ["--rounds", "7", "--seconds", "3"] if full else ["--rounds", "1", "--seconds", "1"]
    out = scratch / "load.json"
    command = ["python", "-m", "bench.load", *shape]
    done = timed([sys.executable, *command[1:], "--json", str(out)], ROOT)
    if not out.exists():
        return Held(False, {"exit_code": done.returncode}, " ".join(command))
    found = json.loads(out.read_text())
    ratio = found["rows"]["cube-mesh"]["ratio"]["cpu_us"]
    return Held(ratio > 0, {**found, "cpu_ratio": ratio, "aim_2.0_met": ratio <= 2.0}, " ".join(command))


def quality(full: bool, scratch: Path) -> Held:
    """Lint, types, contracts; in full also sdist, wheel from it, and the wheel in an empty environment."""
    verbs = ("lint", "wheel") if full else ("lint",)
    done = {verb: timed(["make", verb], ROOT) for verb in verbs}
    figures = {verb: {"exit_code": run.returncode, "seconds": run.seconds} for verb, run in done.items()}
    return Held(all(run.returncode == 0 for run in done.values()), figures, "make lint; make wheel")


LINES = [
    Line("demo", "make demo on a bare machine ends 0 within 4 minutes, again within 30 s, and with SmolLM2", demo),
    Line("clients", "the openai client through both nodes to a real llama.cpp server; two tenants kept apart", clients),
    Line("access", "authorization table by role; attacks on JWTs", access),
    Line("attacks", "the attack suite: refused with its reason, and successful without the one defence", attacks),
    Line("streaming", "50 streams of 20 events 50 ms apart: added median <= 1 ms, p99 <= 5 ms, none merged", streaming),
    Line("cancel", "a cancel reaches the backend within 100 ms", cancel),
    Line("outcomes", "one audit event for each request, whatever its outcome", outcomes),
    Line("crashes", "kill -9 at 50 random moments under load: each whole response has exactly one event", crashes),
    Line("micro", "micro benchmarks: parse, match, binding, verify, audit encode", micro),
    Line("load", "load beside nginx by the pinned configuration", load),
    Line("quality", "lint, types, import contracts, and the wheel in an empty environment", quality),
    Line("ci", ".ci/run ends 0 in a fresh clone", ci, short=False),  # CI is this
]  # fmt: skip


def with_mesh(scratch: Path, measured: Callable[[Mesh], T]) -> T:
    if not shutil.which("swtpm"):
        raise SystemExit("this proof needs swtpm and tpm2-tools: bash deploy/machine.sh tools")
    with software_tpm() as tcti:
        return measured(Mesh(scratch / "mesh", tcti).build())


def _with_way(scratch: Path, measured: Callable[[Way], Awaitable[T]]) -> T:
    async def run(mesh: Mesh) -> T:
        async with whole_way(mesh, scratch / "way") as way:
            return await measured(way)

    return with_mesh(scratch, lambda mesh: asyncio.run(run(mesh)))
