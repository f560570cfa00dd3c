"""Issue 04, the library ``attest``: what it must show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from tests.fuzz.evidence import everything
from tests.prove.proof import ROOT, Figures, Held, Line, run_tests, timed

EXECUTIONS = 1_000_000
IMPORT_MS = 150
# Fewest negative cases of each platform.
NEGATIVES = {"sev_snp": 150, "tdx": 180, "vtpm": 40, "azure": 70, "gcp": 60}
# Modules of ``attest`` that neither read nor judge anything. Of the tests of all others: where the names differ.
OTHERS = ("__init__", "errors", "explain")
_DOOR = ("verifier", "clouds", "together", "aux")
OWN_TESTS = {
    "verifier": _DOOR, "appraise": _DOOR, "evidence": ("evidence", "aux"), "attester": ("attester", "aux"),
    "cases": ("cases", "offline"),
}  # fmt: skip
# The clouds' collectors are what reads and writes NV.
MORE_TESTS = {"vtpm": [f"tests/attest/{platform}/test_collect.py" for platform in ("azure", "gcp")]}
PLATFORM_PAGES = ("sev-snp", "tdx", "vtpm", "azure", "gcp")
SECTIONS = (r"^## What .*proves$", r"^## What it does not$", r"^## From a new VM to a policy$")


def vectors(full: bool, scratch: Path) -> Held:
    """Every real file its verdict, and dcap-qvl beside ours; the counts are the table's own."""
    platforms = [f"tests/attest/{platform}/test_vectors.py" for platform in ("sev_snp", "tdx", "vtpm")]
    done = run_tests("tests/attest/test_manifest.py", *platforms, least=100)
    from tests.attest.test_manifest import counts

    return Held(done.held, {**done.figures, "files": counts()}, done.command)


def negatives(full: bool, scratch: Path) -> Held:
    figures: Figures = {}
    held = True
    for platform, least in NEGATIVES.items():
        done = run_tests(f"tests/attest/{platform}/test_negatives.py", least=least)
        figures[platform] = done.figures
        held = held and done.held
    return Held(held, figures, "python -m pytest -q tests/attest/*/test_negatives.py")


def damage(full: bool, scratch: Path) -> Held:
    """All eight bits of every byte, in CI one of them; every length."""
    with _environment(CUBE_MESH_DAMAGE="all" if full else "one"):
        return run_tests("tests/attest/test_damage.py", least=60)


def fuzz(full: bool, scratch: Path) -> Held:
    """Another seed each time, as many processes as cores."""
    seed = int(time.time())
    rows = everything(seed, runs=EXECUTIONS) if full else everything(seed, seconds=20)
    enough = all(row["executions"] >= EXECUTIONS for row in rows) or not full
    figures = {
        "seed": seed,
        "parsers": {row.pop("parser"): row for row in rows},
        "executions": sum(row["executions"] for row in rows),
        "peak_mb": max(row["peak_mb"] for row in rows),
    }
    held = enough and all(row["found"] is None for row in rows)
    return Held(held, figures, f"python -m tests.fuzz.evidence --runs {EXECUTIONS} --seed {seed}")


def own_tests() -> dict[str, list[str]]:
    """Module or package → its own tests."""
    names = sorted({path.stem for path in (ROOT / "attest").glob("*.py")} - {*OTHERS})
    found = {f"attest.{name}": [f"tests/attest/test_{t}.py" for t in OWN_TESTS.get(name, (name,))] for name in names}
    platforms = {name: [f"tests/attest/{name}", *MORE_TESTS.get(name, ())] for name in NEGATIVES}
    return found | {f"attest.schemes.{name}": tests for name, tests in platforms.items()}


def coverage(full: bool, scratch: Path) -> Held:
    """Lines and branches of each parser and verifier, run by its own tests and no others."""
    rows: dict[str, Any] = {}
    for module, tests in own_tests().items():
        report = scratch / f"{module}.json"
        options = [f"--cov={module}", "--cov-branch", f"--cov-report=json:{report}"]
        code = timed([sys.executable, "-m", "pytest", "-q", *tests, *options], ROOT).returncode
        files = json.loads(report.read_text())["files"] if report.exists() else {}
        rows |= {name: _covered(found["summary"], code) for name, found in files.items()} or {module: 0.0}
    short = {name: row for name, row in rows.items() if row != 100.0}
    figures = {"modules": len(rows), "not_complete": short}
    return Held(not short and len(rows) >= 40, figures, "python -m tests.prove 04 --only coverage")


def _covered(summary: dict[str, Any], code: int) -> float:
    """Per cent of lines and branches; 0 when a test failed."""
    return round(summary["percent_covered"], 2) if code == 0 else 0.0


def sizes(full: bool, scratch: Path) -> Held:
    return run_tests("tests/attest/test_sizes.py", least=20)


def speed(full: bool, scratch: Path) -> Held:
    """The bars are the benchmark's own; there must be one for each case that the issue names."""
    rows: dict[str, Any] = {}
    for platform in ("SEV-SNP", "TDX", "vTPM"):
        out = scratch / f"{platform}.json"
        options = ["--only", f"{platform}:", "--rounds", "101" if full else "3", "--json", str(out)]
        timed([sys.executable, "-m", "bench.micro", *options], ROOT)
        rows |= json.loads(out.read_text())["rows"] if out.exists() else {}
    barred = {name: row for name, row in rows.items() if "bar" in row}
    kinds = [sum(name.startswith(f"{platform}:") for name in barred) for platform in ("SEV-SNP", "TDX", "vTPM")]
    complete = kinds[0] >= 3 and kinds[1] >= 2 and kinds[2] >= 1
    met = all(row["held"] for row in barred.values())
    return Held(complete and (met or not full), {"bars": barred, "rows": rows}, "python -m bench.micro")


def imports(full: bool, scratch: Path) -> Held:
    done = run_tests("tests/attest/test_imports.py", least=40)
    contract = timed(
        [str(Path(sys.executable).with_name("lint-imports")), "--contract", "attest-alone"], ROOT
    ).returncode
    took = {code: _median_ms(code) for code in ("import attest", "import attest.verifier", "pass")}
    figures = {**done.figures, "contract_exit_code": contract, "median_ms": took}
    held = done.held and contract == 0 and took["import attest"] < IMPORT_MS
    return Held(held, figures, 'python -c "import attest"')


def _median_ms(code: str, times: int = 21) -> float:
    """From start to end of a process of its own."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        taken.append((time.perf_counter() - start) * 1000)
    return round(median(taken), 1)


def docs(full: bool, scratch: Path) -> Held:
    """Each page says what is proven, what is not, and the way to a policy; commands, links and settings are tested."""
    pages = {name: (ROOT / "docs" / "platforms" / f"{name}.md").read_text() for name in PLATFORM_PAGES}
    lacking = [name for name, text in pages.items() for s in SECTIONS if not re.search(s, text, re.MULTILINE)]
    limits = (ROOT / "docs" / "limitations.md").read_text()
    lacking += [name for name in PLATFORM_PAGES if f"(platforms/{name}.md)" not in limits]
    done = run_tests("tests/docs", "tests/test_errors_document.py", least=20)
    return Held(done.held and not lacking, {**done.figures, "pages": len(pages), "lacking": lacking}, done.command)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


LINES = [
    Line("vectors", "every real file with an expected verdict gets it at its time; dcap-qvl agrees", vectors),
    Line("negatives", "each negative case of each platform alone, with its own reason code", negatives),
    Line("damage", "a flipped bit of anything signed is refused, and every truncation", damage),
    Line("fuzz", ">= 1,000,000 executions of every parser: nothing but what it may raise", fuzz),
    Line("coverage", "every parser and verifier: 100 % of branches from its own tests", coverage, short=False),
    Line("speed", "verification beside its bare signatures and beside dcap-qvl", speed),
    Line("sizes", "every size has a maximum, above which nothing is hashed", sizes),
    Line("imports", "attest stands alone, and is imported in under 150 ms", imports),
    Line("docs", "a page per platform, and the limitations", docs),
]  # fmt: skip
