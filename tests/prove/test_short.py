"""The short form of proofs that no other test stands for."""

from __future__ import annotations

import importlib

import pytest

from tests.prove.__main__ import carry_out
from tests.support.require import require

LINES = [("02", "slow"), ("03", "kills"), ("03", "signals")]
TOOLS = {"slow": ("taskset", "h2load"), "kills": ("swtpm",), "signals": ("swtpm",)}


@pytest.mark.slow
@pytest.mark.parametrize(("issue", "name"), LINES)
def test_it_holds(issue: str, name: str) -> None:
    require(*TOOLS[name])
    (line,) = (line for line in importlib.import_module(f"tests.prove.p{issue}").LINES if line.name == name)
    row = carry_out(line, full=False)
    assert row["held"], row["figures"]
