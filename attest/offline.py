"""One piece of evidence in files, one verdict: what ``cube-mesh attest verify`` says, for use without a node.

Pure: files come as bytes, ``now`` as a number. Every error of the library becomes a :class:`Verdict`, never an
exception; what was not compared, because nobody said with what, stands in ``unchecked``. A claim reaches a verdict only
after the signature over it has been verified.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from attest.cases import VERIFY, Case, Found, platforms_of, third_party
from attest.composition import try_branches
from attest.errors import AppraisalFailed, AttestError, MalformedEvidence, Mismatch, UnsupportedEvidence
from attest.policy import EvidencePolicy, first_report_policy

__all__ = ["SCHEMES", "Case", "Verdict", "judge"]

SCHEMES = tuple(VERIFY)
MAX_FILE_BYTES = 8 << 20  # of any one input; each parser has its own, smaller bound


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. ``reason`` is a stable code, "ok" for acceptance; ``detail`` says it in words. ``malformed``: refused
    because the bytes are not what they should be, so that nothing could be verified.

    ``claims`` are verified, also beside mismatches. ``confidential``: hardware that keeps memory from its operator has
    vouched. ``branch``: of a composed policy, the one that accepted; mismatches name theirs. ``reference_values``: id →
    SHA-256 of the policy's files of them. ``expires``: Unix seconds, the earliest end of certificates, collateral or
    token; None without.
    """

    verdict: Literal["accept", "reject"]
    reason: str
    detail: str
    scheme: str
    malformed: bool = False
    confidential: bool = False
    mismatches: tuple[Mismatch, ...] = ()
    claims: dict[str, str] = msgspec.field(default_factory=dict)
    unchecked: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()
    policy_id: str = ""
    policy_digest: str = ""
    branch: str = ""
    reference_values: dict[str, str] = msgspec.field(default_factory=dict)
    expires: float | None = None


def judge(case: Case) -> Verdict:
    """Verify and appraise one case. Raises nothing of the library's; KeyError for a scheme that is neither
    built in nor among ``case.schemes``."""
    verify = VERIFY.get(case.scheme, third_party)
    policy, found = case.policy, None
    try:
        if policy is None and case.scheme not in VERIFY:
            return _verdict(case, None, third_party(case, None), None)
        # Without appraisal a composition says nothing: its branches may ask for other parts.
        policy = default_policy(case) if policy is None or (policy.branches and case.verify_only) else policy
        if policy.branches:
            return _composed(case, policy)
        found = verify(case, policy)
        if found.mismatches and not case.verify_only:
            raise AppraisalFailed(found.mismatches)
    except AttestError as error:
        return _verdict(case, policy, found, error)
    return _verdict(case, policy, found, None)


def _composed(case: Case, policy: EvidencePolicy) -> Verdict:
    """The first branch that accepts. AttestError when none does."""

    def accepted(view: EvidencePolicy) -> Found:
        found = VERIFY.get(case.scheme, third_party)(case, view)
        if found.mismatches:
            raise AppraisalFailed(found.mismatches)
        return found

    branch, views = try_branches(policy, accepted)
    ends = [found.expires for found in views if found.expires is not None]
    joined = msgspec.structs.replace(
        views[0],
        claims={name: value for found in views for name, value in found.claims.items()},
        unchecked=tuple(dict.fromkeys(text for found in views for text in found.unchecked)),
        expires=min(ends, default=None),
        confidential=all(found.confidential for found in views),
    )
    answer = _verdict(case, policy, joined, None)
    return msgspec.structs.replace(answer, branch=branch, unsafe=policy.unsafe_of(branch))


def default_policy(case: Case) -> EvidencePolicy:
    """The built-in policy of a scheme: debug, migration, weak hashes and revoked TCB refused, nothing pinned."""
    if case.scheme == "azure":
        return first_report_policy("azure", "vtpm", "sev-snp" if case.td_quote is None else "tdx")
    names = platforms_of(case.evidence) if case.scheme == "bundle" else (case.scheme,)
    if not names:
        raise UnsupportedEvidence("a collection without evidence", code="part_missing")
    return first_report_policy(*names)  # type: ignore[arg-type]  # all of them are platforms


def _verdict(case: Case, policy: EvidencePolicy | None, found: Found | None, error: AttestError | None) -> Verdict:
    unchecked = found.unchecked if found is not None else ()
    if found is not None and case.verify_only:
        unchecked += ("policy: --verify-only stops before appraisal",)
    elif found is not None and case.policy is None:
        unchecked += ("reference values: the built-in policy pins nothing",)
    answer = Verdict(
        verdict="accept" if error is None else "reject",
        reason=error.code if error is not None else "ok",
        detail=str(error) if error is not None else "verified" if case.verify_only else "verified and appraised",
        scheme=case.scheme,
        malformed=isinstance(error, MalformedEvidence),
        confidential=found is not None and found.confidential and error is None,
        mismatches=error.mismatches if error is not None else (),
        claims=found.claims if found is not None else {},
        unchecked=unchecked,
        expires=found.expires if found is not None else None,
    )
    if case.verify_only or policy is None:
        return answer
    name = "default" if case.policy is None else policy.id
    return msgspec.structs.replace(
        answer,
        unsafe=policy.unsafe,
        policy_id=name,
        policy_digest=policy.digest,
        reference_values=policy.reference_files,
    )
