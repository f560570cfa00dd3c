"""Why a channel was refused: the stable codes that go into RESULT frames, logs, audit events and metrics.

``REASONS`` are the codes of this package; a refusal by the evidence itself carries the code of the ``attest`` error
(``binding_mismatch``, ``stale``, ``measurement``, ...) unchanged.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Phase: TypeAlias = Literal["tls", "attest", "appraise", "result", "attach", "open"]

REASONS = {
    "handshake": "the TLS handshake failed (version, certificate request, alert from the peer)",
    "tls_version": "not TLS 1.3",
    "alpn": "no protocol, or not the one that this end asked for",
    "resumed": "the handshake did not verify the peer's certificate: a resumed session",
    "no_leaf": "the peer sent no certificate",
    "leaf_malformed": "the peer's certificate is unreadable, does not name exactly one SPIFFE id, or repeats itself",
    "leaf_key": "the peer's key is not P-256",
    "leaf_expired": "the peer's certificate is not valid now, or valid for too long",
    "wrong_role": "the certificate's role or extended key usage is not the one of this end of the connection",
    "trust_domain": "the peer's identity is of another trust domain",
    "not_allowed": "the peer's identity is not one that this node expects",
    "chain": "the peer's certificate does not end in the mesh CA",
    "evidence_missing": "the peer's certificate does not carry exactly one evidence extension",
    "frame_type": "bytes that are no frame where a frame was due",
    "frame_size": "a frame above its limit, or an empty one",
    "frame_total": "more attestation bytes than one connection may send",
    "frame_order": "a frame out of its order",
    "early_data": "application data before this end had accepted the peer",
    "authenticator_malformed": "an authenticator or request outside the profile",
    "authenticator_context": "an authenticator for another request",
    "authenticator_signature": "the authenticator's signature does not verify",
    "authenticator_finished": "an authenticator made for another connection",
    "authenticator_leaf": "the authenticator's certificate is not the one of the handshake",
    "evidence_too_large": "evidence that does not fit the authenticator",
    "evidence_unavailable": "this end could not make its own evidence",
    "result_malformed": "an unreadable RESULT",
    "refused": "the peer refused this end; its reason is in the detail",
    "expired": "the accepted state ends before it begins",
    "session_unknown": "ATTACH names a session that this node does not have, or no longer takes connections under",
    "session_role": "ATTACH in the other TLS role than the control connection's",
    "session_leaf": "the leaves are not those of the session's control connection",
    "session_expired": "the session has ended",
    "session_proof": "ATTACH or ATTACHED was not made with this session's key on this connection",
    "session_limit": "more sessions than this node keeps",
    "keeper": "the process that holds evidence and sessions does not answer",
    "timeout": "the deadline passed",
    "eof": "the peer closed the connection before the gate opened",
    "internal": "a fault of this node",
}


class Refusal(Exception):
    """A channel is refused. ``detail`` is for the log of this node; the peer may see ``reason``, never ``detail``."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
