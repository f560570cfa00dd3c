"""Errors of the library: one root, a branch per way to fail. A verifier returns a value or raises; no booleans."""

from __future__ import annotations

import msgspec


class Mismatch(msgspec.Struct, frozen=True):
    """One appraisal rule that did not hold, as data. ``side`` says whose it is to mend: "attester" or "policy"."""

    code: str  # stable: "measurement", "pcr", "ak_not_pinned", "tcb_floor", "debug", "not_confidential", ...
    claim: str
    expected: str
    actual: str
    side: str = "attester"
    hint: str = ""
    branch: str = ""  # of a composed policy


class AttestError(Exception):
    """Root. ``code`` is the stable reason code that goes into RESULT frames, logs, audit and metrics."""

    code = "attest_failed"
    mismatches: tuple[Mismatch, ...] = ()  # of a composed policy: how each branch failed

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class MalformedEvidence(AttestError):
    """The bytes are not what they claim to be: wrong length, duplicate, trailing, out of range."""

    code = "malformed_evidence"


class UnsupportedEvidence(AttestError):
    """Well formed, and of a kind that this verifier or policy does not accept."""

    code = "unsupported_evidence"


class EndorsementUnavailable(AttestError):
    """A certificate or collateral that the evidence needs was not handed in."""

    code = "endorsement_unavailable"


class VerificationFailed(AttestError):
    """A signature, chain or hash does not hold."""

    code = "verification_failed"


class BindingMismatch(AttestError):
    """Genuine evidence that speaks of another key, nonce, channel, role, node or phase."""

    code = "binding_mismatch"


class Stale(AttestError):
    """Evidence, claims or collateral out of their time."""

    code = "stale"


class PolicyFormatError(AttestError):
    """A policy or its reference values are not usable: unknown key, empty rule, nothing pinned."""

    code = "policy_format"


class CollectionFailed(AttestError):
    """Evidence could not be made on this machine: tool missing, device gone, timeout. Never a relying party's error."""

    code = "collection_failed"


class AppraisalFailed(AttestError):
    """Verified, and not what policy asks for. ``mismatches`` has all of them, in rule order."""

    code = "appraisal_failed"

    def __init__(self, mismatches: tuple[Mismatch, ...]) -> None:
        super().__init__("; ".join(f"{m.code}: expected {m.expected}, got {m.actual}" for m in mismatches))
        self.mismatches = mismatches
        if mismatches:
            self.code = mismatches[0].code
