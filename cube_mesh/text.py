"""Text for records: timestamps, and strings that a client chose made harmless for whoever reads a line."""

from __future__ import annotations

import traceback
from time import gmtime, strftime

from cube_mesh.errors import CubeMeshError

_MILLIS = tuple(f".{ms:03d}Z" for ms in range(1000))


class Stamp:
    """``stamp(unix_seconds)`` gives ``2026-01-02T03:04:05.678Z`` (RFC 3339, UTC, the fraction cut, not rounded).

    The calendar part is computed once a second. One instance per user: it is not safe across threads.
    """

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def __call__(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            self._second = second
            self._prefix = strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
        return self._prefix + _MILLIS[int((at - second) * 1000)]


def clean(text: str, limit: int = 256) -> str:
    """At most ``limit`` characters, and none that could end a line, move a cursor or hide text: what Unicode calls not
    printable (C0 and C1 controls, line separators, direction overrides, lone surrogates) is shown as an escape.
    """
    if len(text) > limit:
        text = text[:limit]
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def describe(error: BaseException) -> str:
    """Type and stack of an exception, without its text: a ValueError quotes the value, and that may be a tenant's.
    Errors of ours carry text that we wrote; they are shown with it.
    """
    name = str(error) if isinstance(error, CubeMeshError) else type(error).__name__
    return name + "\n" + "".join(traceback.format_tb(error.__traceback__))
