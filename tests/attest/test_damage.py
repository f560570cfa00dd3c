"""Whatever bytes arrive, parsers and verifier raise errors of this library only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from attest.binding import decode_claims
from attest.chain import load_certificate
from attest.errors import AttestError, MalformedEvidence
from attest.evidence import cmw_from_extension, decode_certificates, decode_evidence
from attest.schemes.sev_snp.abi import parse_report
from attest.schemes.sev_snp.verify import verify_report
from attest.schemes.vtpm.abi import decode_quote_part, parse_public, parse_quote, parse_signature
from attest.testkit.pki import ca_certificate, simulated_roots
from attest.testkit.snp import SnpPlatform
from attest.testkit.tpm import SoftwareTpm

PLATFORM = SnpPlatform(b"damage")
REPORT = PLATFORM.report(bytes(64))
QUOTE = decode_quote_part(SoftwareTpm().quote(bytes(32)))
NOW = 1_780_000_000.0

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
    "certificate": (load_certificate, PLATFORM.leaf.public_bytes(Encoding.DER)),
}


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
