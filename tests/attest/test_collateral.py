"""What is handed in beside evidence: sorted by what it is, parsed whole or refused."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest.collateral import MAX_COLLATERAL_BYTES, parse_collateral, sort_endorsements, thim_chain, window
from attest.errors import MalformedEvidence
from attest.testkit import intel
from attest.testkit.pki import ca_certificate, crl
from attest.testkit.snp import SnpPlatform

MEMBERS = json.loads(intel.collateral())
PLATFORM = SnpPlatform(b"collateral")
ASK = ca_certificate("ask", "Milan")
THIM = {
    "vcekCert": PLATFORM.leaf.public_bytes(Encoding.PEM).decode() + "\n",
    "certificateChain": intel.pem(ASK, ca_certificate("ark", "Milan")),
    "tcbm": "DB18000000000004",
}


def test_each_file_by_what_it_is() -> None:
    lists = [crl("Milan").public_bytes(encoding) for encoding in (Encoding.DER, Encoding.PEM)]
    (leaf, ask), json_set = PLATFORM.endorsements, b" " + intel.collateral()
    sorted_ = sort_endorsements([json_set, *lists, leaf + ask, json.dumps(THIM).encode()])
    assert sorted_.collateral == (json_set,)
    assert [found.issuer for found in sorted_.crls] == [crl("Milan").issuer] * 2
    assert sorted_.certificates[:2] == (PLATFORM.leaf, ASK) and sorted_.certificates[2:4] == (PLATFORM.leaf, ASK)


@pytest.mark.parametrize(
    "raw", [b"", b"junk", b"\x30\x00", b"\x30\x03\x30\x01\x02", b'{"vcekCert": 1}', b'{"vcekCert"']
)
def test_files_that_are_nothing_of_it(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        sort_endorsements([raw])


@pytest.mark.parametrize("raw", [b"[]", b'{"vcekCert": ""}', b'{"vcekCert": "\xff"', b"[" * 5000])
def test_answers_of_thim_that_are_none(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence) as caught:
        thim_chain(raw)
    assert caught.value.code == "malformed_collateral"


@pytest.mark.parametrize(
    "changes",
    [
        {"tcb_info_signature": "00" * 63},
        {"qe_identity_signature": "zz"},
        {"pck_crl": ""},
        {"tcb_info": None},
        {"more": ""},
        {"tcb_info": "\ud800"},
    ],
)
def test_sets_that_are_none(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedEvidence):
        parse_collateral(json.dumps(MEMBERS | changes).encode())
    for raw in (b"[" * 5000, b" " * (MAX_COLLATERAL_BYTES + 1)):
        with pytest.raises(MalformedEvidence):
            parse_collateral(raw)


@pytest.mark.parametrize("document", ["{}", '{"issueDate": "2026-01-01", "nextUpdate": 1}', "[" * 5000])
def test_a_set_without_dates_has_no_window(document: str) -> None:
    with pytest.raises(MalformedEvidence) as caught:
        window(parse_collateral(json.dumps(MEMBERS | {"qe_identity": document}).encode()))
    assert caught.value.code == "malformed_collateral"


def test_the_window_is_what_all_parts_have_in_common() -> None:
    span = window(parse_collateral(intel.collateral()))
    assert (span.start, span.end) == (intel.START.timestamp(), intel.END.timestamp())
    assert span.start < span.refresh_at < span.end
