"""What a proof is: a line of an issue, a function that carries it out, and figures that say how it went."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Held:
    """The outcome of one line. ``command`` is how a reader repeats it."""

    held: bool
    figures: Figures
    command: str


@dataclass(frozen=True)
class Line:
    """One "must show". ``run(full, scratch)``: the whole of it, or a form that CI has time for if there is one."""

    name: str
    says: str
    run: Callable[[bool, Path], Held]
    short: bool = True


def run_tests(*paths: str, least: int, more: tuple[str, ...] = ()) -> Held:
    """Held when every test under ``paths`` passed, at least ``least`` of them and none skipped."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as file:
        command = ["python", "-m", "pytest", "-q", *paths, *more]
        argv = [sys.executable, *command[1:], f"--junitxml={file.name}"]
        code = timed(argv, ROOT).returncode
        try:
            suite = ElementTree.parse(file.name).getroot()[0].attrib
        except (ElementTree.ParseError, IndexError):
            return Held(False, {"exit_code": code}, " ".join(command))
    counts = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    held = code == 0 and counts["skipped"] == 0 and passed >= least
    return Held(held, {"passed": passed, **counts, "exit_code": code}, " ".join(command))


@dataclass(frozen=True)
class Finished:
    returncode: int
    seconds: float
    output: str


def timed(argv: list[str], directory: Path, **environ: str) -> Finished:
    """Run a command to its end; its output, both streams together, is kept and its last lines shown on failure.

    A clone is told where the vectors are: they lie beside the checkout, not beside the clone.
    """
    environ.setdefault(
        "CUBE_MESH_VECTORS", os.environ.get("CUBE_MESH_VECTORS", str(ROOT.parent / "shared" / "vectors"))
    )
    start = time.monotonic()
    done = subprocess.run(
        argv, cwd=directory, env={**os.environ, **environ}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        print("\n".join(done.stdout.splitlines()[-15:]), file=sys.stderr)
    return Finished(done.returncode, round(time.monotonic() - start, 1), done.stdout)


def clone(scratch: Path) -> Path:
    """A fresh clone of the committed tree: nothing built, no virtual environment."""
    target = scratch / "clone"
    subprocess.run(["git", "clone", "-q", "--no-local", str(ROOT), str(target)], check=True)
    return target
