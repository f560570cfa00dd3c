"""Whose turn it is to accept."""

from __future__ import annotations

import os

import pytest

from cube_mesh import turns
from cube_mesh.turns import PATIENCE_S, Turns


def workers(*counts: int | None) -> list[Turns]:
    """One for each number of connections that it has; None: it has said nothing yet."""
    fd = turns.create(len(counts))
    try:
        made = [Turns(fd, index, (lambda count=count: count or 0)) for index, count in enumerate(counts)]  # type: ignore[misc]
    finally:
        os.close(fd)
    for worker, count in zip(made, counts, strict=True):
        if count is not None:
            worker.say()
    return made


@pytest.mark.parametrize(
    ("counts", "waits"),
    [
        ((5,), False),
        ((5, None), False),
        ((5, 5), False),
        ((6, 5), False),
        ((7, 5), True),
        ((5, 7), False),
        ((9, None, 3), True),
        ((9, 9, 3), True),
        ((105, 100), False),
        ((113, 100), True),
    ],
)
def test_who_has_clearly_more_waits(counts: tuple[int | None, ...], waits: bool) -> None:
    assert workers(*counts)[0].wait(0.0) is waits


def test_the_others_have_a_moment_and_no_more() -> None:
    first = workers(9, 0)[0]
    assert first.wait(100.0) and first.wait(100.0 + PATIENCE_S * 0.9)
    assert not first.wait(100.0 + PATIENCE_S * 1.1), "the other one may be busy"
    assert not first.wait(100.0 + PATIENCE_S * 3.9)
    assert first.wait(100.0 + PATIENCE_S * 4.1)


def test_nobody_waits_for_a_worker_that_has_left() -> None:
    first, second = workers(9, 0)
    second.leave()
    assert not first.wait(0.0)


def test_the_number_is_that_of_the_moment() -> None:
    fd = turns.create(2)
    mine = [0]
    first, second = Turns(fd, 0, lambda: mine[0]), Turns(fd, 1, lambda: 0)
    os.close(fd)
    second.say()
    assert not first.wait(0.0)
    mine[0] = 2
    assert first.wait(0.0)
