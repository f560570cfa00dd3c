"""Operators' own stages: entry points of the group ``cube_mesh.stages``, in the chain only when the configuration
names them.

An entry point is a callable that takes the Settings and returns a stage: an object with ``enter``, ``leave`` or both
(see ``ports.Gate`` and ``ports.Observer``) and an attribute ``after``, the name of the built-in stage that it
follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from cube_mesh.errors import ConfigError
from cube_mesh.settings import Settings

GROUP = "cube_mesh.stages"


def _installed() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


def with_own_stages(
    stages: dict[str, Any], settings: Settings, installed: Callable[[], Iterable[EntryPoint]] = _installed
) -> dict[str, Any]:
    """``stages`` with the configured own ones in their places. Raises ConfigError for one that is missing or
    misplaced.
    """
    if not settings.stages:
        return stages
    known = {point.name: point for point in installed()}
    placed = list(stages.items())
    for name in settings.stages:
        if name not in known or name in dict(placed):
            raise ConfigError(f"no entry point {name!r} of {GROUP}, or its name is taken", key="stages")
        stage = known[name].load()(settings)
        names = [n for n, _ in placed]
        if getattr(stage, "after", None) not in names or not (hasattr(stage, "enter") or hasattr(stage, "leave")):
            raise ConfigError(f"{name} needs enter or leave, and after = one of {', '.join(names)}", key="stages")
        placed.insert(names.index(stage.after) + 1, (name, stage))
    return dict(placed)
