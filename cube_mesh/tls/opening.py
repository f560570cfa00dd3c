"""From TCP to an open channel: drives the handshake and the gate, then puts a Channel in its own place.

The shell around ``gate``: sockets, clock, deadline and the keeper are here, decisions are there. One task at a time
waits for the keeper; none is created per frame. The inner protocol is made when the gate opens, not before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec
from OpenSSL import SSL, crypto

from attest.appraise import AttestationResult
from attest.binding import Phase, Role
from attest.errors import AttestError
from cube_mesh.ports import ChannelAttestation
from cube_mesh.tls.attach import AttachCommand, AttachGate, Find, OpenAttached
from cube_mesh.tls.channel import Channel, RecordPosition
from cube_mesh.tls.contexts import ALPN_ATTACH, MODE
from cube_mesh.tls.gate import (
    Appraise,
    Close,
    Collect,
    Command,
    Facts,
    Gate,
    Open,
    Plan,
    Register,
    Send,
    check_handshake,
    refusal_frame,
)
from cube_mesh.tls.identity import KnownLeaves, Leaf
from cube_mesh.tls.live import Standing, facts_of
from cube_mesh.tls.port import GateEvent, KeeperPort
from cube_mesh.tls.reasons import Phase as GatePhase
from cube_mesh.tls.reasons import Refusal
from cube_mesh.tls.sessions import Agreed, Session

_log = logging.getLogger(__name__)
_READ = 65_536


class Opening(asyncio.Protocol):
    """One attempt. ``on_end`` is called exactly once, with the inner protocol when the channel opened, else None.

    ``make_tls`` gives the leaf in use and a fresh connection over memory BIOs; ``make_inner`` gets the negotiated ALPN
    protocol. ``timeout_s`` counts from the TCP connection. ``session`` is what a client attaches under;
    ``known`` are the leaves that passed at this end before.
    """

    def __init__(
        self,
        plan: Plan,
        keeper: KeeperPort,
        make_tls: Callable[[], tuple[Leaf, SSL.Connection]],
        make_inner: Callable[[bytes], asyncio.Protocol],
        on_end: Callable[[GateEvent, asyncio.Protocol | None], None],
        timeout_s: float,
        session: Session | None = None,
        known: KnownLeaves | None = None,
    ) -> None:
        self._plan = plan
        self._keeper = keeper
        self._make_tls = make_tls
        self._make_inner = make_inner
        self._on_end = on_end
        self._timeout_s = timeout_s
        self._session = session
        self._known = known
        self._loop = asyncio.get_running_loop()
        self._tcp: asyncio.Transport | None = None
        self._gate: Gate | AttachGate | None = None
        self._facts: Facts | None = None
        self._task: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._position = RecordPosition()
        self._ended = False
        self._started_at = self._secured_at = 0.0

    # --- from TCP ---

    def connection_made(self, transport: Any) -> None:
        self._tcp = transport
        self._started_at = time.perf_counter()
        self._deadline = self._loop.call_later(self._timeout_s, self._timed_out)
        try:
            self._leaf, self._tls = self._make_tls()
        except Refusal as refusal:
            self._refuse(refusal.reason, "tls", refusal.detail)
            return
        except Exception as error:
            _log.exception("no TLS end could be made")
            self._refuse("internal", "tls", repr(error))
            return
        if self._plan.role is Role.CLIENT:
            self._shake()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._position.advance(data)
        self._tls.bio_write(data)
        if self._gate is None:
            self._shake()
        else:
            self._read(self._gate)

    def eof_received(self) -> None:
        self._fail("eof", "TCP ended")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("eof", str(exc) if exc else "connection lost")
        self._cancel_deadline()
        if self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        """Give up: the caller no longer wants the channel."""
        self._fail("eof", "given up by this end")
        if self._tcp is not None:
            self._tcp.abort()

    # --- handshake ---

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return
        except SSL.Error as error:
            self._flush()  # the alert
            self._refuse("handshake", "tls", _describe(error))
            return
        self._flush()
        self._secured_at = time.perf_counter()
        try:
            self._facts = facts = self._read_facts()
            peer = check_handshake(facts, self._plan, time.time(), self._known)
        except Refusal as refusal:
            # Only a peer that failed nothing but the list has proven who it is, and may learn why it is refused.
            known = refusal.reason == "not_allowed" and bool(self._plan.roots)
            self._say(refusal_frame(refusal.reason if known else "refused"))
            self._refuse(refusal.reason, "tls", refusal.detail)
            return
        gate: Gate | AttachGate
        if facts.protocol == ALPN_ATTACH:
            self._gate = gate = AttachGate(self._plan, facts, peer, self._session)
            self._run(gate.start(time.time()))
        else:
            self._gate = gate = Gate(self._plan, facts, peer)
            self._run(gate.start())
        self._read(gate)

    def _read_facts(self) -> Facts:
        tls = self._tls
        leaf = (
            tls.get_peer_certificate()
        )  # as OpenSSL has it: reading it, and refusing what is unreadable, is identity's
        chain = (tls.get_peer_cert_chain() or []) if self._plan.roots else []  # without roots it proves nothing
        return Facts(
            version=tls.get_protocol_version_name(),
            protocol=tls.get_alpn_proto_negotiated(),
            suite=tls.get_cipher_name() or "",
            certificate_seen=tls.get_app_data().certificate_seen,
            peer_leaf=_der(leaf) if leaf else b"",
            peer_chain=tuple(_der(certificate) for certificate in chain),
            exporter=lambda label, context, size: tls.export_keying_material(label, size, context),
            leaf=self._leaf,
        )

    # --- gate ---

    def _read(self, gate: Gate | AttachGate) -> None:
        """Everything that TLS has, to the gate. Stops when the gate opens: what follows is the channel's."""
        while not self._ended:
            try:
                data = self._tls.recv(_READ)
            except SSL.WantReadError:
                return
            except SSL.ZeroReturnError:
                self._run(gate.failed("eof", "close_notify"))
                return
            except SSL.Error as error:
                self._run(gate.failed("eof", _describe(error)))
                return
            self._run(gate.receive(data, time.time()))

    def _run(self, commands: Sequence[Command | AttachCommand]) -> None:
        for command in commands:
            match command:
                case Send(data):
                    self._say(data)
                case Collect():
                    self._start(self._collect(command))
                case Appraise():
                    self._start(self._appraise(command))
                case Register(agreed, result, expires_at):
                    self._start(self._register(self._session_of(agreed, result, expires_at)))
                case Find(session_id):
                    self._find(session_id)
                case Open():
                    self._open(command)
                case OpenAttached():
                    self._open_attached(command)
                case Close(reason, phase, detail):
                    self._refuse(reason, phase, detail)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self._loop.create_task(work)

    async def _collect(self, command: Collect) -> None:
        gate = self._full_gate()
        try:
            evidence = await self._keeper.evidence(
                self._plan.role,
                Phase.POST_HANDSHAKE,
                spki_hash=command.spki_hash,
                nonce=command.nonce,
                channel_binding=command.channel_binding,
                peer_spki_hash=command.peer_spki_hash,
            )
        except (AttestError, Refusal) as error:
            self._run(gate.failed("evidence_unavailable", str(error)))
        except Exception as error:
            _log.exception("the keeper failed to make evidence")
            self._run(gate.failed("internal", repr(error)))
        else:
            self._run(gate.collected(evidence, time.time()))

    async def _appraise(self, command: Appraise) -> None:
        gate = self._full_gate()
        try:
            result = await self._keeper.appraise(command.raw, command.expected, command.policy)
        except AttestError as error:
            self._run(gate.failed(error.code, str(error)))
        except Refusal as refusal:
            self._run(gate.failed(refusal.reason, refusal.detail))
        except Exception as error:
            _log.exception("the keeper failed to appraise")
            self._run(gate.failed("internal", repr(error)))
        else:
            self._run(gate.appraised(result, time.time()))

    async def _register(self, session: Session) -> None:
        gate = self._full_gate()
        try:
            await self._keeper.sessions.register(session)
        except Refusal as refusal:
            self._run(gate.failed(refusal.reason, refusal.detail))
        except Exception as error:
            _log.exception("the keeper failed to take a session")
            self._run(gate.failed("internal", repr(error)))
        else:
            self._run(gate.registered(time.time()))

    def _find(self, session_id: bytes) -> None:
        """The common case, a session that this process knows, takes no task."""
        try:
            found = self._keeper.sessions.find(session_id)
        except Refusal as refusal:
            self._fail(refusal.reason, refusal.detail)
            return
        if isinstance(found, Session):
            self._run(self._attach_gate().found(found, time.time()))
        else:
            self._start(self._found(found))

    async def _found(self, answer: Awaitable[Session]) -> None:
        gate = self._attach_gate()
        try:
            session = await answer
        except Refusal as refusal:
            self._run(gate.failed(refusal.reason, refusal.detail))
        except Exception as error:
            _log.exception("the keeper failed to find a session")
            self._run(gate.failed("internal", repr(error)))
        else:
            self._run(gate.found(session, time.time()))

    # --- ends ---

    def _open(self, command: Open) -> None:
        attestation = self._describe_channel(command.result, command.expires_at)
        info: dict[str, Any] = {}
        if command.agreed is not None:
            info["session"] = self._session_of(command.agreed, command.result, command.expires_at)
        self._become(attestation, info, command.rest)

    def _open_attached(self, command: OpenAttached) -> None:
        session = command.session
        attestation = self._describe_attached(session, command.expires_at)
        live = self._keeper.sessions.live

        def stand(channel: Channel) -> None:
            standing = Standing(session, channel, attestation, command.hard_at)
            live.add(standing)
            channel.on_lost = lambda: live.remove(standing)

        self._become(attestation, {}, command.rest, stand)

    def _become(
        self,
        attestation: ChannelAttestation,
        info: dict[str, Any],
        rest: bytes,
        stand: Callable[[Channel], None] | None = None,
    ) -> None:
        """The gate is open: a channel takes this object's place."""
        tcp, facts = self._tcp, self._facts
        assert tcp is not None and facts is not None
        self._ended = True
        self._cancel_deadline()
        inner = self._make_inner(facts.protocol)
        info |= {
            "attestation": attestation,
            "peer_id": attestation.peer_id,
            "expires_at": attestation.expires_at,
            "mode": attestation.mode,
        }
        channel = Channel(self._tls, tcp, self._position, inner, info)
        tcp.set_protocol(channel)
        if stand is not None:
            stand(channel)
        self._on_end(self._event("ok", "open", "", attestation.peer_id, attestation.platform), inner)
        channel.start(rest, attestation.expires_at - time.time())

    def _session_of(self, agreed: Agreed, result: AttestationResult, expires_at: float) -> Session:
        facts = self._describe_channel(result, expires_at)
        return Session(agreed=agreed, facts=facts, began_at=time.time(), expires_at=expires_at)

    def _describe_attached(self, session: Session, expires_at: float) -> ChannelAttestation:
        """The appraisal is the session's; handshake, times and cipher are this connection's."""
        facts = self._facts
        assert facts is not None
        own = msgspec.structs.replace(
            session.facts,
            mode=self._mode(),
            tls_version=facts.version,
            cipher=facts.suite,
            handshake_ms=(self._secured_at - self._started_at) * 1e3,
            attestation_ms=(time.perf_counter() - self._secured_at) * 1e3,
            session_age_s=max(0.0, time.time() - session.began_at),
        )
        return facts_of(session, own, expires_at)

    def _describe_channel(self, result: AttestationResult, expires_at: float) -> ChannelAttestation:
        gate, facts = self._full_gate(), self._facts
        assert facts is not None
        certificate = gate.peer.certificate
        return ChannelAttestation(
            mode=self._mode(),
            peer_id=str(gate.peer.spiffe_id),
            platform=result.platform,
            verdict=result.verdict,
            confidential=result.confidential,
            simulated=result.simulated,
            policy_id=result.policy_id,
            policy_digest=result.policy_digest,
            appraisal_id=result.appraisal_id,
            expires_at=expires_at,
            tls_version=facts.version,
            cipher=facts.suite,
            peer_cert_issuer=certificate.issuer.rfc4514_string(),
            peer_cert_serial=f"{certificate.serial_number:x}",
            evidence_digest=result.evidence_digest,
            nonce=self._plan.nonce.hex(),
            handshake_ms=(self._secured_at - self._started_at) * 1e3,
            attestation_ms=(time.perf_counter() - self._secured_at) * 1e3,
            claims=result.claims,
        )

    def _fail(self, reason: str, detail: str) -> None:
        if self._ended:
            return
        if self._gate is None:
            self._refuse(reason, "tls", detail)
        else:
            self._run(self._gate.failed(reason, detail))

    def _refuse(self, reason: str, phase: GatePhase, detail: str) -> None:
        if self._ended:
            return
        self._ended = True
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        peer = str(self._gate.peer.spiffe_id) if self._gate else ""
        self._on_end(self._event(reason, phase, detail, peer), None)
        if self._tcp is None:
            return
        if self._secured_at:
            self._shutdown()
        self._tcp.close()  # the deadline still runs: it aborts a connection whose peer does not take our last bytes

    def _shutdown(self) -> None:
        try:
            self._tls.shutdown()
        except SSL.Error:
            return
        self._flush()

    def _timed_out(self) -> None:
        self._fail("timeout", f"not open after {self._timeout_s} s")
        if self._tcp is not None:
            self._tcp.abort()

    def _event(self, reason: str, phase: GatePhase, detail: str, peer_id: str, platform: str = "") -> GateEvent:
        took = (time.perf_counter() - self._started_at) * 1e3 if self._started_at else 0.0
        return GateEvent(reason, phase, self._plan.role.name.lower(), self._mode(), peer_id, took, detail, platform)

    def _mode(self) -> str:
        return MODE.get(self._facts.protocol, "") if self._facts else ""

    def _full_gate(self) -> Gate:
        assert isinstance(self._gate, Gate)
        return self._gate

    def _attach_gate(self) -> AttachGate:
        assert isinstance(self._gate, AttachGate)
        return self._gate

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    # --- bytes out ---

    def _say(self, data: bytes) -> None:
        try:
            self._tls.sendall(data)
        except SSL.Error as error:
            self._fail("eof", _describe(error))
            return
        self._flush()

    def _flush(self) -> None:
        assert self._tcp is not None
        while True:
            try:
                data = self._tls.bio_read(_READ)
            except SSL.WantReadError:
                return
            self._tcp.write(data)
            if len(data) < _READ:  # the BIO gives all that it has
                return


def _der(certificate: crypto.X509) -> bytes:
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


def _describe(error: SSL.Error) -> str:
    """OpenSSL's own words, for the log: "tlsv13 alert certificate required"."""
    queue = error.args[0] if error.args else ""
    if isinstance(queue, list):
        return "; ".join(str(entry[-1]) for entry in queue if entry)
    return str(error) or type(error).__name__
