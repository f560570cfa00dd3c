"""The library's border, read from its sources: standard library, msgspec, cryptography, and no way to the network."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "attest").rglob("*.py"))
FORBIDDEN = {"asyncio", "socket", "ssl", "http", "urllib", "selectors", "select", "random", "secrets", "time"}
SUBPROCESS = {"attest/schemes/vtpm/tools.py"}
TESTKIT = {"attest/verifier.py"}  # inside the branch that allow_simulated opens


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    names = _imports(path)
    tops = {name.partition(".")[0] for name in names}
    assert tops <= sys.stdlib_module_names | {"attest", "cryptography", "msgspec"}
    assert not tops & FORBIDDEN
    assert "subprocess" not in tops or where in SUBPROCESS
    testkit = {name for name in names if name.startswith("attest.testkit")}
    assert not testkit or where in TESTKIT or where.startswith("attest/testkit/")
    if where.startswith("attest/schemes/"):
        assert not names & {"attest.policy", "attest.appraise", "attest.verifier"}, "schemes do not know the policy"
