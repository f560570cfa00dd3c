"""RFC 3339 timestamps in UTC with milliseconds, the calendar part computed once a second."""

from __future__ import annotations

from time import gmtime, strftime


class Stamp:
    """``stamp(unix_seconds)`` gives ``2026-01-02T03:04:05.678Z``. The fraction is cut, not rounded."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = -1
        self._prefix = ""

    def __call__(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            self._second = second
            self._prefix = strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
        return "%s.%03dZ" % (self._prefix, (at - second) * 1000)  # noqa: UP031  measured: faster than an f-string
