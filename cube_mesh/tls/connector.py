"""The two ends of attested connections as the rest of the node uses them: a Connector and a protocol factory."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import urlsplit

from OpenSSL import SSL

from attest.binding import Role
from cube_mesh.errors import ConfigError, DependencyError
from cube_mesh.settings import Attestation, Upstream
from cube_mesh.tls.authenticator import NONCE_BYTES
from cube_mesh.tls.contexts import (
    ALPN_ATTACH,
    ALPN_CONTROL,
    ALPN_QUOTE,
    SERVED,
    Contexts,
    check_server_name,
    client_connection,
    server_connection,
)
from cube_mesh.tls.gate import Plan
from cube_mesh.tls.identity import KnownLeaves, Leaf, SpiffeId, parse_spiffe_id
from cube_mesh.tls.opening import Opening
from cube_mesh.tls.port import CLAIMS_ONLY, GateEvent, KeeperPort, OnGate
from cube_mesh.tls.reasons import Refusal
from cube_mesh.tls.sessions import Session

_log = logging.getLogger(__name__)
_SERVER_SHARE = 0.8  # the server gives up first, so that its reason reaches the client


def log_gate(event: GateEvent) -> None:
    """The default observer: one line per attempt, a warning when it was refused."""
    level = logging.DEBUG if event.reason == "ok" else logging.WARNING
    _log.log(
        level,
        "attested channel %s: reason=%s phase=%s mode=%s peer=%s duration_ms=%.1f detail=%r",
        event.side, event.reason, event.phase, event.mode, event.peer_id, event.duration_ms, event.detail,
    )  # fmt: skip


class AttestedConnector:
    """``ports.Connector`` to one agent: TCP, TLS 1.3, evidence, gate. ConfigError for a target not fully named."""

    def __init__(
        self,
        upstream: Upstream,
        keeper: KeeperPort,
        attestation: Attestation,
        *,
        timeout_s: float | None = None,
        on_gate: OnGate = log_gate,
    ) -> None:
        self.target = check_target(upstream, keeper.node_id.trust_domain)
        self._host, self._port, self._server_name = _address(upstream)
        self._policy = upstream.policy
        self._attaches = upstream.mode == "session"
        self._keeper = keeper
        self._attestation = attestation
        self._timeout_s = attestation.handshake_timeout_s if timeout_s is None else timeout_s
        self._on_gate = on_gate
        self._contexts = Contexts(server=False)
        self._known = KnownLeaves()

    async def connect(self, protocol_factory: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        """A data connection, open: under the session with the agent, or with a quote of its own, as the mode says.

        One is never taken for the other. DependencyError ``atls_<reason>`` (reasons.py, or the code of the ``attest``
        error) or ``upstream_connect``; only failures that another attempt may not meet are retryable.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        if not self._attaches:
            return await self._open(ALPN_QUOTE, protocol_factory, deadline)
        session = await self._session(deadline)
        event, inner = await self._attempt(ALPN_ATTACH, protocol_factory, deadline, session)
        if inner is None and _is_outdated(event):
            session = await self._session(deadline, refused=session.id)
            event, inner = await self._attempt(ALPN_ATTACH, protocol_factory, deadline, session)
        return inner if inner is not None else _raise_refused(event, self.target)

    async def _session(self, deadline: float, refused: bytes = b"") -> Session:
        """The node's session with the agent. Waits, with everyone else who does, for the one quote that makes it."""
        try:
            found = self._keeper.sessions.to(str(self.target), refused)
            if isinstance(found, Session):
                return found
            async with asyncio.timeout_at(deadline):
                return await found
        except TimeoutError as error:
            raise _refused("timeout", f"{self.target}: no session in time") from error
        except Refusal as refusal:
            raise _refused(refusal.reason, f"{self.target}: {refusal.detail}") from refusal

    async def connect_control(self, protocol_factory: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        """A control connection (``cube-mesh/1``): the agent attests, no application data may follow."""
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        return await self._open(ALPN_CONTROL, protocol_factory, deadline)

    async def _open(self, alpn: bytes, factory: Callable[[], asyncio.Protocol], deadline: float) -> asyncio.Protocol:
        event, inner = await self._attempt(alpn, factory, deadline)
        return inner if inner is not None else _raise_refused(event, self.target)

    async def _attempt(
        self, alpn: bytes, factory: Callable[[], asyncio.Protocol], deadline: float, session: Session | None = None
    ) -> tuple[GateEvent, asyncio.Protocol | None]:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[GateEvent, asyncio.Protocol | None]] = loop.create_future()

        def on_end(event: GateEvent, inner: asyncio.Protocol | None) -> None:
            if not ended.done():
                ended.set_result((event, inner))

        def make_opening() -> Opening:
            left = max(0.0, deadline - loop.time())
            return Opening(
                self._plan(alpn), self._keeper, lambda: self._make_tls(alpn), lambda _: factory(), on_end, left,
                session, self._known,
            )  # fmt: skip

        opening = await self._connect_tcp(make_opening, deadline)
        try:
            event, inner = await ended  # at the latest when its own deadline has passed
        except asyncio.CancelledError:
            opening.abort()
            raise
        self._keeper.sessions.live.attempted(event.mode, event.reason)
        self._on_gate(event)
        return event, inner

    async def _connect_tcp(self, make_opening: Callable[[], Opening], deadline: float) -> Opening:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                _, opening = await loop.create_connection(make_opening, self._host, self._port)
        except TimeoutError as error:
            raise _unreachable("connect timed out", 504) from error
        except OSError as error:
            raise _unreachable(str(error), 502) from error
        return opening

    def _plan(self, alpn: bytes) -> Plan:
        return Plan(
            role=Role.CLIENT,
            protocols=(alpn,),
            trust_domain=self.target.trust_domain,
            allowed=frozenset({str(self.target)}),
            policy=self._policy,
            roots=(),  # the agent's leaf is self-signed: its evidence, under this policy, is what identifies it
            needs_passport=True,
            interval_s=self._attestation.interval_s,
            max_age_s=self._attestation.max_age_s,
            nonce=secrets.token_bytes(NONCE_BYTES),
        )

    def _make_tls(self, alpn: bytes) -> tuple[Leaf, SSL.Connection]:
        leaf = self._keeper.leaf
        return leaf, client_connection(self._contexts.of(leaf), alpn, self._server_name)


class AttestedServer:
    """Protocol factory for ``loop.create_server``: an agent's listener. ``inner_factory`` is called per open channel.

    ``allowed_proxies`` are full SPIFFE ids; ConfigError when the list is empty or names anything but proxies of the
    node's trust domain, or when there is no mesh CA. ``max_opening`` bounds connections whose gate is not open yet.
    """

    def __init__(
        self,
        keeper: KeeperPort,
        inner_factory: Callable[[], asyncio.Protocol],
        attestation: Attestation,
        allowed_proxies: tuple[str, ...],
        *,
        on_gate: OnGate = log_gate,
        max_opening: int = 256,
    ) -> None:
        check_allow_list(allowed_proxies, keeper.node_id.trust_domain)
        if not keeper.roots:
            raise ConfigError("an agent needs the mesh CA to know its proxies by", key="mesh.ca_file")
        self._keeper = keeper
        self._inner_factory = inner_factory
        self._attestation = attestation
        self._allowed = frozenset(allowed_proxies)
        self._on_gate = on_gate
        self._max_opening = max_opening
        self._opening = 0
        self._contexts = Contexts(server=True)
        self._known = KnownLeaves()

    def __call__(self) -> asyncio.Protocol:
        if self._opening >= self._max_opening:
            _log.warning("attested listener: %d connections are opening, one more is turned away", self._opening)
            return _TurnedAway()
        self._opening += 1
        timeout_s = self._attestation.handshake_timeout_s * _SERVER_SHARE
        return Opening(
            self._plan(), self._keeper, self._make_tls, self._make_inner, self._on_end, timeout_s, None, self._known
        )

    def _on_end(self, event: GateEvent, _inner: asyncio.Protocol | None) -> None:
        self._opening -= 1
        self._keeper.sessions.live.attempted(event.mode, event.reason)
        self._on_gate(event)

    def _plan(self) -> Plan:
        return Plan(
            role=Role.SERVER,
            protocols=SERVED,
            trust_domain=self._keeper.node_id.trust_domain,
            allowed=self._allowed,
            policy=CLAIMS_ONLY,
            roots=self._keeper.roots,
            needs_passport=False,
            interval_s=self._attestation.interval_s,
            max_age_s=self._attestation.max_age_s,
            nonce=secrets.token_bytes(NONCE_BYTES),
        )

    def _make_tls(self) -> tuple[Leaf, SSL.Connection]:
        leaf = self._keeper.leaf
        return leaf, server_connection(self._contexts.of(leaf))

    def _make_inner(self, alpn: bytes) -> asyncio.Protocol:
        return ControlEnd() if alpn == ALPN_CONTROL else self._inner_factory()


class ControlEnd(asyncio.Protocol):
    """Either end of a control connection: any application byte on it closes it. ``on_lost`` learns of the end."""

    def __init__(self, on_lost: Callable[[Exception | None], None] | None = None) -> None:
        self._on_lost = on_lost
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        _log.warning("%d bytes of application data on a control connection: closed", len(data))
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._on_lost is not None:
            self._on_lost(exc)


class _TurnedAway(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        transport.abort()


# --- start-up checks ---


def check_target(upstream: Upstream, trust_domain: str) -> SpiffeId:
    """An attested target names the node it expects and the policy its evidence must pass; else ConfigError."""
    key = f"upstreams.{upstream.name}"
    if not upstream.policy:
        raise ConfigError("an attested upstream needs an evidence policy", key=f"{key}.policy")
    if upstream.mode not in ("session", "quote"):
        raise ConfigError(
            f'mode "{upstream.mode}" is not offered by this version: use "session" or "quote"', key=f"{key}.mode"
        )
    try:
        target = parse_spiffe_id(upstream.node_id)
    except ValueError as error:
        raise ConfigError(str(error), key=f"{key}.node_id") from None
    if target.role != "agent" or target.trust_domain != trust_domain:
        raise ConfigError(f"{target} is no agent of trust domain {trust_domain}", key=f"{key}.node_id")
    return target


def check_allow_list(allowed: tuple[str, ...], trust_domain: str) -> None:
    """Only proxies of our trust domain, at least one."""
    key = "mesh.allowed_proxies"
    if not allowed:
        raise ConfigError("an agent names the proxies that may call it; the list is empty", key=key)
    for text in allowed:
        try:
            spiffe_id = parse_spiffe_id(text)
        except ValueError as error:
            raise ConfigError(str(error), key=key) from None
        if spiffe_id.role != "proxy" or spiffe_id.trust_domain != trust_domain:
            raise ConfigError(f"{text} is no proxy of trust domain {trust_domain}", key=key)


def _address(upstream: Upstream) -> tuple[str, int, str]:
    key = f"upstreams.{upstream.name}"
    try:
        url = urlsplit(upstream.url)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise ConfigError(str(error), key=f"{key}.url") from None
    if url.scheme != "atls" or not host or not port:
        raise ConfigError("an attested upstream is atls://host:port", key=f"{key}.url")
    name = upstream.server_name or ("" if _is_address(host) else host)
    if name:
        try:
            check_server_name(name)
        except ValueError as error:
            raise ConfigError(str(error), key=f"{key}.server_name") from None
    return host, port, name


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# --- errors ---

_RETRYABLE = {"eof", "timeout", "handshake", "evidence_unavailable", "keeper"}
_OUTDATED = {"session_unknown", "session_leaf", "session_expired"}  # what a newer session mends


def _cause(event: GateEvent) -> str:
    """The reason of the end that refused: found out here, or said by the agent."""
    return event.detail if event.reason == "refused" else event.reason


def _is_outdated(event: GateEvent) -> bool:
    return _cause(event) in _OUTDATED


def _raise_refused(event: GateEvent, target: SpiffeId) -> NoReturn:
    detail = f"{target}: {event.reason} in phase {event.phase} after {event.duration_ms:.0f} ms: {event.detail}"
    raise _refused(event.reason, detail, _cause(event))


def _refused(reason: str, detail: str, cause: str = "") -> DependencyError:
    return DependencyError(
        f"atls_{reason}",
        "The upstream could not be verified.",
        detail=detail,
        status=504 if reason == "timeout" else 503,
        retryable=(cause or reason) in _RETRYABLE,
    )


def _unreachable(detail: str, status: int) -> DependencyError:
    return DependencyError(
        "upstream_connect", "The upstream could not be reached.", detail=detail, status=status, retryable=True
    )
