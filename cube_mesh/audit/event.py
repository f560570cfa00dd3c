"""The audit event: what is on record about one exchange. Facts only; what is not known is null, nothing is estimated.

Names are those of the article's event where the meaning is the same. docs/audit.md lists every field with its source of
truth, and a test holds it to this file. There is no field for prompts, answers, credentials or header lists.
"""

from __future__ import annotations

import msgspec

from cube_mesh.errors import DependencyError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import ChannelAttestation
from cube_mesh.text import Stamp, clean

SCHEMA = 1
MAX_PATH = 1024  # characters that are kept
_MAX_CHANNELS = 1024


class Session(msgspec.Struct, frozen=True):
    """Who called. ``domain_id``, ``domain_user_id`` and ``role`` are there only when authz granted them."""

    type: str
    user_id: str
    credential_id: str
    domain_id: str | None
    domain_user_id: str | None
    role: str | None


class Event(msgspec.Struct, frozen=True):
    """One line of the trail."""

    schema: int
    event_type: str
    timestamp: str
    request_id: str
    trace_id: str
    node_id: str
    domain_id: str
    session: Session | None
    auth_method: str | None
    method: str
    path: str
    endpoint: str | None
    client_ip: str
    client_tls_version: str
    user_agent: str | None
    status_code: int
    outcome: str
    error_code: str | None
    error: str | None
    request_size: int
    response_size: int
    duration_ms: float
    upstream_ms: float | None
    first_byte_ms: float | None
    model: str | None
    stream: bool
    temperature: float | None
    max_tokens: int | None
    input_tokens: int | None
    output_tokens: int | None
    route: str | None
    upstream: str | None
    upstream_status: int | None
    attestation_ok: bool | None
    attestation_error: str | None
    attestation_type: str | None
    attestation_mode: str | None
    attestation_nonce: str | None
    attestation_report: msgspec.Raw | None
    atls_handshake: bool
    atls_handshake_ms: float | None
    tls_version: str | None
    cipher_suite: str | None
    peer_id: str | None
    peer_cert_issuer: str | None
    peer_cert_serial: str | None
    confidential: bool | None
    simulated: bool
    unsafe: bool


class Report(msgspec.Struct, frozen=True):
    """``attestation_report``: the appraisal that let the channel carry data, and the claims that it verified."""

    appraisal_id: str
    verdict: str
    policy_id: str
    policy_digest: str
    evidence_digest: str
    expires: str
    attestation_ms: float
    claims: dict[str, str]


class EventWriter:
    """Turns exchanges into encoded events. ``unsafe`` says that the node was started with an ``unsafe_`` setting."""

    def __init__(self, node_id: str, *, unsafe: bool = False) -> None:
        self._node_id = node_id
        self._unsafe = unsafe
        self._stamp = Stamp()
        self._encode = msgspec.json.Encoder().encode
        self._encode_lines = msgspec.json.Encoder().encode_lines
        self._reports: dict[int, tuple[ChannelAttestation, msgspec.Raw]] = {}

    def line(self, exchange: Exchange) -> bytes:
        """The event as one JSON object and a newline."""
        return self._encode_lines([self.event(exchange)])

    def event(self, exchange: Exchange) -> Event:
        principal, grant, error = exchange.principal, exchange.grant, exchange.error
        endpoint, route, channel = exchange.endpoint, exchange.route, exchange.attestation
        session = None
        if principal is not None:
            session = Session(
                principal.method,
                clean(principal.subject, 512),
                clean(principal.credential_id),
                grant.domain_id if grant is not None else None,
                clean(grant.member_id, 600) if grant is not None else None,
                grant.role if grant is not None else None,
            )
        refused = _attestation_error(exchange)
        agent = exchange.head.get(b"user-agent")
        started, sent, ended = exchange.started_at, exchange.forwarded_at, exchange.ended_at
        first = exchange.first_byte_at
        model = exchange.model
        return Event(
            SCHEMA,
            "llm_request",
            self._stamp(exchange.started_wall),
            exchange.request_id,
            exchange.trace_id,
            self._node_id,
            exchange.domain_id,
            session,
            principal.method if principal is not None else None,
            exchange.method,
            clean(exchange.path, MAX_PATH),
            endpoint.name if endpoint is not None else None,
            exchange.client_ip,
            exchange.client_tls_version,
            clean(agent.decode("utf-8", "replace")) if agent is not None else None,
            exchange.status,
            exchange.outcome,
            error.code if error is not None else None,
            clean(error.detail or error.message, 512) if error is not None else None,
            exchange.request_size,
            exchange.response_size,
            int((ended - started) * 1e6) / 1e3,
            int((ended - sent) * 1e6) / 1e3 if sent else None,
            int((first - sent) * 1e6) / 1e3 if first and sent else None,
            clean(model) if model is not None else None,
            exchange.stream,
            exchange.temperature,
            exchange.max_tokens,
            exchange.input_tokens,
            exchange.output_tokens,
            route.name if route is not None else None,
            exchange.upstream or None,
            exchange.upstream_status or None,
            True if channel is not None else False if refused is not None else None,
            refused,
            channel.platform if channel is not None else None,
            channel.mode if channel is not None else None,
            channel.nonce if channel is not None else None,
            self._report(channel) if channel is not None else None,
            channel is not None,
            channel.handshake_ms if channel is not None else None,
            channel.tls_version if channel is not None else None,
            channel.cipher if channel is not None else None,
            channel.peer_id if channel is not None else None,
            channel.peer_cert_issuer if channel is not None else None,
            channel.peer_cert_serial if channel is not None else None,
            channel.confidential if channel is not None else None,
            channel.simulated if channel is not None else False,
            self._unsafe,
        )

    def _report(self, channel: ChannelAttestation) -> msgspec.Raw:
        """The encoded report of a channel, made once per channel: the entry holds it, so its id stays its own."""
        known = self._reports.get(id(channel))
        if known is not None:
            return known[1]
        report = Report(
            channel.appraisal_id,
            channel.verdict,
            channel.policy_id,
            channel.policy_digest,
            channel.evidence_digest,
            Stamp()(channel.expires_at),
            channel.attestation_ms,
            {clean(name): clean(value) for name, value in channel.claims.items()},
        )
        if len(self._reports) >= _MAX_CHANNELS:
            del self._reports[next(iter(self._reports))]
        raw = msgspec.Raw(self._encode(report))
        self._reports[id(channel)] = (channel, raw)
        return raw


def _attestation_error(exchange: Exchange) -> str | None:
    """The reason code when the upstream was refused by the attestation gate: the connector failed, nothing was sent,
    and the code is not one of plain connections, which all start with ``upstream_``.
    """
    error = exchange.error
    if exchange.target is None or exchange.forwarded_at or not isinstance(error, DependencyError):
        return None
    return None if error.code.startswith("upstream_") or error.code == "audit_unavailable" else error.code
