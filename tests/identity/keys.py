"""Fixed keys and a maker of tokens that can be wrong in one thing at a time."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

NOW = 1_790_000_000.0
ISSUER, AUDIENCE = "https://id.example", "cube-mesh"


@cache
def rsa_key(bits: int = 2048, which: int = 0) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(curve: str = "secp256r1") -> ec.EllipticCurvePrivateKey:
    curves = {"secp256r1": ec.SECP256R1, "secp384r1": ec.SECP384R1, "secp256k1": ec.SECP256K1}
    return ec.generate_private_key(curves[curve]())


@cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def public_pem(key: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, form)
    return pem


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        made = jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        made = jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        made = jwt.algorithms.OKPAlgorithm.to_jwk(public, as_dict=True)
    made.pop("key_ops", None)
    return {**made, **more}


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims at ``NOW``; a change to ``...`` leaves the claim out."""
    good = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 600, "iat": NOW - 10, "nbf": NOW - 10, "jti": "t1",
    }  # fmt: skip
    return {name: value for name, value in {**good, **changes}.items() if value is not ...}


def token(
    payload: dict[str, Any] | None = None, key: Any = None, alg: str = "RS256", header: dict[str, Any] | None = None
) -> bytes:
    header = {"kid": "k1", **(header or {})}
    return jwt.encode(
        claims() if payload is None else payload,
        rsa_key() if key is None else key,
        alg,
        {name: value for name, value in header.items() if value is not ...},
    ).encode()


def b64(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def raw_token(header: bytes, payload: bytes, signature: bytes) -> bytes:
    return b".".join((b64(header), b64(payload), b64(signature)))
