"""The fuzzer itself: it builds, its corpus passes, and it is able to fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fuzz import seeds
from tests.fuzz.__main__ import fuzz, search
from tests.fuzz.build import build, environment
from tests.support.require import require

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def program() -> Path:
    require("clang-14")
    return build()


def test_the_corpus_is_small_and_passes() -> None:
    files = list(seeds.CORPUS.iterdir())
    assert 100 < len(files) < 3000 and sum(file.stat().st_size for file in files) < 1_000_000
    code, output = fuzz("-runs=0", str(seeds.CORPUS), fast=False)
    assert code == 0, output[-4000:]


def test_a_short_search_finds_nothing() -> None:
    code, output, stats = search(runs=20_000)
    assert code == 0, output[-4000:]
    assert stats["number_of_executed_units"] >= 20_000


@pytest.mark.parametrize(
    ("data", "report"),
    [
        (b"read", "AddressSanitizer: heap-buffer-overflow"),
        (b"leak", "LeakSanitizer: detected memory leaks"),
        (b"hold", "AssertionError: self test"),
    ],
)
def test_it_can_fail(data: bytes, report: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input").write_bytes(data)
    monkeypatch.setenv("FUZZ_SELF_TEST", "1")
    assert environment()["FUZZ_SELF_TEST"] == "1"
    code, output = fuzz(str(tmp_path / "input"))
    assert code != 0 and re.search(report, output), output[-4000:]
