"""Verification keys of one token issuer: from a JWK set (RFC 7517), a PEM public key, or a shared secret.

A key is bound to its family when it is read, so that an RSA key can never be a MAC secret and an algorithm can never
be applied to a key of another kind. Weak keys are not taken: RSA under 2048 bits, a MAC secret shorter than its hash
(RFC 7518 sections 3.2, 3.3).
"""

from __future__ import annotations

from typing import Any

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

FAMILIES = {
    "RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
    "ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519",
    "HS256": "secret", "HS384": "secret", "HS512": "secret",
}  # fmt: skip
"""Algorithms that may be configured, and the only kind of key that each may use. ``none`` is not among them."""

MIN_RSA_BITS = 2048
_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
_MAX_KEYS = 64


class BadKey(Exception):
    """A key or a key set that is not taken; the text says why."""


class Key(msgspec.Struct, frozen=True):
    """One verification key. ``alg`` is the JWK's own restriction, "" for none."""

    kid: str
    family: str
    alg: str
    value: Any


class KeySet(msgspec.Struct, frozen=True):
    """``skipped`` names the keys that were present and not taken, with the reason: for the log."""

    keys: tuple[Key, ...]
    skipped: tuple[str, ...] = ()

    def find(self, kid: str | None, alg: str) -> tuple[Key, ...]:
        """Keys that may verify ``alg``; by ``kid`` when the token has one. The caller wants exactly one."""
        family = FAMILIES[alg]
        return tuple(
            key
            for key in self.keys
            if key.family == family and key.alg in ("", alg) and (kid is None or key.kid == kid)
        )


class _Jwks(msgspec.Struct):
    keys: list[dict[str, Any]]


def parse_jwks(raw: bytes) -> KeySet:
    """The signature keys of a JWK set. Raises BadKey when it is no JWK set, or has private or no usable keys.

    Keys of other uses and unknown types are ignored, as RFC 7517 section 5 asks; weak and malformed ones are skipped
    by name.
    """
    try:
        entries = msgspec.json.decode(raw, type=_Jwks).keys
    except msgspec.DecodeError as error:
        raise BadKey(f"not a JWK set: {error}") from None
    if len(entries) > _MAX_KEYS:
        raise BadKey(f"more than {_MAX_KEYS} keys")
    keys: list[Key] = []
    skipped: list[str] = []
    for entry in entries:
        if any(member in entry for member in _PRIVATE):
            raise BadKey("the set holds a private or symmetric key; its issuer must replace it")
        if entry.get("use", "sig") != "sig" or entry.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        try:
            keys.append(_from_jwk(entry))
        except BadKey as error:
            skipped.append(f"{entry.get('kid', '(no kid)')}: {error}")
    if not keys:
        raise BadKey("no usable signature key; " + "; ".join(skipped))
    return KeySet(tuple(keys), tuple(skipped))


def _from_jwk(entry: dict[str, Any]) -> Key:
    kid, alg = entry.get("kid", ""), entry.get("alg", "")
    if not isinstance(kid, str) or not isinstance(alg, str):
        raise BadKey("kid or alg is not a string")
    algorithms = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
    try:
        value = jwt.PyJWK(entry, algorithm=algorithms[entry["kty"]]).key
    except (jwt.PyJWTError, ValueError, UnsupportedAlgorithm) as error:
        raise BadKey(f"malformed ({type(error).__name__})") from None
    return Key(kid, _family(value), alg, value)


def _family(value: object) -> str:
    """The family of a public key. Raises BadKey for a weak key or one of no known family."""
    if isinstance(value, rsa.RSAPublicKey):
        if value.key_size < MIN_RSA_BITS:
            raise BadKey(f"RSA of {value.key_size} bits; at least {MIN_RSA_BITS} are needed")
        return "RSA"
    if isinstance(value, ec.EllipticCurvePublicKey) and value.curve.name in _CURVES:
        return _CURVES[value.curve.name]
    if isinstance(value, ed25519.Ed25519PublicKey):
        return "Ed25519"
    raise BadKey("neither RSA, P-256, P-384, P-521 nor Ed25519")


def parse_pem(raw: bytes) -> KeySet:
    """One PEM public key. Raises BadKey, also for a certificate or a private key."""
    try:
        value = load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise BadKey("not a PEM public key") from None
    return KeySet((Key("", _family(value), "", value),))


def parse_secret(raw: bytes, algorithms: tuple[str, ...]) -> KeySet:
    """A shared secret for HS*; one trailing newline is not part of it. Raises BadKey when it is too short or a PEM
    file.
    """
    secret = raw.removesuffix(b"\n").removesuffix(b"\r")
    if b"-----BEGIN" in secret:
        raise BadKey("a PEM file is no shared secret")
    need = max(_SECRET_BYTES[a] for a in algorithms)
    if len(secret) < need:
        raise BadKey(f"the secret has {len(secret)} bytes; {need} are needed")
    return KeySet((Key("", "secret", "", secret),))
