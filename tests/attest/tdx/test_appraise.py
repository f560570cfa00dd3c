"""Rules for TDX: what they accept, policies that cannot be used, the whole door."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from msgspec.structs import replace

from attest.attester import Collector
from attest.binding import Expected, ak_report_data, data_hash
from attest.collateral import parse_collateral
from attest.errors import AppraisalFailed, AttestError, PolicyFormatError
from attest.evidence import (
    HARDWARE,
    SNP_REPORT_TYPE,
    TDX_QUOTE_TYPE,
    TPM2_QUOTE_TYPE,
    TPM_QUOTE,
    Evidence,
    Part,
    decode_evidence,
    encode_evidence,
)
from attest.policy import EvidencePolicy, first_report_policy, parse_policy
from attest.schemes.tdx.appraise import ReferenceValues, Rules, appraise_quote, claims_of
from attest.schemes.tdx.verify import VerifiedQuote, verify_collateral, verify_quote
from attest.testkit.intel import collateral, isv_level, simulated_intel_roots, tcb_info, tcb_level
from attest.testkit.snp import SimulatedSnpCollector
from attest.testkit.tdx import SEPT_VE_DISABLE, SimulatedTdxCollector
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import Verifier, policy_from_result

from ..conftest import NOW as DOOR_NOW
from .cases import DATA, MODULE, NOW, REPORT, RULES, V4, V5, VALUES

TIME = NOW.timestamp()
LEVEL_DATE = 1_710_288_000.0  # of the testkit's levels: 2024-03-13


def verified(platform: Any = V4, *, now: float = TIME, raw: bytes = b"", **fields: Any) -> VerifiedQuote:
    given = verify_collateral(parse_collateral(raw or collateral()), now, simulated_intel_roots())
    return verify_quote(platform.quote(DATA, **fields), given, now)


BASE = verified()


def codes(quote: VerifiedQuote, rules: Rules = RULES, values: ReferenceValues = VALUES) -> list[str]:
    return [m.code for m in appraise_quote(quote, rules, values)]


@cache
def _status(status: str) -> VerifiedQuote:
    levels = [tcb_level(status, advisories=["INTEL-SA-00001"])]
    return verified(raw=collateral(tcb=tcb_info(tcbLevels=levels)))


def _rules(**changes: Any) -> Rules:
    return replace(RULES, **changes)


def _values(**changes: Any) -> ReferenceValues:
    return replace(VALUES, **changes)


OTHER48, OTHER8 = "ab" * 48, "ab" * 8
ONE = b"\x01" + bytes(47)


def test_what_satisfies_every_rule() -> None:
    assert codes(BASE) == []
    pinned = {
        name: (getattr(REPORT, name).hex(),)
        for name in ("mr_config_id", "mr_owner", "mr_owner_config", "mr_seam", "mr_signer_seam", "seam_attributes")
    }
    strict = _rules(
        min_tcb_evaluation_data_number=18, min_tee_tcb_svn=REPORT.tee_tcb_svn.hex(), min_qe_svn=4, min_pce_svn=13,
        sgx_types=("scalable",), allow_dynamic_platform=False, allow_cached_keys=False,
    )  # fmt: skip
    values = _values(fmspcs=(BASE.pck.fmspc.hex(),), ppids=(BASE.pck.ppid.hex(),), xfam=(REPORT.xfam.hex(),), **pinned)
    assert codes(BASE, strict, values) == []
    assert codes(verified(V5, mr_service_td=ONE), RULES, _values(mr_service_td=(ONE.hex(),))) == []
    # LASS, PKS, KL, TPA and PERFMON are defined attributes.
    known = SEPT_VE_DISABLE | 1 << 27 | 1 << 30 | 1 << 31 | 1 << 62 | 1 << 63
    assert codes(verified(td_attributes=known)) == []


@pytest.mark.parametrize(
    ("rules", "fields"),
    [
        ({"unsafe_allow_debug": True}, {"td_attributes": SEPT_VE_DISABLE | 1}),
        ({"unsafe_allow_migration": True}, {"td_attributes": SEPT_VE_DISABLE | 1 << 29}),
        ({"unsafe_allow_sept_ve": True}, {"td_attributes": 0}),
        ({"unsafe_any_mr_td": True}, {"mr_td": bytes(48)}),
        ({"unsafe_any_rtmrs": True}, {"rtmr0": bytes(48)}),
    ],
)
def test_unsafe_rules_skip_what_they_say(rules: dict[str, Any], fields: dict[str, Any]) -> None:
    quote = verified(**fields)
    assert len(codes(quote)) == 1 and codes(quote, _rules(**rules)) == []
    bound = verified(V5, mr_service_td=ONE)
    assert codes(bound, _rules(unsafe_any_service_td=True)) == []


def test_grace() -> None:
    for status, statuses in (("OutOfDate", ("UpToDate",)), ("OutOfDateConfigurationNeeded", ("ConfigurationNeeded",))):
        rules = _rules(tcb_statuses=statuses, grace_period_s=TIME - LEVEL_DATE)
        assert codes(_status(status), rules) == []


def test_statuses_that_a_policy_accepts() -> None:
    assert codes(_status("OutOfDate"), _rules(tcb_statuses=("UpToDate", "OutOfDate"))) == []


@pytest.mark.parametrize(
    ("level", "status", "within_grace"),
    [
        ("UpToDate", "TDRelaunchAdvised", "UpToDate"),
        ("ConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded", "ConfigurationNeeded"),
    ],
)
def test_a_domain_that_should_be_launched_again(level: str, status: str, within_grace: str) -> None:
    """A status of its own, which accepting an outdated platform does not include; grace is as for one."""
    svn, now = (bytes((minor, 1, 8)) + bytes(13) for minor in (6, 7))
    module = {**MODULE, "tcbLevels": [isv_level(7), isv_level(6, "OutOfDate")]}
    raw = collateral(tcb=tcb_info(tcbLevels=[tcb_level(level)], tdxModuleIdentities=[module]))
    quote = verified(V5, raw=raw, tee_tcb_svn=svn, tee_tcb_svn2=now)
    assert claims_of(quote)["tcb.status"] == status and codes(quote, _rules(tcb_statuses=(status,))) == []
    (mismatch,) = appraise_quote(quote, _rules(tcb_statuses=("UpToDate", "OutOfDate")), VALUES)
    assert (mismatch.code, mismatch.actual) == ("tcb_status", status) and "launch" in mismatch.hint
    assert codes(quote, _rules(tcb_statuses=(within_grace,), grace_period_s=TIME - LEVEL_DATE)) == []


def test_all_mismatches_at_once() -> None:
    quote = verified(td_attributes=1, mr_td=bytes(48), rtmr3=bytes(48))
    assert codes(quote, _rules(min_qe_svn=9)) == ["debug", "sept_ve_disable", "mr_td", "rtmr", "qe_svn"]


def test_claims_are_text() -> None:
    claims = claims_of(verified(V5))
    assert claims["mr_td"] == REPORT.mr_td.hex() and claims["tcb.status"] == "UpToDate"
    assert claims["td_attributes.debug"] == "false" and claims["mr_service_td"] == "00" * 48
    assert "mr_service_td" not in claims_of(BASE) and "report_data" not in claims
    old = verified(tee_tcb_svn=bytes((5, 0, 8)) + bytes(13))
    assert claims_of(old)["tcb.module"] == "none"


# -- policies ----------------------------------------------------------------------------------------------------------

POLICY = f"""
id = "p"
[tdx]
rtmrs = [0]
[reference_values.tdx]
mr_td = ["{OTHER48}"]
[reference_values.tdx.rtmr_values]
0 = ["{OTHER48}"]
"""
REFUSED = {
    "no MRTD": (POLICY.replace(f'mr_td = ["{OTHER48}"]', ""), "mr_td"),
    "MRTD and any": (POLICY.replace("[tdx]", "[tdx]\nunsafe_any_mr_td = true", 1), "mr_td"),
    "no RTMR": (POLICY.replace("rtmrs = [0]", "min_qe_svn = 1").split("[reference_values.tdx.rtmr")[0], "rtmrs"),
    "RTMRs and any": (POLICY.replace("[tdx]", "[tdx]\nunsafe_any_rtmrs = true", 1), "rtmrs"),
    "RTMR without a value": (POLICY.replace("[0]", "[0, 1]", 1), "RTMR 1"),
    "value without an RTMR": (POLICY.replace("[0]", "[1]", 1), "RTMR 0, 1"),
    "RTMR 4": (POLICY.replace("[0]", "[4]", 1), "rtmrs"),
    "Revoked accepted": (POLICY.replace("[tdx]", '[tdx]\ntcb_statuses = ["Revoked"]', 1), "Revoked"),
    "no status": (POLICY.replace("[tdx]", "[tdx]\ntcb_statuses = []", 1), "is empty"),
    "grace negative": (POLICY.replace("[tdx]", "[tdx]\ngrace_period_s = -1", 1), "grace_period_s"),
    "service TD and any": (
        POLICY.replace("[tdx]", "[tdx]\nunsafe_any_service_td = true", 1).replace(
            "mr_td =", f'mr_service_td = ["{OTHER48}"]\nmr_td ='
        ),
        "mr_service_td",
    ),
    "beside SNP": (
        POLICY + "[sev-snp]\nunsafe_any_tcb = true\nunsafe_any_measurement = true\n", "one kind of hardware",
    ),
    "value and events of one RTMR": (
        POLICY + f"[reference_values.tdx.event_digests]\n0 = ['{OTHER48}']\n", "event_digests of the same RTMR",
    ),
    "events without the rule": (
        POLICY + f"[reference_values.tdx.event_digests]\n1 = ['{OTHER48}']\n", "missing for RTMR 1",
    ),
    "events of an RTMR that the log need not explain": (
        POLICY.replace("rtmrs = [0]", "rtmrs = [0]\nevent_log_rtmrs = [1, 2]").replace("rtmr_values", "event_digests"),
        "was measured into RTMR 0",
    ),
    "secure boot without RTMR0, the end of boot without RTMR1": (
        POLICY.replace(
            "[tdx]", "[tdx]\nrequire_secure_boot = true\nrequire_exit_boot_services = true\nevent_log_rtmrs = [2]"
        ),
        "was measured into RTMR 0, 1",
    ),
    "one log, and events for each": (
        POLICY.replace("rtmr_values", "event_digests") + "[vtpm]\npcrs = [0]\nunsafe_any_pcr_values = true\n",
        "the event log is the TPM's",
    ),
    "values without the table": (
        POLICY.replace("[tdx]\nrtmrs = [0]", "[none]\naccept_unattested_clients = true", 1), "not asked for",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_policies_that_cannot_be_used(name: str) -> None:
    parse_policy(POLICY)
    text, words = REFUSED[name]
    with pytest.raises(PolicyFormatError) as caught:
        parse_policy(text)
    assert words in str(caught.value)


# -- the whole door ----------------------------------------------------------------------------------------------------

FIRST = first_report_policy("tdx")
COLLECTOR = SimulatedTdxCollector(b"door")
Encode = Callable[[Collector], bytes]


def _appraise(policy: EvidencePolicy, raw: bytes, expected: Expected, **more: Any) -> Any:
    given = {"endorsements": [collateral()], **more}
    return Verifier(policy, allow_simulated=True).appraise(raw, expected, now=DOOR_NOW, **given)


def _code(policy: EvidencePolicy, raw: bytes, expected: Expected, **more: Any) -> str:
    with pytest.raises(AttestError) as caught:
        _appraise(policy, raw, expected, **more)
    return caught.value.code


def test_a_first_report_gives_a_policy_for_that_machine(expected: Expected, evidence: Encode) -> None:
    raw = evidence(COLLECTOR)
    result = _appraise(FIRST, raw, expected)
    assert (result.platform, result.simulated, result.confidential) == ("simulated-tdx", True, False)
    policy = parse_policy(policy_from_result(result, policy_id="pinned"))
    assert policy.unsafe == () and _appraise(policy, raw, expected).policy_id == "pinned"
    with pytest.raises(AppraisalFailed) as caught:
        _appraise(policy, evidence(SimulatedTdxCollector(b"other")), expected)
    assert [m.code for m in caught.value.mismatches] == ["mr_td", *["rtmr"] * 4, "mr_seam", "ppid"]
    assert "tdx.unsafe_any_mr_td" in FIRST.unsafe


def test_a_policy_of_a_bound_or_lenient_domain(expected: Expected, evidence: Encode) -> None:
    class Lenient(SimulatedTdxCollector):
        def parts(self, data_hash: bytes) -> dict[int, Part]:
            quote = self.platform.quote(data_hash + bytes(32), td_attributes=0, mr_service_td=ONE)
            return {HARDWARE: Part(TDX_QUOTE_TYPE, quote)}

    raw = evidence(Lenient(b"door", version=5))
    policy = parse_policy(policy_from_result(_appraise(FIRST, raw, expected), policy_id="p"))
    assert policy.unsafe == ("tdx.unsafe_allow_sept_ve",)
    _appraise(policy, raw, expected)


def test_a_policy_of_a_domain_that_should_be_launched_again(expected: Expected, evidence: Encode) -> None:
    class Kept(SimulatedTdxCollector):
        def parts(self, data_hash: bytes) -> dict[int, Part]:
            quote = self.platform.quote(data_hash + bytes(32), tee_tcb_svn2=bytes((7, 1, 8)) + bytes(13))
            return {HARDWARE: Part(TDX_QUOTE_TYPE, quote)}

    module = {**MODULE, "tcbLevels": [isv_level(7), isv_level(6, "OutOfDate")]}
    given = [collateral(tcb=tcb_info(tdxModuleIdentities=[module]))]
    raw = evidence(Kept(b"door", version=5))
    result = _appraise(FIRST, raw, expected, endorsements=given)
    assert result.claims["tcb.status"] == "TDRelaunchAdvised"
    text = policy_from_result(result, policy_id="p")
    _appraise(parse_policy(text), raw, expected, endorsements=given)
    assert _code(parse_policy(text.replace("TDRelaunchAdvised", "OutOfDate")), raw, expected, endorsements=given) == (
        "tcb_status"
    )


def test_the_simulation_needs_the_permission(expected: Expected, evidence: Encode) -> None:
    with pytest.raises(AttestError) as caught:
        Verifier(FIRST).appraise(evidence(COLLECTOR), expected, now=DOOR_NOW, endorsements=[collateral()])
    assert caught.value.code == "untrusted_root"


def test_collateral_is_needed_and_must_fit(expected: Expected, evidence: Encode) -> None:
    raw = evidence(COLLECTOR)
    other = collateral(tcb=tcb_info(fmspc="000000000000"))
    assert _code(FIRST, raw, expected, endorsements=[]) == "collateral_missing"
    assert _code(FIRST, raw, expected, endorsements=[other]) == "fmspc_mismatch"
    assert _code(FIRST, raw, expected, endorsements=[other] * 17) == "ambiguous_endorsement"
    assert _code(FIRST, raw, expected, endorsements=[b"{}"]) == "malformed_collateral"
    assert _appraise(FIRST, raw, expected, endorsements=[other, collateral()]).platform == "simulated-tdx"


def test_remembered_collateral_is_used_in_its_time_only(expected: Expected, evidence: Encode) -> None:
    raw, verifier = evidence(COLLECTOR), Verifier(FIRST, allow_simulated=True)
    sets = [collateral() for _ in range(20)]
    for given in sets:  # more than it remembers; signatures differ each time
        verifier.appraise(raw, expected, now=DOOR_NOW, endorsements=[given])
    again = verifier.appraise(raw, expected, now=DOOR_NOW, endorsements=[sets[-1]])
    short = collateral(tcb=tcb_info(nextUpdate="2027-01-15T07:40:00Z"))
    verifier.appraise(raw, expected, now=DOOR_NOW - 600, endorsements=[short])
    with pytest.raises(AttestError) as caught:
        verifier.appraise(raw, expected, now=DOOR_NOW, endorsements=[short])
    assert caught.value.code == "tcb_info_expired" and again.verdict == "accept"


def test_the_quote_speaks_for_these_claims(expected: Expected, evidence: Encode) -> None:
    claims = decode_evidence(evidence(COLLECTOR)).claims
    quote = COLLECTOR.platform.quote(bytes(64))
    raw = encode_evidence(Evidence(claims, {HARDWARE: Part(TDX_QUOTE_TYPE, quote)}))
    assert _code(FIRST, raw, expected) == "report_data"


def test_a_report_of_another_platform_is_refused(expected: Expected, evidence: Encode) -> None:
    snp = evidence(SimulatedSnpCollector(b"x"))
    assert _code(FIRST, snp, expected) == "part_unknown"
    assert _code(first_report_policy("sev-snp"), evidence(COLLECTOR), expected) == "part_unknown"
    parts = decode_evidence(evidence(COLLECTOR))
    renamed = Evidence(parts.claims, {HARDWARE: Part(SNP_REPORT_TYPE, parts.parts[HARDWARE].body)})
    assert _code(first_report_policy("sev-snp"), encode_evidence(renamed), expected) == "malformed_evidence"


def test_tdx_with_a_vtpm_whose_key_it_names(expected: Expected, evidence: Encode) -> None:
    tpm = SoftwareTpm()
    claims = decode_evidence(evidence(COLLECTOR)).claims
    hashed = data_hash(claims)

    def both(report_data: bytes) -> bytes:
        parts = {
            HARDWARE: Part(TDX_QUOTE_TYPE, COLLECTOR.platform.quote(report_data)),
            TPM_QUOTE: Part(TPM2_QUOTE_TYPE, tpm.quote(hashed)),
        }
        return encode_evidence(Evidence(claims, parts))

    policy = first_report_policy("tdx", "vtpm")
    result = _appraise(policy, both(ak_report_data(tpm.public(), hashed)), expected)
    assert result.platform == "simulated-tdx+vtpm" and not result.confidential
    assert _code(policy, both(hashed + bytes(32)), expected) == "report_data"


def test_debug_is_not_confidential(expected: Expected) -> None:
    assert verified(td_attributes=SEPT_VE_DISABLE | 1).debug and not BASE.debug
