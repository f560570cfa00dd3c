"""What ``tls`` needs of the keeper: async methods, bytes in, frozen values out, as if it were another process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

import msgspec

from attest.appraise import AttestationResult
from attest.binding import Expected, Phase, Role
from cube_mesh.tls.identity import Leaf, SpiffeId
from cube_mesh.tls.live import LiveChannels
from cube_mesh.tls.reasons import Phase as GatePhase
from cube_mesh.tls.sessions import Session

CLAIMS_ONLY = "claims-only"  # the policy for peers whose identity is the mesh CA's: the binding, and no evidence


class SessionsPort(Protocol):
    """The sessions of the node, wherever they are kept. Refusal ``keeper`` when whoever keeps them does not answer."""

    @property
    def live(self) -> LiveChannels:
        """The data connections of this process."""
        ...

    async def register(self, session: Session) -> Session:
        """Keep a session that a control connection has just made; it, with its generation. Renews what stood on the
        one before. Refusal ``session_limit``."""
        ...

    def find(self, session_id: bytes) -> Session | Awaitable[Session]:
        """The session that ATTACH names; Refusal ``session_unknown``."""
        ...

    def to(self, target: str, refused: bytes = b"") -> Session | Awaitable[Session]:
        """The session with an agent, made now if there is none, or if it is the one that the agent has ``refused``.

        However many ask, one control connection is made. DependencyError as by ``connect``.
        """
        ...

    def not_ready(self, target: str) -> str:
        """Why no session with this agent can be had; "" when there is one."""
        ...


class KeeperPort(Protocol):
    """Owner of the leaf key, the TEE or TPM, the evidence policies and the sessions."""

    @property
    def sessions(self) -> SessionsPort: ...

    @property
    def node_id(self) -> SpiffeId: ...

    @property
    def leaf(self) -> Leaf:
        """The current leaf, a new object when it rotates; Refusal ``evidence_unavailable`` when there is none."""
        ...

    @property
    def roots(self) -> tuple[bytes, ...]:
        """DER of the mesh CAs."""
        ...

    async def evidence(
        self,
        role: Role,
        phase: Phase,
        *,
        spki_hash: bytes,
        nonce: bytes | None = None,
        channel_binding: bytes | None = None,
        peer_spki_hash: bytes | None = None,
    ) -> bytes:
        """Evidence of this node, encoded. Waits for its turn at the device; the caller has the deadline."""
        ...

    async def appraise(self, raw: bytes, expected: Expected, policy_name: str) -> AttestationResult:
        """Verify and appraise; raises ``attest.AttestError`` when the evidence is not accepted."""
        ...

    async def appraise_session(self, session: str, policy_name: str) -> AttestationResult:
        """Appraise under a further policy the evidence that a session stands on; ``session`` is its name.

        Raises ``attest.AttestError`` when it is not accepted, Refusal ``session_unknown`` when there is none.
        """
        ...


class GateEvent(msgspec.Struct, frozen=True):
    """How one attempt to open a channel ended: for the log, the metric and the audit event.

    ``reason`` is "ok" or a code of ``reasons``; ``side`` is this node's end. The duration runs from the first TLS byte.
    """

    reason: str
    phase: GatePhase
    side: str  # "client" | "server"
    mode: str
    peer_id: str  # as far as known, proven only when reason is "ok"
    duration_ms: float
    detail: str = ""
    platform: str = ""  # of the appraised evidence, when reason is "ok"


OnGate: TypeAlias = Callable[[GateEvent], None]
