"""Request id: what a request is called, everywhere. Takes the client's ``x-request-id`` and W3C trace if well formed,
else makes new ones. Runs first, so that even a refusal has both in its audit event and its answer.
"""

from __future__ import annotations

import os
import re

from cube_mesh._fastpath import IdGate, RequestHead
from cube_mesh.exchange import Exchange
from cube_mesh.trace_context import parse_traceparent, parse_tracestate, sampled_by_ratio

_VALID = re.compile(rb"[A-Za-z0-9._:-]{1,128}").fullmatch


class RequestId(IdGate):
    """Gate that never refuses. ``recording`` says whether this node exports spans; without it no new trace is
    sampled. Not safe across fork: both sides would make the same ids.
    """

    def __init__(self, sample_ratio: float = 1.0, *, recording: bool = False) -> None:
        super().__init__(os.urandom, sample_ratio if recording else 0.0)

    def _given(self, head: RequestHead) -> str:
        given = head.get(b"x-request-id") or b""
        return given.decode("ascii") if _VALID(given) is not None and head.count(b"x-request-id") == 1 else ""

    def _sample(self, trace_id: str, ratio: float) -> bool:
        return sampled_by_ratio(trace_id, ratio)

    def _continue(self, exchange: Exchange) -> bool:
        head = exchange.head
        parsed = parse_traceparent(head.get(b"traceparent") or b"")
        if parsed is None or head.count(b"traceparent") != 1:
            return False
        exchange.trace_id, exchange.parent_span_id, exchange.sampled = parsed
        if head.count(b"tracestate"):
            exchange.tracestate = parse_tracestate([v for name, v in head.fields() if name == b"tracestate"])
        return True
