"""The runner itself: what did not hold is said, kept, and in the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.prove import __main__ as runner
from tests.prove import p01, p04
from tests.prove.proof import ROOT, Held, Line, run_tests


def broken(full: bool, scratch: Path) -> Held:
    raise ValueError("no luck")


LINES = [
    Line("good", "it works", lambda full, scratch: Held(True, {"full": full}, "true")),
    Line("bad", "it raises", broken),
    Line("long", "only in full", lambda full, scratch: Held(full, {}, "true"), short=False),
]


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(p01, "LINES", LINES)
    return tmp_path / "docs" / "proofs" / "01.json"


def rows(file: Path) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(file.read_text())["lines"]}


def test_all_lines_are_written_and_one_that_raises_did_not_hold(proofs: Path) -> None:
    assert runner.main(["01"]) == 1
    written = rows(proofs)
    assert {name: row["held"] for name, row in written.items()} == {"good": True, "bad": False, "long": True}
    assert written["bad"]["figures"] == {"error": "ValueError: no luck"}
    assert all(row["commit"] is not None and row["date"] for row in written.values())


def test_single_lines_are_renewed_and_the_others_kept(proofs: Path) -> None:
    runner.main(["01"])
    before = rows(proofs)["long"]
    assert runner.main(["01", "--only", "good"]) == 0
    assert list(rows(proofs)) == ["good", "bad", "long"]
    assert rows(proofs)["long"] == before


def test_the_short_form_leaves_out_what_is_long_and_writes_nothing(proofs: Path) -> None:
    assert runner.main(["01", "--short", "--only", "good", "--only", "long"]) == 0
    assert not proofs.exists()


def test_an_unknown_line_is_a_usage_error(proofs: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        runner.main(["01", "--only", "no-such"])
    assert caught.value.code == 2


@pytest.mark.parametrize(("least", "held"), [(3, True), (4, False)])
def test_too_few_tests_prove_nothing(tmp_path: Path, least: int, held: bool) -> None:
    file = tmp_path / "test_three.py"
    file.write_text("def test_a(): ...\ndef test_b(): ...\ndef test_c(): ...\n")
    assert run_tests(str(file), least=least).held is held


@pytest.mark.parametrize("body", ["assert False", "import pytest; pytest.skip('no')"])
def test_a_failure_or_a_skip_does_not_hold(tmp_path: Path, body: str) -> None:
    file = tmp_path / "test_one.py"
    file.write_text(f"def test_a(): ...\ndef test_b():\n    {body}\n")
    assert not run_tests(str(file), least=1).held


def test_each_module_that_proof_04_covers_is_there_and_so_are_its_tests() -> None:
    for module, tests in p04.own_tests().items():
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), module
        assert all((ROOT / test).exists() for test in tests), tests
    assert {path.name for path in (ROOT / "attest" / "schemes").iterdir() if (path / "abi.py").exists()} <= set(
        p04.NEGATIVES
    )
