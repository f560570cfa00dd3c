"""COSE_Sign1 (RFC 9052) and the CBOR that others write: tags, negative numbers, maps in any order, nesting to a bound.

``codec`` has the one encoding of our own messages; here a value may have several, so nothing is compared as bytes.
Refused: indefinite lengths, floats, duplicate keys, trailing bytes, nesting deeper than 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import InvalidVersion, load_pem_x509_certificate

from attest.codec import cbor_encode
from attest.errors import MalformedEvidence, VerificationFailed

__all__ = ["Signed", "Tag", "cbor_read", "load_trust_key", "verify_sign1"]

MAX_BYTES, MAX_DEPTH = 1 << 20, 16
SIGN1 = 18
_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}
_SIMPLE = {20: False, 21: True, 22: None}
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
_ECDSA: dict[int, tuple[type[ec.EllipticCurve], hashes.HashAlgorithm]] = {
    -7: (ec.SECP256R1, hashes.SHA256()), -35: (ec.SECP384R1, hashes.SHA384()), -36: (ec.SECP521R1, hashes.SHA512()),
}  # fmt: skip
_PSS: dict[int, hashes.HashAlgorithm] = {-37: hashes.SHA256(), -38: hashes.SHA384(), -39: hashes.SHA512()}
_EDDSA = -8
_ALG, _CRIT = 1, 2


class Tag(msgspec.Struct, frozen=True):
    """A tagged value."""

    number: int
    value: Any


class Signed(msgspec.Struct, frozen=True):
    """What a verified signature covers."""

    header: dict[Any, Any]
    payload: bytes


def cbor_read(raw: bytes) -> Any:
    """The one value in ``raw``; MalformedEvidence for anything else."""
    if len(raw) > MAX_BYTES:
        raise MalformedEvidence(f"CBOR: above {MAX_BYTES} bytes", code="oversize")
    value, end = _read(raw, 0, 0)
    if end != len(raw):
        raise MalformedEvidence(f"CBOR: {len(raw) - end} trailing bytes")
    return value


def _read(raw: bytes, at: int, depth: int) -> tuple[Any, int]:
    if at >= len(raw) or depth > MAX_DEPTH:
        raise MalformedEvidence("CBOR: truncated" if at >= len(raw) else f"CBOR: nested deeper than {MAX_DEPTH}")
    major, info = raw[at] >> 5, raw[at] & 31
    at += 1
    if major == 7:
        if info not in _SIMPLE:
            raise MalformedEvidence(f"CBOR: simple value or float {info}")
        return _SIMPLE[info], at
    number = info
    if info >= 24:
        width = _WIDTHS.get(info, 0)
        if not width or at + width > len(raw):
            raise MalformedEvidence("CBOR: truncated, or of indefinite length")
        number, at = int.from_bytes(raw[at : at + width], "big"), at + width
    return _body(raw, at, depth, major, number)


def _body(raw: bytes, at: int, depth: int, major: int, number: int) -> tuple[Any, int]:
    if major in (0, 1):
        return (number if major == 0 else -1 - number), at
    if major == 6:
        value, at = _read(raw, at, depth + 1)
        return Tag(number, value), at
    if number > len(raw) - at:
        raise MalformedEvidence("CBOR: truncated")
    if major in (2, 3):
        return _text(raw[at : at + number], major), at + number
    items = []
    for _ in range(number * (2 if major == 5 else 1)):
        item, at = _read(raw, at, depth + 1)
        items.append(item)
    return (items if major == 4 else _map(items)), at


def _text(data: bytes, major: int) -> bytes | str:
    try:
        return data if major == 2 else data.decode()
    except UnicodeDecodeError:
        raise MalformedEvidence("CBOR: text is not UTF-8") from None


def _map(items: list[Any]) -> dict[Any, Any]:
    keys = items[::2]
    if not all(isinstance(key, (int, str)) and not isinstance(key, bool) for key in keys):
        raise MalformedEvidence("CBOR: map keys are numbers or text")
    if len(set(keys)) != len(keys):
        raise MalformedEvidence("CBOR: duplicate key")
    return dict(zip(keys, items[1::2], strict=True))


def load_trust_key(pem: bytes) -> PublicKey:
    """A public key, or that of a certificate (of which nothing else is looked at), as PEM. MalformedEvidence."""
    try:
        is_certificate = b"BEGIN CERTIFICATE" in pem
        key = load_pem_x509_certificate(pem).public_key() if is_certificate else load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm, InvalidVersion):
        raise MalformedEvidence("the trust key is neither a public key nor a certificate in PEM") from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return key
    if isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey)):
        return key
    raise MalformedEvidence("the trust key is no elliptic-curve, Ed25519 or RSA key of 2048 bits")


def verify_sign1(raw: bytes, key: PublicKey) -> Signed:
    """The content of a COSE_Sign1 that ``key`` has signed with the algorithm of the protected header.

    Not checked: the key's own standing, ``kid``, and anything in the unprotected header, which nobody signs. Raises
    MalformedEvidence, VerificationFailed ("cose_algorithm", "cose_signature").
    """
    value = cbor_read(raw)
    items = value.value if isinstance(value, Tag) and value.number == SIGN1 else None
    if not isinstance(items, list) or len(items) != 4:
        raise MalformedEvidence("not a COSE_Sign1 (CBOR tag 18)", code="not_signed")
    protected, unprotected, payload, signature = items
    if not (isinstance(protected, bytes) and isinstance(payload, bytes) and isinstance(signature, bytes)):
        raise MalformedEvidence("COSE: protected header, payload and signature are byte strings")
    header = cbor_read(protected)
    if not isinstance(header, dict) or not isinstance(unprotected, dict) or _CRIT in header:
        raise MalformedEvidence("COSE: headers are maps, without critical members that are not understood")
    _check(header, key, cbor_encode(["Signature1", protected, b"", payload]), signature)
    return Signed(header, payload)


def _check(header: Mapping[Any, Any], key: PublicKey, data: bytes, signature: bytes) -> None:
    algorithm = header.get(_ALG)
    if not isinstance(algorithm, int):
        raise VerificationFailed("COSE: the algorithm is no number", code="cose_algorithm")
    try:
        if algorithm in _ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
            curve, digest = _ECDSA[algorithm]
            size = (key.curve.key_size + 7) // 8
            if isinstance(key.curve, curve) and len(signature) == 2 * size:
                r, s = (int.from_bytes(half, "big") for half in (signature[:size], signature[size:]))
                return key.verify(encode_dss_signature(r, s), data, ec.ECDSA(digest))
        elif algorithm in _PSS and isinstance(key, rsa.RSAPublicKey):
            digest = _PSS[algorithm]
            return key.verify(signature, data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        elif algorithm == _EDDSA and isinstance(key, ed25519.Ed25519PublicKey):
            return key.verify(signature, data)
    except InvalidSignature:
        raise VerificationFailed("COSE: the signature does not hold", code="cose_signature") from None
    raise VerificationFailed(f"COSE: algorithm {algorithm!r} does not fit the trust key", code="cose_algorithm")
