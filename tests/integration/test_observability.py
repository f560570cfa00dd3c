"""What operators watch, through real programs: a Prometheus that scrapes, an OpenTelemetry collector that relays."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.client import bearer, chat, once
from tests.support.mesh import Mesh
from tests.support.process import Child, accepts, free_port
from tests.support.require import require
from tests.support.way import Way

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


async def ask(port: int, way: Way, **fields: str) -> int:
    path = f"/{way.red.domain}/v1/chat/completions"
    reply = await once(port, "POST", path, {**bearer(way.red.key), **fields}, chat())
    return reply.status


def check_metrics(text: str) -> str:
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.asyncio(loop_scope="module")
async def test_promtool_finds_nothing_to_say(way: Way) -> None:
    require("promtool")
    assert await ask(way.proxy.port, way) == 200
    for node in (way.proxy, way.agent):
        status, text = node.local("/metrics")
        assert status == 200
        said = [line for line in check_metrics(text).splitlines() if not line.startswith("process_")]
        assert not said, said


@pytest.mark.asyncio(loop_scope="module")
async def test_prometheus_scrapes_both_nodes(way: Way, tmp_path: Path) -> None:
    require("prometheus")
    assert await ask(way.proxy.port, way) == 200
    targets = [f"127.0.0.1:{node.local_port}" for node in (way.proxy, way.agent)]
    job = {"job_name": "cube", "static_configs": [{"targets": targets}]}
    config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    argv = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with Child([*argv, f"--web.listen-address=127.0.0.1:{port}"], tmp_path / "prometheus.log") as server:
        server.wait_until("its port", lambda: accepts(port))

        def value(expression: str) -> float:
            query = urllib.parse.urlencode({"query": expression})
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}", timeout=5) as answer:
                    result = json.load(answer)["data"]["result"]
            except urllib.error.HTTPError:  # it listens before it is ready
                return 0.0
            return sum(float(row["value"][1]) for row in result)

        server.wait_until("a scrape of both", lambda: value("up") == 2, 30)
        assert value('sum(cube_requests_total{outcome="completed"})') >= 2, "one request, counted by each node"
        assert value('cube_attestations_total{verdict="accept",platform="vtpm"}') >= 1


@contextmanager
def trace_store(received: list[dict[str, Any]]) -> Iterator[int]:
    """An OTLP/HTTP endpoint that keeps spans: what stands behind the collector."""

    class Store(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    received.extend(_span(span, service) for span in scope.spans)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _span(span: Any, service: dict[str, str]) -> dict[str, Any]:
    return {
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "kind": span.kind,
        "instance": service.get("service.instance.id", ""),
        "attributes": {a.key: a.value for a in span.attributes},
        "ns": span.end_time_unix_nano - span.start_time_unix_nano,
    }


@pytest.mark.asyncio(loop_scope="module")
async def test_one_trace_from_the_client_to_the_backend(way: Way, mesh: Mesh, tmp_path: Path) -> None:
    """Client → proxy → agent → backend, over OTLP through a real collector, each span the child of the last."""
    spec = find_spec("rotel")
    if spec is None or spec.origin is None:
        pytest.skip("rotel is not installed (make .venv/.test)")
    received: list[dict[str, Any]] = []
    with trace_store(received) as store:
        port = free_port()
        argv = [str(Path(spec.origin).parent / "rotel-agent"), "start", f"--otlp-http-endpoint=127.0.0.1:{port}"]
        argv += [f"--otlp-grpc-endpoint=127.0.0.1:{free_port()}", "--exporter=otlp", "--otlp-exporter-protocol=http"]
        argv += [f"--otlp-exporter-endpoint=http://127.0.0.1:{store}", "--batch-timeout=100ms"]
        with Child(argv, tmp_path / "rotel.log") as collector:
            collector.wait_until("its port", lambda: accepts(port))
            tracing = {"otlp_endpoint": f"http://127.0.0.1:{port}/v1/traces"}
            agent = mesh.agent(tmp_path / "agent", way.backend.url, tracing=tracing)
            proxy = mesh.proxy(tmp_path / "proxy", agent.port, tracing=tracing)
            with agent, proxy:
                assert await ask(proxy.port, way, traceparent=f"00-{TRACE}-{PARENT}-01") == 200
                seen = (way.backend.requests[-1].header(b"traceparent") or b"").decode()
                proxy.stop()  # what waits is sent on the way out
                agent.stop()
                deadline = time.monotonic() + 10
                while len(received) < 4 and time.monotonic() < deadline:
                    await asyncio.sleep(0.05)
    spans = {span["id"]: span for span in received}
    assert len(spans) == 4 and {span["trace"] for span in received} == {TRACE}
    path, at = [], seen.split("-")[2]
    while at in spans:
        path.append(spans[at])
        at = spans[at]["parent"]
    assert at == PARENT, "the client's span is the root"
    assert [span["kind"] for span in path] == [3, 2, 3, 2], "client and server span of the agent, then of the proxy"
    assert [span["instance"].split("/")[-2] for span in path] == ["agent", "agent", "proxy", "proxy"]
    assert all(inner["ns"] <= outer["ns"] for inner, outer in pairwise(path))
    upstream = path[2]["attributes"]
    assert upstream["gen_ai.operation.name"].string_value == "chat"
    assert upstream["gen_ai.usage.output_tokens"].int_value > 0
    assert upstream["cube.attestation.verdict"].string_value == "accept"
