"""Which keys are taken: strong public ones for signatures, and nothing that could be mistaken for another kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cube_mesh.identity.keyset import BadKey, parse_jwks, parse_pem, parse_secret
from tests.identity.keys import ec_key, jwk, jwks, public_pem, rsa_key


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[]}', b'{"keys":[1]}', b"<html>",
        jwks(jwk(rsa_key(1024), kid="weak")),
        jwks({"kty": "oct", "k": "AAAA", "kid": "k1"}), jwks({"kty": "RSA", "n": "AQAB", "e": "AQAB"}),
        jwks({"kty": "RSA"}), jwks({**jwk(rsa_key()), "d": "AAAA"}), jwks(jwk(rsa_key(), use="enc")),
        jwks({**jwk(ec_key()), "x": "AAAA"}), jwks(*[jwk(rsa_key(), kid=str(n)) for n in range(65)]),
        jwks(jwk(ec_key("secp256k1"))), jwks({**jwk(rsa_key()), "kid": 7}),
    ],
)  # fmt: skip
def test_sets_without_a_usable_key(raw: bytes) -> None:
    with pytest.raises(BadKey):
        parse_jwks(raw)


def test_one_bad_key_does_not_take_the_others_along() -> None:
    unknown: dict[str, Any] = {"kty": "AKP", "alg": "ML-DSA-65", "pub": "AAAA"}
    keys = parse_jwks(jwks(unknown, jwk(rsa_key(1024), kid="weak"), jwk(rsa_key(), kid="good")))
    assert [key.kid for key in keys.keys] == ["good"]
    assert len(keys.skipped) == 1 and "weak" in keys.skipped[0] and "1024" in keys.skipped[0]
    assert keys.find("weak", "RS256") == ()


@pytest.mark.parametrize("leaked", [{"d": "AAAA"}, {"k": "AAAA"}, {"p": "AAAA", "q": "AAAA"}])
def test_a_set_that_shows_a_secret_is_not_trusted_at_all(leaked: dict[str, str]) -> None:
    with pytest.raises(BadKey, match="private or symmetric"):
        parse_jwks(jwks(jwk(rsa_key(), kid="good"), {**jwk(rsa_key(2048, 1), kid="leaked"), **leaked}))


def test_a_public_key_file() -> None:
    assert parse_pem(public_pem(rsa_key())).keys[0].family == "RSA"
    private = rsa_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for raw in (b"", b"x", private, public_pem(rsa_key(1024)), json.dumps(jwk(rsa_key())).encode()):
        with pytest.raises(BadKey):
            parse_pem(raw)


def test_a_secret_file() -> None:
    assert parse_secret(b"s" * 32 + b"\r\n", ("HS256",)).keys[0].value == b"s" * 32
    for raw, algorithms in (
        (b"", ("HS256",)), (b"s" * 31, ("HS256",)), (b"s" * 32, ("HS256", "HS512")),
        (public_pem(rsa_key()), ("HS256",)),
    ):  # fmt: skip
        with pytest.raises(BadKey):
            parse_secret(raw, algorithms)
