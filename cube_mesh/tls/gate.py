"""The gate: what must hold between a TLS handshake and the first application byte (attested-TLS protocol §6).

A state machine without I/O and without a clock. The host feeds events (bytes, evidence made, evidence appraised, a
failure) and carries out the commands that come back, in order. ``Open`` comes at most once and is the only way to
application data; after ``Close`` nothing comes.

            client                              server
    TLS_DONE  checks of the leaf                checks of the leaf
    PASSPORT  appraise the leaf's evidence      -
    ATTEST    REQUEST ->                        <- REQUEST
              <- [AUX], AUTHENTICATOR           (collects evidence)
    APPRAISE  validate, appraise                -
              [AUX], AUTHENTICATOR, RESULT ->   validate, appraise
    RESULT    <- RESULT                         RESULT must be there, and nothing behind it
    REGISTER  -                                 control: the session is kept before RESULT leaves
    OPEN

The server answers last and only with the client's acceptance in hand. A client cannot have seen that answer when it
wrote what the server holds at this moment, so every byte behind the client's RESULT is early data, and refused.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from hashlib import sha256

import msgspec

from attest.appraise import AttestationResult
from attest.binding import Expected, Phase, Role, exporter_context, exporter_label
from attest.evidence import has_aux, join_aux, split_aux
from cube_mesh.tls import identity
from cube_mesh.tls.authenticator import (
    AuthenticatorError,
    Exporter,
    build_authenticator,
    build_request,
    exported_keys,
    parse_request,
    validate_authenticator,
)
from cube_mesh.tls.frames import FrameDecoder, FrameError, FrameType, encode_frame
from cube_mesh.tls.identity import Leaf, PeerLeaf
from cube_mesh.tls.reasons import Phase as GatePhase
from cube_mesh.tls.reasons import Refusal
from cube_mesh.tls.sessions import Agreed, session_keys
from cube_mesh.tls.verdict import ACCEPT, REFUSE, Result, decode_result, encode_result


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Local policy for one connection, decided before it begins; nothing in it is negotiated.

    ``allowed`` are full SPIFFE ids. ``policy`` names the evidence policy of the keeper for the peer. ``roots`` are the
    mesh CAs that the peer's chain must end in; the empty tuple means that the peer's evidence is its identity
    (``needs_passport``), never that any chain will do.
    """

    role: Role  # of this end
    protocols: tuple[bytes, ...]  # ALPN: the one that a client offers, those that a server serves
    trust_domain: str
    allowed: frozenset[str]
    policy: str
    roots: tuple[bytes, ...]
    needs_passport: bool
    interval_s: float
    max_age_s: float
    nonce: bytes  # ours, 32 fresh random bytes

    def __post_init__(self) -> None:
        if not self.allowed or not (self.roots or self.needs_passport):
            raise ValueError("a plan names its peers and how they prove themselves")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the TLS library reports about the finished handshake. ``exporter`` is a pure function of the connection."""

    version: str
    protocol: bytes
    suite: str
    certificate_seen: bool
    peer_leaf: bytes
    peer_chain: tuple[bytes, ...]
    exporter: Exporter
    leaf: Leaf  # ours


class Send(msgspec.Struct, frozen=True):
    data: bytes


class Collect(msgspec.Struct, frozen=True):
    """Make evidence of this node for this channel; answer with ``Gate.collected``."""

    spki_hash: bytes
    nonce: bytes
    channel_binding: bytes
    peer_spki_hash: bytes


class Appraise(msgspec.Struct, frozen=True):
    """Appraise the peer's evidence; answer with ``Gate.appraised``."""

    raw: bytes
    expected: Expected
    policy: str


class Register(msgspec.Struct, frozen=True):
    """A server's: keep this session before the client can know that it exists; answer with ``Gate.registered``."""

    agreed: Agreed
    result: AttestationResult
    expires_at: float


class Open(msgspec.Struct, frozen=True):
    """Application data may flow. ``rest`` is what the peer has already sent of it (a server's only).

    ``agreed`` is there on a control connection: the session that it leaves behind.
    """

    rest: bytes
    result: AttestationResult
    expires_at: float
    agreed: Agreed | None = None


class Close(msgspec.Struct, frozen=True):
    reason: str
    phase: GatePhase
    detail: str


Command = Send | Collect | Appraise | Register | Open | Close


CONTROL = b"cube-mesh/1"  # ALPN of the connections that leave a session behind
_TRANSCRIPT = (
    (Role.CLIENT, FrameType.REQUEST),
    (Role.SERVER, FrameType.REQUEST),
    (Role.SERVER, FrameType.AUTHENTICATOR),
    (Role.CLIENT, FrameType.AUTHENTICATOR),
    (Role.SERVER, FrameType.RESULT),
    (Role.CLIENT, FrameType.RESULT),
)


class State(Enum):
    START = auto()
    PASSPORT = auto()
    REQUEST = auto()
    COLLECT = auto()
    AUTHENTICATOR = auto()
    APPRAISE = auto()
    RESULT = auto()
    REGISTER = auto()
    OPEN = auto()
    CLOSED = auto()


_PHASE: dict[State, GatePhase] = {
    State.START: "tls",
    State.PASSPORT: "appraise",
    State.REQUEST: "attest",
    State.COLLECT: "attest",
    State.AUTHENTICATOR: "attest",
    State.APPRAISE: "appraise",
    State.RESULT: "result",
    State.REGISTER: "result",
    State.OPEN: "open",
    State.CLOSED: "open",
}


class Gate:
    """One connection's gate, made when ``check_handshake`` has passed and not before."""

    def __init__(self, plan: Plan, facts: Facts, peer: PeerLeaf) -> None:
        self.plan = plan
        self.peer = peer
        self.peer_nonce = b""
        self.state = State.START
        self._facts = facts
        self._leaf_hashes = leaf_hashes(plan.role, facts.leaf.cert_der, peer)
        self._request = build_request(plan.role, plan.nonce)
        self._peer_request = b""
        self._aux = b""  # the peer's, which its evidence must name
        self._frames = FrameDecoder()
        self._peer_known = bool(plan.roots)  # its identity is proven, so it may read our reasons
        self._result: AttestationResult | None = None
        self._appraised_evidence: Appraise | None = None
        self._bodies: dict[tuple[Role, FrameType], bytes] = {(plan.role, FrameType.REQUEST): self._request}
        self._agreed: Agreed | None = None
        self._expires_at = 0.0
        self._now = 0.0  # of the last event

    # --- events ---

    def start(self) -> list[Command]:
        """Begin: appraise the passport in the leaf where one is due, then send our REQUEST."""
        return self._guarded(self._start)

    def receive(self, data: bytes, now: float) -> list[Command]:
        """Bytes from inside TLS. Kept while the gate waits for its host; never given to the application before OPEN."""
        self._now = now
        return self._guarded(lambda: self._receive(data))

    def collected(self, evidence: bytes, now: float) -> list[Command]:
        """The host made the evidence that Collect asked for."""
        self._now = now
        return self._guarded(lambda: self._collected(evidence))

    def appraised(self, result: AttestationResult, now: float) -> list[Command]:
        """The host accepted the evidence that Appraise asked about. Refusing is ``failed``."""
        self._now = now
        return self._guarded(lambda: self._appraised(result))

    def registered(self, now: float) -> list[Command]:
        """The host keeps the session that Register gave it."""
        self._now = now
        return self._guarded(self._registered)

    def failed(self, reason: str, detail: str = "") -> list[Command]:
        """Anything that ends the attempt: deadline, end of the stream, evidence refused, a fault of the host."""
        return self._guarded(lambda: _refuse(reason, detail))

    # --- transitions ---

    def _guarded(self, step: Callable[[], list[Command]]) -> list[Command]:
        if self.state in (State.OPEN, State.CLOSED):
            return []
        try:
            return step()
        except Refusal as refusal:
            return self._close(refusal.reason, refusal.detail)
        except (FrameError, AuthenticatorError) as error:
            return self._close(error.code, str(error))

    def _start(self) -> list[Command]:
        if not self.plan.needs_passport:
            return self._send_request()
        self.state = State.PASSPORT
        expected = Expected(
            role=peer_role(self.plan.role),
            phase=Phase.PASSPORT,
            node_id=str(self.peer.spiffe_id),
            spki_hash=expected_key(self.peer),
        )
        return [Appraise(identity.passport_of(self.peer), expected, self.plan.policy)]

    def _send_request(self) -> list[Command]:
        self.state = State.REQUEST
        return [Send(encode_frame(FrameType.REQUEST, self._request)), *self._advance()]

    def _receive(self, data: bytes) -> list[Command]:
        self._frames.feed(data)
        return self._advance()

    def _advance(self) -> list[Command]:
        """Take frames for as long as the state wants one; a state that waits for the host takes none."""
        commands: list[Command] = []
        while (due := _DUE.get(self.state)) is not None:
            frame = self._frames.next_frame()
            if frame is None:
                break
            wanted, step = due
            if frame.type is FrameType.RESULT and wanted is not FrameType.RESULT:
                raise Refusal("refused", _peer_reason(frame.body))
            if frame.type is FrameType.AUX and wanted is FrameType.AUTHENTICATOR and not self._aux:
                self._aux = check_aux(frame.body)
                continue
            check_order(frame.type, wanted)
            self._bodies[peer_role(self.plan.role), frame.type] = frame.body
            commands += step(self, frame.body)
        return commands

    def _on_request(self, body: bytes) -> list[Command]:
        self.peer_nonce = parse_request(peer_role(self.plan.role), body)
        self._peer_request = body
        if self.plan.role is Role.CLIENT:  # it answers when it has accepted the server
            self.state = State.AUTHENTICATOR
            return []
        return [self._collect()]

    def _collect(self) -> Collect:
        self.state = State.COLLECT
        binding = channel_binding(self._facts.exporter, self.plan.role, self.peer_nonce, self._leaf_hashes)
        return Collect(self._facts.leaf.spki_hash, self.peer_nonce, binding, self.peer.spki_hash)

    def _collected(self, evidence: bytes) -> list[Command]:
        if self.state is not State.COLLECT:
            raise Refusal("internal", "evidence that nobody asked for")
        facts, role = self._facts, self.plan.role
        keys = exported_keys(facts.exporter, facts.suite, role)
        collection, aux = split_aux(evidence)
        body = build_authenticator(keys, self._peer_request, facts.leaf.cert_der, collection, facts.leaf.sign)
        self._bodies[role, FrameType.AUTHENTICATOR] = body
        before = encode_frame(FrameType.AUX, aux) if aux else b""
        send = Send(before + encode_frame(FrameType.AUTHENTICATOR, body))
        if role is Role.SERVER:
            self.state = State.AUTHENTICATOR
            return [send, *self._advance()]
        self.state = State.RESULT
        return [send, self._accept(), *self._advance()]

    def _on_authenticator(self, body: bytes) -> list[Command]:
        facts, peer, sender = self._facts, self.peer, peer_role(self.plan.role)
        keys = exported_keys(facts.exporter, facts.suite, sender)
        authenticator = validate_authenticator(keys, self._request, peer.der, body)
        attester = expected_role(self.plan.role)
        expected = Expected(
            role=attester,
            phase=Phase.POST_HANDSHAKE,
            node_id=str(peer.spiffe_id),
            spki_hash=expected_key(peer),
            nonce=self.plan.nonce,
            channel_binding=channel_binding(facts.exporter, attester, self.plan.nonce, self._leaf_hashes),
            peer_spki_hash=facts.leaf.spki_hash,
        )
        raw = join_aux(_one_collection(authenticator.evidence), self._aux)
        self.state = State.APPRAISE
        self._appraised_evidence = Appraise(raw, expected, self.plan.policy)
        return [self._appraised_evidence]

    def _appraised(self, result: AttestationResult) -> list[Command]:
        if self.state is State.PASSPORT:
            return self._send_request()
        if self.state is not State.APPRAISE:
            raise Refusal("internal", "an appraisal that nobody asked for")
        self._result = result
        self._peer_known = True
        plan, now = self.plan, self._now
        ends = (
            plan.interval_s + now,
            plan.max_age_s + now,
            self._facts.leaf.not_after,
            self.peer.not_after,
            result.expires,
        )
        self._expires_at = min(ends)
        if plan.role is Role.CLIENT:
            return [self._collect()]
        self.state = State.RESULT
        return self._advance()

    def _on_result(self, body: bytes) -> list[Command]:
        theirs = _decode(body)
        if theirs.code != ACCEPT:
            raise Refusal("refused", theirs.reason)
        self._expires_at = min(self._expires_at, theirs.expires)
        self._check_not_expired()
        result = self._accepted()
        if self.plan.role is Role.CLIENT:
            return [self._open(result, self._agree(result))]
        check_no_early_data(self._frames.buffered)
        accept = self._accept()
        agreed = self._agree(result)
        if agreed is None:
            return [accept, self._open(result, None)]
        self.state, self._agreed = State.REGISTER, agreed
        return [Register(agreed, result, self._expires_at)]

    def _registered(self) -> list[Command]:
        """The session is kept, so the client may hear of it. What it sent meanwhile it sent without an answer."""
        if self.state is not State.REGISTER:
            raise Refusal("internal", "a session that nobody made")
        check_no_early_data(self._frames.buffered)
        self._check_not_expired()
        body = self._bodies[Role.SERVER, FrameType.RESULT]
        return [Send(encode_frame(FrameType.RESULT, body)), self._open(self._accepted(), self._agreed)]

    def _open(self, result: AttestationResult, agreed: Agreed | None) -> Open:
        self.state = State.OPEN
        return Open(self._frames.take_rest(), result, self._expires_at, agreed)

    def _agree(self, result: AttestationResult) -> Agreed | None:
        """The session of a control connection, from its exporter and its six frames (§5)."""
        facts, appraised = self._facts, self._appraised_evidence
        if facts.protocol != CONTROL or appraised is None:
            return None
        session_id, client_key, server_key = session_keys(
            facts.exporter, tuple(self._bodies[role, kind] for role, kind in _TRANSCRIPT)
        )
        keys = (facts.leaf.spki_hash, self.peer.spki_hash)
        return Agreed(
            role=self.plan.role,
            id=session_id,
            client_key=client_key,
            server_key=server_key,
            leaves=self._leaf_hashes,
            leaf_keys=keys if self.plan.role is Role.CLIENT else (keys[1], keys[0]),
            peer_boot_id=result.boot_id,
            evidence=appraised.raw,
            expected=appraised.expected,
        )

    def _check_not_expired(self) -> None:
        if self._expires_at <= self._now:
            raise Refusal("expired", f"at {self._expires_at:.0f}, it is {self._now:.0f}")

    def _accept(self) -> Send:
        self._check_not_expired()
        result = self._accepted()
        body = encode_result(Result(ACCEPT, "ok", result.appraisal_id, result.policy_digest, int(self._expires_at)))
        self._bodies[self.plan.role, FrameType.RESULT] = body
        return Send(encode_frame(FrameType.RESULT, body))

    def _accepted(self) -> AttestationResult:
        if self._result is None:
            raise Refusal("internal", "RESULT before an appraisal")
        return self._result

    def _close(self, reason: str, detail: str) -> list[Command]:
        phase = _PHASE[self.state]
        self.state = State.CLOSED
        if reason in ("refused", "eof"):  # the peer knows
            return [Close(reason, phase, detail)]
        return [Send(refusal_frame(reason if self._peer_known else "refused")), Close(reason, phase, detail)]


def refusal_frame(reason: str) -> bytes:
    """A RESULT that refuses. Callers give ``reason`` to a peer whose identity is proven, ``"refused"`` to any other."""
    return encode_frame(FrameType.RESULT, encode_result(Result(REFUSE, reason, "", "", 0)))


_DUE: dict[State, tuple[FrameType, Callable[[Gate, bytes], list[Command]]]] = {
    State.REQUEST: (FrameType.REQUEST, Gate._on_request),
    State.AUTHENTICATOR: (FrameType.AUTHENTICATOR, Gate._on_authenticator),
    State.RESULT: (FrameType.RESULT, Gate._on_result),
}


# --- the defences, one function each ---


def check_handshake(facts: Facts, plan: Plan, now: float, known: identity.KnownLeaves | None = None) -> PeerLeaf:
    """TLS_DONE (§6): every check of the finished handshake, in order; the peer's leaf when all hold.

    A leaf that is ``known``, for plans with the same roots, is not read again, nor is its chain verified again.
    """
    check_version(facts.version)
    check_protocol(facts.protocol, plan.protocols)
    check_not_resumed(facts.certificate_seen)
    before = known.get(facts.peer_leaf, facts.peer_chain, now) if known is not None else None
    peer = before or (identity.parse_peer_leaf(facts.peer_leaf) if facts.peer_leaf else _no_leaf())
    identity.check_trust_domain(peer, plan.trust_domain)
    identity.check_role(peer, peer_role(plan.role))
    identity.check_validity(peer, now)
    if plan.roots and before is None:
        identity.check_chain(peer, facts.peer_chain, plan.roots, now)
    identity.check_expected(peer, plan.allowed)
    if known is not None and before is None:
        known.remember(peer, facts.peer_chain, plan.roots, now)
    return peer


def check_version(version: str) -> None:
    if version != "TLSv1.3":
        raise Refusal("tls_version", version)


def check_protocol(negotiated: bytes, wanted: tuple[bytes, ...]) -> None:
    """ALPN was negotiated and is one that this end serves or asked for."""
    if not negotiated or negotiated not in wanted:
        raise Refusal("alpn", repr(negotiated))


def check_not_resumed(certificate_seen: bool) -> None:
    """The peer's certificate was verified in this very handshake; OpenSSL skips that when it resumes a session."""
    if not certificate_seen:
        raise Refusal("resumed")


def check_order(received: FrameType, wanted: FrameType) -> None:
    if received is not wanted:
        raise Refusal("frame_order", f"{received.name} where {wanted.name} was due")


def check_aux(body: bytes) -> bytes:
    """An event log has at least one byte. That it is the one that the evidence names, the verifier sees."""
    if not body:
        raise Refusal("frame_size", "an empty AUX frame")
    return body


def check_no_early_data(buffered: int) -> None:
    """Nothing may lie behind a client's RESULT before the server has answered it."""
    if buffered:
        raise Refusal("early_data", f"{buffered} bytes")


def peer_role(own: Role) -> Role:
    """The TLS role of the other end."""
    return Role.SERVER if own is Role.CLIENT else Role.CLIENT


def expected_role(own: Role) -> Role:
    """The role in the claims and the exporter label of the peer's evidence: never our own, so that nothing that we
    would send can be sent back to us."""
    return peer_role(own)


def expected_key(peer: PeerLeaf) -> bytes:
    """The key that the evidence must name is the one that terminates TLS here, not one that the peer tells us of."""
    return peer.spki_hash


def leaf_hashes(own: Role, own_der: bytes, peer: PeerLeaf) -> tuple[bytes, bytes]:
    """SHA-256 of the client's and of the server's leaf, in this order."""
    ours, theirs = sha256(own_der).digest(), peer.leaf_hash
    return (ours, theirs) if own is Role.CLIENT else (theirs, ours)


def channel_binding(exporter: Exporter, attester: Role, nonce: bytes, hashes: tuple[bytes, bytes]) -> bytes:
    """``cb`` of §4: a value that only the two ends of this connection can compute, for this nonce and these leaves."""
    return exporter(exporter_label(attester), exporter_context(nonce, *hashes), 32)


def _one_collection(evidence: bytes) -> bytes:
    """What is in an authenticator is a collection alone: an event log comes in its own frame, bounded there."""
    if has_aux(evidence):
        raise Refusal("authenticator_malformed", "an event log in it")
    return evidence


def _no_leaf() -> PeerLeaf:
    raise Refusal("no_leaf")


def _refuse(reason: str, detail: str) -> list[Command]:
    raise Refusal(reason, detail)


def _decode(body: bytes) -> Result:
    try:
        return decode_result(body)
    except ValueError as error:
        raise Refusal("result_malformed", str(error)) from error


def _peer_reason(body: bytes) -> str:
    """The reason in a RESULT that comes out of turn; only a refusal may."""
    theirs = _decode(body)
    if theirs.code == ACCEPT:
        raise Refusal("frame_order", "RESULT accepts before there is an authenticator")
    return theirs.reason
