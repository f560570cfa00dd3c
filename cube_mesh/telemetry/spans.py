"""Spans, built when an exchange has ended from the times that it recorded: one for the server side, one for the
upstream. Plain records, which ``otlp`` exports: in this process, or in a helper that they are sent to.

Attributes are OpenTelemetry's for HTTP and GenAI. Nothing of OpenTelemetry's SDK is imported here, and nothing here
runs for a request that is not recorded.
"""

from __future__ import annotations

import socket
from typing import Any, Protocol

import msgspec

from cube_mesh.exchange import Exchange
from cube_mesh.text import clean
from cube_mesh.trace_context import client_span_id

END = b"."  # to the helper: no more spans will come
MAX_RECORD = 65_536  # bytes of one record; a longer one is lost


class Source(msgspec.Struct, frozen=True, array_like=True):
    """Whose spans they are: the name of the service, the node, and whether it runs unsafe, which marks every span."""

    service: str
    node_id: str = ""
    unsafe: bool = False


class SpanRecord(msgspec.Struct, frozen=True, array_like=True):
    """One span. Ids are lower-case hexadecimal, ``parent_id`` "" for a root; times Unix nanoseconds.

    ``server`` says which of an exchange's two it is: its parent is another program's, that of the other one is it.
    ``failure`` is the error code of a span whose status is an error.
    """

    source: Source
    server: bool
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    tracestate: str
    start_ns: int
    end_ns: int
    failure: str
    attributes: dict[str, str | bool | int | float]


class SpanSink(Protocol):
    """Where records go. ``emit`` never blocks; ``lost`` counts what could not be taken."""

    lost: int

    def emit(self, record: SpanRecord) -> None: ...
    def close(self) -> None: ...


class SpanBuilder:
    """Makes the spans of an exchange. ``service`` and ``node_id`` name the source; ``unsafe`` marks every span."""

    def __init__(self, service: str, node_id: str, *, unsafe: bool = False) -> None:
        self._source = Source(service, node_id, unsafe)

    def spans(self, exchange: Exchange) -> list[SpanRecord]:
        """The server span, and before it the client span when the request was sent on."""
        endpoint = exchange.endpoint
        name = endpoint.name if endpoint is not None else ""
        made = []
        if exchange.forwarded_at:
            operation = endpoint.operation if endpoint is not None else ""
            title = f"{operation or exchange.method} {clean(exchange.model or '') or name}".rstrip()
            made.append(self._span(exchange, title, False, _client(exchange)))
        made.append(self._span(exchange, f"{exchange.method} {name}".rstrip(), True, _server(exchange)))
        return made

    def _span(self, exchange: Exchange, name: str, server: bool, attributes: dict[str, Any]) -> SpanRecord:
        error = exchange.error
        failure = ""
        if error is not None:
            attributes["error.type"] = error.code
            if not server or exchange.status >= 500:
                failure = error.code
        wall = exchange.started_wall - exchange.started_at
        return SpanRecord(
            self._source,
            server,
            name,
            exchange.trace_id,
            exchange.span_id if server else client_span_id(exchange.span_id),
            exchange.parent_span_id if server else exchange.span_id,
            exchange.tracestate,
            int(((exchange.started_at if server else exchange.forwarded_at) + wall) * 1e9),
            int((exchange.ended_at + wall) * 1e9),
            failure,
            {key: value for key, value in attributes.items() if value is not None},
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


class SpanPipe:
    """Sends records to the helper: one message each, through a socket that all workers share and that holds a few
    hundred. One that finds it full, or that is too long, is lost and counted.
    """

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._encode = msgspec.msgpack.Encoder().encode
        self.lost = 0

    def emit(self, record: SpanRecord) -> None:
        try:
            data = self._encode(record)
            if len(data) > MAX_RECORD:
                raise ValueError("the record is too long")
            self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (OSError, ValueError):
            self.lost += 1

    def close(self) -> None:
        self._socket.close()


def span_socket() -> tuple[int, int]:
    """Descriptors of the workers' end and of the helper's, closed on exec unless they are passed on."""
    workers, helper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    workers.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_048_576)
    return workers.detach(), helper.detach()
