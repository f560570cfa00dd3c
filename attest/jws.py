"""JSON Web Signatures (RFC 7515, RFC 7519) as attestation services use them: compact form, RSA and ECDSA, strict.

Keys are handed in: a key set, or roots for the chain that the token carries in ``x5c``. ``jku``, ``x5u`` and ``jwk`` in
a header are never followed or used. The algorithm is the caller's choice and must fit the key. Duplicate members of a
JSON object, padding, line breaks and bits beyond the end of base64url are refused, so one token has one spelling.
Claims other than the times (:func:`check_times`) are not checked here.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Sequence
from typing import Any, NoReturn, TypeAlias

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attest.chain import load_certificate, verify_chain
from attest.errors import EndorsementUnavailable, MalformedEvidence, Stale, UnsupportedEvidence, VerificationFailed

__all__ = [
    "ALGORITHMS",
    "Jwk",
    "PublicKey",
    "Token",
    "check_times",
    "decode_base64url",
    "load_json",
    "nonce_forms",
    "parse_jwks",
    "parse_token",
    "payload_for_display",
    "rsa_key",
    "verify_by_chain",
    "verify_by_keys",
]

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

MAX_TOKEN_BYTES = 65_536
MAX_JWKS_BYTES = 262_144
MAX_KEYS = 64
MAX_X5C = 5
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 4096
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_BASE64URL = re.compile(rb"[A-Za-z0-9_-]*\Z")
_NUMERIC_DATE_MAX = 253_402_300_799  # the end of year 9999


class Jwk(msgspec.Struct, frozen=True):
    """One key of a key set. ``alg`` is empty when the set does not say. Its strength is judged when it is used."""

    kid: str
    alg: str
    key: PublicKey


class Token(msgspec.Struct, frozen=True):
    """A token's parts, unverified: only :func:`verify_by_keys` and :func:`verify_by_chain` make claims of it."""

    header: dict[str, Any]
    raw_payload: bytes
    signed: bytes
    signature: bytes

    @property
    def kid(self) -> str:
        value = self.header.get("kid", "")
        return value if isinstance(value, str) else ""


def decode_base64url(raw: bytes, what: str) -> bytes:
    """Unpadded base64url (RFC 7515 §2) with no other spelling of the same bytes; else MalformedEvidence."""
    if not _BASE64URL.match(raw) or len(raw) % 4 == 1:
        raise MalformedEvidence(f"{what}: not base64url")
    data = base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=") != raw:
        raise MalformedEvidence(f"{what}: base64url with bits beyond its end")
    return data


def load_json(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object without duplicate members, NaN, infinity, or text that is no Unicode; else MalformedEvidence. The
    caller bounds its size.
    """
    try:
        text = raw.decode()
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise MalformedEvidence(f"{what}: {error or 'not JSON'}") from None
    if not isinstance(value, dict):
        raise MalformedEvidence(f"{what}: not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member of an object")
    return members


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def parse_token(raw: bytes) -> Token:
    """Compact serialization (RFC 7515 §7.1). White space around it is taken off: tokens live in files.

    A header with ``crit``, or with a payload that is not plain base64url (``b64``), is refused. Nothing is verified.
    """
    raw = raw.strip()
    if len(raw) > MAX_TOKEN_BYTES:
        raise MalformedEvidence(f"token of {len(raw)} bytes is above {MAX_TOKEN_BYTES}", code="oversize")
    pieces = raw.split(b".")
    if len(pieces) != 3 or not all(pieces[:2]):
        raise MalformedEvidence("token: not three parts")
    header = load_json(decode_base64url(pieces[0], "token header"), "token header")
    if "crit" in header or "b64" in header:
        raise MalformedEvidence("token header has critical extensions", code="token_header")
    payload, signature = decode_base64url(pieces[1], "token payload"), decode_base64url(pieces[2], "token signature")
    return Token(header, payload, pieces[0] + b"." + pieces[1], signature)


def parse_jwks(raw: bytes) -> tuple[Jwk, ...]:
    """A JWK set (RFC 7517 §5) of RSA and EC keys, given as ``n``/``e``, ``crv``/``x``/``y`` or the first of ``x5c``.

    The set is trusted because the caller chose it; certificates in it are containers of keys and no more. Keys of other
    types, or for encryption, are left out. Raises MalformedEvidence, also for a set without any usable key.
    """
    if len(raw) > MAX_JWKS_BYTES:
        raise MalformedEvidence(f"key set of {len(raw)} bytes is above {MAX_JWKS_BYTES}", code="oversize")
    items = load_json(raw, "key set").get("keys")
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_KEYS:
        raise MalformedEvidence(f"key set: not 1 to {MAX_KEYS} keys")
    keys = [key for key in map(_jwk, items) if key is not None]
    if not keys:
        raise MalformedEvidence("key set: no key for signatures")
    return tuple(keys)


def _jwk(item: Any) -> Jwk | None:
    if not isinstance(item, dict) or not isinstance(item.get("kid"), str) or not item["kid"]:
        raise MalformedEvidence("key set: a key without kid")
    if item.get("use", "sig") != "sig" or item.get("kty") not in ("RSA", "EC"):
        return None
    key = _from_x5c(item["x5c"]) if "x5c" in item and "n" not in item and "x" not in item else _from_numbers(item)
    alg = item.get("alg", "")
    return Jwk(item["kid"], alg if isinstance(alg, str) else "", key)


def _from_x5c(x5c: Any) -> PublicKey:
    key = _x5c_certificates(x5c)[0].public_key()
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise MalformedEvidence("key set: the certificate's key is neither RSA nor EC")
    return key


def _from_numbers(item: dict[str, Any]) -> PublicKey:
    if item["kty"] == "RSA":
        return rsa_key(_number(item, "n"), _number(item, "e"))
    curves: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    curve = curves.get(str(item.get("crv")))
    if curve is None:
        raise MalformedEvidence("key set: unknown curve")
    try:
        return ec.EllipticCurvePublicNumbers(_number(item, "x"), _number(item, "y"), curve).public_key()
    except ValueError:
        raise MalformedEvidence("key set: not a point of its curve") from None


def rsa_key(modulus: int, exponent: int) -> rsa.RSAPublicKey:
    """The key of these numbers, of any size; MalformedEvidence when they are none."""
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except (ValueError, OverflowError):
        raise MalformedEvidence("not the numbers of an RSA key") from None


def _number(item: dict[str, Any], name: str) -> int:
    text = item.get(name)
    if not isinstance(text, str) or not text.isascii() or len(text) > 2048:
        raise MalformedEvidence(f"key set: {name} is no number")
    return int.from_bytes(decode_base64url(text.rstrip("=").encode(), f"key set: {name}"), "big")


def verify_by_keys(token: Token, keys: Sequence[Jwk], algorithms: Collection[str]) -> dict[str, Any]:
    """The claims, when the one key of the set with the token's ``kid`` signed it with an algorithm of the caller.

    Raises EndorsementUnavailable (``kid_unknown``), UnsupportedEvidence (``token_alg``, ``kid_ambiguous``,
    ``key_strength``) or VerificationFailed (``signature``). Times are not checked: :func:`check_times`.
    """
    algorithm = _algorithm(token, algorithms)
    named = [key for key in keys if key.kid == token.kid]
    if not named:
        raise EndorsementUnavailable(f"no key {token.kid!r} in the key set", code="kid_unknown")
    if len({key.key.public_numbers() for key in named}) > 1:
        raise UnsupportedEvidence(f"several keys {token.kid!r} in the key set", code="kid_ambiguous")
    if named[0].alg not in ("", algorithm):
        raise UnsupportedEvidence(f"key {token.kid!r} is for {named[0].alg}", code="token_alg")
    return _verified(token, named[0].key, algorithm)


def verify_by_chain(
    token: Token, roots: Sequence[x509.Certificate], algorithms: Collection[str], now: float
) -> tuple[dict[str, Any], float]:
    """The claims, when the first certificate of ``x5c`` signed the token and leads to one of ``roots``.

    A root inside of ``x5c`` adds nothing. Also gives the chain's earliest end of validity, Unix seconds. Raises as
    :func:`verify_by_keys` and ``attest.chain.verify_chain`` do; ``x5c_missing`` without certificates.
    """
    algorithm = _algorithm(token, algorithms)
    if "x5c" not in token.header:
        raise EndorsementUnavailable("the token carries no certificates", code="x5c_missing")
    leaf, *others = _x5c_certificates(token.header["x5c"])
    expires = verify_chain(leaf, others, roots, now)
    key = leaf.public_key()
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise UnsupportedEvidence("the token's key is neither RSA nor EC", code="key_strength")
    return _verified(token, key, algorithm), expires


def _algorithm(token: Token, algorithms: Collection[str]) -> str:
    algorithm = token.header.get("alg")
    if algorithm not in algorithms or algorithm not in ALGORITHMS:
        raise UnsupportedEvidence(f"token algorithm {algorithm!r}, not {' or '.join(algorithms)}", code="token_alg")
    return str(algorithm)


def _x5c_certificates(x5c: Any) -> list[x509.Certificate]:
    """RFC 7515 §4.1.6 wants base64 DER; Google's Confidential Space writes PEM text: both are read."""
    if not isinstance(x5c, list) or not 1 <= len(x5c) <= MAX_X5C or not all(isinstance(c, str) for c in x5c):
        raise MalformedEvidence(f"x5c: not 1 to {MAX_X5C} certificates")
    return [load_certificate(_der_or_pem(text)) for text in x5c]


def _der_or_pem(text: str) -> bytes:
    if text.startswith("-----BEGIN CERTIFICATE-----"):
        return text.encode()
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        raise MalformedEvidence("x5c: neither base64 nor PEM") from None


def _verified(token: Token, key: PublicKey, algorithm: str) -> dict[str, Any]:
    """Nothing of the payload is decoded before its signature holds."""
    algorithm_hash = _HASHES[algorithm[2:]]
    try:
        if isinstance(key, rsa.RSAPublicKey):
            _check_rsa(key, algorithm)
            key.verify(token.signature, token.signed, _padding(algorithm, algorithm_hash), algorithm_hash)
        else:
            key.verify(_ecdsa_der(token.signature, key, algorithm), token.signed, ec.ECDSA(algorithm_hash))
    except InvalidSignature:
        raise VerificationFailed("the token's signature does not verify", code="signature") from None
    return load_json(token.raw_payload, "token payload")


def _check_rsa(key: rsa.RSAPublicKey, algorithm: str) -> None:
    if algorithm[:2] not in ("RS", "PS"):
        raise UnsupportedEvidence(f"an RSA key for {algorithm}", code="token_alg")
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS or key.public_numbers().e != 65537:
        raise UnsupportedEvidence(f"RSA key of {key.key_size} bits", code="key_strength")


def _padding(algorithm: str, algorithm_hash: hashes.HashAlgorithm) -> padding.AsymmetricPadding:
    if algorithm.startswith("PS"):
        return padding.PSS(padding.MGF1(algorithm_hash), algorithm_hash.digest_size)  # RFC 7518 §3.5
    return padding.PKCS1v15()


def _ecdsa_der(signature: bytes, key: ec.EllipticCurvePublicKey, algorithm: str) -> bytes:
    if _CURVES.get(algorithm) != key.curve.name:
        raise UnsupportedEvidence(f"a key on {key.curve.name} for {algorithm}", code="token_alg")
    size = (key.curve.key_size + 7) // 8
    if len(signature) != 2 * size:
        raise MalformedEvidence(f"token signature of {len(signature)} bytes")
    return encode_dss_signature(int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big"))


def check_times(claims: dict[str, Any], now: float, *, max_lifetime_s: float, leeway_s: float = 0.0) -> float:
    """``nbf`` and ``exp`` (both required) around ``now``, at most ``max_lifetime_s`` apart; gives ``exp``.

    Raises Stale (``token_expired``, ``token_not_yet_valid``), VerificationFailed (``token_lifetime``) or
    MalformedEvidence. ``leeway_s`` forgives a relying party's clock that is late or early by as much.
    """
    start, end = _date(claims, "nbf"), _date(claims, "exp")
    if not 0 < end - start <= max_lifetime_s:
        raise VerificationFailed(
            f"the token lives {end - start:.0f} s, more than {max_lifetime_s:.0f} or nothing", code="token_lifetime"
        )
    if now < start - leeway_s:
        raise Stale("the token is not yet valid", code="token_not_yet_valid")
    if now >= end + leeway_s:
        raise Stale("the token has expired", code="token_expired")
    return end


def _date(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= _NUMERIC_DATE_MAX:
        raise MalformedEvidence(f"token: {name} is no time")
    return float(value)


def nonce_forms(nonce: bytes) -> tuple[bytes, bytes]:
    """The texts by which a token may repeat a nonce: its bytes as they are, or as unpadded base64url.

    Services take text, so a digest travels in the second form. Both say the same nonce and nothing else.
    """
    return nonce, base64.urlsafe_b64encode(nonce).rstrip(b"=")


def payload_for_display(token: Token) -> dict[str, Any]:
    """The payload of a token that nobody has verified: for showing it, or for guessing which keys to fetch. No more."""
    return load_json(token.raw_payload, "token payload")
