"""From verified evidence and policy to one result: every rule of every platform, all mismatches at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from attest.binding import Claims, Role
from attest.errors import AppraisalFailed, Mismatch
from attest.plugins import SchemeResult
from attest.policy import EvidencePolicy
from attest.schemes.azure import appraise as azure
from attest.schemes.azure import maa_appraise as maa
from attest.schemes.azure.maa import VerifiedMaaToken
from attest.schemes.azure.verify import VerifiedHcl
from attest.schemes.gcp import appraise as gcp
from attest.schemes.gcp import launch as gce
from attest.schemes.gcp.certificate import Instance, instance_claims
from attest.schemes.gcp.token import VerifiedSpaceToken
from attest.schemes.sev_snp import appraise as snp
from attest.schemes.sev_snp.verify import VerifiedReport
from attest.schemes.tdx import appraise as tdx
from attest.schemes.tdx.eventlog import VerifiedLog as VerifiedTdLog
from attest.schemes.tdx.verify import VerifiedQuote as VerifiedTdQuote
from attest.schemes.vtpm import appraise as vtpm
from attest.schemes.vtpm.eventlog import VerifiedLog
from attest.schemes.vtpm.verify import VerifiedQuote

__all__ = ["AttestationResult", "Verified", "appraise", "join"]


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """All that verification has established about one piece of evidence. ``expires``: Unix seconds, earliest end."""

    claims: Claims
    evidence_digest: str
    expires: float
    quote: VerifiedQuote | None = None
    instance: Instance | None = None  # of Google Cloud, that the AK's certificate names
    launch: gce.Launch | None = None  # Google's word for the hardware's measurement
    report: VerifiedReport | None = None
    td_quote: VerifiedTdQuote | None = None
    hcl: VerifiedHcl | None = None  # on Azure, beside the hardware's own report or quote
    maa: VerifiedMaaToken | None = None
    space: VerifiedSpaceToken | None = None
    other: tuple[str, SchemeResult] | None = None  # of a third party's scheme, by its name
    log: VerifiedLog | None = None  # of the quoted PCRs
    td_log: VerifiedTdLog | None = None  # of RTMRs, where no TPM is quoted
    log_comes_later: bool = False  # a passport has no room for one

    @property
    def hardware(self) -> VerifiedReport | VerifiedTdQuote | None:
        """The evidence of hardware that keeps memory from its operator, if there is any."""
        return self.report or self.td_quote

    @property
    def vouched(self) -> bool:
        """Whether a service that has seen such hardware says so, in a token whose rules refuse anything else."""
        other = self.other is not None and self.other[1].confidential
        return other or self.maa is not None or self.space is not None


class AttestationResult(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9334 Attestation Result of accepted evidence; there is none for refused evidence (AppraisalFailed).

    ``platform``: "vtpm", "sev-snp", "tdx", "sev-snp+vtpm", "azure+sev-snp+vtpm", "maa", "gcp", or "none", with
    "simulated-" before what is. ``confidential``: hardware that keeps memory from its operator has vouched.
    ``claims``: verified claims as text. ``expires``: Unix seconds, the earliest end of claims, certificates and tokens;
    the caller adds its own interval.
    ``appraisal_id`` is derived from evidence and policy, so equal inputs give equal ids. ``branch``: the member of a
    composed policy that accepted. ``reference_values``: id → SHA-256 of each file of reference values of the policy.
    """

    verdict: str = "accept"
    platform: str
    confidential: bool
    simulated: bool
    claims: dict[str, str]
    policy_id: str
    policy_digest: str
    node_id: str
    boot_id: bytes
    expires: float
    evidence_digest: str
    appraisal_id: str
    branch: str = ""
    reference_values: dict[str, str] = msgspec.field(default_factory=dict)


def appraise(verified: Verified, policy: EvidencePolicy) -> AttestationResult:
    """The result, or AppraisalFailed with every mismatch in rule order."""
    quote, report, td_quote = verified.quote, verified.report, verified.td_quote
    later = verified.log_comes_later
    reference = policy.reference_values
    mismatches: tuple[Mismatch, ...] = ()
    claims: dict[str, str] = {}
    if report is not None and policy.sev_snp is not None:
        mismatches += snp.appraise_report(report, policy.sev_snp, reference.sev_snp, verified.launch)
        claims |= snp.claims_of(report)
    if td_quote is not None and policy.tdx is not None:
        td_log = verified.td_log
        mismatches += tdx.appraise_quote(
            td_quote, policy.tdx, reference.tdx, td_log, log_comes_later=later, launch=verified.launch
        )
        claims |= tdx.claims_of(td_quote) | (tdx.log_claims_of(td_log) if td_log is not None else {})
    claims |= gce.claims_of(verified.launch)
    if quote is not None and policy.vtpm is not None:
        log, instance = verified.log, verified.instance
        mismatches += vtpm.appraise_quote(
            quote, policy.vtpm, reference.vtpm, log, log_comes_later=later, instance=instance
        )
        claims |= vtpm.claims_of(quote) | (vtpm.log_claims_of(log) if log is not None else {})
        claims |= instance_claims(instance)
    if verified.hcl is not None and policy.azure is not None:
        mismatches += azure.appraise_hcl(verified.hcl, policy.azure, reference.azure)
        claims |= azure.claims_of(verified.hcl)
    if verified.maa is not None and policy.maa is not None:
        mismatches += maa.appraise_maa(verified.maa, policy.maa, reference.maa)
        claims |= maa.claims_of(verified.maa)
    if verified.space is not None and policy.gcp is not None:
        mismatches += gcp.appraise_token(verified.space, policy.gcp, reference.gcp)
        claims |= gcp.claims_of(verified.space)
    if verified.other is not None:
        name, found = verified.other
        mismatches += found.mismatches
        claims |= {f"{name}.{claim}": value for claim, value in found.claims.items()}
    mismatches += _confidentiality(verified, policy)
    if mismatches:
        raise AppraisalFailed(mismatches)
    hardware = verified.hardware
    simulated = hardware is not None and hardware.simulated
    identity = f"{verified.evidence_digest}{policy.digest}".encode()
    return AttestationResult(
        platform=_platform(verified),
        confidential=_is_confidential(verified, policy) and not simulated,
        simulated=simulated,
        claims=claims,
        policy_id=policy.id,
        policy_digest=policy.digest,
        node_id=verified.claims.node_id,
        boot_id=verified.claims.boot_id,
        expires=verified.expires,
        evidence_digest=verified.evidence_digest,
        appraisal_id=hashlib.sha256(b"cube-mesh/1 appraisal\x00" + identity).hexdigest()[:32],
        reference_values=policy.reference_files,
    )


def join(branch: str, results: Sequence[AttestationResult]) -> AttestationResult:
    """One result of a branch whose views all accepted: the least of what each allows to be said."""
    first = results[0]
    claims: dict[str, str] = {}
    for result in results:
        claims |= result.claims
    return msgspec.structs.replace(
        first,
        branch=branch,
        claims=claims,
        expires=min(result.expires for result in results),
        confidential=all(result.confidential for result in results),
    )


def _is_confidential(verified: Verified, policy: EvidencePolicy) -> bool:
    if verified.hardware is not None:
        return not verified.hardware.debug
    if verified.other is not None and verified.other[1].confidential:
        return True
    rules = policy.maa or policy.gcp
    return verified.vouched and rules is not None and not rules.unsafe_allow_debug


def _confidentiality(verified: Verified, policy: EvidencePolicy) -> tuple[Mismatch, ...]:
    """A vTPM alone says what booted, not that the operator cannot read memory: a policy must accept that by name."""
    if (
        verified.hardware is not None
        or verified.vouched
        or (verified.quote is not None and policy.unsafe_accept_vtpm_only)
    ):
        return ()
    if verified.other is not None and verified.quote is None:
        return ()  # the policy names the scheme; what it is worth stands in ``confidential``
    if verified.quote is not None:
        hint = "set unsafe_accept_vtpm_only = true, or ask for hardware evidence"
        return (Mismatch("not_confidential", "confidential", "true", "false", "policy", hint),)
    if policy.none is not None and verified.claims.role is Role.CLIENT:
        return ()
    return (Mismatch("unattested_server", "platform", "evidence of a platform", "none"),)


def _platform(verified: Verified) -> str:
    names = ["azure"] if verified.hcl is not None else []
    if verified.report is not None:
        names.append("simulated-sev-snp" if verified.report.simulated else "sev-snp")
    if verified.td_quote is not None:
        names.append("simulated-tdx" if verified.td_quote.simulated else "tdx")
    if verified.quote is not None:
        names.append("vtpm")
    names += [verified.other[0]] if verified.other is not None else []
    names += [name for name, token in (("maa", verified.maa), ("gcp", verified.space)) if token is not None]
    return "+".join(names) or "none"
