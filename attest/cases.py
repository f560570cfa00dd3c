"""Evidence in files, by scheme: which verifications a case needs, in which order, and what then is there to appraise.

Each function gives a :class:`Found` or raises an AttestError. A comparison that was not asked for is named in
``unchecked``, so that nobody takes its absence for a yes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import msgspec
from cryptography import x509

from attest.binding import Expected, decode_claims
from attest.chain import load_certificate
from attest.collateral import Endorsements, parse_collateral
from attest.errors import AppraisalFailed, EndorsementUnavailable, Mismatch
from attest.evidence import (
    AZURE_HCL_TYPE,
    HARDWARE,
    LAUNCH_ENDORSEMENT,
    TDX_QUOTE_TYPE,
    TOKEN,
    TPM_QUOTE,
    decode_evidence,
)
from attest.forms import parse_ak, parse_pcrs, parse_tpm_signature, quoted_pcrs, sorted_endorsements
from attest.jws import parse_jwks, parse_token
from attest.plugins import Scheme, judge
from attest.policy import EvidencePolicy
from attest.schemes.azure import appraise as azure_rules
from attest.schemes.azure import maa_appraise as maa_rules
from attest.schemes.azure import verify as azure
from attest.schemes.azure.abi import parse_hcl
from attest.schemes.azure.maa import own_issuer, verify_maa
from attest.schemes.gcp import appraise as gcp_rules
from attest.schemes.gcp import launch as gce
from attest.schemes.gcp.certificate import Instance, instance_claims, verify_ak_instance, verify_vtpm_certificate
from attest.schemes.gcp.token import ISSUER, verify_oidc_token, verify_pki_token
from attest.schemes.sev_snp import appraise as snp_rules
from attest.schemes.sev_snp.verify import VerifiedReport, check_report_data, verify_report
from attest.schemes.tdx import appraise as tdx_rules
from attest.schemes.tdx import eventlog as tdx_eventlog
from attest.schemes.tdx import verify as tdx
from attest.schemes.vtpm import appraise as vtpm_rules
from attest.schemes.vtpm.abi import QuotePart, encode_quote_part, parse_quote
from attest.schemes.vtpm.eventlog import VerifiedLog, verify_event_log
from attest.schemes.vtpm.verify import AkKey, VerifiedQuote, verify_quote, verify_quote_by_key
from attest.verifier import Verifier, launch_of

__all__ = ["VERIFY", "Case", "Found", "platforms_of", "third_party"]

_UNREAD_LAUNCH = "launch endorsement: no rule of the policy asks for one"
_FOREIGN = "the scheme: its code is a third party's"
Mismatches = tuple[Mismatch, ...]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence and all that is to be compared with it. ``evidence`` by scheme: a raw SNP report, TDX quote,
    TPMS_ATTEST, HCL report, or token. ``endorsements``: files of certificates (PEM or DER, any order), collateral or
    Google's launch endorsements.

    ``ak``, ``signature``, ``pcrs`` belong to a vTPM quote, ``event_log`` to that or to a TDX quote alone; with Azure,
    ``quote`` is the TPMS_ATTEST and ``td_quote`` the quote of a trust domain. ``policy`` None: the built-in one that
    pins nothing. ``verify_only`` stops before appraisal. ``now``: Unix seconds.
    """

    scheme: str
    evidence: bytes
    now: float
    endorsements: tuple[bytes, ...] = ()
    policy: EvidencePolicy | None = None
    verify_only: bool = False
    report_data: bytes | None = None
    nonce: bytes | None = None
    quote: bytes | None = None
    signature: bytes | None = None
    ak: bytes | None = None
    pcrs: bytes | None = None
    event_log: bytes | None = None
    td_quote: bytes | None = None
    jwks: bytes | None = None
    issuer: str | None = None
    audience: str | None = None
    schemes: tuple[Scheme, ...] = ()  # third parties' that the caller has named


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Verified claims, what policy says of them, and what was left uncompared. ``expires``: Unix seconds or None."""

    claims: dict[str, str]
    mismatches: Mismatches
    unchecked: tuple[str, ...] = ()
    expires: float | None = None
    confidential: bool = False


def _unless(given: object, text: str) -> tuple[str, ...]:
    return () if given is not None else (text,)


def _no_table(name: str) -> Mismatches:
    return (Mismatch("part_unknown", "platform", f"a table [{name}] in the policy", "none", "policy"),)


# -- hardware ----------------------------------------------------------------------------------------------------------


def _snp(case: Case, policy: EvidencePolicy) -> Found:
    given = sorted_endorsements(case.endorsements)
    policy = _asking(case, policy, given)
    masked = policy.sev_snp is not None and policy.sev_snp.unsafe_allow_masked_chip_id
    verified = verify_report(case.evidence, given.certificates, case.now, crls=given.crls, allow_masked_chip_id=masked)
    if case.report_data is not None:
        check_report_data(verified.report, case.report_data)
    launch = launch_of(policy, verified, None, given, case.now)
    found = Found(
        claims=snp_rules.claims_of(verified) | {"report_data": verified.report.report_data.hex()},
        mismatches=_snp_mismatches(verified, policy, launch),
        unchecked=_unless(case.report_data, "report data: whom the report speaks for (--report-data)"),
        expires=verified.expires,
        confidential=not verified.report.policy.debug,
    )
    return _launched(found, launch, given)


def _asking(case: Case, policy: EvidencePolicy, given: Endorsements) -> EvidencePolicy:
    """The built-in policy pins nothing, but who hands in a launch endorsement wants it looked at."""
    if case.policy is not None or not given.launch:
        return policy
    snp, td = policy.sev_snp, policy.tdx
    if snp is not None:
        snp = msgspec.structs.replace(snp, launch_endorsement=gce.SnpLaunchRules(min_svn=1))
    if td is not None:
        td = msgspec.structs.replace(td, launch_endorsement=gce.LaunchRules(min_svn=1))
    return msgspec.structs.replace(policy, sev_snp=snp, tdx=td)


def _launched(found: Found, launch: gce.Launch | None, given: Endorsements) -> Found:
    """What a launch endorsement adds, or that nobody asked for it."""
    if launch is None:
        unread = (_UNREAD_LAUNCH,) if given.launch else ()
        return msgspec.structs.replace(found, unchecked=found.unchecked + unread)
    ends = [end for end in (found.expires, launch.expires) if end is not None]
    return msgspec.structs.replace(found, claims=found.claims | gce.claims_of(launch), expires=min(ends))


def _snp_mismatches(verified: VerifiedReport, policy: EvidencePolicy, launch: gce.Launch | None = None) -> Mismatches:
    if policy.sev_snp is None:
        return _no_table("sev-snp")
    return snp_rules.appraise_report(verified, policy.sev_snp, policy.reference_values.sev_snp, launch)


def _tdx(case: Case, policy: EvidencePolicy) -> Found:
    verified = _td_quote(case.evidence, case)
    given = sorted_endorsements(case.endorsements)
    policy = _asking(case, policy, given)
    if case.report_data is not None:
        tdx.check_report_data(verified.quote, case.report_data)
    claims = tdx_rules.claims_of(verified) | {"report_data": verified.quote.report.report_data.hex()}
    log = None
    if case.event_log is not None:
        rtmrs = (policy.tdx or tdx_rules.Rules()).event_log_rtmrs
        log = tdx_eventlog.verify_event_log(case.event_log, verified.quote.report, rtmrs)
        claims |= tdx_rules.log_claims_of(log)
    launch = launch_of(policy, None, verified, given, case.now)
    found = Found(
        claims=claims,
        mismatches=_tdx_mismatches(verified, policy, log, launch),
        unchecked=_unless(case.report_data, "report data: whom the quote speaks for (--report-data)"),
        expires=verified.expires,
        confidential=not _td_debug(verified),
    )
    return _launched(found, launch, given)


def _td_quote(raw: bytes, case: Case) -> tdx.VerifiedQuote:
    collateral = sorted_endorsements(case.endorsements).collateral
    if len(collateral) != 1:
        raise EndorsementUnavailable(
            f"one set of collateral is needed, {len(collateral)} were handed in", code="collateral_missing"
        )
    return tdx.verify_quote(raw, tdx.verify_collateral(parse_collateral(collateral[0]), case.now), case.now)


def _td_debug(verified: tdx.VerifiedQuote) -> bool:
    return bool(verified.quote.report.td_attributes[0] & 1)


def _tdx_mismatches(
    verified: tdx.VerifiedQuote,
    policy: EvidencePolicy,
    log: tdx_eventlog.VerifiedLog | None = None,
    launch: gce.Launch | None = None,
) -> Mismatches:
    if policy.tdx is None:
        return _no_table("tdx")
    return tdx_rules.appraise_quote(verified, policy.tdx, policy.reference_values.tdx, log, launch=launch)


# -- vTPM --------------------------------------------------------------------------------------------------------------


def _vtpm(case: Case, policy: EvidencePolicy) -> Found:
    quote, log, unchecked = _quote(case, policy, case.evidence, None)
    certificates = sorted_endorsements(case.endorsements).certificates
    claims: dict[str, str] = _claims(quote, log)
    expires: float | None = None
    instance: Instance | None = None
    reference = policy.reference_values.vtpm
    if reference.ak_roots:
        instance, expires = _ak_roots(quote, certificates, reference.ak_roots, case.now)
    elif certificates:
        instance, expires = verify_vtpm_certificate(quote.key, certificates, case.now)
    elif not reference.ak_names:
        unchecked += ("AK: nothing says that this key lives in a TPM of yours",)
    return Found(
        claims=claims | instance_claims(instance),
        mismatches=_vtpm_mismatches(quote, log, case, policy, instance),
        unchecked=unchecked,
        expires=expires,
        confidential=False,
    )


def _ak_roots(
    quote: VerifiedQuote, certificates: Sequence[x509.Certificate], roots: Sequence[str], now: float
) -> tuple[Instance | None, float]:
    trusted = [load_certificate(pem.encode()) for pem in roots]
    return verify_ak_instance(quote, certificates, trusted, now)


def _quote(
    case: Case, policy: EvidencePolicy, attest: bytes, known: AkKey | None
) -> tuple[VerifiedQuote, VerifiedLog | None, tuple[str, ...]]:
    """``known``: the AK when something verified names it already; a file with the AK must then hold the same."""
    if case.signature is None or case.pcrs is None or (case.ak is None and known is None):
        raise EndorsementUnavailable("a quote needs its signature, AK and PCR values", code="part_missing")
    key, public = parse_ak(case.ak) if case.ak is not None else (known, b"")
    assert key is not None
    pcrs = quoted_pcrs(attest, parse_pcrs(case.pcrs))
    nonce = parse_quote(attest).extra_data if case.nonce is None else case.nonce
    allow = policy.vtpm is not None and policy.vtpm.unsafe_allow_sha1
    if public:
        body = encode_quote_part(QuotePart(attest, case.signature, public, pcrs))
        quote = verify_quote(body, nonce, unsafe_allow_sha1=allow)
    else:
        signature = parse_tpm_signature(case.signature, key)
        quote = verify_quote_by_key(attest, signature, key, pcrs, nonce, unsafe_allow_sha1=allow)
    log = verify_event_log(case.event_log, quote) if case.event_log is not None else None
    unchecked = _unless(case.nonce, "nonce: whether the quote is fresh (--nonce)")
    if not public and known is None:
        unchecked += ("AK attributes: a bare key does not say that it is a restricted key of a TPM",)
    return quote, log, unchecked


def _claims(quote: VerifiedQuote, log: VerifiedLog | None) -> dict[str, str]:
    claims = vtpm_rules.claims_of(quote) | {"nonce": quote.quote.extra_data.hex()}
    return claims | (vtpm_rules.log_claims_of(log) if log is not None else {})


def _vtpm_mismatches(
    quote: VerifiedQuote, log: VerifiedLog | None, case: Case, policy: EvidencePolicy, instance: Instance | None
) -> Mismatches:
    rules = policy.vtpm
    if rules is None:
        return _no_table("vtpm")
    if case.policy is None:  # the built-in policy asks for no PCR in particular: those of this quote
        bank = next((b for b in ("sha256", "sha384", "sha512") if quote.pcrs.get(b)), "sha256")
        rules = msgspec.structs.replace(rules, pcr_bank=bank, pcrs=tuple(quote.pcrs.get(bank, ())))
    return vtpm_rules.appraise_quote(quote, rules, policy.reference_values.vtpm, log, instance=instance)


# -- Azure -------------------------------------------------------------------------------------------------------------


def _azure(case: Case, policy: EvidencePolicy) -> Found:
    """The HCL report on its hardware evidence, and, where they are given, vTPM quote and AK certificate."""
    given = sorted_endorsements(case.endorsements)
    certificates = given.certificates
    verified, claims, mismatches, expires, debug = _hardware(case, policy, given)
    claims |= azure_rules.claims_of(verified)
    unchecked: tuple[str, ...] = ()
    if policy.azure is None:
        mismatches += _no_table("azure")
    else:
        mismatches += azure_rules.appraise_hcl(verified, policy.azure, policy.reference_values.azure)
    if any(certificate.public_key() == verified.claims.ak for certificate in certificates):
        expires = min(expires, azure.verify_ak_certificate(verified, certificates, case.now))
        claims["azure.ak_certificate"] = "true"
    elif policy.azure is not None and policy.azure.require_ak_certificate:
        mismatches += (Mismatch("ak_certificate", "azure.ak_certificate", "true", "false"),)
    else:
        unchecked += ("AK certificate: Microsoft's own word for the vTPM's key was not handed in",)
    if case.quote is None:
        unchecked += ("vTPM quote: nothing here is fresh, the hardware report dates from boot (--quote)",)
        mismatches += () if case.policy is None else (Mismatch("part_missing", "vtpm", "a quote", "none"),)
    else:
        quote, log, more = _quote(case, policy, case.quote, verified.claims.ak)
        azure.check_ak(verified, quote)
        instance: Instance | None = None
        if policy.reference_values.vtpm.ak_roots:
            instance, until = _ak_roots(quote, certificates, policy.reference_values.vtpm.ak_roots, case.now)
            expires = min(expires, until)
        claims |= _claims(quote, log)
        mismatches += _vtpm_mismatches(quote, log, case, policy, instance)
        unchecked += more
    return Found(claims=claims, mismatches=mismatches, unchecked=unchecked, expires=expires, confidential=not debug)


def _hardware(
    case: Case, policy: EvidencePolicy, given: Endorsements
) -> tuple[azure.VerifiedHcl, dict[str, str], Mismatches, float, bool]:
    if parse_hcl(case.evidence).kind == "tdx":
        if case.td_quote is None:
            raise EndorsementUnavailable("a TDX HCL report needs its TD quote (--td-quote)", code="part_missing")
        td = _td_quote(case.td_quote, case)
        verified = azure.verify_hcl_tdx(case.evidence, td.quote.report.report_data)
        return verified, tdx_rules.claims_of(td), _tdx_mismatches(td, policy), td.expires, _td_debug(td)
    verified = azure.verify_hcl_snp(case.evidence, given.certificates, case.now, crls=given.crls)
    report = verified.report
    assert report is not None
    claims = snp_rules.claims_of(report)
    return verified, claims, _snp_mismatches(report, policy), report.expires, report.report.policy.debug


# -- tokens ------------------------------------------------------------------------------------------------------------


def _maa(case: Case, policy: EvidencePolicy) -> Found:
    if case.jwks is None:
        raise EndorsementUnavailable("the provider's key set is needed (--jwks)", code="keys_missing")
    issuers = _maa_issuers(case, policy)
    verified = verify_maa(case.evidence, parse_jwks(case.jwks), issuers=issuers, now=case.now, nonce=case.nonce)
    rules = policy.maa
    unchecked = _unless(case.nonce, "nonce: whether the token is fresh (--nonce)")
    if case.issuer is None and not (rules and rules.issuers):
        unchecked += ("issuer: any provider of the public cloud whose keys were handed in (--issuer)",)
    return Found(
        claims=maa_rules.claims_of(verified),
        mismatches=_no_table("maa")
        if rules is None
        else maa_rules.appraise_maa(verified, rules, policy.reference_values.maa),
        unchecked=unchecked,
        expires=verified.expires,
        confidential=verified.tee_type != "none" and verified.tee.get("x-ms-compliance-status") == maa_rules.COMPLIANT,
    )


def _maa_issuers(case: Case, policy: EvidencePolicy) -> tuple[str, ...]:
    """The caller's, else the policy's, else the token's own where it is an address of Azure's attestation service."""
    if case.issuer is not None:
        return (case.issuer,)
    if policy.maa is not None and policy.maa.issuers:
        return policy.maa.issuers
    return own_issuer(case.evidence)


def _gcp(case: Case, policy: EvidencePolicy) -> Found:
    rules = policy.gcp
    audiences = (case.audience,) if case.audience is not None else (rules.audiences or None) if rules else None
    issuer = case.issuer or ISSUER
    if case.jwks is not None:
        keys = parse_jwks(case.jwks)
        verified = verify_oidc_token(
            case.evidence, keys, audiences=audiences, now=case.now, nonce=case.nonce, issuer=issuer
        )
    elif "x5c" in parse_token(case.evidence).header:
        verified = verify_pki_token(case.evidence, audiences=audiences, now=case.now, nonce=case.nonce, issuer=issuer)
    else:
        raise EndorsementUnavailable("an OIDC token needs Google's key set (--jwks)", code="keys_missing")
    unchecked = _unless(case.nonce, "nonce: whether the token is fresh (--nonce)")
    return Found(
        claims=gcp_rules.claims_of(verified),
        mismatches=_no_table("gcp")
        if rules is None
        else gcp_rules.appraise_token(verified, rules, policy.reference_values.gcp),
        unchecked=unchecked + _unless(audiences, "audience: whom the token was made for (--audience)"),
        expires=verified.expires,
        confidential=verified.claims.get("dbgstat") == "disabled-since-boot",
    )


# -- a collection as nodes send it -------------------------------------------------------------------------------------


def _bundle(case: Case, policy: EvidencePolicy) -> Found:
    """A CMW collection through the same door as a node's. Without a channel, its claims are taken as they came."""
    evidence = decode_evidence(case.evidence)
    claims = decode_claims(evidence.claims)
    fields = {name: getattr(claims, name) for name in Expected.__struct_fields__}
    if case.nonce is not None:
        fields["nonce"] = case.nonce
    keys = parse_jwks(case.jwks) if case.jwks is not None else ()
    verifier = Verifier(policy, token_keys=keys, schemes=case.schemes)
    unchecked: tuple[str, ...] = ("binding: the claims (role, node, keys, channel) are as the attester wrote them",)
    unchecked += _unless(case.nonce, "nonce: whether the evidence is fresh (--nonce)")
    try:
        result = verifier.appraise(case.evidence, Expected(**fields), now=case.now, endorsements=case.endorsements)
    except AppraisalFailed as error:
        return Found(claims={}, mismatches=error.mismatches, unchecked=unchecked)
    if LAUNCH_ENDORSEMENT in evidence.parts and not any(name.startswith(gce.CLAIM) for name in result.claims):
        unchecked += (_UNREAD_LAUNCH,)
    return Found(
        claims=result.claims | {"node_id": result.node_id, "platform": result.platform},
        mismatches=(),
        unchecked=unchecked,
        expires=result.expires,
        confidential=result.confidential,
    )


def third_party(case: Case, policy: EvidencePolicy | None) -> Found:
    """By the scheme that the caller has named and loaded. KeyError for one that is not among ``case.schemes``."""
    scheme = {known.name: known for known in case.schemes}[case.scheme]
    rules = policy.schemes.get(case.scheme) if policy is not None else None
    found = judge(scheme, case.evidence, bound=case.nonce, rules=rules, endorsements=case.endorsements, now=case.now)
    missing = _no_table(f"schemes.{case.scheme}") if policy is not None and rules is None else ()
    return Found(
        claims=found.claims,
        mismatches=found.mismatches + missing,
        unchecked=(*_unless(case.nonce, "nonce: whom or when the evidence speaks for (--nonce)"), _FOREIGN),
        expires=found.expires,
        confidential=found.confidential,
    )


def platforms_of(raw: bytes) -> tuple[str, ...]:
    """The tables that a collection calls for, from its unverified media types: to choose the built-in policy by."""
    parts = decode_evidence(raw).parts
    found = ["vtpm"] if TPM_QUOTE in parts else []
    if HARDWARE in parts:
        kind, body = parts[HARDWARE].media_type, parts[HARDWARE].body
        if kind == AZURE_HCL_TYPE:
            found += ["azure", "sev-snp" if body.startswith(b"HCLA") else "tdx"]
        else:
            found.append("tdx" if kind == TDX_QUOTE_TYPE else "sev-snp")
    if TOKEN in parts:
        found.append("maa" if own_issuer(parts[TOKEN].body) else "gcp")
    return tuple(found)


VERIFY: Mapping[str, Callable[[Case, EvidencePolicy], Found]] = MappingProxyType(
    {"sev-snp": _snp, "tdx": _tdx, "vtpm": _vtpm, "azure": _azure, "maa": _maa, "gcp": _gcp, "bundle": _bundle}
)
