"""Real reports of Milan and Genoa: the verdict of every SEV-SNP case, and every real report parses."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from attest.chain import load_certificate
from attest.errors import AttestError
from attest.schemes.sev_snp.abi import REPORT_BYTES, parse_report
from attest.schemes.sev_snp.appraise import ReferenceValues, Rules, appraise_report, claims_of
from attest.schemes.sev_snp.verify import VerifiedReport, verify_report

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")

# What a policy without any pin refuses; the VLEK report and one of the others come from VMPL 1.
DEFAULT = Rules(vmpl=(0, 1, 2, 3), permit_provisional_firmware=True, unsafe_any_tcb=True, unsafe_any_measurement=True)
REJECT_CODES = {
    "snp/trustee/test-vcek-invalid-legacy.der": "untrusted_chain",
    "snp/trustee/test-vcek-invalid-new.der": "untrusted_chain",
    "snp/trustee/test-vlek.der": "certificate_expired",
    "snp/cmc/vcek.der": "signature",
}


def _verify(vectors: Path, case: dict[str, Any]) -> VerifiedReport:
    certificates = [load_certificate((vectors / name).read_bytes()) for name in case["endorsements"]]
    now = dt.datetime.fromisoformat(case["now"]).timestamp()
    return verify_report((vectors / case["evidence"]).read_bytes(), certificates, now)


def test_every_case_gets_its_verdict(vectors: Path) -> None:
    cases = [c for c in json.loads((vectors / "cases.json").read_text()) if c["scheme"] == "sev-snp"]
    assert len(cases) >= 15
    for case in cases:
        if case["verify"] == "reject":
            with pytest.raises(AttestError) as caught:
                _verify(vectors, case)
            assert caught.value.code == REJECT_CODES[case["endorsements"][0]], case
            continue
        verified = _verify(vectors, case)
        mismatches = appraise_report(verified, DEFAULT, ReferenceValues())
        assert ("reject" if mismatches else "accept") == case["default"], (case, mismatches)
        assert not verified.simulated and claims_of(verified)["product"] == verified.product


def test_the_debug_guest_is_refused_for_that_alone(vectors: Path) -> None:
    cases = json.loads((vectors / "cases.json").read_text())
    verified = _verify(vectors, next(c for c in cases if "debug" in c["why"]))
    assert [m.code for m in appraise_report(verified, DEFAULT, ReferenceValues())] == ["debug"]


def test_every_real_report_parses(vectors: Path) -> None:
    """Strictness about reserved bytes must not refuse what chips really write."""
    reports = [path for path in (vectors / "snp").rglob("*.bin") if path.stat().st_size == REPORT_BYTES]
    assert len(reports) >= 10
    for path in reports:
        parse_report(path.read_bytes())


def test_pem_and_der_in_any_order(vectors: Path) -> None:
    chain = (vectors / "snp" / "go-sev-guest" / "milan_ask_ark.pem").read_bytes().split(b"-----END CERTIFICATE-----\n")
    extra = [load_certificate(pem + b"-----END CERTIFICATE-----\n") for pem in chain if pem.strip()]
    leaf = load_certificate((vectors / "snp" / "virtee-sev" / "vcek_milan.der").read_bytes())
    report = (vectors / "snp" / "virtee-sev" / "report_milan.bin").read_bytes()
    for certificates in ([*extra, leaf], [leaf, *reversed(extra)], [leaf]):
        assert verify_report(report, certificates, 1_795_000_000.0).product == "Milan"
