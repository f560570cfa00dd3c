"""The gate of a data connection under a session: ATTACH, ATTACHED, open (attested-TLS protocol §5, §6).

Like ``gate`` a state machine without I/O and clock, made when ``check_handshake`` has passed. One frame each way: the
client's is its first and only one, the server's is the last thing before application data. The evidence was appraised
on the control connection; here each end proves that it holds that connection's session, and nothing is taken on trust.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

import msgspec

from attest.binding import Role
from cube_mesh.tls import sessions
from cube_mesh.tls.frames import (
    ATTACH_BYTES,
    HEADER_BYTES,
    FrameDecoder,
    FrameError,
    FrameType,
    decode_attach,
    decode_attached,
    encode_attach,
    encode_frame,
)
from cube_mesh.tls.gate import (
    Close,
    Facts,
    Plan,
    Send,
    check_no_early_data,
    check_order,
    leaf_hashes,
    refusal_frame,
)
from cube_mesh.tls.identity import PeerLeaf
from cube_mesh.tls.reasons import Phase as GatePhase
from cube_mesh.tls.reasons import Refusal
from cube_mesh.tls.sessions import Session
from cube_mesh.tls.verdict import ACCEPT, decode_result

_MAX_BYTES = 16 * (HEADER_BYTES + ATTACH_BYTES)  # a frame, or a refusal


class Find(msgspec.Struct, frozen=True):
    """A server's: which session is this? Answer with ``AttachGate.found``."""

    session_id: bytes


class OpenAttached(msgspec.Struct, frozen=True):
    """Application data may flow, under ``session``. ``rest`` is what the server has already sent of it."""

    rest: bytes
    session: Session
    expires_at: float
    hard_at: float  # no renewal reaches beyond


AttachCommand = Send | Find | OpenAttached | Close


class State(Enum):
    START = auto()
    ATTACH = auto()  # server: waits for the frame
    FIND = auto()  # server: waits for its host
    ATTACHED = auto()  # client: waits for the frame
    OPEN = auto()
    CLOSED = auto()


class AttachGate:
    """One data connection's gate. ``session`` is the client's; a server finds out."""

    def __init__(self, plan: Plan, facts: Facts, peer: PeerLeaf, session: Session | None = None) -> None:
        self.plan = plan
        self.peer = peer
        self.state = State.START
        self._facts = facts
        self._leaves = leaf_hashes(plan.role, facts.leaf.cert_der, peer)
        self._session = session
        self._proof = b""
        self._value = b""
        self._frames = FrameDecoder(_MAX_BYTES if plan.role is Role.SERVER else 1 << 20)
        self._now = 0.0

    # --- events ---

    def start(self, now: float) -> list[AttachCommand]:
        """A client says ATTACH; a server waits for it."""
        self._now = now
        return self._guarded(self._start)

    def receive(self, data: bytes, now: float) -> list[AttachCommand]:
        """Bytes from inside TLS."""
        self._now = now
        return self._guarded(lambda: self._receive(data))

    def found(self, session: Session, now: float) -> list[AttachCommand]:
        """The session that Find asked for. That there is none is ``failed``."""
        self._now = now
        return self._guarded(lambda: self._found(session))

    def failed(self, reason: str, detail: str = "") -> list[AttachCommand]:
        """Anything that ends the attempt."""
        if self.state in (State.OPEN, State.CLOSED):
            return []
        return self._close(reason, detail)

    # --- transitions ---

    def _guarded(self, step: Callable[[], list[AttachCommand]]) -> list[AttachCommand]:
        if self.state in (State.OPEN, State.CLOSED):
            return []
        try:
            return step()
        except Refusal as refusal:
            return self._close(refusal.reason, refusal.detail)
        except FrameError as error:
            return self._close(error.code, str(error))

    def _start(self) -> list[AttachCommand]:
        if self.plan.role is Role.SERVER:
            self.state = State.ATTACH
            return []
        session = self._session
        if session is None:
            raise Refusal("internal", "ATTACH without a session")
        value = self._bind(session)
        self.state = State.ATTACHED
        return [Send(encode_attach(session.id, sessions.prove(session.agreed.client_key, value)))]

    def _receive(self, data: bytes) -> list[AttachCommand]:
        self._frames.feed(data)
        if self.state is State.FIND:
            check_no_early_data(self._frames.buffered)
        frame = self._frames.next_frame()
        if frame is None:
            return []
        if self.state is State.ATTACH:
            check_order(frame.type, FrameType.ATTACH)
            return self._on_attach(frame.body)
        if frame.type is FrameType.RESULT:
            raise Refusal("refused", _reason(frame.body))
        check_order(frame.type, FrameType.ATTACHED)
        return self._on_attached(frame.body)

    def _on_attach(self, body: bytes) -> list[AttachCommand]:
        check_no_early_data(self._frames.buffered)
        session_id, self._proof = decode_attach(body)
        self.state = State.FIND
        return [Find(session_id)]

    def _found(self, session: Session) -> list[AttachCommand]:
        if self.state is not State.FIND:
            raise Refusal("internal", "a session that nobody asked for")
        value = self._bind(session)
        sessions.check_proof(session.agreed.client_key, value, self._proof)
        answer = encode_frame(FrameType.ATTACHED, sessions.prove(session.agreed.server_key, value))
        return [Send(answer), self._open(session)]

    def _on_attached(self, body: bytes) -> list[AttachCommand]:
        session = self._session
        assert session is not None
        sessions.check_proof(session.agreed.server_key, self._value, decode_attached(body))
        sessions.check_expiry(session, self._now)
        return [self._open(session)]

    def _bind(self, session: Session) -> bytes:
        """What must hold before anything is proven, at both ends; then ``x``."""
        sessions.check_role(session.agreed, self.plan.role)
        sessions.check_leaves(session.agreed, self._leaves)
        sessions.check_expiry(session, self._now)
        self._value = sessions.attach_value(self._facts.exporter, session.id, self._leaves)
        return self._value

    def _open(self, session: Session) -> OpenAttached:
        self.state = State.OPEN
        hard_at = min(self._now + self.plan.max_age_s, self._facts.leaf.not_after, self.peer.not_after)
        return OpenAttached(self._frames.take_rest(), session, min(session.expires_at, hard_at), hard_at)

    def _close(self, reason: str, detail: str) -> list[AttachCommand]:
        phase: GatePhase = "open" if self.state is State.OPEN else "attach"
        self.state = State.CLOSED
        if reason in ("refused", "eof"):  # the peer knows
            return [Close(reason, phase, detail)]
        known = self.plan.role is Role.SERVER and bool(self.plan.roots)
        return [Send(refusal_frame(reason if known else "refused")), Close(reason, phase, detail)]


def _reason(body: bytes) -> str:
    try:
        theirs = decode_result(body)
    except ValueError as error:
        raise Refusal("result_malformed", str(error)) from error
    if theirs.code == ACCEPT:
        raise Refusal("frame_order", "RESULT accepts where ATTACHED was due")
    return theirs.reason
