"""Rules for TDX quotes: which trust domains, which firmware, which platforms. Compares verified fields only."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from attest.errors import Mismatch
from attest.rules import Hex16, Hex48, Table, require, require_if_listed, require_one_of
from attest.schemes.gcp import launch as gce
from attest.schemes.tdx.abi import TdReport
from attest.schemes.tdx.eventlog import VerifiedLog
from attest.schemes.tdx.verify import VerifiedQuote

__all__ = ["ReferenceValues", "Rules", "appraise_quote", "claims_of", "log_claims_of", "problems"]

# What a policy may accept; "Revoked" is never among them.
Status = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
]
Svn = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
RtmrIndex = Annotated[int, msgspec.Meta(ge=0, le=3)]
RtmrKey = Annotated[str, msgspec.Meta(pattern=r"^[0-3]\Z")]
Hex6 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{12}\Z")]
Hex8 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]

_DEBUG, _SEPT_VE_DISABLE, _MIGRATABLE = 1 << 0, 1 << 28, 1 << 29
# TD_ATTRIBUTES that are defined: DEBUG, LASS, SEPT_VE_DISABLE, MIGRATABLE, PKS, KL, TPA, PERFMON. The rest must be 0.
_ATTRIBUTES = _DEBUG | 1 << 27 | _SEPT_VE_DISABLE | _MIGRATABLE | 1 << 30 | 1 << 31 | 1 << 62 | 1 << 63
# XFAM: x87 and SSE are always on, the rest may be where the TDX module knows it (Intel 348551).
_XFAM_FIXED1, _XFAM_KNOWN = 0x3, 0x0006_DBE7
# An outdated level within its grace counts as this one.
_WITHIN_GRACE = {
    "OutOfDate": "UpToDate",
    "OutOfDateConfigurationNeeded": "ConfigurationNeeded",
    "TDRelaunchAdvised": "UpToDate",
    "TDRelaunchAdvisedConfigurationNeeded": "ConfigurationNeeded",
}


class Rules(Table, frozen=True):
    """``[tdx]``. The level of platform, TDX module and quoting enclave must come to one of ``tcb_statuses``.
    "TDRelaunchAdvised": the platform is current, and the domain was launched before its TDX module was.

    ``grace_period_s``: so long after its level's date an outdated platform counts as if it were not. ``rtmrs``: those
    whose values are compared. ``launch_endorsement``: Google must have endorsed the MRTD, which then need not be
    listed. Debug, migratable and service-bound trust domains, and those that let the host inject #VE, are refused
    unless their ``unsafe_`` form says otherwise; reserved attributes and unknown XFAM bits, always.

    ``event_log_rtmrs``: those that a CCEL event log, where there is one, must replay to exactly. Leave out what the
    machine measures on when the log has ended; it is not explained then. ``require_secure_boot`` and
    ``require_exit_boot_services`` ask the log, so they need one.
    """

    tcb_statuses: tuple[Status, ...] = ("UpToDate",)
    grace_period_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    refused_advisories: tuple[str, ...] = ()
    min_tcb_evaluation_data_number: Annotated[int, msgspec.Meta(ge=0)] = 0
    min_tee_tcb_svn: Hex16 | None = None
    min_qe_svn: Svn = 0
    min_pce_svn: Svn = 0
    rtmrs: tuple[RtmrIndex, ...] = ()
    event_log_rtmrs: tuple[RtmrIndex, ...] = (0, 1, 2, 3)
    require_event_log: bool = False
    require_secure_boot: bool = False
    require_exit_boot_services: bool = False
    sgx_types: tuple[Literal["standard", "scalable", "scalable-with-integrity"], ...] = ()
    launch_endorsement: gce.LaunchRules | None = None
    allow_smt: bool = True
    allow_dynamic_platform: bool = True
    allow_cached_keys: bool = True
    unsafe_allow_debug: bool = False
    unsafe_allow_migration: bool = False
    unsafe_allow_sept_ve: bool = False
    unsafe_any_service_td: bool = False
    unsafe_any_mr_td: bool = False
    unsafe_any_rtmrs: bool = False

    @property
    def needs_log(self) -> bool:
        """Whether a rule cannot hold without an event log."""
        return self.require_event_log or self.require_secure_boot or self.require_exit_boot_services


class ReferenceValues(Table, frozen=True):
    """``[reference_values.tdx]``: allowed values, lower-case hex as the fields' bytes stand in the quote; a list that
    is absent is not compared, except that ``mr_td`` (unless it is endorsed) and a value for each RTMR of the rules are
    required, and that a TD bound to a service TD is refused without ``mr_service_td``. In place of an RTMR's values,
    ``event_digests`` has the digests of which any may have been measured into it, for RTMRs whose events differ in
    order or number between boots. ``launch_roots``: PEM, where launch endorsements may lead; absent, to Google's root.
    """

    mr_td: tuple[Hex48, ...] = ()
    rtmr_values: dict[RtmrKey, tuple[Hex48, ...]] = msgspec.field(default_factory=dict)
    event_digests: dict[RtmrKey, tuple[Hex48, ...]] = msgspec.field(default_factory=dict)
    mr_config_id: tuple[Hex48, ...] = ()
    mr_owner: tuple[Hex48, ...] = ()
    mr_owner_config: tuple[Hex48, ...] = ()
    mr_seam: tuple[Hex48, ...] = ()
    mr_signer_seam: tuple[Hex48, ...] = ()
    mr_service_td: tuple[Hex48, ...] = ()
    seam_attributes: tuple[Hex8, ...] = ()
    td_attributes: tuple[Hex8, ...] = ()
    xfam: tuple[Hex8, ...] = ()
    fmspcs: tuple[Hex6, ...] = ()
    ppids: tuple[Hex16, ...] = ()
    launch_roots: tuple[str, ...] = ()


_LISTED = (
    "mr_config_id", "mr_owner", "mr_owner_config", "mr_seam", "mr_signer_seam", "seam_attributes", "td_attributes",
    "xfam",
)  # fmt: skip


def problems(rules: Rules, reference: ReferenceValues) -> list[str]:
    """What makes these rules unusable, in words: a comparison without values, or with values and told to be skipped."""
    found = []
    if rules.unsafe_any_mr_td == bool(reference.mr_td or rules.launch_endorsement):
        found.append("tdx: give mr_td or launch_endorsement, or else unsafe_any_mr_td = true")
    found += gce.problems("tdx", rules.launch_endorsement, reference.launch_roots)
    given = reference.rtmr_values.keys() | reference.event_digests.keys()
    if rules.unsafe_any_rtmrs == bool(rules.rtmrs or given):
        found.append("tdx: give rtmrs and rtmr_values (or event_digests), or unsafe_any_rtmrs = true, not both")
    if lone := {str(index) for index in rules.rtmrs} ^ given:
        found.append(f"reference_values.tdx.rtmr_values: rule or value missing for RTMR {', '.join(sorted(lone))}")
    if reference.rtmr_values.keys() & reference.event_digests.keys():
        found.append("reference_values.tdx: rtmr_values and event_digests of the same RTMR")
    if rules.unsafe_any_service_td and reference.mr_service_td:
        found.append("tdx.unsafe_any_service_td contradicts mr_service_td")
    asked = {int(index) for index in reference.event_digests}
    asked |= ({0} if rules.require_secure_boot else set()) | ({1} if rules.require_exit_boot_services else set())
    if unlogged := asked - set(rules.event_log_rtmrs):
        listed = ", ".join(map(str, sorted(unlogged)))
        found.append(f"tdx.event_log_rtmrs: a rule asks what was measured into RTMR {listed}")
    return found


def appraise_quote(
    verified: VerifiedQuote,
    rules: Rules,
    reference: ReferenceValues,
    log: VerifiedLog | None = None,
    *,
    log_comes_later: bool = False,
    launch: gce.Launch | None = None,
) -> tuple[Mismatch, ...]:
    """Every rule that does not hold. ``log_comes_later``: rules that need an event log are left to the evidence that
    follows this one. ``launch``: of the verified endorsement that was handed in for this quote.
    """
    report = verified.quote.report
    mismatches = gce.appraise_launch(launch, rules.launch_endorsement)
    mismatches += (
        _attributes(report, rules) + _service_td(report, rules, reference) + _measurements(report, rules, reference)
    )
    if not log_comes_later:
        mismatches += _events(rules, reference, log) + _log(rules, log)
    for name in _LISTED:
        mismatches += require_if_listed(getattr(reference, name), name, name, getattr(report, name).hex())
    return mismatches + _tcb(verified, rules) + _platform(verified, rules, reference)


def _attributes(report: TdReport, rules: Rules) -> tuple[Mismatch, ...]:
    bits, xfam = (int.from_bytes(value, "little") for value in (report.td_attributes, report.xfam))
    debug = bool(bits & _DEBUG) and not rules.unsafe_allow_debug
    migrates = bool(bits & _MIGRATABLE) and not rules.unsafe_allow_migration
    no_ve = bool(bits & _SEPT_VE_DISABLE) or rules.unsafe_allow_sept_ve
    known = xfam & _XFAM_FIXED1 == _XFAM_FIXED1 and not xfam & ~_XFAM_KNOWN
    attributes = report.td_attributes.hex()
    return (
        *require(not debug, "debug", "td_attributes.debug", "false", "true"),
        *require(not migrates, "migratable", "td_attributes.migratable", "false", "true"),
        *require(no_ve, "sept_ve_disable", "td_attributes.sept_ve_disable", "true", "false"),
        *require(not bits & ~_ATTRIBUTES, "td_attributes_reserved", "td_attributes", "no reserved bit", attributes),
        *require(known, "xfam_bits", "xfam", "known features, x87 and SSE on", report.xfam.hex()),
    )


def _service_td(report: TdReport, rules: Rules, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    """A service TD (such as one that migrates) can be bound to this one; zeros, or TD 1.0, say that none is."""
    bound = report.mr_service_td is not None and any(report.mr_service_td)
    if report.mr_service_td is None or not bound or rules.unsafe_any_service_td:
        return ()
    return require_one_of(reference.mr_service_td, "mr_service_td", "mr_service_td", report.mr_service_td.hex())


def _measurements(report: TdReport, rules: Rules, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    mismatches: tuple[Mismatch, ...] = ()
    endorsed = rules.launch_endorsement is not None and not reference.mr_td  # by a rule of its own
    if not (rules.unsafe_any_mr_td or endorsed):
        mismatches += require_one_of(reference.mr_td, "mr_td", "mr_td", report.mr_td.hex())
    if not rules.unsafe_any_rtmrs:
        mismatches += require(bool(rules.rtmrs), "rtmr", "rtmr", "values to compare", "none in the policy")
    for index in () if rules.unsafe_any_rtmrs else rules.rtmrs:
        if str(index) not in reference.event_digests:
            actual = getattr(report, f"rtmr{index}").hex()
            mismatches += require_one_of(reference.rtmr_values.get(str(index), ()), "rtmr", f"rtmr{index}", actual)
    return mismatches


def _events(rules: Rules, reference: ReferenceValues, log: VerifiedLog | None) -> tuple[Mismatch, ...]:
    mismatches: tuple[Mismatch, ...] = ()
    for index in rules.rtmrs:
        if (allowed := reference.event_digests.get(str(index))) is None:
            continue
        claim = f"eventlog.rtmr{index}"
        if log is None or index not in log.rtmrs:
            mismatches += require(False, "event_log_missing", claim, "an event log of this RTMR", "none")
            continue
        foreign = [digest for digest in log.digests(index) if digest not in allowed]
        mismatches += require(not foreign, "event", claim, "only events of the reference values", ", ".join(foreign))
    return mismatches


def _log(rules: Rules, log: VerifiedLog | None) -> tuple[Mismatch, ...]:
    if log is None:
        return require(not rules.needs_log, "event_log_missing", "eventlog", "an event log", "none")
    secure, left = log.secure_boot, log.exited_boot_services
    return (
        *require(secure or not rules.require_secure_boot, "secure_boot", "eventlog.secure_boot", "true", "false"),
        *require(
            left or not rules.require_exit_boot_services,
            "exit_boot_services", "eventlog.exit_boot_services", "true", "false",
        ),
    )  # fmt: skip


def _tcb(verified: VerifiedQuote, rules: Rules) -> tuple[Mismatch, ...]:
    status, evaluation = verified.tcb.status, verified.tcb_evaluation_data_number
    if status not in rules.tcb_statuses and verified.verified_at <= verified.tcb.date + rules.grace_period_s:
        status = _WITHIN_GRACE.get(status, status)
    refused = sorted(set(verified.tcb.advisories) & set(rules.refused_advisories))
    least = rules.min_tcb_evaluation_data_number
    accepted = " or ".join(rules.tcb_statuses)
    hint = "the platform is current by now: launch the trust domain again" if "Relaunch" in status else ""
    return (
        *require(status in rules.tcb_statuses, "tcb_status", "tcb.status", accepted, status, hint),
        *require(not refused, "advisory", "tcb.advisories", "none that is refused", ", ".join(refused)),
        *require(
            evaluation >= least, "tcb_evaluation", "tcb.evaluation_data_number", f"at least {least}", str(evaluation)
        ),
    )


def _platform(verified: VerifiedQuote, rules: Rules, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    pck, qe_svn = verified.pck, verified.quote.qe_report.isv_svn
    floor, svn = rules.min_tee_tcb_svn, verified.quote.report.tee_tcb_svn
    reached = floor is None or all(have >= least for have, least in zip(svn, bytes.fromhex(floor), strict=True))
    types = rules.sgx_types
    return (
        *require(reached, "tee_tcb_svn", "tee_tcb_svn", f"at least {floor}, each byte", svn.hex()),
        *require(qe_svn >= rules.min_qe_svn, "qe_svn", "qe.svn", f"at least {rules.min_qe_svn}", str(qe_svn)),
        *require(
            pck.pce_svn >= rules.min_pce_svn, "pce_svn", "pce_svn", f"at least {rules.min_pce_svn}", str(pck.pce_svn)
        ),
        *require_if_listed(reference.fmspcs, "fmspc", "fmspc", pck.fmspc.hex()),
        *require_if_listed(reference.ppids, "ppid", "ppid", pck.ppid.hex()),
        *require_if_listed(types, "sgx_type", "sgx_type", pck.sgx_type),
        *_configuration("smt", pck.smt, allowed=rules.allow_smt),
        *_configuration("dynamic_platform", pck.dynamic_platform, allowed=rules.allow_dynamic_platform),
        *_configuration("cached_keys", pck.cached_keys, allowed=rules.allow_cached_keys),
    )


def _configuration(name: str, value: bool | None, *, allowed: bool) -> tuple[Mismatch, ...]:
    """A certificate that does not say is taken to say the worse."""
    return require(allowed or value is False, name, name, "false", _text(value))


def _text(value: bool | None) -> str:
    return "unknown" if value is None else str(value).lower()


def claims_of(verified: VerifiedQuote) -> dict[str, str]:
    """Verified claims as text."""
    quote, pck = verified.quote, verified.pck
    claims = {
        name: value.hex()
        for name in TdReport.__struct_fields__
        if isinstance(value := getattr(quote.report, name), bytes) and name != "report_data"
    }
    bits = int.from_bytes(quote.report.td_attributes, "little")
    claims |= {
        "quote.version": str(quote.version),
        "td_attributes.debug": _text(bool(bits & _DEBUG)),
        "td_attributes.migratable": _text(bool(bits & _MIGRATABLE)),
        "td_attributes.sept_ve_disable": _text(bool(bits & _SEPT_VE_DISABLE)),
        "tcb.status": verified.tcb.status,
        "tcb.advisories": ",".join(verified.tcb.advisories),
        "tcb.evaluation_data_number": str(verified.tcb_evaluation_data_number),
        "tcb.platform": verified.platform.status,
        "tcb.module": verified.module.status if verified.module is not None else "none",
        "tcb.qe": verified.qe.status,
        "fmspc": pck.fmspc.hex(),
        "ppid": pck.ppid.hex(),
        "pce_svn": str(pck.pce_svn),
        "qe.svn": str(quote.qe_report.isv_svn),
        "sgx_type": pck.sgx_type,
        "smt": _text(pck.smt),
        "dynamic_platform": _text(pck.dynamic_platform),
        "cached_keys": _text(pck.cached_keys),
        "collateral.digest": verified.collateral_digest,
    }
    return claims


def log_claims_of(log: VerifiedLog) -> dict[str, str]:
    """Claims that the replayed log adds."""
    return {
        "eventlog.bank": "sha384",
        "eventlog.rtmrs": ", ".join(map(str, log.rtmrs)),
        "eventlog.secure_boot": _text(log.secure_boot if 0 in log.rtmrs else None),
        "eventlog.exit_boot_services": _text(log.exited_boot_services),
    }
