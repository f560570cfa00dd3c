"""Whatever bytes arrive, parsers and verifier raise errors of this library only."""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from attest.binding import decode_claims
from attest.chain import load_certificate, load_certificates, load_crl
from attest.collateral import parse_collateral, sort_endorsements, window
from attest.der import der_items
from attest.errors import AttestError, MalformedEvidence
from attest.evidence import cmw_from_extension, decode_certificates, decode_evidence
from attest.schemes.sev_snp.abi import parse_report
from attest.schemes.sev_snp.certtable import encode_table, parse_table
from attest.schemes.sev_snp.verify import verify_report
from attest.schemes.tdx.abi import parse_quote as parse_td_quote
from attest.schemes.tdx.abi import parse_tdreport
from attest.schemes.tdx.pck import pck_info
from attest.schemes.tdx.tcb import decode_qe_identity, decode_tcb_info
from attest.schemes.vtpm.abi import decode_quote_part, parse_public, parse_quote, parse_signature
from attest.testkit import intel
from attest.testkit.pki import ca_certificate, crl, simulated_roots
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tpm import SoftwareTpm

PLATFORM = SnpPlatform(b"damage")
REPORT = PLATFORM.report(bytes(64))
QUOTE = decode_quote_part(SoftwareTpm().quote(bytes(32)))
NOW = 1_780_000_000.0
COLLATERAL = intel.collateral()
PCK = TdxPlatform(b"damage").pck()

PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "evidence": (decode_evidence, b"\xa1\x00\x82\x61a\x41b"),
    "claims": (decode_claims, b"\xa2"),
    "extension": (cmw_from_extension, b"\x04\x01a"),
    "certificates": (decode_certificates, b"\x81\x41a"),
    "quote part": (decode_quote_part, SoftwareTpm().quote(bytes(32))),
    "quote": (parse_quote, QUOTE.attest),
    "public": (parse_public, QUOTE.ak_public),
    "signature": (parse_signature, QUOTE.signature),
    "report": (parse_report, REPORT),
    "TD quote": (parse_td_quote, TdxPlatform(b"damage", version=5).quote(bytes(64))),
    "TD report": (parse_tdreport, bytes(1024)),
    "PCK certificate": (lambda raw: pck_info(load_certificate(raw)), PCK.public_bytes(Encoding.DER)),
    "collateral": (lambda raw: window(parse_collateral(raw)), COLLATERAL),
    "TCB info": (decode_tcb_info, json.dumps(intel.tcb_info()).encode()),
    "QE identity": (decode_qe_identity, json.dumps(intel.qe_identity()).encode()),
    "endorsements": (lambda raw: sort_endorsements([raw]), crl("Milan").public_bytes(Encoding.DER)),
    "revocation list": (load_crl, crl("Milan").public_bytes(Encoding.DER)),
    "chain": (load_certificates, intel.pem(*TdxPlatform(b"damage").chain).encode()),
    "certificate table": (parse_table, encode_table({UUID(int=1): b"a", UUID(int=2): b"b"})),
    "DER": (der_items, b"\x30\x03\x02\x01\x05\x04\x81\x80" + bytes(128)),
    "certificate": (load_certificate, PLATFORM.leaf.public_bytes(Encoding.DER)),
}


@pytest.mark.filterwarnings("ignore:Attribute's length must be")
@pytest.mark.parametrize("parser", PARSERS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_parsers(parser: str, data: st.DataObject) -> None:
    parse, seed = PARSERS[parser]
    at = data.draw(st.integers(0, len(seed)))
    raw = seed[:at] + data.draw(st.binary(max_size=8)) + seed[at + data.draw(st.integers(0, 8)) :]
    try:
        parse(raw)
    except MalformedEvidence:
        return


@pytest.mark.parametrize("kind", ["leaf", "intermediate"])
def test_a_flipped_byte_of_an_endorsement_never_helps(kind: str) -> None:
    """A flip in the leaf breaks AMD's signature; one in the intermediate leaves only the built-in one to use."""
    leaf, ask = (c.public_bytes(Encoding.DER) for c in (PLATFORM.leaf, ca_certificate("ask", "Milan")))
    raw = leaf if kind == "leaf" else ask
    for at in range(len(raw)):
        damaged = raw[:at] + bytes((raw[at] ^ 0x04,)) + raw[at + 1 :]
        try:
            certificates = [load_certificate(damaged), load_certificate(ask if kind == "leaf" else leaf)]
            verify_report(REPORT, certificates, NOW, simulated_roots())
        except AttestError:
            continue
        assert kind == "intermediate", f"byte {at} of the leaf"
