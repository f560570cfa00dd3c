"""Each import contract, broken once on purpose in a copy of the tree: it must be seen, and it alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINTER = Path(sys.executable).with_name("lint-imports")

# contract id: file to change (or make), line to add
BREAKS = {
    "node-layers": ("cube_mesh/settings.py", "import cube_mesh.routes"),
    "node-layers, a file that is not on the map": ("cube_mesh/stray.py", "import json"),
    "node-layers, two roles": ("cube_mesh/agent.py", "import cube_mesh.proxy"),
    "attest-layers": ("attest/codec.py", "import attest.policy"),
    "attest-alone": ("attest/verifier.py", "import cube_mesh.errors"),
    "attest-alone, the clock": ("attest/binding.py", "import time"),
    "attest-alone, the network": ("attest/schemes/vtpm/verify.py", "def fetch():\n    import socket"),
    "attest-callers": ("cube_mesh/routes.py", "import attest.errors"),
    "stages": ("cube_mesh/middleware/authz.py", "import cube_mesh.middleware.authn"),
    "adapters": ("cube_mesh/middleware/authn.py", "import cube_mesh.identity"),
    "cores": ("cube_mesh/tls/gate.py", "import asyncio"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("tree")
    for package in ("cube_mesh", "attest"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def broken(tree: Path) -> set[str]:
    """Names of the contracts that do not hold."""
    done = subprocess.run(
        [LINTER, "--no-cache", "--show-timings"], cwd=tree, env={"PATH": "", "COLUMNS": "400"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    assert (done.returncode == 0) == (not lines), done.stdout + done.stderr
    return {line.partition(" BROKEN")[0].strip() for line in lines}


def names() -> dict[str, str]:
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return {contract["id"]: contract["name"] for contract in contracts}


def test_the_tree_keeps_every_contract(tree: Path) -> None:
    assert broken(tree) == set()


def test_every_contract_is_broken_below() -> None:
    assert {case.partition(",")[0] for case in BREAKS} == set(names())


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_contract_is_seen(tree: Path, case: str) -> None:
    name, line = BREAKS[case]
    file = tree / name
    before = file.read_text() if file.exists() else None
    file.write_text(f"{before or ''}\n{line}\n")
    try:
        assert names()[case.partition(",")[0]] in broken(tree)
    finally:
        file.unlink() if before is None else file.write_text(before)
