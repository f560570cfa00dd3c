"""compare: every verdict, and when it refuses to give one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import compare


def result(noise: float = 1.0, **ratios: float) -> dict[str, Any]:
    rows: dict[str, Any] = {
        "nginx": {"ratio": {"cpu_us": 1.0}, "against": "nginx"},
        "nginx again": {"ratio": {"cpu_us": noise}, "against": "nginx"},
    }
    rows |= {name: {"ratio": {"cpu_us": ratio}, "against": "nginx"} for name, ratio in ratios.items()}
    about = {"date": "2026-01-01", "cpu": "x", "cores": 2, "python": "3", "commit": "0"}
    return {**about, "bench": "load", "stream": False, "noise": {"cpu_us": noise}, "rows": rows}


BASE = result(proxy=2.0)
CASES = [
    (result(proxy=2.0), "same", 0),
    (result(proxy=2.29), "same", 0),
    (result(proxy=2.31), "worse", 1),
    (result(proxy=1.7), "better", 0),
    (result(noise=1.1, proxy=2.31), "same", 0),
    (result(noise=0.9, proxy=2.51), "worse", 1),
    (result(), "gone", 1),
    (result(proxy=float("nan")), "gone", 1),
    (result(agent=1.0, proxy=2.0), "same", 0),
]


@pytest.mark.parametrize(("new", "word", "code"), CASES)
def test_verdicts(new: dict[str, Any], word: str, code: int, tmp_path: Path) -> None:
    (verdict,) = compare.verdicts(BASE, new, 0.15)
    assert (verdict.row, verdict.word) == ("proxy", word)
    assert run(tmp_path, BASE, new) == code


REFUSED = [
    (BASE, {**BASE, "bench": "paced"}, "bench"),
    (BASE, {**BASE, "stream": True}, "stream"),
    (BASE, result(noise=1.26, proxy=2.0), "against itself"),
    (BASE, result(noise=float("nan"), proxy=2.0), "against itself"),
    (result(noise=0.5, proxy=2.0), BASE, "against itself"),
    (BASE, {**BASE, "noise": {}}, "against itself"),
    ({**BASE, "noise": {}}, BASE, "no CPU per request"),
    (result(), BASE, "no row"),
]


@pytest.mark.parametrize(("base", "new", "reason"), REFUSED)
def test_what_cannot_be_told_is_no_pass(
    base: dict[str, Any], new: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, base, new) == 2
    assert reason in capsys.readouterr().out


def run(tmp_path: Path, base: dict[str, Any], new: dict[str, Any]) -> int:
    paths = tmp_path / "base.json", tmp_path / "new.json"
    for path, content in zip(paths, (base, new), strict=True):
        path.write_text(json.dumps(content))
    return compare.main([str(path) for path in paths])
