"""What evidence of each kind calls for, from real evidence and the testkit's."""

from __future__ import annotations

from pathlib import Path

import pytest

from attest.attester import evidence_for
from attest.binding import encode_claims
from attest.errors import AttestError, MalformedEvidence
from attest.evidence import (
    AZURE_HCL_TYPE,
    HARDWARE,
    SNP_REPORT_TYPE,
    TOKEN,
    TOKEN_TYPE,
    TPM2_QUOTE_TYPE,
    TPM_QUOTE,
    Evidence,
    Part,
    encode_evidence,
)
from attest.needs import needed_items
from attest.schemes.azure.verify import tdx_part
from attest.testkit import azure, intel, tokens
from attest.testkit.snp import SimulatedSnpCollector, SnpPlatform
from attest.testkit.tdx import SimulatedTdxCollector, TdxPlatform
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


SNP, DATA = SnpPlatform(b"n"), bytes(64)
VCEK = f"amd-vcek:Milan/{SNP.hwid.hex()}/4.0.24.219"
TDX = [str(item) for item in tdx_items(intel.tcb_info()["fmspc"], "platform")]
WEB_TOKEN = Part(TOKEN_TYPE, tokens.sign({"iss": "https://issuer.example"}, tokens.fixed_key()))
REPORT = Part(SNP_REPORT_TYPE, SNP.report(DATA))
KEYS = "jwks:https://issuer.example"
AZURE_TDX = tdx_part(b"HCLA", TdxPlatform(b"n").quote(DATA))
PARTS: dict[str, tuple[dict[int, Part], list[str]]] = {
    "token and hardware": ({TOKEN: WEB_TOKEN, HARDWARE: REPORT}, [KEYS, VCEK, "amd-crl:Milan"]),
    "token alone": ({TOKEN: WEB_TOKEN}, [KEYS]),
    "vTPM alone": ({TPM_QUOTE: Part(TPM2_QUOTE_TYPE, b"quote")}, []),
    "Azure on SNP": ({HARDWARE: Part(AZURE_HCL_TYPE, azure.hcl_report(SNP))}, [VCEK, "amd-crl:Milan"]),
    "Azure on TDX, which has its quote beside it": ({HARDWARE: Part(AZURE_HCL_TYPE, AZURE_TDX)}, TDX),
}


@pytest.mark.parametrize("case", PARTS)
def test_collections_call_for_what_each_part_calls_for(case: str) -> None:
    parts, wanted = PARTS[case]
    assert names(encode_evidence(Evidence(encode_claims(CLAIMS), parts))) == wanted


def test_a_collection_with_hardware_of_an_unknown_kind() -> None:
    with pytest.raises(AttestError) as caught:
        needed_items(encode_evidence(Evidence(encode_claims(CLAIMS), {HARDWARE: Part(SNP_REPORT_TYPE, b"junk")})))
    assert caught.value.code == "part_unknown"


def test_a_vlek_is_the_clouds_to_hand_out() -> None:
    assert names(SnpPlatform(b"n", signing_key="vlek").report(DATA)) == ["amd-crl:Milan"]


def test_turin_names_its_fmc_first() -> None:
    turin = SnpPlatform(b"n", product="Turin")
    assert names(turin.report(DATA)) == [f"amd-vcek:Turin/{turin.hwid.hex()}/1.7.0.14.72", "amd-crl:Turin"]


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
