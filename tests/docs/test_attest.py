"""docs/attest.md: its policies load, and its lists are those of the program."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from attest.offline import SCHEMES
from attest.policy import parse_policy
from cube_mesh.cli import app

TEXT = (Path(__file__).parents[2] / "docs" / "attest.md").read_text()


def test_every_policy_loads() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert [parse_policy(block).id for block in blocks] == ["azure-snp", "space", "maa"]
    assert all(not parse_policy(block).unsafe for block in blocks)


def test_schemes_and_options() -> None:
    line = re.search(r"--scheme ([a-z|-]+) --evidence", TEXT)
    assert line is not None and line[1].split("|") == list(SCHEMES)
    rows = re.findall(r"^\| `([a-z-]+)` \|", TEXT, re.MULTILINE)
    assert rows == list(SCHEMES)
    shown = CliRunner().invoke(app, ["attest", "verify", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    for option in set(re.findall(r"`(--[a-z-]+)`", TEXT)):
        assert option in shown, option
