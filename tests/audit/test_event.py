"""The event: true, whole, one line whatever a client sends, and never a secret."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube_mesh.audit.event import PARTS, SCHEMA, EventWriter, Request
from cube_mesh.errors import DependencyError, PeerError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import Endpoint, Grant, Principal, Route
from cube_mesh.text import Stamp, clean
from tests.middleware.fakes import CHAT, A, bearer, channel, end, exchange

NODE = "spiffe://cube/proxy/p1"
FIELDS = [name for part in PARTS for name in part.__struct_fields__]


def full(**changes: Any) -> Exchange:
    """A completed exchange with everything known."""
    passing = exchange(f"/{A}{CHAT}", "POST", bearer("cm_secret_key"), ("User-Agent", "curl/8"), query="?secret=1")
    passing.started_wall, passing.started_at = 1_790_000_000.5, 100.0
    passing.request_id, passing.trace_id, passing.domain_id = "r1", "f" * 32, A
    passing.endpoint = Endpoint(CHAT, "POST", CHAT, "llm_chat_completions", "chat", "json")
    passing.principal = Principal("alice", "api_key", "key-a", A)
    passing.grant = Grant(A, f"{A}_alice", "member", "llm_chat_completions")
    passing.route, passing.upstream, passing.upstream_status = Route("v1", "agent"), "10.0.0.1:8901", 200
    passing.model, passing.stream, passing.temperature, passing.max_tokens = "llama", True, 0.5, 100
    passing.input_tokens, passing.output_tokens, passing.request_size, passing.response_size = 7, 9, 700, 900
    passing.attestation, passing.forwarded_at, passing.first_byte_at = channel(), 100.01, 100.02
    end(passing)
    for name, value in changes.items():
        setattr(passing, name, value)
    return passing


def event(passing: Exchange, writer: EventWriter | None = None) -> dict[str, Any]:
    line = bytes((writer or EventWriter(NODE)).line(passing))
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    made = json.loads(line)
    assert list(made) == FIELDS
    return dict(made)


def test_every_field_from_its_source() -> None:
    made = event(full())
    report = made.pop("attestation_report")
    assert made == {
        "timestamp": "2026-09-21T14:13:20.500Z", "request_id": "r1", "trace_id": "f" * 32, "domain_id": A,
        "method": "POST", "path": f"/{A}{CHAT}", "endpoint": CHAT, "client_ip": "127.0.0.1", "client_tls_version": "",
        "client_tls_subject": None,
        "user_agent": "curl/8", "status_code": 200, "outcome": "completed", "error_code": None, "error": None,
        "request_size": 700, "response_size": 900, "duration_ms": 250.0, "upstream_ms": pytest.approx(240, abs=0.01),
        "first_byte_ms": pytest.approx(10, abs=0.01), "model": "llama", "stream": True, "temperature": 0.5,
        "max_tokens": 100, "input_tokens": 7, "output_tokens": 9, "route": "v1", "upstream": "10.0.0.1:8901",
        "upstream_status": 200,
        "session": {
            "type": "api_key", "user_id": "alice", "credential_id": "key-a", "domain_id": A,
            "domain_user_id": f"{A}_alice", "role": "member",
        },
        "auth_method": "api_key", "attestation_ok": True, "attestation_error": None, "attestation_type": "vtpm",
        "attestation_mode": "quote", "attestation_nonce": "0c" * 32, "atls_handshake": True, "atls_handshake_ms": 1.5,
        "tls_version": "TLSv1.3", "cipher_suite": "TLS_AES_128_GCM_SHA256", "peer_id": "spiffe://cube/agent/a1",
        "peer_cert_issuer": "CN=a1", "peer_cert_serial": "7", "confidential": False, "simulated": False,
        "attested_session": None, "attested_session_generation": None, "attested_session_age_s": None,
        "tenant_policy_id": None, "tenant_policy_digest": None,
        "schema": SCHEMA, "event_type": "llm_request", "node_id": NODE, "unsafe": False,
    }  # fmt: skip
    assert report == {
        "appraisal_id": "a1" * 16, "verdict": "accept", "policy_id": "dev", "policy_digest": "d" * 64,
        "evidence_digest": "e" * 64, "expires": "2027-01-15T08:00:00.000Z", "attestation_ms": 20.0,
        "claims": {"pcr.sha256.0": "00" * 32},
    }  # fmt: skip


def test_what_is_unknown_is_null_and_nothing_is_guessed() -> None:
    passing = exchange()
    passing.error = PeerError("invalid_domain", "No domain.")
    made = event(end(passing, 400, "refused"))
    empty = {name for name, value in made.items() if value is None}
    assert empty == {
        "endpoint", "client_tls_subject", "user_agent", "upstream_ms", "first_byte_ms", "model",
        "temperature", "max_tokens", "input_tokens",
        "output_tokens", "route", "upstream", "upstream_status", "session", "auth_method", "attestation_ok",
        "attestation_error", "attestation_type", "attestation_mode", "attestation_nonce", "attestation_report",
        "atls_handshake_ms", "tls_version", "cipher_suite", "peer_id", "peer_cert_issuer", "peer_cert_serial",
        "confidential", "attested_session", "attested_session_generation", "attested_session_age_s",
        "tenant_policy_id", "tenant_policy_digest",
    }  # fmt: skip
    assert (made["error_code"], made["error"], made["atls_handshake"]) == ("invalid_domain", "No domain.", False)


def test_a_refused_caller_gets_no_domain_in_its_session() -> None:
    session = event(full(grant=None))["session"]
    assert (session["user_id"], session["domain_id"], session["domain_user_id"], session["role"]) == (
        "alice", None, None, None,
    )  # fmt: skip


def test_no_secret_and_no_query() -> None:
    line = bytes(EventWriter(NODE).line(full()))
    assert b"cm_secret_key" not in line and b"secret=1" not in line and b"uthorization" not in line


def test_simulated_and_unsafe_are_marked() -> None:
    made = event(full(attestation=channel(simulated=True, platform="sev-snp")), EventWriter(NODE, unsafe=True))
    assert (made["simulated"], made["unsafe"], made["attestation_type"]) == (True, True, "sev-snp")


@pytest.mark.parametrize(
    ("code", "ok", "reason"),
    [
        ("upstream_unreachable", None, None), ("upstream_connect", None, None),
        ("atls_measurement", False, "measurement"),
        ("atls_timeout", False, "timeout"),
    ],
)  # fmt: skip
def test_a_refused_agent_is_a_verdict_and_a_closed_port_is_none(code: str, ok: bool | None, reason: str | None) -> None:
    made = event(full(attestation=None, forwarded_at=0.0, error=DependencyError(code, "m")))
    assert (made["attestation_ok"], made["attestation_error"]) == (ok, reason)


def test_parts_that_are_kept_are_those_of_their_exchange() -> None:
    writer = EventWriter(NODE)
    one = full()
    two = full(principal=Principal("bob", "jwt", "t2"), grant=Grant(A, f"{A}_bob", "admin", "p"))
    two.attestation = channel(appraisal_id="b2" * 16)
    for _ in range(3):
        first, second = event(one, writer), event(two, writer)
        assert (first["session"]["user_id"], first["attestation_report"]["appraisal_id"]) == ("alice", "a1" * 16)
        assert (second["session"]["user_id"], second["attestation_report"]["appraisal_id"]) == ("bob", "b2" * 16)
    two.grant = None  # the same principal without the grant
    assert event(two, writer)["session"]["role"] is None


def test_kept_parts_are_bounded() -> None:
    writer = EventWriter(NODE)
    for n in range(3000):
        passing = full(principal=Principal(f"s{n}", "jwt", ""), grant=None, attestation=channel())
        assert event(passing, writer)["session"]["user_id"] == f"s{n}"
    assert max(len(writer._callers), len(writer._channels)) <= 1024


TEXT = st.text(max_size=40) | st.none()
SECONDS = st.floats(0, 4e9)


@given(
    path=st.text(max_size=1100), model=TEXT, upstream=st.text(max_size=20), temperature=st.floats() | st.none(),
    max_tokens=st.integers() | st.none(), tokens=st.integers(0, 2**70) | st.none(), size=st.integers(0, 2**62),
    wall=SECONDS, sent=st.floats(0, 1e6), ended=st.floats(0, 1e6),
)  # fmt: skip
def test_it_is_what_an_encoder_makes_of_the_struct(
    path: str, model: str | None, upstream: str, temperature: float | None, max_tokens: int | None,
    tokens: int | None, size: int, wall: float, sent: float, ended: float,
) -> None:  # fmt: skip
    """The line is written by hand, in C: a general encoder is the oracle for every value."""
    passing = full(
        path=path, model=model, upstream=upstream, temperature=temperature, max_tokens=max_tokens, input_tokens=tokens,
        request_size=size, started_wall=wall, forwarded_at=sent, ended_at=ended,
    )  # fmt: skip
    struct = Request(
        Stamp()(wall), "r1", "f" * 32, A, "POST", clean(path, 1024), CHAT, "127.0.0.1", "", None, "curl/8", 200,
        "completed", None, None, size, 900, int((ended - 100.0) * 1e6) / 1e3,
        int((ended - sent) * 1e6) / 1e3 if sent else None, int((100.02 - sent) * 1e6) / 1e3 if sent else None,
        clean(model) if model is not None else None, True, temperature, max_tokens, tokens, 9, "v1",
        clean(upstream) or None, 200,
    )  # fmt: skip
    given, wanted = json.loads(EventWriter(NODE).line(passing)), json.loads(msgspec.json.encode(struct))
    assert {name: given[name] for name in wanted} == wanted
    assert list(given)[: len(wanted)] == list(wanted)


NASTY = [
    "\n{\"forged\":1}", "\r\n", "\x00", "\x1b[2J", "\x9b31m", "\u2028", "\u2029", "\x85", "\u202e", "\x7f", '"}', "\\",
    "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_nothing_that_a_client_chooses_breaks_a_line(text: str) -> None:
    passing = full(
        model="m" + text,
        path="/p" + text,
        principal=Principal("s" + text, "jwt", "j" + text),
        grant=Grant(A, f"{A}_s{text}", "member", "p"),
        error=PeerError("c", "m", detail="d" + text),
        attestation=channel(peer_cert_issuer="CN=" + text, claims={"k" + text: "v" + text}),
    )
    line = bytes(EventWriter(NODE).line(passing)).decode("utf-8")
    assert len(line.splitlines()) == 1
    assert line[:-1].isprintable()
    assert "forged" not in json.loads(line)


class Agent:
    """A head whose user agent is any bytes, whatever the parser would say of them."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def get(self, name: bytes) -> bytes | None:
        return self._raw if name == b"user-agent" else None


@given(st.binary(max_size=300))
def test_any_user_agent(raw: bytes) -> None:
    passing = end(exchange(f"/{A}{CHAT}"))
    passing.head = Agent(raw)  # type: ignore[assignment]
    line = EventWriter(NODE).line(passing).decode("utf-8")
    assert len(line.splitlines()) == 1 and line[:-1].isprintable()


def test_lengths_are_capped() -> None:
    passing = full(path="/" + "p" * 30_000, model="m" * 5_000, principal=Principal("s" * 9_000, "jwt", "j" * 9_000))
    assert len(bytes(EventWriter(NODE).line(passing))) < 8_000


@pytest.mark.parametrize("value", [10**30, -(10**30), 2**63, float("nan"), float("inf")])
def test_numbers_that_no_one_expects_are_still_an_event(value: float) -> None:
    event(full(max_tokens=int(value) if math.isfinite(value) else None, temperature=float(value)))


def test_the_document_lists_every_field_and_no_other() -> None:
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text("utf-8")
    listed = re.findall(r"^\| `([a-z_]+)` \| (?:yes|-) \|", text, re.MULTILINE)
    assert listed == FIELDS
