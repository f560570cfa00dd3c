"""Files as tools leave them: every accepted form, and what is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attest.errors import AttestError, MalformedEvidence
from attest.forms import MAX_KEY_BYTES, parse_ak, parse_pcrs, parse_tpm_signature, quoted_pcrs, sorted_endorsements
from attest.schemes.vtpm.abi import Alg, decode_quote_part
from attest.testkit.pki import ca_certificate
from attest.testkit.tokens import certificate, fixed_key
from attest.testkit.tpm import SoftwareTpm

TPM = SoftwareTpm()
KEY: Any = TPM.key.public_key()
ZERO = "00" * 32


def test_an_ak() -> None:
    public = TPM.public()
    assert parse_ak(public) == (KEY, public)
    assert parse_ak(len(public).to_bytes(2, "big") + public) == (KEY, public)
    pem = KEY.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = KEY.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    cert = certificate("ak", TPM.key).public_bytes(Encoding.PEM)
    assert [parse_ak(raw) for raw in (pem, b"\n" + pem, der, cert)] == [(KEY, b"")] * 4


def test_aks_that_are_none() -> None:
    other = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    pem = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for raw in (b"", b"x", b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n", pem, TPM.public()[:-1]):
        with pytest.raises(MalformedEvidence):
            parse_ak(raw)
    for start in (b"-----BEGIN PUBLIC KEY-----\n", b"-----BEGIN CERTIFICATE-----\n", b"\x30"):
        with pytest.raises(MalformedEvidence) as too_large:
            parse_ak(start.ljust(MAX_KEY_BYTES + 1))
        assert too_large.value.code == "oversize"
    with pytest.raises(AttestError) as caught:
        parse_ak(TPM.public(attributes=0))
    assert caught.value.code == "ak_attributes"


def test_signatures() -> None:
    rsa: Any = fixed_key().public_key()
    assert parse_tpm_signature(bytes(256), rsa).alg == Alg.RSASSA
    signature = decode_quote_part(TPM.quote(b"x")).signature
    assert parse_tpm_signature(signature, KEY).alg == Alg.ECDSA
    for raw in (bytes(255), bytes(257), b""):
        with pytest.raises(MalformedEvidence):
            parse_tpm_signature(raw, rsa)


@pytest.mark.parametrize(
    "content",
    [
        {"sha256": {"0": ZERO, "1": ZERO}},
        {"nonce": "ab", "pcrs_sha256": {"0": ZERO, "1": ZERO}},
        {"pcrs": [ZERO, ZERO]},
        {"pcrs": {"0": ZERO, "1": "0x" + ZERO}},
        {"pcrs": [[0] * 32] * 2},
        [ZERO, ZERO],
        {"0": ZERO, "1": ZERO},
    ],
)
def test_pcrs(content: Any) -> None:
    assert parse_pcrs(json.dumps(content).encode()) == {Alg.SHA256: {0: bytes(32), 1: bytes(32)}}


@pytest.mark.parametrize(
    "raw",
    [b"", b"1", b'"x"', b"[]", b"{}", b'{"sha256":{}}', b'{"sha256":{"0":"00"}}',
     b'{"sha256":{"32":"%s"}}' % (b"0" * 64),
     b'{"sha256":{"x":"%s"}}' % (b"0" * 64), b'{"sha256":{"0":1}}', b'{"sha256":{"0":"zz"}}', b'{"md5":{"0":"00"}}',
     b'{"sha256":{"0":"%s","00":"%s"}}' % (b"0" * 64, b"0" * 64), b"[" * 100_000, b" " * ((1 << 20) + 1), b"\xff"],
)  # fmt: skip
def test_pcrs_that_are_none(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        parse_pcrs(raw)


def test_only_the_quoted_values_are_taken() -> None:
    tpm = SoftwareTpm(pcrs={Alg.SHA256: (0, 7)})
    attest = decode_quote_part(tpm.quote(b"x")).attest
    everything = {Alg.SHA256: {index: bytes(32) for index in range(24)}, Alg.SHA1: {0: bytes(20)}}
    assert quoted_pcrs(attest, everything) == {Alg.SHA256: {0: bytes(32), 7: bytes(32)}}
    assert quoted_pcrs(attest, {Alg.SHA256: {0: bytes(32)}}) == {Alg.SHA256: {0: bytes(32)}}
    assert quoted_pcrs(attest, {Alg.SHA1: {0: bytes(20)}}) == {}


def test_endorsements() -> None:
    one, two = (ca_certificate(kind, "Milan") for kind in ("ark", "ask"))
    both = one.public_bytes(Encoding.PEM) + two.public_bytes(Encoding.PEM)
    padded = two.public_bytes(Encoding.DER).ljust(4096, b"\x00")
    found = sorted_endorsements([both, padded, b'{"a":1}'])
    assert found.certificates == (one, two, two) and found.collateral == (b'{"a":1}',)
    with pytest.raises(MalformedEvidence):
        sorted_endorsements([b"nothing"])
