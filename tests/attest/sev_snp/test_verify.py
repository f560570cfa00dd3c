"""SEV-SNP reports from the simulated AMD: accepted forms, every byte, both orders of the TCB."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import pytest
from cryptography import x509

from attest.errors import AttestError, BindingMismatch, MalformedEvidence
from attest.schemes.sev_snp.abi import REPORT_BYTES, SIGNED_BYTES, Tcb, parse_report, product_of, tcb_of
from attest.schemes.sev_snp.verify import VerifiedReport, check_report_data, verify_report
from attest.testkit.pki import ca_certificate, chip_certificate, simulated_roots
from attest.testkit.snp import SnpPlatform

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC).timestamp()
DATA = bytes(range(64))
MILAN = SnpPlatform(b"a")
OLD = SnpPlatform(b"a", version=2)
TURIN = SnpPlatform(b"a", product="Turin")
VLEK = SnpPlatform(b"a", signing_key="vlek")
REPORT = MILAN.report(DATA)


def verify(report: bytes, certificates: Sequence[x509.Certificate], now: float = NOW) -> VerifiedReport:
    return verify_report(report, certificates, now, simulated_roots())


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("version", [2, 3, 5])
@pytest.mark.parametrize("key", ["vcek", "vlek"])
def test_accepted(product: str, version: int, key: str) -> None:
    platform = SnpPlatform(b"x", product=product, version=version, signing_key=key)
    verified = verify(platform.report(DATA), [platform.leaf])
    assert (verified.product, verified.reported_tcb, verified.simulated) == (product, platform.tcb, True)
    assert verified.csp_id == ("CN=cc-simulated" if key == "vlek" else "")
    assert verified.expires == platform.leaf.not_valid_after_utc.timestamp()
    check_report_data(verified.report, DATA)


def test_the_simulated_root_is_refused_without_being_handed_in() -> None:
    with pytest.raises(AttestError) as caught:
        verify_report(REPORT, [MILAN.leaf, ca_certificate("ask", "Milan"), ca_certificate("ark", "Milan")], NOW)
    assert caught.value.code == "untrusted_chain"


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (dt.datetime(2023, 12, 31, tzinfo=dt.UTC), "certificate_not_yet_valid"),
        (dt.datetime(2031, 1, 2, tzinfo=dt.UTC), "certificate_expired"),
    ],
)
def test_out_of_validity(now: dt.datetime, code: str) -> None:
    with pytest.raises(AttestError) as caught:
        verify(REPORT, [MILAN.leaf], now.timestamp())
    assert caught.value.code == code


def test_an_expired_intermediate_ends_the_chain() -> None:
    long_lived = MILAN.certificate(not_after=dt.datetime(2060, 1, 1, tzinfo=dt.UTC))
    assert verify(REPORT, [long_lived]).expires == dt.datetime(2049, 1, 1, tzinfo=dt.UTC).timestamp()
    with pytest.raises(AttestError) as caught:
        verify(REPORT, [long_lived], dt.datetime(2050, 1, 1, tzinfo=dt.UTC).timestamp())
    assert caught.value.code == "certificate_expired"


def test_every_byte_is_covered() -> None:
    """A flip at any byte of the report is refused, by structure, endorsement or signature."""
    leaf = [MILAN.leaf]
    for at in range(REPORT_BYTES):
        with pytest.raises(AttestError):
            verify(REPORT[:at] + bytes((REPORT[at] ^ 0x01,)) + REPORT[at + 1 :], leaf)


def test_every_truncation_is_malformed() -> None:
    for length in range(REPORT_BYTES):
        with pytest.raises(MalformedEvidence):
            parse_report(REPORT[:length])


def test_report_data_is_compared_whole() -> None:
    report = parse_report(REPORT)
    for other in (bytes(64), DATA[:32], DATA[:32] + bytes(32), b"", DATA[::-1]):
        with pytest.raises(BindingMismatch) as caught:
            check_report_data(report, other)
        assert caught.value.code == "report_data"


def test_both_orders_of_the_tcb() -> None:
    raw = bytes((1, 2, 0, 0, 0, 0, 7, 8))
    assert tcb_of(raw, "Milan") == tcb_of(raw, "Genoa") == Tcb(1, 2, 7, 8)
    assert tcb_of(bytes((9, 1, 2, 3, 0, 0, 0, 8)), "Turin") == Tcb(1, 2, 3, 8, fmc=9)
    with pytest.raises(MalformedEvidence):
        tcb_of(raw, "Turin")


def test_every_level_that_a_byte_can_say() -> None:
    """Certificates write levels as DER INTEGERs: one byte up to 127, two above."""
    for levels in (Tcb(0, 127, 128, 255), Tcb(255, 128, 127, 0)):
        platform = SnpPlatform(b"levels")
        platform.tcb = levels
        assert verify(platform.report(DATA), [platform.leaf]).reported_tcb == levels


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [
        (0x19, 0x00, "Milan"), (0x19, 0x0F, "Milan"), (0x19, 0x10, "Genoa"), (0x19, 0x1F, "Genoa"), (0x19, 0x20, None),
        (0x19, 0x9F, None), (0x19, 0xA0, "Genoa"), (0x19, 0xAF, "Genoa"), (0x19, 0xB0, None), (0x1A, 0x00, "Turin"),
        (0x1A, 0x11, "Turin"), (0x18, 0x01, None), (0x17, 0x11, None), (0, 0, None),
    ],
)  # fmt: skip
def test_products_by_cpuid(family: int, model: int, product: str | None) -> None:
    assert product_of((family, model, 1)) == product


def test_signed_bytes_are_those_before_the_signature() -> None:
    assert parse_report(REPORT).signed == REPORT[:SIGNED_BYTES] == REPORT[:0x2A0]


def test_a_seed_is_a_machine() -> None:
    twin, other = SnpPlatform(b"a"), SnpPlatform(b"b")
    assert twin.key.private_numbers() == MILAN.key.private_numbers() and twin.measurement == MILAN.measurement
    assert other.hwid != MILAN.hwid and other.measurement != MILAN.measurement
    verify(twin.report(DATA), [MILAN.leaf])
    with pytest.raises(ValueError, match="seed"):
        SnpPlatform(b"")


def test_chip_certificate_says_that_it_is_simulated() -> None:
    leaf = chip_certificate(MILAN.key.public_key(), "Milan", MILAN.tcb, hwid=MILAN.hwid)
    assert "SIMULATION" in leaf.subject.rfc4514_string() and "SIMULATION" in leaf.issuer.rfc4514_string()
