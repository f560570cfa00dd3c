"""Spans from recorded times: right parents, right clock, only for what is recorded, and no content."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import StatusCode

from cube_mesh.errors import DependencyError, PeerError
from cube_mesh.exchange import Exchange
from cube_mesh.middleware.request_id import RequestId
from cube_mesh.middleware.tracing import Tracing
from cube_mesh.telemetry.otlp import Export, readable, relay
from cube_mesh.telemetry.spans import END, MAX_RECORD, SpanBuilder, SpanPipe, span_socket
from cube_mesh.trace_context import parse_traceparent, traceparent_for_upstream
from tests.middleware.fakes import CHAT, A, channel, end, exchange
from tests.telemetry.test_metrics import CHAT_ROW

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BUILD = SpanBuilder("cube-proxy", "n1")


def passed(*fields: tuple[str, str], sent: bool = True, **changes: Any) -> Exchange:
    passing = exchange(f"/{A}{CHAT}", "POST", *fields)
    RequestId(1.0, recording=True).enter(passing)
    passing.endpoint, passing.model, passing.max_tokens = CHAT_ROW, "llama", 5
    passing.input_tokens, passing.output_tokens, passing.upstream_status = 7, 9, 200
    if sent:
        passing.forwarded_at, passing.first_byte_at = passing.started_at + 0.1, passing.started_at + 0.15
        passing.upstream, passing.attestation = "10.0.0.1:8901", channel()
    end(passing)
    for name, value in changes.items():
        setattr(passing, name, value)
    return passing


def built(passing: Exchange) -> list[Any]:
    """As OpenTelemetry has them."""
    return [readable(record) for record in BUILD.spans(passing)]


def test_two_spans_one_trace() -> None:
    passing = passed(("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "a=1"))
    client, server = built(passing)
    assert (server.kind, client.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert server.context.trace_id == client.context.trace_id == int(TRACE, 16)
    assert server.parent is not None and server.parent.span_id == int(PARENT, 16) and server.parent.is_remote
    assert client.parent is not None and client.parent.span_id == server.context.span_id
    told = parse_traceparent(traceparent_for_upstream(passing).encode())
    assert told is not None and int(told[1], 16) == client.context.span_id
    assert (server.name, client.name) == (f"POST {CHAT}", "chat llama")
    assert server.context.trace_state.to_header() == "a=1"


def test_times_are_those_of_the_exchange() -> None:
    client, server = built(passing := passed())
    assert (
        server.start_time == int(passing.started_wall * 1e9)
        or abs(server.start_time - passing.started_wall * 1e9) < 1e4
    )
    assert client.start_time - server.start_time == pytest.approx(1e8, abs=1e4)
    assert server.end_time - server.start_time == pytest.approx(2.5e8, abs=1e4)


def test_attributes() -> None:
    client, server = built(passed(domain_id=A))
    assert server.attributes is not None and client.attributes is not None
    assert server.attributes["http.route"] == CHAT and server.attributes["cube.domain_id"] == A
    for name, value in {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "llama", "gen_ai.request.max_tokens": 5,
        "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 9, "server.address": "10.0.0.1",
        "server.port": 8901, "cube.attestation.verdict": "accept", "cube.attestation.platform": "vtpm",
    }.items():  # fmt: skip
        assert client.attributes[name] == value
    assert "gen_ai.request.temperature" not in client.attributes


def test_what_was_not_sent_has_no_client_span() -> None:
    (server,) = built(passed(sent=False, endpoint=None, status=401, error=PeerError("c", "m"), model=None))
    assert server.name == "POST" and server.parent is None
    assert server.status.status_code is StatusCode.UNSET  # 4xx is the client's fault
    assert server.attributes is not None and server.attributes["error.type"] == "c"


def test_a_failure_is_an_error_on_both() -> None:
    error = DependencyError("upstream_closed", "m", detail="secret detail")
    client, server = built(passed(error=error, status=502, outcome="failed"))
    assert {client.status.status_code, server.status.status_code} == {StatusCode.ERROR}
    assert "secret" not in str(client.to_json()) + str(server.to_json())


@pytest.mark.parametrize(
    ("sampled", "outcome", "recorded"),
    [(True, "completed", 2), (False, "completed", 0), (False, "cancelled", 0), (False, "failed", 2)],
)
def test_only_sampled_or_failed_ones_are_recorded(sampled: bool, outcome: str, recorded: int) -> None:
    spans: list[Any] = []
    Tracing(BUILD.spans, spans.append).leave(passed(sampled=sampled, outcome=outcome))
    assert len(spans) == recorded


class Memory(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[Any] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS


def test_a_failed_one_is_exported_though_its_trace_was_not_sampled() -> None:
    memory = Memory()
    export = Export("http://127.0.0.1:1/v1/traces", exporter=memory)
    Tracing(BUILD.spans, export.emit).leave(passed(sampled=False, outcome="failed"))
    export.close()
    assert len(memory.spans) == 2
    assert memory.spans[0].resource.attributes["service.name"] == "cube-proxy"


# -- to a helper


def ends() -> tuple[SpanPipe, socket.socket]:
    mine, theirs = span_socket()
    return SpanPipe(mine), socket.socket(fileno=theirs)


def relayed(theirs: socket.socket) -> list[Any]:
    memory = Memory()
    relay(theirs, Export("http://127.0.0.1:1/v1/traces", exporter=memory))
    theirs.close()
    return memory.spans


def test_a_helper_exports_the_same_spans() -> None:
    passing = passed(("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "a=1"), domain_id=A)
    pipe, theirs = ends()
    Tracing(BUILD.spans, pipe.emit).leave(passing)
    pipe.close()  # the last writer has gone: that is an end, too
    assert [span.to_json() for span in relayed(theirs)] == [span.to_json() for span in built(passing)]
    assert pipe.lost == 0


def test_a_helper_that_stalls_loses_spans_and_not_the_worker() -> None:
    pipe, theirs = ends()
    (record,) = BUILD.spans(passed(sent=False))
    for _ in range(20_000):
        pipe.emit(record)
    assert 0 < pipe.lost < 20_000
    kept = 20_000 - pipe.lost
    pipe.close()
    assert len(relayed(theirs)) == min(kept, 2048), "of the last, the SDK's queue"


def test_a_helper_that_is_gone_and_a_record_that_is_too_long() -> None:
    pipe, theirs = ends()
    (record,) = BUILD.spans(passed(sent=False, domain_id="x" * MAX_RECORD))
    pipe.emit(record)
    assert pipe.lost == 1
    theirs.close()
    (record,) = BUILD.spans(passed(sent=False))
    pipe.emit(record)
    assert pipe.lost == 2
    pipe.close()


@pytest.mark.parametrize("nonsense", [b"\xc1", b"\x90", b"?" * 100, b"\x9b" + b"\xc0" * 11])
def test_what_is_no_span_is_left_out(nonsense: bytes) -> None:
    mine, theirs = span_socket()
    pipe = SpanPipe(os.dup(mine))
    with socket.socket(fileno=mine) as worker:
        worker.send(nonsense)
        pipe.emit(BUILD.spans(passed(sent=False))[0])
        worker.send(END)
        worker.send(nonsense)
        assert len(relayed(socket.socket(fileno=theirs))) == 1
    pipe.close()


def test_a_worker_does_not_import_the_sdk() -> None:
    code = "import sys, cube_mesh.worker; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
