"""Any known file as plain data: which format it is found to be, and nothing in it that JSON could not hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from attest.attester import evidence_for
from attest.errors import MalformedEvidence
from attest.schemes.vtpm.abi import Alg, decode_quote_part
from attest.show import MAX_EVENTS_SHOWN, show
from attest.testkit import gcp
from attest.testkit.azure import hcl_report
from attest.testkit.eventlog import agile_log
from attest.testkit.intel import collateral
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tokens import jwks, sign
from attest.testkit.tpm import SoftwareTpm

from .conftest import CLAIMS

SNP, TPM = SnpPlatform(b"show"), SoftwareTpm()
QUOTE, PUBLIC = decode_quote_part(TPM.quote(bytes(32))), TPM.public()
LEAF, ASK = SNP.endorsements


def _attestation() -> bytes:
    pcrs = gcp.field(1, Alg.SHA256) + gcp.field(2, gcp.field(1, 0) + gcp.field(2, bytes(32)))
    quote = gcp.field(1, QUOTE.attest) + gcp.field(2, QUOTE.signature) + gcp.field(3, pcrs)
    return gcp.field(1, PUBLIC) + gcp.field(2, quote)


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "azure, SNP": (lambda: hcl_report(SNP), "azure-hcl"),
    "azure, TDX": (lambda: hcl_report(SNP, hardware=bytes(1024), report_type=4), "azure-hcl"),
    "TPMS_ATTEST": (lambda: QUOTE.attest, "tpm2-quote"),
    "collection": (lambda: evidence_for(TPM, CLAIMS), "cube-mesh-evidence"),
    "SNP report": (lambda: SNP.report(bytes(64)), "sev-snp-report"),
    "TD quote": (lambda: TdxPlatform(b"show").quote(bytes(64)), "tdx-quote"),
    "launch endorsement": (gcp.endorsement, "gce-launch-endorsement"),
    "certificates": (lambda: LEAF + ASK, "certificates"),
    "collateral": (collateral, "tdx-collateral"),
    "key set": (jwks, "jwks"),
    "token": (lambda: sign({"iss": "x", "exp": 1}), "jwt"),
    "TPMT_PUBLIC": (lambda: PUBLIC, "tpm2-public"),
    "TPM2B_PUBLIC": (lambda: len(PUBLIC).to_bytes(2, "big") + PUBLIC, "tpm2-public"),
    "TPMT_SIGNATURE": (lambda: QUOTE.signature, "tpm2-signature"),
    "attestation of go-tpm-tools": (_attestation, "go-tpm-tools-attestation"),
    "event log": (agile_log, "event-log"),
}


def _content(raw: bytes, wanted: str) -> Any:
    shown = show(raw)
    assert (shown["format"], shown["verified"]) == (wanted, False)
    assert json.loads(json.dumps(shown)) == shown, "plain data, and every key a text"
    return shown["content"]


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_found_to_be_what_it_is(name: str) -> None:
    make, wanted = FILES[name]
    assert _content(make(), wanted)


def test_what_is_shown_of_it() -> None:
    report = SNP.report(bytes(range(64)))
    assert _content(report, "sev-snp-report")["report_data"] == bytes(range(64)).hex()
    leaf, ask = _content(LEAF + ASK, "certificates")
    assert leaf["subject"].endswith("CN=SEV-VCEK") and leaf["key"] == "ecpublickey 384"
    assert leaf["vendor_extensions"]["1.3.6.1.4.1.3704.1.4"] == SNP.hwid.hex() and not ask["vendor_extensions"]
    claims = _content(evidence_for(TPM, CLAIMS), "cube-mesh-evidence")["claims"]
    assert claims["node_id"] == CLAIMS.node_id and claims["nonce"] == CLAIMS.nonce.hex()
    assert _content(sign({"iss": "x", "exp": 1}), "jwt")["claims"] == {"iss": "x", "exp": 1}


def test_a_log_is_shown_in_part_and_replayed_whole() -> None:
    events = [(n % 8, 8, bytes(300)) for n in range(MAX_EVENTS_SHOWN + 1)]
    content = _content(agile_log(events), "event-log")
    assert content["number_of_events"] == len(events) and len(content["events"]) == MAX_EVENTS_SHOWN
    assert content["events"][0]["data"] == "00" * 256 and set(content["replay"]) == {"sha256"}
    assert set(content["replay"]["sha256"]) == {str(n) for n in range(8)}


@pytest.mark.parametrize("raw", [b"", b"\x00", b"\xff" * 100, b"{}", b"no evidence"])
def test_what_is_none_of_them(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence) as caught:
        show(raw)
    assert caught.value.code == "unknown_format"
