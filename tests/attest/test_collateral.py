"""What is handed in beside evidence, by what it is; Intel's sets as JSON, and every way to be none."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest.chain import MAX_CHAIN_BYTES
from attest.collateral import (
    MAX_COLLATERAL_BYTES,
    parse_collateral,
    sort_endorsements,
    thim_chain,
    window,
)
from attest.errors import MalformedEvidence
from attest.testkit import intel
from attest.testkit.gcp import endorsement
from attest.testkit.pki import ca_certificate, crl
from attest.testkit.snp import SnpPlatform

pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length must be")

RAW = intel.collateral()
LEAF, ASK = SnpPlatform(b"files").leaf, ca_certificate("ask", "Milan")
LIST = crl("Milan")
LAUNCH = endorsement()
PEM, DER = Encoding.PEM, Encoding.DER
THIM = json.dumps({
    "vcekCert": LEAF.public_bytes(PEM).decode(), "certificateChain": ASK.public_bytes(PEM).decode(), "tcbm": "00",
}).encode()  # fmt: skip


def _changed(**members: Any) -> bytes:
    content = json.loads(RAW) | members
    return json.dumps({name: value for name, value in content.items() if value is not None}).encode()


def test_a_set() -> None:
    found = parse_collateral(RAW)
    assert found.digest == hashlib.sha256(RAW).hexdigest() and len(found.tcb_info_signature) == 64
    assert found.pck_crl_issuer_chain[-1].issuer == found.pck_crl_issuer_chain[-1].subject
    times = window(found)
    assert times.start <= times.refresh_at <= times.end and times.end <= intel.END.timestamp()
    assert parse_collateral(_changed(pck_certificate_chain="of a newer writer")).tcb_info == found.tcb_info


WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "malformed_collateral"),
    "no object": (b"[]", "malformed_collateral"),
    "very deep": (b'{"tcb_info":' + b"[" * 100_000, "malformed_collateral"),
    "a member missing": (_changed(pck_crl=None), "malformed_collateral"),
    "a member of another name": (_changed(extra=""), "malformed_collateral"),
    "a member of another type": (_changed(tcb_info={}), "malformed_collateral"),
    "a list that is no hex": (_changed(pck_crl="zz"), "malformed_collateral"),
    "a list that is none": (_changed(root_ca_crl="00"), "malformed_crl"),
    "a chain that is none": (_changed(tcb_info_issuer_chain=""), "malformed_certificate"),
    "a signature that is short": (_changed(qe_identity_signature="00" * 63), "malformed_collateral"),
    "above the maximum": (bytes(MAX_COLLATERAL_BYTES + 1), "malformed_collateral"),
}


@pytest.mark.parametrize("case", WRONG)
def test_sets_that_are_none(case: str) -> None:
    raw, code = WRONG[case]
    with pytest.raises(MalformedEvidence) as caught:
        parse_collateral(raw)
    assert caught.value.code == code, caught.value


@pytest.mark.parametrize("document", ["", "{}", '{"issueDate":"2026-01-01","nextUpdate":"2026-01-01"}', "[" * 100_000])
@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
def test_documents_without_dates_have_no_window(name: str, document: str) -> None:
    with pytest.raises(MalformedEvidence):
        window(parse_collateral(_changed(**{name: document})))


def test_files_by_what_they_are() -> None:
    files = [
        LEAF.public_bytes(PEM), ASK.public_bytes(DER), LIST.public_bytes(PEM), LIST.public_bytes(DER), RAW, THIM,
        b" \n" + RAW, LAUNCH,
    ]  # fmt: skip
    found = sort_endorsements(files)
    assert found.certificates == (LEAF, ASK, LEAF, ASK)
    assert found.launch == (LAUNCH,)
    assert found.crls == (LIST, LIST) and found.collateral == (RAW, b" \n" + RAW)
    assert sort_endorsements([]).certificates == ()


@pytest.mark.parametrize("raw", [b"", b"nothing", b"\x30\x00", b"\x30\x02\x30\x00", b'{"vcekCert":1}'])
def test_files_that_are_nothing(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        sort_endorsements([raw])


def test_thim() -> None:
    assert thim_chain(THIM) == LEAF.public_bytes(PEM).strip() + b"\n" + ASK.public_bytes(PEM)
    for raw in (b"", b"{}", b"[" * 100_000):
        with pytest.raises(MalformedEvidence):
            thim_chain(raw)
    assert thim_chain(THIM.ljust(MAX_CHAIN_BYTES)) == thim_chain(THIM)
    with pytest.raises(MalformedEvidence) as caught:
        thim_chain(THIM.ljust(MAX_CHAIN_BYTES + 1))
    assert caught.value.code == "oversize"
