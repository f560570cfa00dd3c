"""The attester's side: what a collector is, and claims + collector → encoded evidence."""

from __future__ import annotations

from typing import Protocol

from attest.binding import Claims, data_hash, encode_claims
from attest.evidence import Evidence, Part, encode_evidence

__all__ = ["Collector", "NoEvidence", "evidence_for"]


class Collector(Protocol):
    """Makes the parts of the evidence for a 32-byte data hash. May block for seconds (device, subprocess) and is
    called by one thread at a time; raises CollectionFailed. It never sees, and so never signs, bytes of a caller.
    """

    scheme: str

    def parts(self, data_hash: bytes) -> dict[int, Part]: ...


class NoEvidence:
    """Attester "none": claims only, vouched for by nothing but the TLS channel that carries them."""

    scheme = "none"

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        return {}


def evidence_for(collector: Collector, claims: Claims) -> bytes:
    """The encoded evidence collection that binds ``claims`` to what ``collector`` can prove about this machine."""
    raw_claims = encode_claims(claims)
    return encode_evidence(Evidence(raw_claims, collector.parts(data_hash(raw_claims))))
