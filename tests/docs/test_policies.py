"""docs/policies.md: its policies load, its commands run as written, and its examples are those of the tree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attest.policy import load_policy, parse_policy
from attest.testkit.snp import SnpPlatform
from cube_mesh.cli import app

from ..attest import test_go_check as go
from ..support.require import require
from ..support.tpm import software_tpm

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "policies.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


def test_every_policy_loads() -> None:
    first, fleet = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    values = '[sev-snp]\nmeasurements = ["' + "0" * 96 + '"]\n'
    with pytest.raises(Exception, match="SHA-256"):  # the digest in the text is a placeholder
        parse_policy(first, values)
    assert parse_policy(re.sub(r"sha256.*\n", "", first), values).reference_files.keys() == {"image-2026-11"}
    assert [branch.id for branch in parse_policy(fleet).branches] == ["snp", "lab"]


def test_the_examples_of_the_tree() -> None:
    for path in sorted((ROOT / "policies" / "evidence").glob("*.toml")):
        assert load_policy(path).id
    fleet = load_policy(ROOT / "policies" / "evidence" / "fleet.example.toml")
    assert fleet.reference_files.keys() == {"agent-sev-snp-example", "agent-tdx-example"} and not fleet.unsafe


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("swtpm", "tpm2_quote")
    import json

    (tmp_path / "policies").symlink_to(ROOT / "policies")
    (tmp_path / "report.bin").write_bytes(SnpPlatform(b"docs").report(bytes(64)))
    (tmp_path / "config.json").write_text(json.dumps(go.SEV))
    monkeypatch.chdir(tmp_path)
    codes = {}
    with software_tpm() as tcti:
        for line in COMMANDS:
            command, _, target = line.partition(" > ")
            arguments = shlex.split(command)[1:] + (["--tcti", tcti] if "collect" in command else [])
            result = CliRunner().invoke(app, arguments)
            codes[arguments[2] if arguments[1] == "policy" else arguments[1]] = result.exit_code
            if target:
                Path(target).write_text(result.stdout)
                Path("next.toml").write_text(result.stdout.replace("min_guest_svn = 1", "min_guest_svn = 2"))
    assert codes == {"check": 0, "collect": 0, "init": 0, "diff": 1, "import": 0}
