"""From span records to OpenTelemetry: the one place that imports its SDK. Export is OTLP over HTTP, in batches, by the
SDK's own thread.

In a node of one process that is the node's; otherwise a helper's (``cube_mesh.exporter``), so that no worker has the
SDK in its memory or its thread beside its loop.
"""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.span import TraceState
from opentelemetry.trace.status import Status, StatusCode

from cube_mesh import __version__
from cube_mesh.telemetry.spans import END, MAX_RECORD, Source, SpanRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_SCOPE = InstrumentationScope("cube_mesh", __version__)
_RECORDED = TraceFlags(TraceFlags.SAMPLED)
_decode = msgspec.msgpack.Decoder(SpanRecord).decode


@lru_cache(16)
def _resource(source: Source) -> Resource:
    attributes: dict[str, Any] = {"service.name": source.service, "service.version": __version__}
    if source.node_id:
        attributes["service.instance.id"] = source.node_id
    if source.unsafe:
        attributes["cube.unsafe"] = True
    return Resource(attributes)


def readable(record: SpanRecord) -> ReadableSpan:
    """The SDK's form of a record. ValueError when an id is no hexadecimal number."""
    trace_id = int(record.trace_id, 16)
    state = TraceState.from_header([record.tracestate]) if record.tracestate else None
    parent = None
    if record.parent_id:
        parent = SpanContext(trace_id, int(record.parent_id, 16), record.server, _RECORDED, state)
    return ReadableSpan(
        record.name,
        context=SpanContext(trace_id, int(record.span_id, 16), False, _RECORDED, state),
        parent=parent,
        resource=_resource(record.source),
        attributes=record.attributes,
        kind=SpanKind.SERVER if record.server else SpanKind.CLIENT,
        status=Status(StatusCode.ERROR, record.failure) if record.failure else Status(StatusCode.UNSET),
        start_time=record.start_ns,
        end_time=record.end_ns,
        instrumentation_scope=_SCOPE,
    )


class Export:
    """Hands spans to the SDK's batching thread. ``emit`` never blocks; a full queue drops the oldest."""

    def __init__(self, endpoint: str, *, exporter: SpanExporter | None = None) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._processor = BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=endpoint, timeout=5))
        self.lost = 0  # of those that came here: the SDK does not say what it drops

    def emit(self, record: SpanRecord) -> None:
        self._processor.on_end(readable(record))

    def close(self) -> None:
        """Send what waits, for at most a few seconds."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def relay(source: socket.socket, export: Export) -> None:
    """Export what workers send until somebody says that it is over. What is no record is left out.

    A worker is trusted with spans of any content, and with no more than that.
    """
    while (data := source.recv(MAX_RECORD)) not in (END, b""):
        try:
            export.emit(_decode(data))
        except (msgspec.MsgspecError, ValueError):
            continue
    export.close()
