"""Request id: what a request is called, everywhere. Takes the client's ``x-request-id`` and W3C trace if well formed,
else makes new ones. Runs first, so that even a refusal has both in its audit event and its answer.
"""

from __future__ import annotations

import re

from cube_mesh.exchange import Exchange
from cube_mesh.ids import hex_ids
from cube_mesh.trace_context import parse_traceparent, parse_tracestate, sampled_by_ratio

_VALID = re.compile(rb"[A-Za-z0-9._:-]{1,128}").fullmatch


class RequestId:
    """Gate that never refuses. ``recording`` says whether this node exports spans; without it no new trace is
    sampled.
    """

    def __init__(self, sample_ratio: float = 1.0, *, recording: bool = False) -> None:
        self._ratio = sample_ratio if recording else 0.0
        self._new_id = hex_ids(32)
        self._new_trace = hex_ids(32)
        self._new_span = hex_ids(15)

    def enter(self, exchange: Exchange) -> None:
        head = exchange.head
        given = head.get(b"x-request-id")
        if given is not None and _VALID(given) is not None and head.count(b"x-request-id") == 1:
            exchange.request_id = given.decode("ascii")
        else:
            exchange.request_id = self._new_id()
        exchange.span_id = self._new_span() + "0"
        parent = head.get(b"traceparent")
        if parent is None or not self._continue(exchange, parent):
            exchange.trace_id = trace_id = self._new_trace()
            exchange.sampled = self._ratio > 0.0 and sampled_by_ratio(trace_id, self._ratio)

    def _continue(self, exchange: Exchange, value: bytes) -> bool:
        head = exchange.head
        parsed = parse_traceparent(value)
        if parsed is None or head.count(b"traceparent") != 1:
            return False
        exchange.trace_id, exchange.parent_span_id, exchange.sampled = parsed
        if head.count(b"tracestate"):
            exchange.tracestate = parse_tracestate([v for name, v in head.fields() if name == b"tracestate"])
        return True
