"""One thing that is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Case"]


class Case(NamedTuple):
    """``per``: how many operations one call is. ``against``: the case whose time this one is given as a ratio of.
    ``bar``: the greatest ratio, or without ``against`` the most nanoseconds, that this may come to; 0 is none.
    ``before`` goes before each call, and its time does not count.
    """

    name: str
    call: Callable[[], object]
    against: str = ""
    per: int = 1
    bar: float = 0.0
    before: Callable[[], object] | None = None
