"""What evidence of each kind calls for, from real evidence and the testkit's."""

from __future__ import annotations

from pathlib import Path

import pytest

from attest.attester import evidence_for
from attest.errors import AttestError, MalformedEvidence
from attest.needs import needed_items
from attest.testkit import intel, tokens
from attest.testkit.snp import SimulatedSnpCollector
from attest.testkit.tdx import SimulatedTdxCollector
from attest.vouch import tdx_items
from tests.attest.conftest import CLAIMS

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number", "ignore:Attribute's length")


def names(raw: bytes, product: str = "") -> list[str]:
    return [str(item) for item in needed_items(raw, product=product)]


def test_collections_call_for_what_their_hardware_calls_for() -> None:
    tdx = evidence_for(SimulatedTdxCollector(b"s" * 32), CLAIMS)
    assert needed_items(tdx) == tdx_items(intel.tcb_info()["fmspc"], "platform")
    kinds = [name.partition("/")[0] for name in names(evidence_for(SimulatedSnpCollector(b"s" * 32), CLAIMS))]
    assert kinds in (["amd-vcek:Milan", "amd-crl:Milan"], ["amd-vcek:Genoa", "amd-crl:Genoa"])


def test_real_reports_by_version(vectors: Path) -> None:
    """Version 2 does not say its product; the caller does."""
    old = (vectors / "snp/go-sev-guest/attestation.bin").read_bytes()
    with pytest.raises(AttestError) as caught:
        needed_items(old)
    assert caught.value.code == "snp_product_unknown"
    vcek, crl = names(old, "Milan")
    assert vcek.startswith("amd-vcek:Milan/") and crl == "amd-crl:Milan"
    new = (vectors / "snp/attestation-rs/live-evidence-genoa-report.bin").read_bytes()
    assert [name.partition("/")[0] for name in names(new)] == ["amd-vcek:Genoa", "amd-crl:Genoa"]


def test_azure_on_snp_is_its_report_and_on_tdx_asks_for_the_quote(vectors: Path) -> None:
    snp = (vectors / "azure/kinvolk/hcl-report-snp.bin").read_bytes()
    assert [name.partition("/")[0] for name in names(snp, "Milan")] == ["amd-vcek:Milan", "amd-crl:Milan"]
    with pytest.raises(AttestError) as caught:
        needed_items((vectors / "azure/kinvolk/hcl-report-tdx.bin").read_bytes())
    assert caught.value.code == "td_quote_needed"


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("azure/maa-thomvanl/token.jwt", ["jwks:https://sharedweu.weu.attest.azure.net"]),
        ("gcp/synddb/cs_oidc_token_0.jwt", ["jwks:https://confidentialcomputing.googleapis.com"]),
        ("gcp/flare/cs_pki_token.jwt", []),  # carries its chain
    ],
)
def test_tokens_call_for_their_issuers_keys(vectors: Path, file: str, wanted: list[str]) -> None:
    assert names((vectors / file).read_bytes()) == wanted


@pytest.mark.parametrize("issuer", ["file:///etc/passwd", "https://a b", "", None, 7, "https://x/?q=1", "https://u@x"])
def test_a_token_whose_issuer_is_no_address(issuer: object) -> None:
    raw = tokens.sign({"iss": issuer}, tokens.fixed_key())
    with pytest.raises(AttestError) as caught:
        needed_items(raw)
    assert caught.value.code == "issuer"


@pytest.mark.parametrize("raw", [b"", b"\x00" * 1184, b"{}", b"x.y.z"])
def test_what_is_no_evidence(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence) as caught:
        needed_items(raw)
    assert caught.value.code == "unknown_format"
