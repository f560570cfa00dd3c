"""What a CCEL log beside a quote proves, by the testkit and by real firmware. Its lies are among the negatives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from attest.errors import AttestError, VerificationFailed
from attest.eventlog import SHA384, EventLog, parse_event_log
from attest.schemes.tdx.abi import TdReport, parse_quote
from attest.schemes.tdx.appraise import ReferenceValues, Rules, appraise_quote, log_claims_of
from attest.schemes.tdx.eventlog import VerifiedLog, explained, verify_event_log
from attest.testkit.eventlog import GOOD_TD_BOOT, agile_log, ccel
from attest.testkit.tdx import TdxPlatform

from .cases import DATA, REPORT
from .test_appraise import BASE

ALL = (0, 1, 2, 3)


def _report(log: bytes) -> TdReport:
    return parse_quote(TdxPlatform(b"a", event_log=log).quote(DATA)).report


def _verified(events: Sequence[tuple[int, int, bytes]] = GOOD_TD_BOOT) -> VerifiedLog:
    return verify_event_log(ccel(events), _report(ccel(events)), ALL)


def test_a_log_that_the_quote_proves() -> None:
    log = _verified()
    assert log.rtmrs == ALL and log.secure_boot and log.exited_boot_services
    assert [len(log.digests(rtmr)) for rtmr in ALL] == [4, 3, 1, 0]
    assert log.digests(2) == (hashlib.sha384(b"kernel_cmdline: quiet").hexdigest(),)
    assert log_claims_of(log) == {
        "eventlog.bank": "sha384", "eventlog.rtmrs": "0, 1, 2, 3", "eventlog.secure_boot": "true",
        "eventlog.exit_boot_services": "true",
    }  # fmt: skip


def test_only_the_named_rtmrs_count() -> None:
    """RTMR2 was measured on; what the log says of it is nobody's word, and secure boot without RTMR0 is unknown."""
    report = replace(_report(ccel()), rtmr2=b"\x01" * 48)
    with pytest.raises(VerificationFailed, match="does not replay to RTMR2$"):
        verify_event_log(ccel(), report, ALL)
    log = verify_event_log(ccel(), report, (3, 1))
    assert log.rtmrs == (1, 3) and {event.index for event in log.proven.events} == {2}
    assert not log.secure_boot and log_claims_of(log)["eventlog.secure_boot"] == "unknown"


def test_what_is_logged_into_no_rtmr_counts_for_nothing() -> None:
    """MRTD, a register that does not exist, and events that are not measured."""
    more = [(0, 13, b"x"), (5, 13, b"y"), (1, 3, b"note")]
    log = verify_event_log(ccel([*more, *GOOD_TD_BOOT]), _report(ccel()), ALL)
    assert log.proven == _verified().proven


def test_rules_over_a_log() -> None:
    rules = Rules(
        unsafe_any_mr_td=True, unsafe_any_rtmrs=True, require_event_log=True, require_secure_boot=True,
        require_exit_boot_services=True,
    )  # fmt: skip
    values = ReferenceValues()
    assert appraise_quote(BASE, rules, values, _verified()) == ()
    assert appraise_quote(BASE, rules, values, log_comes_later=True) == ()
    (missing,) = appraise_quote(BASE, rules, values)
    assert (missing.code, missing.claim, missing.expected, missing.actual) == (
        "event_log_missing", "eventlog", "an event log", "none",
    )  # fmt: skip
    bare = VerifiedLog(EventLog((SHA384,), ()), ALL)
    assert [m.code for m in appraise_quote(BASE, rules, values, bare)] == ["secure_boot", "exit_boot_services"]


def test_foreign_events_are_named() -> None:
    first, *rest = _verified().digests(0)
    rules = Rules(unsafe_any_mr_td=True, rtmrs=(0, 1))
    values = ReferenceValues(
        event_digests={"0": (*rest,)}, rtmr_values={"1": (REPORT.rtmr1.hex(),)}
    )  # RTMR1 is the base quote's: by value
    (found,) = appraise_quote(BASE, rules, values, _verified())
    assert (found.code, found.claim, found.actual, found.side) == ("event", "eventlog.rtmr0", first, "attester")


def test_no_flipped_bit_of_a_log_proves_more_than_the_quote() -> None:
    """It is refused, or is in what nothing vouches for: types, and the data of events that only describe."""
    off = [event for event in GOOD_TD_BOOT if event[1] not in (0x80000001, 0x80000007)]
    for events in (GOOD_TD_BOOT, off):
        raw, report = agile_log(events, (SHA384,)), _report(ccel(events))
        whole = verify_event_log(raw, report, ALL)
        kept = 0
        for bit in range(8 * len(raw)):
            damaged = bytearray(raw)
            damaged[bit // 8] ^= 1 << bit % 8
            try:
                log = verify_event_log(bytes(damaged), report, ALL)
            except AttestError:
                continue
            kept += 1
            assert [log.digests(rtmr) for rtmr in ALL] == [whole.digests(rtmr) for rtmr in ALL]
            assert log.secure_boot <= whole.secure_boot and log.exited_boot_services <= whole.exited_boot_services
        assert 0 < kept < 4 * len(raw)


# -- real firmware -----------------------------------------------------------------------------------------------------

# Log, quote, RTMRs that the machine had not measured on, events of each.
REAL = {
    "Google's COS": ("go-tdx-guest-ccel/ccel_data.dat", "go-tdx-guest-ccel/cos-113-tdx-quote.dat", ALL, [16, 7, 20, 0]),
    "a machine whose RTMR2 went on": (
        "attestation-rs/tdx_ccel_live.bin", "attestation-rs/tdx_quote_live.dat", (0, 1, 3), [13, 5, 0, 0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_logs_replay_to_real_quotes(vectors: Path, name: str) -> None:
    log_file, quote_file, rtmrs, counts = REAL[name]
    raw = (vectors / "tdx" / log_file).read_bytes()
    report = parse_quote((vectors / "tdx" / quote_file).read_bytes()).report
    log = verify_event_log(raw, report, rtmrs)
    assert [len(log.digests(rtmr)) for rtmr in ALL] == counts
    assert log.exited_boot_services and not log.secure_boot
    for rtmr in rtmrs:
        with pytest.raises(VerificationFailed) as caught:
            verify_event_log(raw, replace(report, **{f"rtmr{rtmr}": b"\x01" * 48}), rtmrs)
        assert caught.value.code == "event_log_replay"
    assert explained(raw, report) == rtmrs
    if rtmrs != ALL:
        with pytest.raises(VerificationFailed, match="does not replay to RTMR2$"):
            verify_event_log(raw, report, ALL)


@pytest.mark.parametrize(
    ("file", "secure"),
    [("trustee-ccel/CCEL_data_grub", True), ("trustee/CCEL_data_ovmf", False), ("dstack/ccel.bin", False)],
)
def test_real_logs_whose_quotes_are_not_at_hand(vectors: Path, file: str, secure: bool) -> None:
    """Beside a simulated domain that booted by them. Old firmware separates RTMR0 twice, which is no lie."""
    raw = (vectors / "tdx" / file).read_bytes()
    log = verify_event_log(raw, _report(raw), ALL)
    assert log.secure_boot is secure and log.exited_boot_services
    assert len(log.proven.events) == len(parse_event_log(raw).events)
