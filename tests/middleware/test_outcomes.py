"""Every way in which an exchange can end has exactly one audit event, one log line and one count, and they agree."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.core import Metric

from cube_mesh.errors import CubeMeshError, DependencyError, InternalError, PeerError
from cube_mesh.exchange import Exchange
from cube_mesh.message import Response
from tests.middleware.fakes import CHAT, KEY_A, A, B, Mesh, bearer, channel, end, exchange

OK = bearer(KEY_A)
BAD = PeerError("invalid_json", "m")
GONE = PeerError("client_disconnected", "m", status=499)
CUT = DependencyError("upstream_closed", "m")
SLOW = DependencyError("upstream_timeout", "m", status=504)
UNATTESTED = DependencyError("atls_measurement", "m", status=503)

# name: fields and path of the request, what the connection notes afterwards, and what must be on record
REFUSED: list[tuple[str, tuple[Any, ...], int, str]] = [
    ("no tenant", (CHAT, "POST", OK), 400, "invalid_domain"),
    ("no credential", (f"/{A}{CHAT}", "POST"), 401, "missing_credentials"),
    ("wrong key", (f"/{A}{CHAT}", "POST", bearer("cm_x_y")), 401, "invalid_api_key"),
    ("not bearer", (f"/{A}{CHAT}", "POST", ("Authorization", "Basic eDp5")), 401, "invalid_api_key"),
    ("other domain", (f"/{B}{CHAT}", "POST", OK), 403, "domain_forbidden"),
    ("unlisted path", (f"/{A}/v1/files", "POST", OK), 403, "endpoint_not_allowed"),
    ("unlisted method", (f"/{A}{CHAT}", "PUT", OK), 403, "endpoint_not_allowed"),
    ("no right", (f"/{A}/api/pull", "POST", OK), 403, "permission_denied"),
    ("no route", (f"/{A}/api/tags", "GET", OK), 404, "no_route"),
    ("coded body", (f"/{A}{CHAT}", "POST", OK, ("Content-Encoding", "gzip")), 415, "content_encoding"),
    ("too large", (f"/{A}{CHAT}", "POST", OK, ("Content-Length", "9999999999")), 413, "body_too_large"),
]
LATER: list[tuple[str, int, str, CubeMeshError | None]] = [
    ("completed", 200, "completed", None),
    ("upstream says no", 422, "completed", None),
    ("upstream fails", 500, "completed", None),
    ("bad body", 400, "refused", BAD),
    ("client left early", 499, "cancelled", GONE),
    ("client left midway", 200, "cancelled", GONE),
    ("upstream cut", 502, "failed", CUT),
    ("upstream cut midway", 200, "failed", CUT),
    ("upstream slow", 504, "failed", SLOW),
    ("agent not attested", 503, "failed", UNATTESTED),
    ("our mistake", 500, "failed", InternalError("internal", "m")),
]


def samples(mesh: Mesh, name: str) -> list[tuple[dict[str, str], float]]:
    family: Metric = next(f for f in mesh.numbers.families() if f.name == name)
    return [(s.labels, s.value) for s in family.samples if s.value and s.name.endswith(("_total", "_count"))]


def check(mesh: Mesh, passing: Exchange, status: int, outcome: str, code: str | None) -> dict[str, Any]:
    over: list[CubeMeshError | None] = []
    mesh.chain.leave(passing, over.append)
    mesh.chain.leave(passing, over.append)  # whatever ends it again
    assert over == [None, None]
    (line,), (log,) = mesh.sink.lines, mesh.log
    event, said = json.loads(line), json.loads(log)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert (event["status_code"], event["outcome"], event["error_code"]) == (status, outcome, code)
    assert (said["status"], said["outcome"], said["error_code"]) == (status, outcome, code)
    assert event["request_id"] == said["request_id"] == passing.request_id != ""
    assert event["trace_id"] == said["trace_id"] == passing.trace_id != ""
    ((labels, value),) = samples(mesh, "cube_requests")
    assert (labels["status"], labels["outcome"], value) == (str(status), outcome, 1)
    ((_, value),) = samples(mesh, "cube_request_duration_seconds")
    assert value == 1 and mesh.chain.in_flight == 0
    return dict(event)


@pytest.mark.parametrize(("request_", "status", "code"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused_by_a_gate(request_: tuple[Any, ...], status: int, code: str) -> None:
    mesh = Mesh()
    passing = exchange(*request_)
    answer = mesh.chain.enter(passing)
    assert isinstance(answer, Response) and answer.status == status
    assert json.loads(answer.body)["error"]["code"] == code
    assert passing.target is None
    event = check(mesh, end(passing, status, passing.outcome), status, "refused", code)
    assert event["upstream"] is None and event["upstream_ms"] is None and event["attestation_ok"] is None


@pytest.mark.parametrize(("status", "outcome", "error"), [r[1:] for r in LATER], ids=[r[0] for r in LATER])
def test_ended_after_the_gates(status: int, outcome: str, error: CubeMeshError | None) -> None:
    mesh = Mesh()
    passing = exchange(f"/{A}{CHAT}", "POST", OK)
    assert mesh.chain.enter(passing) is None
    passing.error = error
    if error is not UNATTESTED:
        passing.forwarded_at, passing.upstream = passing.started_at + 0.1, "10.0.0.1:8901"
        passing.attestation = channel()
    event = check(mesh, end(passing, status, outcome), status, outcome, error.code if error else None)
    assert event["session"]["domain_id"] == event["domain_id"] == A
    if error is UNATTESTED:
        assert (event["attestation_ok"], event["attestation_error"]) == (False, "measurement")
        assert event["attestation_type"] is None and not event["atls_handshake"]
    else:
        assert (event["attestation_ok"], event["attestation_error"]) == (True, None)


@pytest.mark.parametrize(
    ("error", "code"),
    [(DependencyError("audit_unavailable", "m", status=503), "audit_unavailable"), (ValueError("bug"), "audit_failed")],
)
def test_without_an_event_there_is_no_answer_and_log_and_metric_say_so(error: Exception, code: str) -> None:
    mesh = Mesh()
    mesh.sink.error = error
    passing = exchange(f"/{A}{CHAT}", "POST", OK)
    assert mesh.chain.enter(passing) is None
    over: list[CubeMeshError | None] = []
    mesh.chain.leave(end(passing), over.append)
    assert over[0] is not None and over[0].code == code and over[0].status in (500, 503)
    said = json.loads(mesh.log[0])
    assert (said["error_code"], said["outcome"], said["level"]) == (code, "failed", "error")
    ((labels, _),) = samples(mesh, "cube_requests")
    assert labels["outcome"] == "failed"
