"""Each way in which a TDX quote must be refused: one thing wrong, everything signed again, its own reason code.

``cases.ROWS`` (the quote, its certificates, Intel's collateral), ``POLICY`` (what a genuine quote says) and ``LOGS``
(the event log beside it) are together the list of negative cases that the platform is held to, a row an item of it, for
an auditor to tick off; rows "beyond the list" are more than it asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from attest.collateral import parse_collateral
from attest.errors import AppraisalFailed, AttestError, MalformedEvidence
from attest.eventlog import MAX_LOG_BYTES, SHA384, parse_event_log
from attest.schemes.tdx.appraise import appraise_quote
from attest.schemes.tdx.eventlog import verify_event_log
from attest.schemes.tdx.verify import check_report_data, verify_collateral, verify_quote
from attest.testkit.eventlog import GOOD_TD_BOOT, agile_log, ccel, event, header, legacy_log, secure_boot_data
from attest.testkit.intel import (
    PLATFORM,
    collateral,
    isv_level,
    pck_extension,
    qe_identity,
    simulated_intel_roots,
    tcb_info,
    tcb_level,
)
from attest.testkit.tdx import SEPT_VE_DISABLE, TdxPlatform

from .cases import CASES, DATA, MODULE, NOW, ROWS, RULES, V4, V5, VALUES, Case

LEVEL_AGE_S = NOW.timestamp() - 1_710_288_000.0  # of the testkit's levels: 2024-03-13
OTHER48, OTHER8 = "ab" * 48, "ab" * 8
ONE = b"\x01" + bytes(47)
ONE_RTMR = replace(RULES, rtmrs=(0,))
# Not readable as evidence, which the command line tells from refused.
MALFORMED = {
    "malformed_evidence", "oversize", "malformed_certificate", "malformed_crl", "malformed_collateral", "pck_extension",
    "tdx_version", "tdx_body_type", "tdx_tee_type", "tdx_key_type", "tdx_certification_type", "tdx_trailing",
    "malformed_event_log", "event_log_truncated", "event_log_digests",
    "tcb_info_kind", "qe_identity_kind",
}  # fmt: skip


def judge(case: Case) -> None:
    now = case.now.timestamp()
    given = verify_collateral(parse_collateral(case.collateral()), now, simulated_intel_roots())
    verified = verify_quote(case.quote(), given, now)
    check_report_data(verified.quote, case.data)
    report, rtmrs = verified.quote.report, case.rules.event_log_rtmrs
    log = None if case.log is None else verify_event_log(case.log, report, rtmrs)
    mismatches = appraise_quote(verified, case.rules, case.values, log)
    if mismatches:
        raise AppraisalFailed(mismatches)


def _quote(code: str, platform: TdxPlatform = V4, **fields: Any) -> Case:
    return Case(code, lambda: platform.quote(DATA, **fields))


def _attribute(code: str, bit: int) -> Case:
    return _quote(code, td_attributes=SEPT_VE_DISABLE | 1 << bit)


def _rules(code: str, **rules: Any) -> Case:
    return Case(code, rules=replace(RULES, **rules))


def _pinned(name: str, *values: str, code: str = "") -> Case:
    return Case(code or name, values=replace(VALUES, **{name: values}))


def _status(status: str, **rules: Any) -> Case:
    def made() -> bytes:
        return collateral(tcb=tcb_info(tcbLevels=[tcb_level(status, advisories=["INTEL-SA-00001"])]))

    return Case("tcb_status", collateral=made, rules=replace(RULES, **rules))


def _platform(code: str, rules: dict[str, Any], **changes: Any) -> Case:
    def made() -> bytes:
        leaf = V4.pck(extension=pck_extension(replace(V4.info, **changes)))
        return V4.quote(DATA, chain=(leaf, *V4.chain[1:]))

    return Case(code, made, rules=replace(RULES, **rules))


def _relaunch(level: str) -> Case:
    """The module that the domain was launched under is old, the one that runs now is not."""
    svn, now = (bytes((minor, 1, 8)) + bytes(13) for minor in (6, 7))
    module = {**MODULE, "tcbLevels": [isv_level(7), isv_level(6, "OutOfDate")]}
    info = tcb_info(tcbLevels=[tcb_level(level)], tdxModuleIdentities=[module])
    return Case("tcb_status", lambda: V5.quote(DATA, tee_tcb_svn=svn, tee_tcb_svn2=now), lambda: collateral(tcb=info))


POLICY: dict[str, dict[str, Case]] = {
    **{
        f"status {status}": {"of the platform": _status(status)}
        for status in (
            "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
            "OutOfDateConfigurationNeeded", "Revoked",
        )
    },
    "status TDRelaunchAdvised": {
        "of the domain": _relaunch("UpToDate"),
        "and configuration": _relaunch("ConfigurationNeeded"),
    },
    "tcbEvaluationDataNumber below minimum": {
        "of both": _rules("tcb_evaluation", min_tcb_evaluation_data_number=19),
        "of TCB info": Case(
            "tcb_evaluation", collateral=lambda: collateral(tcb=tcb_info(tcbEvaluationDataNumber=17)),
            rules=replace(RULES, min_tcb_evaluation_data_number=18),
        ),
        "of the QE identity": Case(
            "tcb_evaluation", collateral=lambda: collateral(qe=qe_identity(tcbEvaluationDataNumber=17)),
            rules=replace(RULES, min_tcb_evaluation_data_number=18),
        ),
    },
    "grace period": {
        "is over": _status("OutOfDate", grace_period_s=LEVEL_AGE_S - 1),
        "is for age alone": _status("OutOfDateConfigurationNeeded", grace_period_s=1e9),
        "is not for what is revoked": _status("Revoked", grace_period_s=1e9),
    },
    "rejected advisory": {
        "of a level that is accepted": _status("UpToDate", refused_advisories=("INTEL-SA-00001",))._replace(
            code="advisory"
        ),
    },
    "TD DEBUG": {"set": _attribute("debug", 0)},
    "reserved attribute bits": {
        f"{part}, bit {bit}": _attribute("td_attributes_reserved", bit)
        for part, bits in (("TUD", (1, 4, 7)), ("SEC", (8, 16, 26)), ("OTHER", (32, 61))) for bit in bits
    },
    "attribute bit 29": {"migratable": _attribute("migratable", 29)},
    "SEPT_VE_DISABLE = 0": {"clear": _quote("sept_ve_disable", td_attributes=0)},
    "XFAM fixed bits": {
        "SSE off": _quote("xfam_bits", xfam=0x0602E5),
        "x87 off": _quote("xfam_bits", xfam=0x0602E6),
        "one that nobody knows": _quote("xfam_bits", xfam=0x0602E7 | 1 << 40),
    },
    "MR_SERVICE_TD non-zero": {
        "not expected": _quote("mr_service_td", V5, mr_service_td=ONE),
        "another": _quote("mr_service_td", V5, mr_service_td=ONE)._replace(
            values=replace(VALUES, mr_service_td=(OTHER48,))
        ),
    },
    "pin of mr_td": {
        "another": _quote("mr_td", mr_td=bytes(48)),
        "none in the policy": _pinned("mr_td"),
    },
    "pin of rtmr0-3": {
        **{f"rtmr{n}": _quote("rtmr", **{f"rtmr{n}": bytes(48)}) for n in range(4)},
        "none in the policy": _rules("rtmr", rtmrs=()),
        "no value in the policy": Case("rtmr", rules=ONE_RTMR, values=replace(VALUES, rtmr_values={})),
    },
    **{f"pin of {name}": {"another": _pinned(name, OTHER48)} for name in ("mr_config_id", "mr_owner", "mr_seam")},
    "pin of report_data": {
        "another": Case("report_data", data=bytes(64)),
        "half of it": Case("report_data", data=DATA[:32] + bytes(32)),
    },
    "pin of xfam": {"another": _pinned("xfam", OTHER8)},
    "pin of attributes": {"another": _pinned("td_attributes", OTHER8)},
    "minimum QE SVN": {"below": _rules("qe_svn", min_qe_svn=5)},
    "minimum PCE SVN": {"below": _rules("pce_svn", min_pce_svn=14)},
    "minimum TEE SVN": {
        "one byte below": _rules("tee_tcb_svn", min_tee_tcb_svn="060109" + "00" * 13),
        "another byte above does not help": _rules("tee_tcb_svn", min_tee_tcb_svn="070000" + "00" * 13),
    },
    "rules, beyond the list": {
        "mr_owner_config": _pinned("mr_owner_config", OTHER48),
        "signer of the module": _pinned("mr_signer_seam", OTHER48),
        "attributes of the module": _pinned("seam_attributes", OTHER8),
        "FMSPC": _pinned("fmspcs", "00" * 6, code="fmspc"),
        "PPID": _pinned("ppids", "00" * 16, code="ppid"),
        "SGX type": _rules("sgx_type", sgx_types=("standard",)),
        "SMT": _rules("smt", allow_smt=False),
        "SMT unknown": _platform("smt", {"allow_smt": False}, smt=None),
        "dynamic platform": _platform("dynamic_platform", {"allow_dynamic_platform": False}, dynamic_platform=True),
        "cached keys": _platform("cached_keys", {"allow_cached_keys": False}, cached_keys=True),
    },
}  # fmt: skip


Boot = Sequence[tuple[int, int, bytes]]
LOG = ccel()
EVENTS = agile_log(GOOD_TD_BOOT, (SHA384,))  # without padding
BOOTED = TdxPlatform(b"a", event_log=LOG)
SECURE_OFF = (1, 0x80000001, secure_boot_data(b"\x00"))
OFF_BOOT = [GOOD_TD_BOOT[0], SECURE_OFF, *GOOD_TD_BOOT[2:]]
ASKS_ALL = {"require_event_log": True, "require_secure_boot": True, "require_exit_boot_services": True}
LOGGED = replace(RULES, rtmrs=(), unsafe_any_rtmrs=True, **ASKS_ALL)  # of the log alone is judged
NAMED = {
    str(rtmr): tuple(e.digests[SHA384].hex() for e in parse_event_log(LOG).events if e.index == rtmr + 1)
    for rtmr in range(3)
}
BY_EVENTS = replace(RULES, rtmrs=(0, 1, 2))
EVENT_VALUES = replace(VALUES, rtmr_values={}, event_digests=NAMED)


def _log_event(index: int, kind: int, data: bytes, **lies: Any) -> bytes:
    return event(index, kind, data, algorithms=(SHA384,), **lies)


def _booted(code: str, events: Boot = (), *, log: bytes = b"", rules: Any = LOGGED, values: Any = VALUES) -> Case:
    """A domain that booted like this, and its true log."""
    log = log or ccel(events)
    platform = TdxPlatform(b"a", event_log=log)
    return Case(code, lambda: platform.quote(DATA), rules=rules, values=values, log=log)


def _sent(code: str, log: bytes | None, **fields: bytes) -> Case:
    """The good domain, with another log beside its quote."""
    return Case(code, lambda: BOOTED.quote(DATA, **fields), rules=LOGGED, log=log)


def _asks(rule: str) -> Case:
    one = replace(RULES, rtmrs=(), unsafe_any_rtmrs=True, **{rule: True})
    return Case("event_log_missing", lambda: BOOTED.quote(DATA), rules=one)


# Booted without; then the operating system measures what firmware would have, and the log gives the true events
# another type, which nobody has signed.
RENAMED = header((SHA384,)) + b"".join(
    _log_event(index, 13 if index == 1 and at < len(OFF_BOOT) else kind, data)
    for at, (index, kind, data) in enumerate([*OFF_BOOT, GOOD_TD_BOOT[1], GOOD_TD_BOOT[2]])
)
LYING = (
    header((SHA384,))
    + _log_event(*GOOD_TD_BOOT[0])
    + _log_event(*GOOD_TD_BOOT[1], digests={SHA384: hashlib.sha384(SECURE_OFF[2]).digest()})
    + b"".join(_log_event(*item) for item in GOOD_TD_BOOT[2:])
)

LOGS: dict[str, dict[str, Case]] = {
    "event log missing": {
        **{f"and {rule}": _asks(rule) for rule in ASKS_ALL},
        "and digests of events": Case(
            "event_log_missing", lambda: BOOTED.quote(DATA), rules=replace(BY_EVENTS, rtmrs=(0,)),
            values=replace(EVENT_VALUES, event_digests={"0": NAMED["0"]}),
        ),
    },
    "event log does not replay": {
        "another event": _sent("event_log_replay", ccel([*GOOD_TD_BOOT[:-3], (2, 13, b"other"), *GOOD_TD_BOOT[-2:]])),
        "one event left out": _sent("event_log_replay", ccel(GOOD_TD_BOOT[1:])),
        "one event more": _sent("event_log_replay", ccel([*GOOD_TD_BOOT, (3, 13, b"more")])),
        "reordered": _sent("event_log_replay", ccel([*GOOD_TD_BOOT[1::-1], *GOOD_TD_BOOT[2:]])),
        "one register left out": _sent("event_log_replay", ccel([e for e in GOOD_TD_BOOT if e[0] != 3])),
        "an event in another register": _sent(
            "event_log_replay", ccel([*GOOD_TD_BOOT[:-2], (4, *GOOD_TD_BOOT[-2][1:]), GOOD_TD_BOOT[-1]])
        ),
        "RTMR3 measured on": _sent("event_log_replay", LOG, rtmr3=b"\x01" * 48),
        "RTMR0 zeros": _sent("event_log_replay", LOG, rtmr0=bytes(48)),
        "registers counted from 0, as a TPM's": _sent(
            "event_log_replay", ccel([(index - 1, kind, data) for index, kind, data in GOOD_TD_BOOT])
        ),
        "a domain that booted otherwise": Case("event_log_replay", rules=LOGGED, log=LOG),
    },
    "event log damaged": {
        "empty": _sent("event_log_truncated", b""),
        "truncated": _sent("event_log_truncated", EVENTS[:-1]),
        "digest count 2^32-1": _sent("event_log_digests", EVENTS + _log_event(1, 13, b"", count=0xFFFFFFFF)),
        "event size above the rest": _sent("event_log_truncated", EVENTS + _log_event(1, 13, b"", size=0xFFFFFFFF)),
        "a second header": _sent("malformed_event_log", EVENTS + _log_event(1, 3, b"Spec ID Event03\x00")),
        "bytes behind its padding": _sent("malformed_event_log", LOG + b"\x00"),
        "register 32": _sent("malformed_event_log", EVENTS + _log_event(32, 13, b"")),
    },
    "event log oversize": {
        "padding": _sent("oversize", LOG + b"\xff" * MAX_LOG_BYTES),
        "events": _sent("oversize", EVENTS + _log_event(5, 13, b"") * 16_384),
    },
    "event log of another kind": {
        "SHA-256 only": _sent("event_log_bank", agile_log(GOOD_TD_BOOT)),
        "the older form": _sent("event_log_bank", legacy_log(GOOD_TD_BOOT)),
        "no event": _sent("event_log_empty", header((SHA384,))),
        "MRTD only": _sent("event_log_empty", ccel([(0, 13, b"x")])),
        "nothing measured": _sent("event_log_empty", ccel([(1, 3, b"note")])),
    },
    "event log lies": {
        "data not matching digest": Case(
            "event_log_data", lambda: TdxPlatform(b"a", event_log=ccel(OFF_BOOT)).quote(DATA), rules=LOGGED, log=LYING
        ),
        "types changed to hide secure boot off": _booted("secure_boot", log=RENAMED),
    },
    "event log and rules": {
        "secure boot off": _booted("secure_boot", OFF_BOOT),
        "secure boot unsaid": _booted("secure_boot", [GOOD_TD_BOOT[0], *GOOD_TD_BOOT[2:]]),
        "secure boot said behind the separator": _booted(
            "secure_boot", [GOOD_TD_BOOT[0], GOOD_TD_BOOT[2], GOOD_TD_BOOT[1], *GOOD_TD_BOOT[3:]]
        ),
        "secure boot said in RTMR2": _booted(
            "secure_boot", [GOOD_TD_BOOT[0], (3, *GOOD_TD_BOOT[1][1:]), *GOOD_TD_BOOT[2:]]
        ),
        "no separator in RTMR0": _booted("secure_boot", [e for e in GOOD_TD_BOOT if e[0] != 1] + [GOOD_TD_BOOT[1]]),
        "ExitBootServices missing": _booted("exit_boot_services", GOOD_TD_BOOT[:-1]),
        **{
            f"foreign event in RTMR{rtmr}": _booted(
                "event", [*GOOD_TD_BOOT, (rtmr + 1, 13, b"foreign")], rules=BY_EVENTS, values=EVENT_VALUES
            )
            for rtmr in range(3)
        },
        "another event than the named": _booted(
            "event", [*GOOD_TD_BOOT[:5], (2, 0x80000003, b"loader 2"), *GOOD_TD_BOOT[6:]], rules=BY_EVENTS,
            values=EVENT_VALUES,
        ),
        "digests of an RTMR that the log need not explain": _booted(
            "event_log_missing", GOOD_TD_BOOT, rules=replace(BY_EVENTS, rtmrs=(2,), event_log_rtmrs=(0, 1)),
            values=replace(EVENT_VALUES, event_digests={"2": NAMED["2"]}),
        ),
        "an RTMR by value beside others by events": _booted(
            "rtmr", GOOD_TD_BOOT, rules=RULES,
            values=replace(EVENT_VALUES, rtmr_values={"3": (OTHER48,)}),
        ),
    },
}  # fmt: skip


def _refused(case: Case) -> AttestError:
    with pytest.raises(AttestError) as caught:
        judge(case)
    error = caught.value
    assert ([mismatch.code for mismatch in error.mismatches] or [error.code]) == [case.code], error
    assert isinstance(error, MalformedEvidence) == (case.code in MALFORMED)
    return error


def _parameters(rows: dict[str, dict[str, Case]]) -> list[Any]:
    return [pytest.param(case, id=f"{row}: {what}") for row, cases in rows.items() for what, case in cases.items()]


@pytest.mark.filterwarnings("ignore:Attribute's length must be")
@pytest.mark.parametrize("case", _parameters(ROWS))
def test_one_thing_wrong(case: Case) -> None:
    _refused(case)


@pytest.mark.parametrize("case", _parameters(POLICY) + _parameters(LOGS))
def test_one_rule_does_not_hold(case: Case) -> None:
    for mismatch in _refused(case).mismatches:  # none where the log itself is wrong
        assert mismatch.claim and mismatch.expected and mismatch.side == "attester"


@pytest.mark.parametrize(
    "quote", [lambda: V4.quote(DATA), lambda: V5.quote(DATA, trailing=bytes(9))], ids=["version 4", "version 5, padded"]
)
def test_nothing_wrong(quote: Callable[[], bytes]) -> None:
    """What the cases start from is accepted, so that what each changes is what is refused."""
    judge(Case("", quote))


def test_nothing_wrong_with_the_log() -> None:
    """The logs that the cases start from, judged by the rules that those refuse by."""
    judge(_booted("", GOOD_TD_BOOT))
    judge(_booted("", GOOD_TD_BOOT, rules=BY_EVENTS, values=EVENT_VALUES))
    judge(_sent("", EVENTS))
    some = replace(LOGGED, event_log_rtmrs=(0, 1, 2))
    judge(_sent("", LOG, rtmr3=b"\x01" * 48)._replace(rules=some))


def test_hex_of_either_case_is_the_same_platform() -> None:
    for fmspc in (PLATFORM.fmspc.hex().upper(), PLATFORM.fmspc.hex()):
        judge(Case("", collateral=lambda fmspc=fmspc: collateral(tcb=tcb_info(fmspc=fmspc))))  # type: ignore[misc]


def test_a_name_stands_for_one_case() -> None:
    """The differential test against dcap-qvl goes by the names alone."""
    assert len(CASES) == sum(map(len, ROWS.values()))
