"""Spans, built when an exchange has ended from the times that it recorded: one for the server side, one for the
upstream.

Attributes are OpenTelemetry's for HTTP and GenAI. Export is OTLP over HTTP, in batches, by the SDK's own thread;
nothing of the SDK is imported unless an endpoint is configured, and nothing of it runs for a request that is not
recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.span import TraceState
from opentelemetry.trace.status import Status, StatusCode

from cube_mesh import __version__
from cube_mesh.exchange import Exchange
from cube_mesh.text import clean
from cube_mesh.trace_context import client_span_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_SCOPE = InstrumentationScope("cube_mesh", __version__)
_RECORDED = TraceFlags(TraceFlags.SAMPLED)


class SpanBuilder:
    """Makes the spans of an exchange. ``resource`` names the service; ``unsafe`` marks every span."""

    def __init__(self, service: str, node_id: str, *, unsafe: bool = False) -> None:
        attributes: dict[str, Any] = {"service.name": service, "service.version": __version__}
        if node_id:
            attributes["service.instance.id"] = node_id
        if unsafe:
            attributes["cube.unsafe"] = True
        self._resource = Resource(attributes)

    def spans(self, exchange: Exchange) -> list[ReadableSpan]:
        """The server span, and before it the client span when the request was sent on."""
        trace_id = int(exchange.trace_id, 16)
        state = TraceState.from_header([exchange.tracestate]) if exchange.tracestate else None
        server = SpanContext(trace_id, int(exchange.span_id, 16), False, _RECORDED, state)
        parent = None
        if exchange.parent_span_id:
            parent = SpanContext(trace_id, int(exchange.parent_span_id, 16), True, _RECORDED, state)
        endpoint = exchange.endpoint
        name = endpoint.name if endpoint is not None else ""
        made = []
        if exchange.forwarded_at:
            client = SpanContext(trace_id, int(client_span_id(exchange.span_id), 16), False, _RECORDED, state)
            operation = endpoint.operation if endpoint is not None else ""
            title = f"{operation or exchange.method} {clean(exchange.model or '') or name}".rstrip()
            start = exchange.forwarded_at
            made.append(self._span(exchange, title, client, server, SpanKind.CLIENT, start, _client(exchange)))
        title = f"{exchange.method} {name}".rstrip()
        start = exchange.started_at
        made.append(self._span(exchange, title, server, parent, SpanKind.SERVER, start, _server(exchange)))
        return made

    def _span(
        self,
        exchange: Exchange,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        start: float,
        attributes: dict[str, Any],
    ) -> ReadableSpan:
        error = exchange.error
        status = Status(StatusCode.UNSET)
        if error is not None and (kind is SpanKind.CLIENT or exchange.status >= 500):
            status = Status(StatusCode.ERROR, error.code)
        if error is not None:
            attributes["error.type"] = error.code
        wall = exchange.started_wall - exchange.started_at
        return ReadableSpan(
            name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes={key: value for key, value in attributes.items() if value is not None},
            kind=kind,
            status=status,
            start_time=int((start + wall) * 1e9),
            end_time=int((exchange.ended_at + wall) * 1e9),
            instrumentation_scope=_SCOPE,
        )


def _server(exchange: Exchange) -> dict[str, Any]:
    endpoint, grant = exchange.endpoint, exchange.grant
    return {
        "http.request.method": exchange.method,
        "http.route": endpoint.name if endpoint is not None else None,
        "http.response.status_code": exchange.status or None,
        "http.request.body.size": exchange.request_size,
        "http.response.body.size": exchange.response_size,
        "client.address": exchange.client_ip or None,
        "cube.request_id": exchange.request_id,
        "cube.domain_id": exchange.domain_id or None,
        "cube.role": grant.role if grant is not None else None,
        "cube.outcome": exchange.outcome,
        "cube.route": exchange.route.name if exchange.route is not None else None,
    }


def _client(exchange: Exchange) -> dict[str, Any]:
    endpoint, channel = exchange.endpoint, exchange.attestation
    host, _, port = exchange.upstream.rpartition(":")
    first = exchange.first_byte_at
    return {
        "gen_ai.operation.name": (endpoint.operation or None) if endpoint is not None else None,
        "gen_ai.request.model": clean(exchange.model) if exchange.model is not None else None,
        "gen_ai.request.max_tokens": exchange.max_tokens,
        "gen_ai.request.temperature": exchange.temperature,
        "gen_ai.usage.input_tokens": exchange.input_tokens,
        "gen_ai.usage.output_tokens": exchange.output_tokens,
        "http.request.method": exchange.method,
        "http.response.status_code": exchange.upstream_status or None,
        "server.address": host or None,
        "server.port": int(port) if port.isdigit() else None,
        "cube.time_to_first_byte_s": first - exchange.forwarded_at if first else None,
        "cube.attestation.verdict": channel.verdict if channel is not None else None,
        "cube.attestation.platform": channel.platform if channel is not None else None,
        "cube.attestation.simulated": channel.simulated if channel is not None else None,
    }


class Export:
    """Hands spans to the SDK's batching thread. ``emit`` never blocks; a full queue drops the oldest."""

    def __init__(self, endpoint: str, *, exporter: SpanExporter | None = None) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._processor = BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=endpoint, timeout=5))
        self.emit: Callable[[ReadableSpan], None] = self._processor.on_end

    def close(self) -> None:
        """Send what waits, for at most a few seconds."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]
