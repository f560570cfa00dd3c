"""Every size has a stated maximum (docs/attest.md), and one byte more is refused before anything is hashed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from attest import chain, collateral, cose, eventlog, evidence, forms, jws
from attest.errors import MalformedEvidence
from attest.schemes.azure import abi as azure
from attest.schemes.gcp import attestation, endorsement
from attest.schemes.sev_snp import certtable
from attest.schemes.tdx import abi as tdx
from attest.schemes.vtpm import abi as vtpm

# As the table of the document has them: the constant, who looks at it, and how such an input begins.
BOUNDS: dict[str, tuple[int, Callable[[bytes], object], bytes]] = {
    "collection of evidence": (evidence.MAX_EVIDENCE_BYTES, evidence.decode_evidence, b"\xa2"),
    "TDX quote": (tdx.MAX_QUOTE_BYTES, tdx.parse_quote, b"\x04\x00\x02\x00\x81"),
    "vTPM quote with its PCR values": (vtpm.MAX_PART_BYTES, vtpm.decode_quote_part, b"\x84"),
    "TPMS_ATTEST, TPMT_SIGNATURE, TPMT_PUBLIC": (vtpm.MAX_STRUCTURE_BYTES, vtpm.parse_quote, b"\xffTCG\x80\x18"),
    "event log": (eventlog.MAX_LOG_BYTES, eventlog.parse_event_log, b""),
    "HCL report": (azure.MAX_HCL_BYTES, azure.parse_hcl, b"HCLA"),
    "token": (jws.MAX_TOKEN_BYTES, jws.parse_token, b"e30.e30."),
    "key set": (jws.MAX_JWKS_BYTES, jws.parse_jwks, b'{"keys": []}'),
    "certificate": (chain.MAX_CERTIFICATE_BYTES, chain.load_certificate, b"\x30\x82"),
    "file of certificates": (chain.MAX_CHAIN_BYTES, chain.load_certificates, b"-----BEGIN"),
    "certificate table of the host": (certtable.MAX_TABLE_BYTES, certtable.parse_table, b""),
    "revocation list": (chain.MAX_CRL_BYTES, chain.load_crl, b"\x30\x82"),
    "collateral for TDX": (collateral.MAX_COLLATERAL_BYTES, collateral.parse_collateral, b"{}"),
    "launch endorsement": (endorsement.MAX_ENDORSEMENT_BYTES, endorsement.read_unverified, b"\x0a"),
    "attestation of go-tpm-tools": (attestation.MAX_ATTESTATION_BYTES, attestation.parse_attestation, b"\x0a"),
    "CoRIM": (cose.MAX_BYTES, cose.cbor_read, b"\xd2"),
    "answer of Azure's THIM": (chain.MAX_CHAIN_BYTES, collateral.thim_chain, b"{}"),
    "AK as a bare key": (forms.MAX_KEY_BYTES, forms.parse_ak, b"-----BEGIN PUBLIC KEY-----"),
    "PCR values as JSON": (forms.MAX_PCRS_BYTES, forms.parse_pcrs, b"{}"),
}


def test_the_document_has_them_all() -> None:
    text = (Path(__file__).parents[2] / "docs" / "attest.md").read_text()
    rows = re.findall(r"^\| (.+) \| ([0-9,]+) bytes \|$", text, re.MULTILINE)
    assert {row: int(size.replace(",", "")) for row, size in rows} == {
        row: size for row, (size, _, _) in BOUNDS.items()
    }


def _hashed(*_: object, **__: object) -> NoReturn:
    raise AssertionError("hashed before its size was looked at")


@pytest.mark.parametrize("row", BOUNDS)
def test_one_byte_more_is_refused_unhashed(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size, parse, start = BOUNDS[row]
    for function in ("new", "sha1", "sha256", "sha384", "sha512"):
        monkeypatch.setattr(hashlib, function, _hashed)
    with pytest.raises(MalformedEvidence, match="above"):
        parse(start.ljust(size + 1, b"A"))


@pytest.mark.parametrize("parse", [vtpm.parse_public, vtpm.parse_signature])
def test_other_structures_of_a_tpm(parse: Callable[[bytes], object]) -> None:
    with pytest.raises(MalformedEvidence, match="above"):
        parse(bytes(vtpm.MAX_STRUCTURE_BYTES + 1))
