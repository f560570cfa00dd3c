"""The attester's side: what a collector is, hardware beside a vTPM, and claims + collector → encoded evidence."""

from __future__ import annotations

import hashlib
from typing import Protocol, runtime_checkable

from attest.binding import Claims, ak_report_data, data_hash, encode_claims
from attest.errors import CollectionFailed
from attest.evidence import (
    AUX_DIGEST,
    AUX_DIGEST_TYPE,
    ENDORSEMENTS,
    MAX_AUX_BYTES,
    TPM_QUOTE,
    Evidence,
    Part,
    decode_certificates,
    encode_certificates,
    encode_evidence,
    join_aux,
)
from attest.schemes.vtpm.abi import decode_quote_part

__all__ = ["Closing", "Collector", "HardwareCollector", "NoEvidence", "WithTpm", "evidence_for"]


class Collector(Protocol):
    """Makes the parts of the evidence for a 32-byte data hash. May block for seconds (device, subprocess, metadata
    service) and is called by one thread at a time; raises CollectionFailed. It never sees, and so never signs, bytes of
    a caller.
    """

    scheme: str

    def parts(self, data_hash: bytes) -> dict[int, Part]: ...


class HardwareCollector(Collector, Protocol):
    """A collector whose device signs 64 bytes of report data."""

    def parts_over(self, report_data: bytes) -> dict[int, Part]: ...


@runtime_checkable
class Closing(Protocol):
    """A collector that holds something until it is closed."""

    def close(self) -> None: ...


class NoEvidence:
    """Attester "none": claims only, vouched for by nothing but the TLS channel that carries them."""

    scheme = "none"

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        return {}


class WithTpm:
    """Hardware evidence and a vTPM quote that belong together: the report data names the AK that signed the quote
    (``binding.ak_report_data``), so that a quote of another machine does not fit beside it.
    """

    def __init__(self, hardware: HardwareCollector, tpm: Collector) -> None:
        self.scheme = f"{hardware.scheme}+{tpm.scheme}"
        self._hardware, self._tpm = hardware, tpm

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        """Quote first: its AK goes into the report."""
        quoted = self._tpm.parts(data_hash)
        ak_public = decode_quote_part(quoted[TPM_QUOTE].body).ak_public
        reported = self._hardware.parts_over(ak_report_data(ak_public, data_hash))
        carried = [part for parts in (reported, quoted) if (part := parts.get(ENDORSEMENTS)) is not None]
        both = {**quoted, **reported}
        if carried:
            certificates = [der for part in carried for der in decode_certificates(part.body)]
            both[ENDORSEMENTS] = encode_certificates(tuple(certificates))
        return both

    def close(self) -> None:
        for collector in (self._hardware, self._tpm):
            if isinstance(collector, Closing):
                collector.close()


def evidence_for(collector: Collector, claims: Claims, event_log: bytes = b"") -> bytes:
    """The encoded evidence collection that binds ``claims`` to what ``collector`` can prove about this machine; with an
    ``event_log`` (at most 1 MiB) beside a TPM's quote, the two as ``evidence.join_aux`` writes them.

    Raises CollectionFailed, also for evidence that is too large for a channel (``evidence_too_large``).
    """
    raw_claims = encode_claims(claims)
    parts = collector.parts(data_hash(raw_claims))
    if event_log:
        parts = {**parts, AUX_DIGEST: Part(AUX_DIGEST_TYPE, hashlib.sha256(event_log).digest())}
    if len(event_log) > MAX_AUX_BYTES:
        raise CollectionFailed(f"an event log of {len(event_log)} bytes", code="evidence_too_large")
    try:
        return join_aux(encode_evidence(Evidence(raw_claims, parts)), event_log)
    except ValueError as error:
        raise CollectionFailed(str(error), code="evidence_too_large") from None
