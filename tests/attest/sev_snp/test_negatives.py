"""Each way in which a SEV-SNP report must be refused: one thing wrong, everything signed again, its own reason code.

``ROWS`` is the list of negative cases that the platform is held to, a row an item of it, for an auditor to tick off;
the rows at its end go beyond it. Two items cannot be cases. "Wrong stepping": AMD certifies every Milan chip as
"Milan-B0", also those whose CPUID says stepping 1, so that a comparison would refuse genuine reports. "Wrong CRL URL":
lists are handed in, and no address in a certificate is ever followed; a list of another issuer is the nearest thing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from attest.chain import load_certificate
from attest.errors import AppraisalFailed, AttestError, MalformedEvidence
from attest.schemes.sev_snp.abi import PLATFORM_INFO
from attest.schemes.sev_snp.appraise import ReferenceValues, Rules, TcbFloor, VersionFloor, appraise_report
from attest.schemes.sev_snp.verify import Root, check_report_data, verify_report
from attest.testkit.pki import ca_builder, ca_certificate, ca_key, crl, name, simulated_roots
from attest.testkit.snp import SnpPlatform

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
EARLIER, LATER = dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
DATA = bytes(range(64))
MILAN, V5, OLD = SnpPlatform(b"a"), SnpPlatform(b"a", version=5), SnpPlatform(b"a", version=2)
TURIN, VLEK = SnpPlatform(b"a", product="Turin"), SnpPlatform(b"a", signing_key="vlek")
OTHER_CHIP = SnpPlatform(b"b")
REPORT = MILAN.report(DATA)
NO_FLOOR = TcbFloor(bootloader=0, tee=0, snp=0, microcode=0)
RULES = Rules(min_tcb=NO_FLOOR)
VALUES = ReferenceValues(measurements=(MILAN.measurement.hex(),))
P256 = ec.derive_private_key(5, ec.SECP256R1()).public_key()
# Not readable as evidence, which the command line tells from refused.
MALFORMED = {
    "malformed_evidence", "malformed_certificate", "snp_version", "snp_algorithm", "snp_policy_bits", "snp_signing_key",
    "snp_reserved",
}  # fmt: skip


class Case(NamedTuple):
    """What is judged, and the code of the refusal. Left as it is, each part is right."""

    code: str
    report: Callable[[], bytes] = lambda: REPORT
    leaf: Callable[[], x509.Certificate] = lambda: MILAN.leaf
    certificates: Callable[[], Sequence[x509.Certificate]] | None = None  # instead of the leaf alone
    crls: Callable[[], Sequence[x509.CertificateRevocationList]] = tuple
    roots: Callable[[], Mapping[str, Sequence[Root]]] = simulated_roots
    now: dt.datetime = NOW
    rules: Rules = RULES
    values: ReferenceValues = VALUES
    data: bytes = DATA


def judge(case: Case) -> None:
    certificates = case.certificates() if case.certificates is not None else [case.leaf()]
    verified = verify_report(case.report(), certificates, case.now.timestamp(), case.roots(), crls=case.crls())
    check_report_data(verified.report, case.data)
    mismatches = appraise_report(verified, case.rules, case.values)
    if mismatches:
        raise AppraisalFailed(mismatches)


def _report(code: str, patch: Mapping[int, bytes] | None = None, **fields: Any) -> Case:
    return Case(code, lambda: MILAN.report(DATA, patch, **fields))


def _raw(code: str, raw: bytes) -> Case:
    return Case(code, lambda: raw)


def _flip(code: str, at: int) -> Case:
    return _raw(code, REPORT[:at] + bytes((REPORT[at] ^ 1,)) + REPORT[at + 1 :])


def _leaf_flip(code: str, at: int) -> Case:
    def damaged() -> x509.Certificate:
        raw = bytearray(MILAN.leaf.public_bytes(Encoding.DER))
        raw[at] ^= 1
        return load_certificate(bytes(raw))

    return Case(code, leaf=damaged)


def _leaf(code: str, platform: SnpPlatform = MILAN, **changes: Any) -> Case:
    return Case(code, lambda: platform.report(DATA), lambda: platform.certificate(**changes))


def _level(code: str, component: str, platform: SnpPlatform = MILAN) -> Case:
    return _leaf(code, platform, tcb=replace(platform.tcb, **{component: getattr(platform.tcb, component) + 1}))


def _lists(code: str, *lists: Callable[[], x509.CertificateRevocationList], **more: Any) -> Case:
    return Case(code, crls=lambda: [make() for make in lists], **more)


def _rules(code: str, **rules: Any) -> Case:
    return Case(code, rules=replace(RULES, **rules))


def _values(code: str, **values: Any) -> Case:
    return Case(code, values=replace(VALUES, **values))


def _policy(code: str, bit: int, **rules: Any) -> Case:
    return _report(code, policy=0x20000 | 1 << bit)._replace(rules=replace(RULES, **rules))


def _ca(kind: str, subject: x509.Name, issuer: x509.Name) -> x509.Certificate:
    """A CA made by someone with keys of his own (the ASVK's stands for them) and the right names."""
    builder = ca_builder(kind, "Milan", subject, issuer).public_key(ca_key("asvk").public_key())
    return builder.sign(ca_key("asvk"), hashes.SHA384(), rsa_padding=padding.PSS(padding.MGF1(hashes.SHA384()), 48))


def _forged() -> list[x509.Certificate]:
    ark, ask = name("ARK-Milan"), name("SEV-Milan")
    return [MILAN.certificate(signer=ca_key("asvk")), _ca("ask", ask, ark), _ca("ark", ark, ark)]


def _swapped_roots() -> Mapping[str, Sequence[Root]]:
    return {"Milan": (Root(ca_certificate("ask", "Milan"), (ca_certificate("ark", "Milan"),)),)}


def _signed(algorithm: Any, rsa_padding: Any = None) -> x509.Certificate:
    """The leaf signed by the right key in another way than AMD's."""
    leaf = MILAN.leaf
    builder = x509.CertificateBuilder(
        leaf.issuer, leaf.subject, leaf.public_key(), 1, leaf.not_valid_before_utc, leaf.not_valid_after_utc,
        list(leaf.extensions),
    )  # fmt: skip
    return builder.sign(ca_key("ask"), algorithm, rsa_padding=rsa_padding)


def _vlek() -> bytes:
    return VLEK.report(DATA)


ONE72 = b"\x01" + bytes(71)
V5_LAUNCH = Case("mitigation", lambda: V5.report(DATA, launch_mitigations=0b1011))
V5_CURRENT = Case("mitigation", lambda: V5.report(DATA, current_mitigations=0b0100))
ABI = _report("policy_abi", policy=0x30000 | 1 << 8 | 30)
FIRMWARE = {"major": 1, "minor": 55, "build": 21}

ROWS: dict[str, dict[str, Case]] = {
    # -- report and certificates ---------------------------------------------------------------------------------------
    "bit flip": {
        "in the signed body: measurement": _flip("signature", 0x90),
        "in the signed body: report data": _flip("signature", 0x50),
        "in the signed body: last byte of a TCB": _flip("signature", 0x1F7),
        "in the signature: r": _flip("signature", 0x2A0),
        "in the signature: s": _flip("signature", 0x2E8),
        "in the VCEK's signature": _leaf_flip("untrusted_chain", -1),
        "in the VCEK's hardware id": _leaf_flip(
            "untrusted_chain", MILAN.leaf.public_bytes(Encoding.DER).index(MILAN.hwid)
        ),
        "in the first byte of the VCEK": _leaf_flip("malformed_certificate", 0),
    },
    "truncated": {
        "by a byte": _raw("malformed_evidence", REPORT[:-1]),
        "to nothing": _raw("malformed_evidence", b""),
        "the opposite, a byte more": _raw("malformed_evidence", REPORT + b"\x00"),
    },
    "unknown version": {f"version {n}": _report("snp_version", version=n) for n in (4, 6)},
    "old version": {f"version {n}": _report("snp_version", version=n) for n in (0, 1)},
    "signature padding non-zero": {
        "first byte": _report("snp_reserved", {0x330: b"\x01"}),
        "last byte": _report("snp_reserved", {0x49F: b"\x01"}),
    },
    "wrong VCEK": {
        "of another chip": Case("hwid_mismatch", leaf=lambda: OTHER_CHIP.leaf),
        "of another TCB": _leaf("spl_microcode", tcb=replace(MILAN.tcb, microcode=72)),
        "of another chip, with this hardware id": Case(
            "signature", leaf=lambda: OTHER_CHIP.certificate(hwid=MILAN.hwid)
        ),
    },
    "hwid mismatch": {
        "cut": _leaf("hwid_mismatch", hwid=MILAN.hwid[:63]),
        "longer": _leaf("hwid_mismatch", hwid=MILAN.hwid + b"\x00"),
        "Turin's eight bytes, more in the report": Case(
            "hwid_mismatch", lambda: TURIN.report(DATA, chip_id=TURIN.hwid + b"\x01" + bytes(55)), lambda: TURIN.leaf
        ),
    },
    "missing hwid extension": {"in a VCEK": _leaf("hwid_missing", omit=("4",))},
    "SPL mismatch": {
        "bl": _level("spl_bootloader", "bootloader"),
        "tee": _level("spl_tee", "tee"),
        "snp": _level("spl_snp", "snp"),
        "ucode": _level("spl_microcode", "microcode"),
        "fmc": _level("spl_fmc", "fmc", TURIN),
    },
    "wrong product": {
        "certificate of Genoa": _leaf("snp_product_mismatch", product_name="Genoa"),
        "CPUID of Genoa": _report("snp_product_mismatch", cpuid_model=0x11),
    },
    "unknown product": {
        "in a version 2 report's certificate": _leaf("snp_product_unknown", OLD, product_name="Rome-B0"),
        "CPUID of no product": _report("snp_product_unknown", cpuid_family=0x19, cpuid_model=0x20),
    },
    "VLEK presented as VCEK": {
        "by its own name": Case("vcek_missing", leaf=lambda: VLEK.leaf),
        "named as VCEK, by the ASVK": _leaf("untrusted_chain", issuer="asvk"),
        "named as VCEK, with the ASK's name, by the ASVK": _leaf("untrusted_chain", signer=ca_key("asvk")),
        "named as VCEK, with a provider": _leaf("leaf_kind", csp_id="CN=x"),
    },
    "VCEK presented as VLEK": {
        "by its own name": Case("vlek_missing", _vlek),
        "named as VLEK": Case("untrusted_chain", _vlek, lambda: MILAN.certificate(common_name="SEV-VLEK")),
        "named as VLEK, by the ASK": _leaf("untrusted_chain", VLEK, issuer="ask"),
        "named as VLEK, with a hardware id": _leaf("leaf_kind", VLEK, hwid=bytes(64)),
    },
    "ARK and ASK swapped": {
        "the leaf is the ARK's": _leaf("untrusted_chain", issuer="ark"),
        "the leaf names the ASK, and is the ARK's": _leaf("untrusted_chain", signer=ca_key("ark")),
        "the ASK is handed in as the root": Case("untrusted_chain", roots=_swapped_roots),
    },
    "forged ARK with the right names": {"whole chain": Case("untrusted_chain", certificates=_forged)},
    "wrong CRL URL": {
        "list of another product": _lists(
            "revocation_unchecked", lambda: crl("Genoa"), rules=replace(RULES, require_revocation_check=True)
        ),
        "list under somebody else's name": _lists(
            "revocation_unchecked",
            lambda: crl("Milan", issuer_name=name("ARK-Milan", "somebody else")),
            rules=replace(RULES, require_revocation_check=True),
        ),
        "no list": _rules("revocation_unchecked", require_revocation_check=True),
    },
    "more than one CRL": {"of one ARK": _lists("ambiguous_crl", lambda: crl("Milan"), lambda: crl("Milan"))},
    "ASK revoked": {
        "ASK": _lists("certificate_revoked", lambda: crl("Milan", ("ask",))),
        "ASVK": _lists(
            "certificate_revoked", lambda: crl("Milan", ("asvk",)), report=_vlek, leaf=lambda: VLEK.leaf
        ),
    },
    "CRL signed by another root": {
        "by another key": _lists("crl_signature", lambda: crl("Milan", signer=ca_key("ask"))),
    },
    "CRL expired": {
        "expired": _lists("crl_expired", lambda: crl("Milan", next_update=EARLIER)),
        "of later": _lists("crl_not_yet_valid", lambda: crl("Milan", last_update=LATER)),
        "with a critical extension": _lists("critical_extension", lambda: crl("Milan", critical=True)),
    },
    "leaf expired": {"a leaf of the past": _leaf("certificate_expired", not_after=EARLIER)},
    "leaf not yet valid": {"a leaf of the future": _leaf("certificate_not_yet_valid", not_before=LATER)},
    "leaf back-dated": {
        "valid before its issuer was": _leaf(
            "certificate_not_yet_valid", not_before=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
        )._replace(now=dt.datetime(2023, 1, 1, tzinfo=dt.UTC)),
    },
    # -- guest policy and identity -------------------------------------------------------------------------------------
    "policy DEBUG": {"set": _policy("debug", 19)},
    "policy MIGRATE_MA": {"set": _policy("migrate_ma", 18)},
    "policy bit 17 clear": {"clear": _report("snp_policy_bits", policy=0x10000)},
    "policy bits 63:26 set": {
        f"bit {bit}": _report("snp_policy_bits", policy=0x30000 | 1 << bit) for bit in (26, 63)
    },
    "VMPL not allowed": {
        "1": _report("vmpl", vmpl=1),
        "the host's own request": _report("vmpl", vmpl=0xFFFF_FFFF),
    },
    "report_data mismatch": {
        "other data": Case("report_data", data=bytes(64)),
        "half of it": Case("report_data", data=DATA[:32] + bytes(32)),
    },
    "measurement mismatch": {"other": _report("measurement", measurement=bytes(48))},
    "host_data mismatch": {"other": _values("host_data", host_data=("11" * 32,))},
    "report_id mismatch": {
        "own": _values("report_id", report_ids=("11" * 32,)),
        "of the migration agent": _values("report_id_ma", report_ids_ma=("11" * 32,)),
    },
    "chip_id mismatch": {"other": _values("chip_id", chip_ids=("11" * 64,))},
    "family_id mismatch": {"other": _values("family_id", family_ids=("11" * 16,))},
    "image_id mismatch": {"other": _values("image_id", image_ids=("11" * 16,))},
    "id key mismatch": {
        "other": _values("id_key", id_key_digests=("11" * 48,)),
    },
    "author key mismatch": {
        "other": _report("author_key", author_key_digest=b"\x22" * 48, flags=1)._replace(
            values=replace(VALUES, author_key_digests=("11" * 48,))
        ),
        "a digest that the report says does not count": _report("author_key", author_key_digest=b"\x11" * 48)._replace(
            values=replace(VALUES, author_key_digests=("11" * 48,))
        ),
    },
    # -- floors --------------------------------------------------------------------------------------------------------
    "minimum guest SVN": {"below": _rules("guest_svn", min_guest_svn=2)},
    "minimum TCB": {
        **{
            component: _rules("tcb_floor", min_tcb=replace(NO_FLOOR, **{component: 255}))
            for component in ("bootloader", "tee", "snp", "microcode")
        },
        "fmc": Case(
            "tcb_floor", lambda: TURIN.report(DATA), lambda: TURIN.leaf,
            rules=replace(RULES, min_tcb=replace(NO_FLOOR, fmc=2)),
        ),
        "none in the rules": _rules("tcb_floor", min_tcb=None),
    },
    "minimum launch TCB": {
        "microcode": _rules("launch_tcb_floor", min_launch_tcb=replace(NO_FLOOR, microcode=255)),
        "launched before an update": _report("launch_tcb_floor", launch_tcb=bytes(8))._replace(
            rules=replace(RULES, min_launch_tcb=replace(NO_FLOOR, snp=24))
        ),
    },
    "minimum build": {
        "of the current firmware": _report("firmware_version", current_build=20)._replace(
            rules=replace(RULES, min_firmware=VersionFloor(**FIRMWARE), permit_provisional_firmware=True)
        ),
        "of the committed firmware": _report("firmware_version", committed_build=20)._replace(
            rules=replace(RULES, min_firmware=VersionFloor(**FIRMWARE), permit_provisional_firmware=True)
        ),
    },
    "minimum API version": {
        "minor": ABI._replace(rules=replace(RULES, min_policy_abi=VersionFloor(major=1, minor=31))),
        "major": ABI._replace(rules=replace(RULES, min_policy_abi=VersionFloor(major=2, minor=0))),
        "of the firmware": _report("firmware_version", current_minor=54)._replace(
            rules=replace(RULES, min_firmware=VersionFloor(**FIRMWARE), permit_provisional_firmware=True)
        ),
    },
    "provisional firmware": {
        "build": _report("provisional_firmware", committed_build=20),
        "version": _report("provisional_firmware", committed_minor=54),
        "TCB": _report("provisional_firmware", committed_tcb=bytes(8)),
    },
    # -- what the platform does ----------------------------------------------------------------------------------------
    "SMT not allowed": {
        "by the guest's policy": _rules("policy_smt", allow_smt=False),
        "on the platform": _rules("platform_info", platform_info_allowed=("ecc", "alias_check")),
    },
    "platform bit not allowed": {
        "one too many": _rules("platform_info", platform_info_allowed=("smt", "ecc")),
        "one that nobody knows": _report("platform_info", platform_info=1 << 6)._replace(
            rules=replace(RULES, platform_info_allowed=tuple(PLATFORM_INFO))
        ),
        "one missing": _rules("platform_info", platform_info_required=("ciphertext_hiding",)),
    },
    "id block required": {
        "and none there": _rules("id_block", require_id_block=True),
        "and its key not trusted": _report("id_key", id_key_digest=b"\x22" * 48)._replace(
            rules=replace(RULES, require_id_block=True), values=replace(VALUES, id_key_digests=("11" * 48,))
        ),
    },
    "author key required": {"and none there": _rules("author_key", require_author_key=True)},
    "mitigation vector bit missing": {
        "at launch": V5_LAUNCH._replace(rules=replace(RULES, required_launch_mitigations=(0, 2))),
        "now": V5_CURRENT._replace(rules=replace(RULES, required_current_mitigations=(0, 2))),
        "a report that has no vector": _rules("mitigation", required_current_mitigations=(0,)),
    },
    "MASK_CHIP_ID zeros": {"in a VCEK's report": _report("chip_id_masked", chip_id=bytes(64))},
    "version 3 or later without family and model": {
        "zeros": _report("snp_product_unknown", cpuid_family=0, cpuid_model=0, cpuid_stepping=0),
        "version 5": Case("snp_product_unknown", lambda: V5.report(DATA, cpuid_family=0, cpuid_model=0)),
    },
    # -- beyond the list -----------------------------------------------------------------------------------------------
    "form, beyond the list": {
        "signature algorithm": _report("snp_algorithm", signature_algo=2),
        "signing key none": _report("snp_signing_key", flags=7 << 2),
        "signing key 2": _report("snp_signing_key", flags=2 << 2),
        "key flag 5": _report("snp_signing_key", flags=1 << 5),
        **{
            f"reserved {at:03x}": _report("snp_reserved", {at: b"\x01"})
            for at in (0x4C, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x29F)
        },
        "mitigations before version 5": _report("snp_reserved", launch_mitigations=1),
        "CPUID before version 3": Case("snp_reserved", lambda: OLD.report(DATA, cpuid_family=0x19)),
        "reserved byte of a TCB": _report("snp_reserved", current_tcb=b"\x04\x00\x01" + bytes(5)),
        "reserved byte of Turin's TCB": Case(
            "snp_reserved", lambda: TURIN.report(DATA, committed_tcb=bytes(4) + b"\x01" + bytes(3)), lambda: TURIN.leaf
        ),
        "r is zero": _report("signature", signature_r=bytes(72)),
        "r and s are one": _report("signature", signature_r=ONE72, signature_s=ONE72),
        "r is enormous": _report("signature", signature_r=b"\xff" * 72),
    },
    "certificates, beyond the list": {
        "none": Case("vcek_missing", certificates=list),
        "intermediates only": Case("vcek_missing", certificates=lambda: [ca_certificate("ask", "Milan")]),
        "two leaves": Case("ambiguous_endorsement", certificates=lambda: [MILAN.leaf, OTHER_CHIP.leaf]),
        "no provider in a VLEK": _leaf("leaf_extensions", VLEK, omit=("5",)),
        "no microcode level": _leaf("leaf_extensions", omit=("3.8",)),
        "no fmc level on Turin": _leaf("leaf_extensions", TURIN, omit=("3.9",)),
        "no product name": _leaf("leaf_extensions", omit=("2",)),
        **{f"level {what}": _leaf("leaf_extensions", raw={"3.3": raw}) for what, raw in {
            "of another type": b"\x04\x01\x18", "negative": b"\x02\x01\x98", "with a byte behind": b"\x02\x01\x18\x00",
            "with a zero too many": b"\x02\x02\x00\x18",
        }.items()},
        **{f"level above 127 {what}": _leaf("leaf_extensions", raw={"3.8": raw}) for what, raw in {
            "of another type": b"\x04\x02\x00\xdb", "with a byte behind": b"\x02\x02\x00\xdb\x00",
        }.items()},
        **{f"product name {what}": _leaf("leaf_extensions", raw={"2": raw}) for what, raw in {
            "empty": b"\x16\x00", "of another type": b"\x0c\x05Milan", "of another length": b"\x16\x04Milan",
            "beyond ASCII": b"\x16\x06Mil\xc3\xa0n",
        }.items()},
        "key on P-256": _leaf("leaf_key", public_key=P256),
        "key of RSA": _leaf("leaf_key", public_key=ca_key("asvk").public_key()),
        "leaf signed with PKCS #1 v1.5": Case("untrusted_chain", leaf=lambda: _signed(hashes.SHA384())),
        "leaf signed with SHA-256": Case(
            "untrusted_chain",
            leaf=lambda: _signed(hashes.SHA256(), padding.PSS(padding.MGF1(hashes.SHA256()), 32)),
        ),
        "simulated root not trusted": Case("untrusted_chain", roots=dict),
    },
    "rules, beyond the list": {
        "product": _rules("product", products=("Genoa",)),
        "VCEK": _rules("signing_key", signing_keys=("vlek",)),
        "provider": Case(
            "csp_id", _vlek, lambda: VLEK.leaf, values=replace(VALUES, csp_ids=("CN=other",))
        ),
        "CXL": _policy("policy_cxl", 21, allow_cxl=False),
        "several sockets": _rules("single_socket", require_single_socket=True),
        "AES without XTS": _rules("aes256_xts", require_aes256_xts=True),
        "RAPL on": _rules("rapl_disabled", require_rapl_disabled=True),
        "ciphertext visible": _rules("ciphertext_hiding", require_ciphertext_hiding=True),
        "page swap": _rules("page_swap_disabled", require_page_swap_disabled=True),
    },
}  # fmt: skip
CASES = [pytest.param(case, id=f"{row}: {what}") for row, cases in ROWS.items() for what, case in cases.items()]


@pytest.mark.parametrize("case", CASES)
def test_one_thing_wrong(case: Case) -> None:
    with pytest.raises(AttestError) as caught:
        judge(case)
    error = caught.value
    assert ([mismatch.code for mismatch in error.mismatches] or [error.code]) == [case.code], error
    assert isinstance(error, MalformedEvidence) == (case.code in MALFORMED)
    for mismatch in error.mismatches:
        assert mismatch.claim and mismatch.expected and mismatch.actual and mismatch.side == "attester"


@pytest.mark.parametrize("platform", [MILAN, V5, OLD, TURIN, VLEK], ids=["Milan", "v5", "v2", "Turin", "VLEK"])
def test_nothing_wrong(platform: SnpPlatform) -> None:
    """What the cases start from is accepted, so that what each changes is what is refused."""
    judge(Case("", lambda: platform.report(DATA), lambda: platform.leaf))
    judge(Case("", lambda: platform.report(DATA), lambda: platform.leaf, crls=lambda: [crl(platform.product)]))


def test_a_certificate_names_a_stepping_that_need_not_be_the_chips() -> None:
    judge(_leaf("", product_name="Milan-B0"))
