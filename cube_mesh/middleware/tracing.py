"""Tracing: hands the spans of recorded exchanges to the exporter, after they have ended. The trace context itself is
read by the request-id stage, so that a refusal before this stage has a trace too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cube_mesh.exchange import Exchange


class Tracing:
    """Observer. Records what is sampled, and every failure. ``build`` makes an exchange's spans, ``emit`` takes one."""

    def __init__(self, build: Callable[[Exchange], list[Any]], emit: Callable[[Any], None]) -> None:
        self._build = build
        self._emit = emit

    def leave(self, exchange: Exchange) -> None:
        if exchange.sampled or exchange.outcome == "failed":
            for span in self._build(exchange):
                self._emit(span)
