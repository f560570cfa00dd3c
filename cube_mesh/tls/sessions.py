"""Attested sessions: what a control connection leaves, and what ATTACH proves with it (attested-TLS protocol §5).

Values and a table; no I/O, and the clock is an argument. A session's two keys come from the control connection's
exporter over everything that was said on it, so they exist at its two ends and nowhere else. The proofs that they make
are bound to the exporter of one data connection: a recorded one is worth nothing on another.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Iterator
from hashlib import sha256

import msgspec

from attest.binding import Expected, Role
from cube_mesh.ports import ChannelAttestation
from cube_mesh.tls.authenticator import Exporter
from cube_mesh.tls.reasons import Refusal

ID_BYTES, PROOF_BYTES = 16, 32
SESSION_LABEL, ATTACH_LABEL = b"EXPORTER-cube-mesh-session", b"EXPORTER-cube-mesh-attach"
MAX_SESSIONS = 4096  # of one node
MAX_PER_PEER = 8  # machines that one peer id may speak for at a time, by boot id


class Agreed(msgspec.Struct, frozen=True, kw_only=True):
    """What both ends of a control connection have in common once both have accepted. ``repr`` shows no key.

    Leaves and keys are those of the control connection, client first, as SHA-256. ``evidence`` and ``expected`` are
    what this end has appraised: a further policy is appraised against exactly these.
    """

    role: Role  # of this end; ATTACH is made, or accepted, in this role alone
    id: bytes
    client_key: bytes
    server_key: bytes
    leaves: tuple[bytes, bytes]
    leaf_keys: tuple[bytes, bytes]
    peer_boot_id: bytes
    evidence: bytes = b""
    expected: Expected | None = None

    def __repr__(self) -> str:
        return f"Agreed({name_of(self.id)})"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A session as one end keeps it. ``facts`` describe the control connection that it came from.

    Times are Unix seconds. ``expires_at`` is the lesser of what both RESULTs said. ``generation`` counts the sessions
    with this peer, from 1.
    """

    agreed: Agreed
    facts: ChannelAttestation
    began_at: float
    expires_at: float
    generation: int = 0

    @property
    def id(self) -> bytes:
        return self.agreed.id

    @property
    def peer_id(self) -> str:
        return self.facts.peer_id

    def same_machine(self, other: Session) -> bool:
        """Whether ``other`` is with the same boot of the same peer: else nothing that was accepted then holds now."""
        return self.peer_id == other.peer_id and self.agreed.peer_boot_id == other.agreed.peer_boot_id

    def renews(self, other: Session) -> bool:
        """Whether connections under ``other`` may go on under this one: same machine, same policy, same leaf keys."""
        mine, theirs = self.agreed, other.agreed
        return (
            self.same_machine(other)
            and mine.role is theirs.role
            and mine.leaf_keys == theirs.leaf_keys
            and self.facts.policy_digest == other.facts.policy_digest
        )

    def without_evidence(self) -> Session:
        """The same for a process that attaches and does not appraise."""
        return msgspec.structs.replace(self, agreed=msgspec.structs.replace(self.agreed, evidence=b"", expected=None))


def name_of(session_id: bytes) -> str:
    """A session's name for logs, events and metrics: it identifies, and opens nothing."""
    return sha256(b"cube-mesh/1 sid name\0" + session_id).hexdigest()[:16]


# --- keys and proofs ---


def transcript(*bodies: bytes) -> bytes:
    """``T``: the bodies of REQ_c, REQ_s, AUTH_s, AUTH_c, RES_s and RES_c, in this order."""
    if len(bodies) != 6:
        raise ValueError("a session is made of six frames")
    return sha256(b"cube-mesh/1 session\0" + b"".join(sha256(body).digest() for body in bodies)).digest()


def session_keys(exporter: Exporter, bodies: tuple[bytes, ...]) -> tuple[bytes, bytes, bytes]:
    """(id, Kc, Ks) from the control connection's exporter and its six frames."""
    secret = exporter(SESSION_LABEL, transcript(*bodies), 32)
    return (
        expand(secret, b"cube-mesh/1 sid", ID_BYTES),
        expand(secret, b"cube-mesh/1 attach client", 32),
        expand(secret, b"cube-mesh/1 attach server", 32),
    )


def expand(secret: bytes, info: bytes, size: int) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869 §2.3) for at most one block, 32 bytes."""
    if not 1 <= size <= 32:
        raise ValueError(f"{size} bytes")
    return hmac.digest(secret, info + b"\x01", "sha256")[:size]


def attach_value(exporter: Exporter, session_id: bytes, leaves: tuple[bytes, bytes]) -> bytes:
    """``x``: what only the two ends of this data connection can compute, for this session and these leaves."""
    context = sha256(b"cube-mesh/1 attach\0" + session_id + leaves[0] + leaves[1]).digest()
    return exporter(ATTACH_LABEL, context, 32)


def prove(key: bytes, value: bytes) -> bytes:
    """HMAC-SHA256: a client's proof with Kc, a server's with Ks."""
    return hmac.digest(key, value, "sha256")


# --- the defences of ATTACH, one function each ---


def check_role(agreed: Agreed, own: Role) -> None:
    """The end that was client of the control connection is client here, too."""
    if agreed.role is not own:
        raise Refusal("session_role", f"{name_of(agreed.id)} as {own.name.lower()}")


def check_leaves(agreed: Agreed, leaves: tuple[bytes, bytes]) -> None:
    """Both leaves are those of the control connection."""
    ours, theirs = b"".join(agreed.leaves), b"".join(leaves)
    if not hmac.compare_digest(ours, theirs):
        raise Refusal("session_leaf", name_of(agreed.id))


def check_expiry(session: Session, now: float) -> None:
    if session.expires_at <= now:
        raise Refusal("session_expired", f"{name_of(session.id)} at {session.expires_at:.0f}, it is {now:.0f}")


def check_proof(key: bytes, value: bytes, proof: bytes) -> None:
    """The other end holds its key of the session, on this very connection."""
    if not hmac.compare_digest(prove(key, value), proof):
        raise Refusal("session_proof")


# --- the table ---


class SessionTable:
    """The sessions of one node that take ATTACH: one with each agent, and one with each boot of each proxy; bounded.

    A proxy may run more than once under one id, on several machines; an agent id is one machine. A new session
    takes the old one's place at once. ``add`` and ``revoke`` give the sessions that have gone.
    """

    def __init__(self) -> None:
        self._by_id: dict[bytes, Session] = {}
        self._generations: dict[tuple[str, Role], int] = {}
        self._next_expiry = math.inf  # nothing ends before

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_id.values())

    def add(self, session: Session, now: float) -> tuple[Session, list[Session]]:
        """Take a session in; it, with its generation, and those that it has replaced or pushed out."""
        self.expire(now)
        key = (session.peer_id, session.agreed.role)
        known = [other for other in self if (other.peer_id, other.agreed.role) == key]
        gone = [other for other in known if session.agreed.role is Role.CLIENT or session.same_machine(other)]
        kept = len(known) - len(gone)
        if kept >= MAX_PER_PEER:
            gone.append(min((other for other in known if other not in gone), key=lambda other: other.began_at))
        elif len(self) - len(gone) >= MAX_SESSIONS:
            raise Refusal("session_limit", f"{len(self)} sessions")
        for other in gone:
            del self._by_id[other.id]
        generation = self._generations[key] = self._generations.get(key, 0) + 1
        session = msgspec.structs.replace(session, generation=generation)
        self._by_id[session.id] = session
        self._next_expiry = min(self._next_expiry, session.expires_at)
        return session, gone

    def find(self, session_id: bytes, now: float) -> Session:
        """The session that takes ATTACH under this id; Refusal ``session_unknown``: replaced, revoked, ended."""
        self.expire(now)
        session = self._by_id.get(session_id)
        if session is None:
            raise Refusal("session_unknown", name_of(session_id))
        return session

    def named(self, name: str, now: float) -> Session:
        """The session with this name (``name_of``); Refusal ``session_unknown``."""
        self.expire(now)
        session = next((one for one in self if name_of(one.id) == name), None)
        if session is None:
            raise Refusal("session_unknown", name)
        return session

    def with_agent(self, peer_id: str, now: float) -> Session | None:
        """The session to attach to ``peer_id`` under."""
        self.expire(now)
        return next((one for one in self if one.peer_id == peer_id and one.agreed.role is Role.CLIENT), None)

    def revoke(self, peer_id: str) -> list[Session]:
        """Forget every session with this peer."""
        gone = [session for session in self if session.peer_id == peer_id]
        for session in gone:
            del self._by_id[session.id]
        return gone

    def next_expiry(self) -> float:
        """When the next key ends; ``inf`` when there is none."""
        return min((session.expires_at for session in self), default=math.inf)

    def expire(self, now: float) -> None:
        """Drop the keys of what has ended."""
        if now < self._next_expiry:
            return
        for session in [session for session in self if session.expires_at <= now]:
            del self._by_id[session.id]
        self._next_expiry = self.next_expiry()
