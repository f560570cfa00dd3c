"""SEV-SNP reports from the simulated AMD, with one thing wrong at a time, each signed again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from msgspec.structs import replace

from attest.errors import AttestError, BindingMismatch, MalformedEvidence
from attest.schemes.sev_snp.abi import REPORT_BYTES, SIGNED_BYTES, Tcb, parse_report, tcb_of
from attest.schemes.sev_snp.verify import VerifiedReport, check_report_data, verify_report
from attest.testkit.pki import ca_builder, ca_certificate, ca_key, chip_certificate, name, simulated_roots
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


def _word(offset: int, value: int, length: int = 4) -> dict[int, bytes]:
    return {offset: value.to_bytes(length, "little")}


MALFORMED: dict[str, tuple[bytes, str]] = {
    "version 1": (MILAN.report(DATA, version=1), "snp_version"),
    "version 4": (MILAN.report(DATA, version=4), "snp_version"),
    "version 6": (MILAN.report(DATA, version=6), "snp_version"),
    "signature algorithm": (MILAN.report(DATA, signature_algo=2), "snp_algorithm"),
    "policy bit 17 clear": (MILAN.report(DATA, policy=0x10000), "snp_policy_bits"),
    "policy bit 26 set": (MILAN.report(DATA, policy=0x30000 | 1 << 26), "snp_policy_bits"),
    "policy bit 63 set": (MILAN.report(DATA, policy=0x30000 | 1 << 63), "snp_policy_bits"),
    "signing key none": (MILAN.report(DATA, flags=7 << 2), "snp_signing_key"),
    "signing key 2": (MILAN.report(DATA, flags=2 << 2), "snp_signing_key"),
    "flag bit 5": (MILAN.report(DATA, flags=1 << 5), "snp_signing_key"),
    "reserved 04c": (MILAN.report(DATA, _word(0x4C, 1)), "snp_reserved"),
    "reserved 18b": (MILAN.report(DATA, {0x18B: b"\x01"}), "snp_reserved"),
    "reserved 19f": (MILAN.report(DATA, {0x19F: b"\x01"}), "snp_reserved"),
    "reserved 1eb": (MILAN.report(DATA, {0x1EB: b"\x01"}), "snp_reserved"),
    "reserved 1ef": (MILAN.report(DATA, {0x1EF: b"\x01"}), "snp_reserved"),
    "reserved 29f": (MILAN.report(DATA, {0x29F: b"\x01"}), "snp_reserved"),
    "mitigations before version 5": (MILAN.report(DATA, launch_mitigations=1), "snp_reserved"),
    "cpuid before version 3": (OLD.report(DATA, cpuid_family=0x19), "snp_reserved"),
    "padding after the signature": (MILAN.report(DATA, {0x49F: b"\x01"}), "snp_reserved"),
    "TCB reserved byte": (MILAN.report(DATA, reported_tcb=b"\x04\x00\x01" + bytes(5)), "snp_reserved"),
    "truncated": (REPORT[:-1], "malformed_evidence"),
    "one byte more": (REPORT + b"\x00", "malformed_evidence"),
    "empty": (b"", "malformed_evidence"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str) -> None:
    raw, code = MALFORMED[case]
    with pytest.raises(MalformedEvidence) as caught:
        verify(raw, [MILAN.leaf])
    assert caught.value.code == code


def _level(platform: SnpPlatform, component: str) -> x509.Certificate:
    return platform.certificate(tcb=replace(platform.tcb, **{component: getattr(platform.tcb, component) + 1}))


def _ca(kind: str, subject: x509.Name, issuer: x509.Name) -> x509.Certificate:
    """A CA made by someone with keys of his own (the ASVK's stands for them) and the right names."""
    builder = ca_builder(kind, "Milan", subject, issuer).public_key(ca_key("asvk").public_key())
    return builder.sign(ca_key("asvk"), hashes.SHA384(), rsa_padding=padding.PSS(padding.MGF1(hashes.SHA384()), 48))


def _forged() -> list[x509.Certificate]:
    ark, ask = name("ARK-Milan"), name("SEV-Milan")
    return [MILAN.certificate(signer=ca_key("asvk")), _ca("ask", ask, ark), _ca("ark", ark, ark)]


OTHER_CHIP = SnpPlatform(b"b")
P256 = ec.derive_private_key(5, ec.SECP256R1()).public_key()
LEAVES: dict[str, tuple[bytes, Callable[[], list[x509.Certificate]], str]] = {
    "no certificate": (REPORT, list, "vcek_missing"),
    "intermediates only": (REPORT, lambda: [ca_certificate("ask", "Milan")], "vcek_missing"),
    "two leaves": (REPORT, lambda: [MILAN.leaf, OTHER_CHIP.leaf], "ambiguous_endorsement"),
    "VLEK for a VCEK report": (REPORT, lambda: [VLEK.leaf], "vcek_missing"),
    "VCEK for a VLEK report": (VLEK.report(DATA), lambda: [MILAN.leaf], "vlek_missing"),
    "VCEK issued by the ASVK": (REPORT, lambda: [MILAN.certificate(issuer="asvk")], "untrusted_chain"),
    "VLEK issued by the ASK": (VLEK.report(DATA), lambda: [VLEK.certificate(issuer="ask")], "untrusted_chain"),
    "VCEK with the ASK's name, signed by the ASVK": (
        REPORT, lambda: [MILAN.certificate(signer=ca_key("asvk"))], "untrusted_chain",
    ),
    "VCEK named as VLEK": (VLEK.report(DATA), lambda: [MILAN.certificate(common_name="SEV-VLEK")], "untrusted_chain"),
    "forged chain with the right names": (REPORT, _forged, "untrusted_chain"),
    "leaf issued by the root": (
        REPORT, lambda: [MILAN.certificate(issuer="ark")], "untrusted_chain",
    ),
    "leaf of another chip": (REPORT, lambda: [OTHER_CHIP.leaf], "hwid_mismatch"),
    "leaf of another chip with this hardware id": (
        REPORT, lambda: [OTHER_CHIP.certificate(hwid=MILAN.hwid)], "signature",
    ),
    "no hardware id": (REPORT, lambda: [MILAN.certificate(omit=("4",))], "leaf_kind"),
    "hardware id cut": (REPORT, lambda: [MILAN.certificate(hwid=MILAN.hwid[:63])], "hwid_mismatch"),
    "provider in a VCEK": (REPORT, lambda: [MILAN.certificate(csp_id="CN=x")], "leaf_kind"),
    "hardware id in a VLEK": (VLEK.report(DATA), lambda: [VLEK.certificate(hwid=bytes(64))], "leaf_kind"),
    "no provider in a VLEK": (VLEK.report(DATA), lambda: [VLEK.certificate(omit=("5",))], "leaf_extensions"),
    "masked chip id": (MILAN.report(DATA, chip_id=bytes(64)), lambda: [MILAN.leaf], "chip_id_masked"),
    "bootloader level": (REPORT, lambda: [_level(MILAN, "bootloader")], "spl_bootloader"),
    "tee level": (REPORT, lambda: [_level(MILAN, "tee")], "spl_tee"),
    "snp level": (REPORT, lambda: [_level(MILAN, "snp")], "spl_snp"),
    "microcode level": (REPORT, lambda: [_level(MILAN, "microcode")], "spl_microcode"),
    "fmc level": (TURIN.report(DATA), lambda: [_level(TURIN, "fmc")], "spl_fmc"),
    "no microcode level": (REPORT, lambda: [MILAN.certificate(omit=("3.8",))], "leaf_extensions"),
    "no fmc level on Turin": (TURIN.report(DATA), lambda: [TURIN.certificate(omit=("3.9",))], "leaf_extensions"),
    "no product name": (REPORT, lambda: [MILAN.certificate(omit=("2",))], "leaf_extensions"),
    "product of another name": (REPORT, lambda: [MILAN.certificate(product_name="Genoa")], "snp_product_mismatch"),
    "unknown product in version 2": (
        OLD.report(DATA), lambda: [OLD.certificate(product_name="Rome-B0")], "snp_product_unknown",
    ),
    "version 3 without CPUID": (
        MILAN.report(DATA, cpuid_family=0, cpuid_model=0, cpuid_stepping=0),
        lambda: [MILAN.leaf], "snp_product_unknown",
    ),
    "CPUID of Genoa": (MILAN.report(DATA, cpuid_model=0x11), lambda: [MILAN.leaf], "snp_product_mismatch"),
    "key on P-256": (REPORT, lambda: [MILAN.certificate(public_key=P256)], "leaf_key"),
    "signature r is zero": (MILAN.report(DATA, signature_r=bytes(72)), lambda: [MILAN.leaf], "signature"),
    "signature r and s are one": (
        MILAN.report(DATA, signature_r=b"\x01" + bytes(71), signature_s=b"\x01" + bytes(71)),
        lambda: [MILAN.leaf], "signature",
    ),
    "signature r is enormous": (MILAN.report(DATA, signature_r=b"\xff" * 72), lambda: [MILAN.leaf], "signature"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEAVES)
def test_one_thing_wrong(case: str) -> None:
    report, certificates, code = LEAVES[case]
    with pytest.raises(AttestError) as caught:
        verify(report, certificates())
    assert caught.value.code == code, caught.value


def test_a_leaf_signed_with_another_algorithm() -> None:
    leaf = MILAN.certificate()
    builder = x509.CertificateBuilder(
        leaf.issuer, leaf.subject, leaf.public_key(), 1, leaf.not_valid_before_utc, leaf.not_valid_after_utc,
        list(leaf.extensions),
    )  # fmt: skip
    with pytest.raises(AttestError) as caught:
        verify(REPORT, [builder.sign(ca_key("ask"), hashes.SHA384())])
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


def test_signed_bytes_are_those_before_the_signature() -> None:
    assert parse_report(REPORT).signed == REPORT[:SIGNED_BYTES] == REPORT[:0x2A0]


def test_turin_hardware_id_has_eight_bytes() -> None:
    assert len(TURIN.hwid) == 8
    padded = TURIN.report(DATA, chip_id=TURIN.hwid + b"\x01" + bytes(55))
    with pytest.raises(AttestError) as caught:
        verify(padded, [TURIN.leaf])
    assert caught.value.code == "hwid_mismatch"


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
