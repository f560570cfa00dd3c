"""The evidence fuzzer itself: good seeds, the same inputs for the same seed, able to fail. Then a minute of it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from random import Random

import pytest

from attest.errors import MalformedEvidence
from tests.fuzz import evidence
from tests.fuzz.evidence import everything, fuzz, main, mutators
from tests.fuzz.evidence_mutate import CBOR_VALUES, JSON_VALUES, mutate_value
from tests.fuzz.evidence_targets import TARGETS, Target

SECONDS = 60


def good(raw: bytes) -> None:
    if not raw.startswith(b"seed"):
        raise MalformedEvidence("no seed")


def panics(raw: bytes) -> None:
    if raw.startswith(b"seeds"):
        raise BaseException("panic")


def hangs(raw: bytes) -> None:
    end = time.process_time() + 30
    while raw and time.process_time() < end:
        pass


def asserts(raw: bytes) -> None:
    assert len(raw) < 100


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(evidence, "OUTPUT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted_and_every_input_is_decided(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.minted())
    for raw in seeds:
        target.parse(raw)
    one, other = ([mutate(Random(7)) for mutate in mutators(target, seeds)] for _ in range(2))
    assert one == other


def test_the_real_evidence_is_among_the_seeds(vectors: Path) -> None:
    for name, target in TARGETS.items():
        assert all(list(vectors.glob(pattern)) for pattern in target.real), name


@pytest.mark.parametrize("palette", [JSON_VALUES, CBOR_VALUES])
def test_values_change_at_one_place_and_the_seed_stays(palette: tuple[object, ...]) -> None:
    seed = {"a": [1, {"b": "text"}], "c": b"bytes"}
    kept = repr(seed)
    rng = Random(1)
    found = {repr(mutate_value(rng, seed, palette)) for _ in range(300)}
    assert repr(seed) == kept and len(found - {kept}) > 100


@pytest.mark.parametrize(
    ("parse", "error"), [(panics, "BaseException: panic"), (asserts, "AssertionError"), (hangs, "Hang: more than 1 s")]
)
def test_it_can_fail(parse: object, error: str) -> None:
    target = Target(parse, lambda: [b"seed"])  # type: ignore[arg-type]
    row = fuzz(target, [b"seed", b"seed" * 30], "s", runs=20_000)
    assert row["found"] is not None and row["found"]["error"].startswith(error)
    assert row["executions"] < 20_000


def test_it_counts() -> None:
    row = fuzz(Target(good, list), [b"seed"], "s", runs=2_000)
    assert row["found"] is None and row["executions"] == 2_000
    assert 0 < row["accepted"] < 2_000 and row["refused_at"] == 1
    assert fuzz(Target(good, list), [b"seed"], "s", runs=2_000)["accepted"] == row["accepted"]


def test_it_stops_by_the_clock() -> None:
    row = fuzz(Target(good, list), [b"seed"], "s", seconds=0.1)
    assert row["executions"] > 100 and row["seconds"] < 5


def test_a_process_that_dies_leaves_its_input(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (output / "der.last").write_bytes(b"\x00\x00\x00\x02hi and what was there before")
    died = subprocess.CompletedProcess([], -9, stdout="", stderr="killed")
    monkeypatch.setattr(evidence.subprocess, "run", lambda *_, **__: died)
    monkeypatch.setattr(evidence, "ROOT", output)
    (row,) = everything(0, runs=1, parsers=["der"])
    assert row["found"]["error"] == "exit code -9" and (output / "der.found").read_bytes() == b"hi"


def test_the_command_line(output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (output / "raw").write_bytes(b"\x05")
    assert main(["--parser", "cbor", "--input", str(output / "raw")]) == 0
    assert capsys.readouterr().out == "5\n"
    with pytest.raises(SystemExit):
        main([])


@pytest.mark.slow
def test_a_minute_of_all_parsers_finds_nothing() -> None:
    rows = everything(int(time.time()), seconds=SECONDS)
    for row in rows:
        print(evidence.words(row))
    assert [row["parser"] for row in rows] == list(TARGETS)
    assert not [row["found"] for row in rows if row["found"] is not None]
    assert all(row["executions"] > 200 and row["accepted"] and row["refused_at"] for row in rows)
