"""The audit event: what is on record about one exchange. Facts only; what is not known is null, nothing is estimated.

Names are those of the article's event where the meaning is the same. docs/audit.md lists every field with its source of
truth, and a test holds it to this file. There is no field for prompts, answers, credentials or header lists.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cube_mesh._fastpath import EventLines
from cube_mesh.errors import CubeMeshError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import ChannelAttestation, Grant, Principal
from cube_mesh.text import Stamp, clean

SCHEMA = 1
MAX_PATH = 1024  # characters that are kept
_MAX_KEPT = 1024  # entries of each cache


class Request(msgspec.Struct, frozen=True, gc=False):
    """What is new in every event. Written in C (``_fastpath/lines.pxi``), in this order and with these names."""

    timestamp: str
    request_id: str
    trace_id: str
    domain_id: str
    method: str
    path: str
    endpoint: str | None
    client_ip: str
    client_tls_version: str
    client_tls_subject: str | None
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


class Session(msgspec.Struct, frozen=True):
    """Who called. ``domain_id``, ``domain_user_id`` and ``role`` are there only when authz granted them."""

    type: str
    user_id: str
    credential_id: str
    domain_id: str | None
    domain_user_id: str | None
    role: str | None


class Caller(msgspec.Struct, frozen=True):
    """The same for every request of a principal with a grant."""

    session: Session | None = None
    auth_method: str | None = None


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


class Channel(msgspec.Struct, frozen=True):
    """The same for every request on one attested channel; the defaults are those of a channel without attestation."""

    attestation_ok: bool | None = None
    attestation_error: str | None = None
    attestation_type: str | None = None
    attestation_mode: str | None = None
    attestation_nonce: str | None = None
    attestation_report: Report | None = None
    atls_handshake: bool = False
    atls_handshake_ms: float | None = None
    tls_version: str | None = None
    cipher_suite: str | None = None
    peer_id: str | None = None
    peer_cert_issuer: str | None = None
    peer_cert_serial: str | None = None
    confidential: bool | None = None
    simulated: bool = False
    attested_session: str | None = None
    attested_session_generation: int | None = None
    attested_session_age_s: float | None = None
    tenant_policy_id: str | None = None
    tenant_policy_digest: str | None = None


class Node(msgspec.Struct, frozen=True):
    """The same for every event of a node. ``unsafe``: it was started with an ``unsafe_`` setting."""

    schema: int
    event_type: str
    node_id: str
    unsafe: bool


PARTS: tuple[type[msgspec.Struct], ...] = (Request, Caller, Channel, Node)
"""An event is one flat object: the fields of these four, in this order."""


class EventWriter(EventLines):
    """Turns exchanges into encoded events: ``line(exchange)``. Parts that repeat are encoded once and kept while
    they are in use.
    """

    def __init__(self, node_id: str, *, unsafe: bool = False) -> None:
        self._encode = msgspec.json.Encoder().encode
        super().__init__(Stamp(), self._tail(Node(SCHEMA, "llm_request", node_id, unsafe), last=True))
        self._nobody = self._tail(Caller())
        self._plain = self._tail(Channel())
        self._callers: dict[tuple[int, int], tuple[Principal, Grant | None, bytes]] = {}
        self._channels: dict[int, tuple[ChannelAttestation, bytes]] = {}

    def _tail(self, part: msgspec.Struct, *, last: bool = False) -> bytes:
        """A part as it stands behind another one: ``{"a":1}`` becomes ``,"a":1``, with the end of the line if it is
        last.
        """
        body = self._encode(part)
        return b"," + (body[1:] + b"\n" if last else body[1:-1])

    def _caller(self, exchange: Exchange) -> bytes:
        principal, grant = exchange.principal, exchange.grant
        if principal is None:
            return self._nobody
        known = self._callers.get((id(principal), id(grant)))  # the entry holds both, so the ids stay theirs
        if known is not None:
            return known[2]
        session = Session(
            principal.method,
            clean(principal.subject, 512),
            clean(principal.credential_id),
            grant.domain_id if grant is not None else None,
            clean(grant.member_id, 600) if grant is not None else None,
            grant.role if grant is not None else None,
        )
        tail = self._tail(Caller(session, principal.method))
        _make_room(self._callers)
        self._callers[id(principal), id(grant)] = (principal, grant, tail)
        return tail

    def _channel(self, exchange: Exchange) -> bytes:
        channel = exchange.attestation
        if channel is None:
            reason = _attestation_error(exchange.error)
            return self._plain if reason is None else self._tail(Channel(False, reason))
        known = self._channels.get(id(channel))
        if known is not None:
            return known[1]
        tail = self._tail(_facts(channel))
        _make_room(self._channels)
        self._channels[id(channel)] = (channel, tail)
        return tail


def _facts(channel: ChannelAttestation) -> Channel:
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
    return Channel(
        channel.verdict == "accept",
        None,
        channel.platform,
        channel.mode,
        channel.nonce,
        report,
        True,
        channel.handshake_ms,
        channel.tls_version,
        channel.cipher,
        channel.peer_id,
        clean(channel.peer_cert_issuer),
        channel.peer_cert_serial,
        channel.confidential,
        channel.simulated,
        channel.session or None,
        channel.session_generation or None,
        round(channel.session_age_s, 3) if channel.session else None,
        channel.tenant_policy_id or None,
        channel.tenant_policy_digest or None,
    )


def _make_room(cache: dict[Any, Any]) -> None:
    if len(cache) >= _MAX_KEPT:
        del cache[next(iter(cache))]


def _attestation_error(error: CubeMeshError | None) -> str | None:
    """The reason code when the upstream was refused by the attestation gate: the connector's codes start with
    ``atls_``.
    """
    if error is None or not error.code.startswith("atls_"):
        return None
    return error.code.removeprefix("atls_")
