"""COSE_Sign1 and the CBOR of other writers: every algorithm, every laxity, every key that does not fit."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attest.cose import MAX_BYTES, MAX_DEPTH, Tag, cbor_read, load_trust_key, verify_sign1
from attest.errors import AttestError, MalformedEvidence
from attest.testkit.tokens import certificate, fixed_key

P256, P384, P521 = (ec.derive_private_key(7, curve) for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()))
RSA, EDDSA = fixed_key(), ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
KEYS: dict[int, Any] = {-7: P256, -35: P384, -36: P521, -37: RSA, -38: RSA, -39: RSA, -8: EDDSA}
HASHES: dict[int, Any] = {
    -7: hashes.SHA256(), -35: hashes.SHA384(), -36: hashes.SHA512(), -37: hashes.SHA256(), -38: hashes.SHA384(),
    -39: hashes.SHA512(),
}  # fmt: skip


def _signature(data: bytes, key: Any, algorithm: int) -> bytes:
    digest = HASHES.get(algorithm)
    if key is EDDSA:
        return EDDSA.sign(data)
    if key is RSA:
        return RSA.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
    size = (key.curve.key_size + 7) // 8
    return b"".join(n.to_bytes(size, "big") for n in decode_dss_signature(key.sign(data, ec.ECDSA(digest))))


def _sign1(algorithm: int = -7, key: Any = None, *, tag: int = 18, **changes: Any) -> bytes:
    protected = changes.get("protected", cbor2.dumps({1: algorithm} | changes.get("header", {})))
    data = cbor2.dumps(["Signature1", protected, b"", b"payload"])
    signature = changes.get("signature") or _signature(data, key or KEYS[algorithm], algorithm)
    items = [protected, changes.get("unprotected", {}), changes.get("payload", b"payload"), signature]
    return cbor2.dumps(cbor2.CBORTag(tag, items[: changes.get("members", 4)]))


@pytest.mark.parametrize("algorithm", KEYS)
def test_every_algorithm(algorithm: int) -> None:
    signed = verify_sign1(_sign1(algorithm, unprotected={4: b"kid"}), KEYS[algorithm].public_key())
    assert (signed.payload, signed.header) == (b"payload", {1: algorithm})


REFUSED: dict[str, tuple[bytes, str]] = {
    "no tag": (cbor2.dumps([b"", {}, b"", b""]), "not_signed"),
    "another tag": (_sign1(tag=17), "not_signed"),
    "three members": (_sign1(members=3), "not_signed"),
    "detached payload": (_sign1(payload=None), "malformed_evidence"),
    "signature is text": (_sign1(signature="x"), "malformed_evidence"),
    "protected header is no map": (_sign1(protected=b"\x80"), "malformed_evidence"),
    "unprotected header is no map": (_sign1(unprotected=[]), "malformed_evidence"),
    "critical members": (_sign1(header={2: [9]}), "malformed_evidence"),
    "no algorithm": (_sign1(protected=b"\xa0"), "cose_algorithm"),
    "algorithm of another curve": (_sign1(-35, P256), "cose_algorithm"),
    "algorithm of another kind of key": (_sign1(-37), "cose_algorithm"),
    "algorithm unknown": (_sign1(-7, header={1: -999}), "cose_algorithm"),
    "signature of another length": (_sign1(signature=bytes(63)), "cose_algorithm"),
    "payload changed": (_sign1(payload=b"Payload"), "cose_signature"),
    "signed by another": (_sign1(key=ec.derive_private_key(8, ec.SECP256R1())), "cose_signature"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_thing_wrong(name: str) -> None:
    raw, code = REFUSED[name]
    with pytest.raises(AttestError) as caught:
        verify_sign1(raw, P256.public_key())
    assert caught.value.code == code, caught.value


def test_values() -> None:
    value = {1: -1, "a": [True, False, None, b"b", "t", 300, 1 << 40], -2: {}}
    assert cbor_read(cbor2.dumps(value)) == value
    assert cbor_read(cbor2.dumps(cbor2.CBORTag(999, 1))) == Tag(999, 1)
    assert cbor_read(b"\x18\x01") == 1  # other writers may be longer than needed


NONE: dict[str, bytes] = {
    "empty": b"",
    "trailing": b"\x00\x00",
    "too deep": b"\x81" * (MAX_DEPTH + 1) + b"\x00",
    "float": b"\xf9\x3c\x00",
    "undefined": b"\xf7",
    "indefinite": b"\x5f\x41\x00\xff",
    "cut number": b"\x19\x01",
    "cut bytes": b"\x42\x00",
    "absurd count": b"\x9b" + b"\xff" * 8,
    "not UTF-8": b"\x61\xff",
    "key is bytes": b"\xa1\x41\x00\x00",
    "key is true": b"\xa1\xf5\x00",
    "key twice": b"\xa2\x01\x00\x01\x00",
}


@pytest.mark.parametrize("name", NONE)
def test_bytes_that_are_no_value(name: str) -> None:
    with pytest.raises(MalformedEvidence):
        cbor_read(NONE[name])


def test_a_greatest_size() -> None:
    with pytest.raises(MalformedEvidence) as caught:
        cbor_read(bytes(MAX_BYTES + 1))
    assert caught.value.code == "oversize"


def _pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def test_trust_keys() -> None:
    for key in (P256, RSA, EDDSA):
        assert load_trust_key(_pem(key)) == key.public_key()
    assert load_trust_key(certificate("signer", P256).public_bytes(Encoding.PEM)) == P256.public_key()


@pytest.mark.parametrize(
    "pem",
    [b"", b"-----BEGIN CERTIFICATE-----", _pem(fixed_key("weak")), _pem(ed448.Ed448PrivateKey.generate()),
     b"-----BEGIN PUBLIC KEY-----\nMAkwBwYDZW1wAwA=\n-----END PUBLIC KEY-----\n"],
    ids=["empty", "cut", "1024 bits", "Ed448", "a kind that nobody knows"],
)  # fmt: skip
def test_keys_that_are_none(pem: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        load_trust_key(pem)
