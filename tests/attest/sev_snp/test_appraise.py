"""SEV-SNP beyond the report itself: rules that hold, AMD's revocation list, masked chip ids, what must be fetched."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from attest.attester import Collector
from attest.binding import Expected
from attest.collateral import sort_endorsements
from attest.errors import AttestError, PolicyFormatError
from attest.evidence import HARDWARE, SNP_REPORT_TYPE, Part, encode_certificates
from attest.policy import first_report_policy, parse_policy
from attest.schemes.sev_snp.abi import Tcb, parse_report
from attest.schemes.sev_snp.appraise import (
    ReferenceValues,
    Rules,
    TcbFloor,
    VersionFloor,
    appraise_report,
    claims_of,
)
from attest.schemes.sev_snp.verify import VerifiedReport, needs, verify_report
from attest.testkit.pki import ca_certificate, crl, name, simulated_roots
from attest.testkit.snp import SnpPlatform
from attest.verifier import Verifier, policy_from_result

from ..conftest import NOW

DATA = bytes(range(64))
MILAN, V5 = SnpPlatform(b"a"), SnpPlatform(b"a", version=5)
TURIN, VLEK = SnpPlatform(b"a", product="Turin"), SnpPlatform(b"a", signing_key="vlek")
RULES = Rules(min_tcb=TcbFloor(bootloader=0, tee=0, snp=0, microcode=0))
VALUES = ReferenceValues(measurements=(MILAN.measurement.hex(),))


def verified(platform: SnpPlatform = MILAN, **fields: Any) -> VerifiedReport:
    return verify_report(platform.report(DATA, **fields), [platform.leaf], NOW, simulated_roots())


def codes(report: VerifiedReport, rules: Rules = RULES, values: ReferenceValues = VALUES) -> list[str]:
    return [m.code for m in appraise_report(report, rules, values)]


def _rules(**changes: Any) -> Rules:
    return replace(RULES, **changes)


def _values(**changes: Any) -> ReferenceValues:
    return replace(VALUES, **changes)


FIRMWARE = VersionFloor(major=1, minor=55, build=21)


@pytest.mark.parametrize("part", ["major", "minor", "build"])
def test_both_firmware_versions_have_a_floor(part: str) -> None:
    above = replace(FIRMWARE, **{part: getattr(FIRMWARE, part) + 1})
    assert codes(verified(), _rules(min_firmware=above)) == ["firmware_version"] * 2
    assert codes(verified(), _rules(min_firmware=FIRMWARE)) == []
    old = _rules(min_firmware=FIRMWARE, permit_provisional_firmware=True)
    assert codes(verified(committed_build=20), old) == ["firmware_version"]
    assert codes(verified(current_build=20), old) == ["firmware_version"]


def test_what_satisfies_every_rule() -> None:
    bits = sum(1 << bit for bit in (20, 22, 23, 24, 25)) | 1 << 17 | 1 << 8 | 55
    report = verified(
        V5, policy=bits, platform_info=0x3C, launch_mitigations=3, current_mitigations=1 << 63, flags=1,
        id_key_digest=b"\x11" * 48, author_key_digest=b"\x22" * 48, family_id=b"\x33" * 16, image_id=b"\x44" * 16,
    )  # fmt: skip
    rules = _rules(
        allow_smt=False, allow_cxl=False, require_single_socket=True, require_aes256_xts=True,
        require_rapl_disabled=True, require_ciphertext_hiding=True, require_page_swap_disabled=True,
        min_policy_abi=VersionFloor(major=1, minor=55), min_firmware=FIRMWARE, require_id_block=True,
        require_author_key=True, platform_info_allowed=("ecc", "rapl_disabled", "ciphertext_hiding", "alias_check"),
        platform_info_required=("alias_check",), required_launch_mitigations=(0, 1),
        required_current_mitigations=(63,),
    )  # fmt: skip
    values = _values(
        id_key_digests=("11" * 48,), author_key_digests=("22" * 48,), family_ids=("33" * 16,),
        image_ids=("44" * 16,), report_ids=(report.report.report_id.hex(),), report_ids_ma=("ff" * 32,),
    )  # fmt: skip
    assert codes(report, rules, values) == []
    claims = claims_of(report)
    assert claims["launch_mitigations"] == "3" and claims["policy.abi"] == "1.55"
    assert claims["firmware.current"] == "1.55.21" and claims["policy.ciphertext_hiding"] == "true"


def test_provisional_firmware_by_permission_and_its_policy(
    expected: Expected, evidence: Callable[[Collector], bytes]
) -> None:
    class Provisional:
        scheme = "sev-snp"

        def parts(self, data_hash: bytes) -> dict[int, Part]:
            report = MILAN.report(data_hash + bytes(32), committed_build=20)
            return {HARDWARE: Part(SNP_REPORT_TYPE, report), 3: encode_certificates(MILAN.endorsements)}

    raw = evidence(Provisional())
    result = Verifier(first_report_policy("sev-snp"), allow_simulated=True).appraise(raw, expected, now=NOW)
    policy = parse_policy(policy_from_result(result, policy_id="p"))
    assert policy.sev_snp is not None and policy.sev_snp.permit_provisional_firmware
    Verifier(policy, allow_simulated=True).appraise(raw, expected, now=NOW)


POLICY = f"""
id = "p"
[sev-snp]
min_tcb = {{ bootloader = 4, tee = 0, snp = 24, microcode = 219 }}
[reference_values.sev-snp]
measurements = ["{"ab" * 48}"]
"""
FLOOR = "min_tcb = { bootloader = 4, tee = 0, snp = 24, microcode = 219 }"
REFUSED = {
    "no measurement": (POLICY.split("[reference")[0], "give measurements"),
    "a measurement and any": (POLICY.replace(FLOOR, f"{FLOOR}\nunsafe_any_measurement = true"), "give measurements"),
    "no floor": (POLICY.replace(FLOOR, "vmpl = [0]"), "give min_tcb"),
    "a floor and any": (POLICY.replace(FLOOR, f"{FLOOR}\nunsafe_any_tcb = true"), "give min_tcb"),
    "an id block of anybody": (POLICY.replace(FLOOR, f"{FLOOR}\nrequire_id_block = true"), "require_id_block"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_policies_that_cannot_be_used(case: str) -> None:
    parse_policy(POLICY)
    text, words = REFUSED[case]
    with pytest.raises(PolicyFormatError, match=words):
        parse_policy(text)


def test_an_id_block_is_known_by_its_key() -> None:
    for keys in ("id_key_digests", "author_key_digests"):
        parse_policy(POLICY.replace(FLOOR, f"{FLOOR}\nrequire_id_block = true") + f'{keys} = ["{"ab" * 48}"]\n')


# -- AMD's revocation list ---------------------------------------------------------------------------------------------


def _looked_up(*lists: x509.CertificateRevocationList, platform: SnpPlatform = MILAN) -> VerifiedReport:
    return verify_report(platform.report(DATA), [platform.leaf], NOW, simulated_roots(), crls=lists)


def _time(days: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(NOW), dt.UTC) + dt.timedelta(days=days)


def test_a_list_that_does_not_name_the_intermediate() -> None:
    report = _looked_up(crl("Milan", next_update=_time(1)), crl("Genoa", ("ask",)))
    assert report.revocation_checked and report.expires == _time(1).timestamp()
    assert codes(report, _rules(require_revocation_check=True)) == []
    assert _looked_up(crl("Milan", ("asvk",))).revocation_checked, "the other kind of intermediate"
    assert not _looked_up(crl("Genoa")).revocation_checked, "of another product"


def test_lists_are_endorsements(expected: Expected, evidence: Callable[[Collector], bytes]) -> None:
    class Plain:
        scheme = "sev-snp"

        def parts(self, data_hash: bytes) -> dict[int, Part]:
            return {HARDWARE: Part(SNP_REPORT_TYPE, MILAN.report(data_hash + bytes(32)))}

    raw, verifier = evidence(Plain()), Verifier(first_report_policy("sev-snp"), allow_simulated=True)
    chain = (MILAN.leaf.public_bytes(Encoding.PEM) + ca_certificate("ask", "Milan").public_bytes(Encoding.PEM),)
    for encoding in (Encoding.DER, Encoding.PEM):
        good, bad = (crl("Milan", revoked).public_bytes(encoding) for revoked in ((), ("ask",)))
        result = verifier.appraise(raw, expected, now=NOW, endorsements=(*chain, good))
        assert result.claims["revocation_checked"] == "true"
        with pytest.raises(AttestError) as caught:
            verifier.appraise(raw, expected, now=NOW, endorsements=(*chain, bad))
        assert caught.value.code == "certificate_revoked"
    for junk in (b"", b"\x30", b"\x30\x03\x30\x01\x02", b"junk", crl("Milan").public_bytes(Encoding.DER)[:-1]):
        with pytest.raises(AttestError):
            sort_endorsements([junk])


# -- masked chip ids ---------------------------------------------------------------------------------------------------


def test_a_masked_chip_id_by_permission_only() -> None:
    masked = MILAN.report(DATA, chip_id=bytes(64), flags=2)
    with pytest.raises(AttestError) as caught:
        verify_report(masked, [MILAN.leaf], NOW, simulated_roots())
    assert caught.value.code == "chip_id_masked"
    report = verify_report(masked, [MILAN.leaf], NOW, simulated_roots(), allow_masked_chip_id=True)
    assert report.chip_id_masked and codes(report) == []
    assert codes(report, RULES, _values(chip_ids=(MILAN.hwid.hex(),))) == ["chip_id"]
    assert not verified().chip_id_masked and not verified(VLEK).chip_id_masked  # a VLEK is of no chip


def test_every_tcb_of_the_report_is_read_in_the_order_of_its_product() -> None:
    report = verified(TURIN, current_tcb=bytes((9, 8, 7, 6, 0, 0, 0, 5)), committed_tcb=bytes(8))
    assert report.current_tcb == Tcb(8, 7, 6, 5, fmc=9) and report.committed_tcb.fmc == 0
    with pytest.raises(AttestError) as caught:
        verified(TURIN, current_tcb=bytes((0, 0, 0, 0, 1, 0, 0, 0)))
    assert caught.value.code == "snp_reserved"


def test_the_issuer_of_a_list_is_known_by_name_and_key() -> None:
    """A list under somebody else's name is not of this ARK, and so not consulted: the result says so."""
    foreign = crl("Milan", ("ask",), issuer_name=name("ARK-Milan", "somebody else"))
    assert not _looked_up(foreign).revocation_checked


# -- what must be fetched ----------------------------------------------------------------------------------------------


def test_what_a_report_calls_for() -> None:
    milan = needs(parse_report(MILAN.report(DATA)))
    levels = "blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219"
    assert milan.kds_path == f"/vcek/v1/Milan/{MILAN.hwid.hex()}?{levels}"
    assert needs(parse_report(SnpPlatform(b"a", version=2).report(DATA)), "Milan") == milan
    turin = needs(parse_report(TURIN.report(DATA))).kds_path
    assert turin == f"/vcek/v1/Turin/{TURIN.hwid.hex()}?fmcSPL=01&blSPL=07&teeSPL=00&snpSPL=14&ucodeSPL=72"
    with pytest.raises(ValueError, match="VCEK"):
        _ = needs(parse_report(VLEK.report(DATA))).kds_path
    for report, code in (
        (SnpPlatform(b"a", version=2).report(DATA), "snp_product_unknown"),
        (MILAN.report(DATA, chip_id=bytes(64)), "chip_id_masked"),
    ):
        with pytest.raises(AttestError) as caught:
            needs(parse_report(report))
        assert caught.value.code == code
