"""The open data connections of this process that stand on a session: who is extended by a renewal, who ends at once."""

from __future__ import annotations

from typing import Protocol

import msgspec

from attest.binding import Role
from cube_mesh.ports import ChannelAttestation
from cube_mesh.tls.sessions import Session, name_of


class Extensible(Protocol):
    """What is needed of a channel. Unix times."""

    def extend(self, attestation: ChannelAttestation, expires_at: float) -> None: ...
    def revoke(self) -> None: ...


class Standing:
    """One channel and the session that it stands on now. ``hard_at``: no renewal reaches beyond."""

    __slots__ = ("channel", "facts", "hard_at", "session")

    def __init__(self, session: Session, channel: Extensible, facts: ChannelAttestation, hard_at: float) -> None:
        self.session, self.channel, self.facts, self.hard_at = session, channel, facts, hard_at


class LiveChannels:
    """Channels by peer. ``attaches`` counts how attempts of this process to attach ended, "ok" or the reason;
    ``extended`` how many channels went on under a newer session.
    """

    def __init__(self) -> None:
        self.attaches: dict[str, int] = {}
        self.extended = 0
        self._by_peer: dict[str, set[Standing]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_peer.values()))

    def attempted(self, mode: str, reason: str) -> None:
        """An attempt to open a channel ended; only those of mode "attach" count."""
        if mode == "attach":
            self.attaches[reason] = self.attaches.get(reason, 0) + 1

    def add(self, standing: Standing) -> None:
        self._by_peer.setdefault(standing.session.peer_id, set()).add(standing)

    def remove(self, standing: Standing) -> None:
        """The channel has ended."""
        peers = self._by_peer.get(standing.session.peer_id)
        if peers is not None:
            peers.discard(standing)
            if not peers:
                del self._by_peer[standing.session.peer_id]

    def renewed(self, session: Session) -> int:
        """A newer session with the same peer; how many channels go on under it.

        Same boot, leaf keys and policy: the new expiry. An agent that has booted again: its channels end now. Anything
        else: they end when they would have.
        """
        before = self.extended
        for standing in tuple(self._by_peer.get(session.peer_id, ())):
            old = standing.session
            if session.renews(old):
                standing.session = session
                expires_at = min(session.expires_at, standing.hard_at)
                standing.channel.extend(facts_of(session, standing.facts, expires_at), expires_at)
                self.extended += 1
            elif session.agreed.role is Role.CLIENT is old.agreed.role and not session.same_machine(old):
                standing.channel.revoke()
        return self.extended - before

    def revoked(self, peer_id: str) -> int:
        """Nothing with this peer may go on; how many channels ended."""
        ended = self._by_peer.pop(peer_id, set())
        for standing in ended:
            standing.channel.revoke()
        return len(ended)


def facts_of(session: Session, channel: ChannelAttestation, expires_at: float) -> ChannelAttestation:
    """What is on record about a channel once it stands on ``session``: the appraisal is the session's, the rest its
    own.
    """
    facts = session.facts
    return msgspec.structs.replace(
        channel,
        platform=facts.platform,
        verdict=facts.verdict,
        confidential=facts.confidential,
        simulated=facts.simulated,
        policy_id=facts.policy_id,
        policy_digest=facts.policy_digest,
        appraisal_id=facts.appraisal_id,
        evidence_digest=facts.evidence_digest,
        nonce=facts.nonce,
        claims=facts.claims,
        expires_at=expires_at,
        session=name_of(session.id),
        session_generation=session.generation,
    )
