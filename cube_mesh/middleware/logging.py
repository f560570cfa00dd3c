"""Logging: one line per request, for operators. JSON for machines, text on a terminal; no content, no credential."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cube_mesh._fastpath import LogLines, LogStage
from cube_mesh.exchange import Exchange
from cube_mesh.text import Stamp, clean

_RANK = {"debug": 0, "info": 1, "warning": 2, "error": 3}


class Line(msgspec.Struct, frozen=True, gc=False):
    """What one line says, as JSON in this order (``_fastpath/lines.pxi``) or as text. ``msg`` is always "request";
    times are milliseconds, sizes body bytes.
    """

    time: str
    level: str
    msg: str
    request_id: str
    trace_id: str
    node_id: str
    domain_id: str
    subject: str | None
    method: str
    endpoint: str | None
    status: int
    outcome: str
    error_code: str | None
    error: str | None
    duration_ms: float
    bytes_in: int
    bytes_out: int
    upstream: str | None
    unsafe: bool


class Logging(LogStage):
    """Observer. 5xx and failures are errors, refusals warnings, the rest (cancels too) information."""

    def __init__(
        self,
        write: Callable[[bytes], None],
        node_id: str,
        *,
        json: bool = True,
        level: str = "info",
        unsafe: bool = False,
    ) -> None:
        self._node_id = node_id
        self._unsafe = unsafe
        self._stamp = Stamp()
        super().__init__(LogLines(self._stamp, node_id, unsafe), write, json, _RANK[level])

    def _text_line(self, exchange: Exchange, level: str) -> bytes:
        return _text(self._line(exchange, level))

    def _line(self, exchange: Exchange, level: str) -> Line:
        principal, endpoint, error = exchange.principal, exchange.endpoint, exchange.error
        return Line(
            self._stamp(exchange.started_wall),
            level,
            "request",
            exchange.request_id,
            exchange.trace_id,
            self._node_id,
            exchange.domain_id,
            clean(principal.subject) if principal is not None else None,
            exchange.method,
            endpoint.name if endpoint is not None else None,
            exchange.status,
            exchange.outcome,
            error.code if error is not None else None,
            clean(error.detail) if error is not None else None,
            int((exchange.ended_at - exchange.started_at) * 1e6) / 1e3,
            exchange.request_size,
            exchange.response_size,
            exchange.upstream or None,
            self._unsafe,
        )


def _text(line: Line) -> bytes:
    mark = " UNSAFE" if line.unsafe else ""
    error = f" {line.error_code}" if line.error_code else ""
    detail = f" ({line.error})" if line.error else ""
    text = (
        f"{line.time} {line.level.upper():5}{mark} {line.method} {line.endpoint or '-'} {line.status}"
        f" {line.outcome}{error} {line.duration_ms:.1f}ms in={line.bytes_in} out={line.bytes_out}"
        f" domain={line.domain_id or '-'} subject={line.subject or '-'} request={line.request_id}{detail}\n"
    )
    return text.encode("utf-8", "replace")
