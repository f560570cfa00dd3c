"""The families of the process are those of prometheus_client's collector, without its price."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

from cube_mesh.telemetry.process import ProcessFamilies, open_descriptors


def about(families: Iterable[Metric]) -> dict[str, tuple[str, str, float]]:
    return {family.name: (family.type, family.documentation, family.samples[0].value) for family in families}


def test_as_the_library_tells_it() -> None:
    ours, theirs = about(ProcessFamilies().collect()), about(ProcessCollector(registry=None).collect())
    assert {name: row[:2] for name, row in ours.items()} == {name: row[:2] for name, row in theirs.items()}
    near = {name: pytest.approx(row[2], rel=0.1, abs=1.0) for name, row in theirs.items()}
    assert {name: row[2] for name, row in ours.items()} == near


def test_descriptors_are_counted_exactly() -> None:
    before = open_descriptors()
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(Path(os.devnull).open())
        assert open_descriptors() == before + 100
    assert open_descriptors() == before


def test_a_kernel_that_does_not_say_is_asked_for_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    known = open_descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda path: os.stat_result((0,) * 10))
        listed = open_descriptors()
    assert listed == known + 1  # the list's own
