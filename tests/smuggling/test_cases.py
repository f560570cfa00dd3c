"""Every case of the tables on a real connection; the tables themselves; and a sample over a real socket."""

from __future__ import annotations

import re

import pytest

from tests.smuggling import edge, sockets
from tests.smuggling.cases import CASES, TABLES, Case, load


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_required_outcome(case: Case) -> None:
    assert await edge.run(case) == edge.required(case), case.data[:300]


def test_there_are_enough_and_no_two_alike() -> None:
    assert len(CASES) >= 300
    assert len({(case.data, case.chain) for case in CASES}) == len(CASES)
    for table in TABLES.glob("*.txt"):
        cases = load(table)
        assert len(cases) >= 5, table.name
        assert any(case.status for case in cases), f"{table.name} refuses nothing"


def test_the_readme_lists_every_class_with_its_count() -> None:
    text = TABLES.with_name("README.md").read_text("utf-8")
    listed = {name: int(count) for name, count in re.findall(r"^\| `([a-z0-9_]+)` \| (\d+) \|", text, re.MULTILINE)}
    assert listed == {table.stem: len(load(table)) for table in TABLES.glob("*.txt")}


SAMPLE = [case for case in CASES if case.chain == "stream"][::6]


async def test_a_sample_over_a_socket() -> None:
    """The same outcomes with a real transport on both sides, so that closing is seen as the client sees it."""
    async with sockets.Edge() as running:
        for case in SAMPLE:
            assert await running.outcome(case) == edge.required(case), case.name
