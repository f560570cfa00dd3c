"""Operators' own stages: there when named, in their place, and an error when not there."""

from __future__ import annotations

from typing import Any

import pytest

from cube_mesh.errors import ConfigError
from cube_mesh.exchange import Exchange
from cube_mesh.middleware.own import with_own_stages
from cube_mesh.settings import Settings


class Stage:
    def __init__(self, after: str) -> None:
        self.after = after

    def enter(self, passing: Exchange) -> None: ...


class Point:
    def __init__(self, name: str, made: Any) -> None:
        self.name, self._made = name, made

    def load(self) -> Any:
        return lambda settings: self._made


BUILT_IN = {"a": 1, "b": 2}
POINTS = [
    Point("mine", Stage("a")),
    Point("second", Stage("mine")),
    Point("lost", Stage("x")),
    Point("empty", object()),
]
POINTS += [Point("a", Stage("b"))]


def names(*wanted: str) -> list[str]:
    return list(with_own_stages(dict(BUILT_IN), Settings(stages=wanted), lambda: POINTS))  # type: ignore[arg-type,return-value]


def test_only_what_the_configuration_names() -> None:
    assert names() == ["a", "b"]
    assert names("mine") == ["a", "mine", "b"]
    assert names("mine", "second") == ["a", "mine", "second", "b"]


@pytest.mark.parametrize("wanted", [("gone",), ("lost",), ("empty",), ("a",), ("second",), ("mine", "mine")])
def test_what_cannot_be_placed_stops_the_start(wanted: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        names(*wanted)
