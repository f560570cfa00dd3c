"""The Protocols through which the chain reaches the world, and the frozen values that cross them.

Stages and connections import only this, ``exchange`` and ``message``; the adapters that implement the ports are known
to ``node`` alone. A port that may have to wait returns *either* the value *or* an awaitable of it: the common case (a
cached key, a warm connection) answers at once, so a request that needs nothing creates no task and suspends nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from cube_mesh.errors import CubeMeshError
    from cube_mesh.exchange import Exchange
    from cube_mesh.message import Response
    from cube_mesh.upstream import UpstreamConnection

__all__ = [
    "Authenticator",
    "Authorizer",
    "AuditSink",
    "Chain",
    "ChannelAttestation",
    "Connector",
    "Done",
    "Endpoint",
    "Gate",
    "Grant",
    "Observer",
    "Principal",
    "Recording",
    "Route",
    "RouteSource",
    "Target",
    "Transport",
    "Verdict",
]


class Principal(msgspec.Struct, frozen=True):
    """Who is calling, as proven by a credential. Says nothing about what it may do.

    ``domain_id`` is set when the credential itself is bound to one domain (an API key always is);
    ``expires_at`` is Unix time, ``inf`` for never.
    """

    subject: str
    method: str  # "api_key" | "jwt" | "mtls"
    credential_id: str  # key id, or the token's jti; never the secret
    domain_id: str | None = None
    expires_at: float = float("inf")


class Grant(msgspec.Struct, frozen=True):
    """The authorizer's yes: the principal's membership in the domain that allowed the permission."""

    domain_id: str
    member_id: str  # the original's DomainUserID: "{domain}_{subject}"
    role: str
    permission: str


class Endpoint(msgspec.Struct, frozen=True):
    """One row of ``policies/authz/endpoints.toml``: what a method and path template mean to us.

    ``name`` is the bounded metric label (the template). ``body`` is ``"json"`` for the endpoints whose request body is
    read whole and scanned, ``"stream"`` for every other.
    """

    name: str
    method: str
    path: str
    permission: str
    operation: str = ""  # OpenTelemetry gen_ai.operation.name: chat, text_completion, embeddings
    body: str = "stream"


class Route(msgspec.Struct, frozen=True):
    """Where a request goes: a rule's name and the name of its upstream."""

    name: str
    upstream: str


class ChannelAttestation(msgspec.Struct, frozen=True):
    """What the gate found out about the peer of one attested channel. Facts only; made by ``tls``, read by audit.

    ``verdict`` is always ``"accept"`` on a channel that carries data. ``claims`` are verified claims as text.
    Times are Unix seconds; durations milliseconds.
    """

    mode: str  # "quote" | "control" | "cert" | "attach"
    peer_id: str
    platform: str
    verdict: str
    confidential: bool
    simulated: bool
    policy_id: str
    policy_digest: str
    appraisal_id: str
    expires_at: float
    tls_version: str
    cipher: str
    peer_cert_issuer: str
    peer_cert_serial: str
    evidence_digest: str
    nonce: str
    handshake_ms: float
    attestation_ms: float
    claims: dict[str, str] = {}
    session: str = ""  # mode "attach": the session's name (a hash of its id), its generation, and how old it was
    session_generation: int = 0
    session_age_s: float = 0.0
    tenant_policy_id: str = ""  # of the request's domain, when it has an evidence policy of its own
    tenant_policy_digest: str = ""


Verdict: TypeAlias = "Response | None"


class Gate(Protocol):
    """A stage that may refuse. ``enter`` gives None to go on, a Response to answer with, or raises CubeMeshError."""

    def enter(self, exchange: Exchange) -> Verdict | Awaitable[Verdict]: ...


Done: TypeAlias = "Callable[[CubeMeshError | None], None]"
"""Called once when something is over: with None when it worked."""


class Recording(Protocol):
    """An event on its way to the trail: ``then`` is called once, at once, and ``done`` when the event is on record."""

    def then(self, done: Done) -> None: ...


class Observer(Protocol):
    """A stage that sees every exchange end, however it ended. ``leave`` must not raise and does not wait.

    A Recording means that the observers behind this one, and the answer's last byte, wait until it is done.
    """

    def leave(self, exchange: Exchange) -> Recording | None: ...


class Chain(Protocol):
    """The stages as the connection sees them: one ``enter``, and one ``leave`` whatever happened in between."""

    def enter(self, exchange: Exchange) -> Response | None | Awaitable[Response | None]: ...
    def leave(self, exchange: Exchange, done: Done) -> None: ...


class Authenticator(Protocol):
    """Turns the value of ``Authorization`` into a Principal, or raises PolicyError(status=401)."""

    def authenticate(self, authorization: bytes) -> Principal | Awaitable[Principal]: ...


class Authorizer(Protocol):
    """Decides whether a principal has a permission in a domain; raises PolicyError(status=403) when not."""

    def authorize(self, principal: Principal, domain_id: str, permission: str) -> Grant | Awaitable[Grant]: ...


class AuditSink(Protocol):
    """Takes one encoded event (a JSON object and a newline). The Recording is done when the event is as durable as
    configured; None = it is already. Raises DependencyError when it cannot be taken.
    """

    def append(self, event: bytes) -> Recording | None: ...

    def close(self) -> None: ...


class RouteSource(Protocol):
    """The current route table; ``match`` gives the first rule that fits, by priority, or None."""

    def match(self, exchange: Exchange) -> Route | None: ...


class Target(Protocol):
    """One upstream as the forward stage hands it to the connection: its pool and the fields of its hop."""

    name: str

    def acquire(self) -> UpstreamConnection | Awaitable[UpstreamConnection]: ...

    def head(self, exchange: Exchange, length: int, data: bytes = b"", pos: int = 0, end: int = 0) -> bytes: ...


class Transport(Protocol):
    """The part of ``asyncio.Transport`` that a connection uses; the attested channel implements it too."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def can_write_eof(self) -> bool: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def get_write_buffer_size(self) -> int: ...


class Connector(Protocol):
    """Opens one ready connection to a target: TCP, TLS or attested TLS, gate passed, deadline included.

    The protocol's ``connection_made`` is called with a Transport whose ``get_extra_info("attestation")`` is a
    ChannelAttestation for an attested target. Raises DependencyError, with the attestation reason code where it was
    that.
    """

    async def connect(self, protocol_factory: Callable[[], asyncio.Protocol]) -> asyncio.Protocol: ...
