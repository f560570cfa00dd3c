"""What a log beside a quote proves, and what counts for nothing in it. Its lies are among the negatives."""

from __future__ import annotations

from pathlib import Path

import pytest

from attest.errors import AttestError
from attest.eventlog import parse_event_log, replay
from attest.schemes.vtpm.abi import Alg
from attest.schemes.vtpm.eventlog import VerifiedLog, verify_event_log
from attest.schemes.vtpm.verify import verify_quote
from attest.testkit.eventlog import GOOD_BOOT, agile_log, event, header, legacy_log, secure_boot_data
from attest.testkit.tpm import SoftwareTpm

HASH = bytes(range(32))
GOOD = agile_log()


def _verified(seen: bytes, sent: bytes, bank: int = Alg.SHA256) -> VerifiedLog:
    """Of PCRs 0 to 7; the TPM saw one log, another one may be sent."""
    tpm = SoftwareTpm(pcrs={bank: range(8)})
    tpm.pcrs[bank].update({i: v for i, v in replay(parse_event_log(seen), bank).items() if i < 8})
    return verify_event_log(sent, verify_quote(tpm.quote(HASH), HASH))


def test_a_log_that_the_quote_proves() -> None:
    for log, bank in ((GOOD, Alg.SHA256), (agile_log(algorithms=(Alg.SHA256, Alg.SHA384)), Alg.SHA384)):
        verified = _verified(log, log, bank)
        assert verified.covered == tuple(range(8)) and verified.secure_boot and not verified.unseparated
        assert len(verified.digests(4)) == 2


def test_events_of_unquoted_registers_count_for_nothing() -> None:
    """A host adds events to a register that nobody quoted: the first SecureBoot in the file is a lie."""
    off = [(23, 0x80000001, secure_boot_data()), GOOD_BOOT[0], (7, 0x80000001, secure_boot_data(b"\x00"))]
    log = agile_log([*off, *GOOD_BOOT[2:]])
    assert not _verified(log, log).secure_boot
    log = agile_log([*GOOD_BOOT[:1], *GOOD_BOOT[2:], (22, 0x80000007, b"Exit Boot Services Returned with Success")])
    assert [e.index for e in _verified(log, log).proven.events if e.type == 0x80000007] == [5]


def test_data_that_describes_is_not_compared() -> None:
    assert _verified(GOOD, GOOD.replace(b"boot loader", b"boot looter")).covered


def test_a_missing_separator_is_a_rules_matter() -> None:
    log = agile_log([item for item in GOOD_BOOT if item[:2] != (3, 4)] + [(3, 13, b"x")])
    assert _verified(log, log).unseparated == (3,)


BOOT_ORDER = (0x80000002, b"\x01\x00\x00\x00")  # 1, 0: firmware hashes the two numbers alone


def test_a_boot_order_that_looks_like_a_separator_is_none() -> None:
    log = agile_log([*GOOD_BOOT, (1, *BOOT_ORDER)])
    assert not _verified(log, log).unseparated
    without = agile_log([*(item for item in GOOD_BOOT if item[:2] != (1, 4)), (1, *BOOT_ORDER)])
    assert _verified(without, without).unseparated == (1,)


@pytest.mark.parametrize("index, kind", [(3, BOOT_ORDER[0]), (7, BOOT_ORDER[0]), (1, 13), (1, 4)])
def test_elsewhere_and_by_another_type_it_is_one(index: int, kind: int) -> None:
    log = agile_log([*GOOD_BOOT, (index, kind, BOOT_ORDER[1])])
    with pytest.raises(AttestError) as caught:
        _verified(log, log)
    assert caught.value.code == "event_log_separator"


def test_a_real_log_with_that_boot_order(vectors: Path) -> None:
    log = (vectors / "vtpm" / "eventlogs" / "eventlogwithsp800155.bin").read_bytes()
    assert _verified(log, log).covered == tuple(range(8))


@pytest.mark.parametrize(
    ("sent", "code"),
    [(legacy_log(), "event_log_bank"), (header() + event(9, 13, b"x"), "event_log_empty")],
    ids=["older form beside SHA-256", "unquoted registers only"],
)
def test_logs_of_something_else(sent: bytes, code: str) -> None:
    with pytest.raises(AttestError) as caught:
        _verified(GOOD, sent)
    assert caught.value.code == code
