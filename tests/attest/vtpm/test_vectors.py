"""Real TPM artefacts: what other TPMs and tools wrote must parse and verify, with the nonce that they were made for."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from attest.errors import AttestError
from attest.schemes.vtpm.abi import Alg, QuotePart, encode_quote_part, parse_public, parse_quote
from attest.schemes.vtpm.verify import ak_name, verify_quote


def test_swtpm_quote(vectors: Path) -> None:
    directory = vectors / "vtpm" / "swtpm"
    facts = json.loads((directory / "pcrs.json").read_text())
    values = {int(index): bytes.fromhex(value) for index, value in facts["pcrs_sha256"].items()}
    public = (directory / "ak.pub").read_bytes()
    body = encode_quote_part(
        QuotePart((directory / "q.msg").read_bytes(), (directory / "q.sig").read_bytes(), public, {Alg.SHA256: values})
    )
    verified = verify_quote(body, bytes.fromhex(facts["nonce"]))
    assert verified.ak_name == ak_name(public) == (directory / "ak.name").read_bytes().hex()
    with pytest.raises(AttestError, match="extraData"):
        verify_quote(body, bytes(32))


def test_keylime_rsassa_quote(vectors: Path) -> None:
    directory = vectors / "vtpm" / "keylime"
    attest = (directory / "quote.out").read_bytes()
    quote = parse_quote(attest)
    pcr_file = (directory / "quotepcr.out").read_bytes()
    # tpm2-tools 3 wrote its own structures: the last three digests of 32 bytes are those of PCRs 15, 16 and 22.
    digests = _digests(pcr_file, 3)
    public = (directory / "ak.pub").read_bytes()
    public = public[2:] if public[:2] == (len(public) - 2).to_bytes(2, "big") else public
    pcrs = {Alg.SHA256: dict(zip(quote.selections[0].indexes, digests, strict=True))}
    body = encode_quote_part(QuotePart(attest, (directory / "quotesig.out").read_bytes(), public, pcrs))
    assert verify_quote(body, quote.extra_data).pcrs["sha256"].keys() == {15, 16, 22}


def _digests(raw: bytes, count: int) -> list[bytes]:
    """TPML_DIGEST as tpm2-tools writes it in host order: count u32, then {size u16, 64 bytes} each."""
    marker = count.to_bytes(4, "little") + (32).to_bytes(2, "little")
    start = raw.index(marker) + 4
    return [raw[start + 66 * i + 2 : start + 66 * i + 34] for i in range(count)]


def test_dstack_quote_parses(vectors: Path) -> None:
    quote = parse_quote((vectors / "vtpm" / "dstack" / "tpm_quote_sample.bin").read_bytes())
    assert [(s.bank, s.indexes) for s in quote.selections] == [(Alg.SHA256, (0, 1, 2))]


def test_windows_gce_sha1_quote_is_refused(vectors: Path) -> None:
    """A real quote of SHA-1 PCRs, signed with SHA-1: parses, and is no proof today."""
    dump = json.loads((vectors / "vtpm" / "go-attestation" / "windows_gcp_shielded_vm.json").read_text())
    public = base64.b64decode(dump["AK"]["Public"])
    assert parse_public(public).attributes & 1 << 16
    quote = dump["Quote"]
    values = {pcr["Index"]: base64.b64decode(pcr["Digest"]) for pcr in dump["Log"]["PCRs"]}
    body = encode_quote_part(
        QuotePart(base64.b64decode(quote["Quote"]), base64.b64decode(quote["Signature"]), public, {Alg.SHA1: values})
    )
    with pytest.raises(AttestError) as caught:
        verify_quote(body, base64.b64decode(quote.get("Nonce") or ""))
    assert caught.value.code == "signature_algorithm"
