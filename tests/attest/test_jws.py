"""Tokens and key sets: one thing wrong at a time, re-signed where a signature would hide it, and its code."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from attest.errors import AttestError, MalformedEvidence
from attest.jws import (
    MAX_TOKEN_BYTES,
    check_times,
    decode_base64url,
    load_json,
    nonce_forms,
    parse_jwks,
    parse_token,
    payload_for_display,
    verify_by_chain,
    verify_by_keys,
)
from attest.testkit.tokens import certificate, fixed_key, jwk, jwks, sign, x5c

NOW = 1_800_000_000.0
CLAIMS = {"a": 1}
EC = {name: ec.derive_private_key(9, curve) for name, curve in
      (("ES256", ec.SECP256R1()), ("ES384", ec.SECP384R1()), ("ES512", ec.SECP521R1()))}  # fmt: skip
RSA, OTHER, WEAK = fixed_key(), fixed_key("service-other"), fixed_key("weak")
ROOT = certificate("root", OTHER, ca=True)
LEAF = certificate("leaf", RSA, "root", OTHER)
INTERMEDIATE = certificate("intermediate", RSA, "root", OTHER, ca=True)


@pytest.mark.parametrize("alg", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"])
def test_every_algorithm(alg: str) -> None:
    key: Any = EC.get(alg, RSA)
    token = parse_token(sign(CLAIMS, key, alg=alg))
    assert verify_by_keys(token, parse_jwks(jwks(jwk(key))), (alg,)) == CLAIMS


def _part(token: bytes, index: int, data: bytes) -> bytes:
    pieces = token.split(b".")
    pieces[index] = data
    return b".".join(pieces)


GOOD = sign(CLAIMS)
KEYS = jwks()
HMAC = sign(CLAIMS, alg="HS256", signature=b"x" * 32)

REFUSED: dict[str, tuple[bytes, bytes, str]] = {
    "alg none": (sign(CLAIMS, alg="none", signature=b""), KEYS, "token_alg"),
    "HS256 with the RSA key": (HMAC, KEYS, "token_alg"),
    "RS384": (sign(CLAIMS, alg="RS384"), KEYS, "token_alg"),
    "alg is a number": (_part(GOOD, 0, b"eyJhbGciOjF9"), KEYS, "token_alg"),
    "key is for another alg": (GOOD, jwks(jwk(alg="PS256")), "token_alg"),
    "EC key": (GOOD, jwks(jwk(EC["ES256"])), "token_alg"),
    "kid unknown": (sign(CLAIMS, kid="k2"), KEYS, "kid_unknown"),
    "kid absent": (sign(CLAIMS, kid=None), KEYS, "kid_unknown"),
    "kid is a number": (_part(GOOD, 0, b"eyJhbGciOiJSUzI1NiIsImtpZCI6MX0"), KEYS, "kid_unknown"),
    "kid twice": (GOOD, jwks(jwk(), jwk(OTHER)), "kid_ambiguous"),
    "1024 bits": (sign(CLAIMS, WEAK), jwks(jwk(WEAK)), "key_strength"),
    "another key": (sign(CLAIMS, OTHER), KEYS, "signature"),
    "payload flipped": (_part(GOOD, 1, sign({"a": 2}).split(b".")[1]), KEYS, "signature"),
    "header flipped": (_part(GOOD, 0, sign(CLAIMS, x=1).split(b".")[0]), KEYS, "signature"),
    "signature empty": (sign(CLAIMS, signature=b""), KEYS, "signature"),
    "crit": (sign(CLAIMS, crit=["exp"]), KEYS, "token_header"),
    "b64": (sign(CLAIMS, b64=False), KEYS, "token_header"),
    "payload is a list": (sign(b"[1]"), KEYS, "malformed_evidence"),
    "payload is no JSON": (sign(b"{"), KEYS, "malformed_evidence"),
    "payload has a member twice": (sign(b'{"a":1,"a":2}'), KEYS, "malformed_evidence"),
    "payload has NaN": (sign(b'{"a":NaN}'), KEYS, "malformed_evidence"),
    "payload is not UTF-8": (sign(b'{"a":"\xff"}'), KEYS, "malformed_evidence"),
    "payload is very deep": (sign(b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}"), KEYS, "malformed_evidence"),
    "two parts": (GOOD.rpartition(b".")[0], KEYS, "malformed_evidence"),
    "four parts": (GOOD + b".", KEYS, "malformed_evidence"),
    "padding": (_part(GOOD, 1, b"e30="), KEYS, "malformed_evidence"),
    "bits beyond the end": (_part(GOOD, 1, b"e31"), KEYS, "malformed_evidence"),
    "length that base64 cannot have": (_part(GOOD, 1, b"e30aa"), KEYS, "malformed_evidence"),
    "line break inside": (_part(GOOD, 1, b"e3\n0"), KEYS, "malformed_evidence"),
    "oversize": (b"a" * (MAX_TOKEN_BYTES + 1), KEYS, "oversize"),
    "empty": (b"", KEYS, "malformed_evidence"),
    "jku and jwk of an attacker": (sign(CLAIMS, OTHER, jku="https://evil.example", jwk=jwk(OTHER)), KEYS, "signature"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_thing_wrong(name: str) -> None:
    raw, keys, code = REFUSED[name]
    with pytest.raises(AttestError) as caught:
        verify_by_keys(parse_token(raw), parse_jwks(keys), ("RS256", "ES256") if name == "EC key" else ("RS256",))
    assert caught.value.code == code, caught.value


def test_an_ecdsa_signature_of_another_length() -> None:
    token = parse_token(sign(CLAIMS, EC["ES256"], alg="ES256", signature=bytes(63)))
    with pytest.raises(MalformedEvidence):
        verify_by_keys(token, parse_jwks(jwks(jwk(EC["ES256"]))), ("ES256",))


def test_an_ec_key_for_another_curve_or_for_rsa() -> None:
    for key, alg in ((EC["ES384"], "ES256"), (RSA, "ES256")):
        token = parse_token(sign(CLAIMS, EC["ES256"], alg="ES256"))
        with pytest.raises(AttestError) as caught:
            verify_by_keys(token, parse_jwks(jwks(jwk(key))), (alg,))
        assert caught.value.code == "token_alg"


def test_the_same_key_twice_is_one_key() -> None:
    assert verify_by_keys(parse_token(GOOD), parse_jwks(jwks(jwk(), jwk())), ("RS256",)) == CLAIMS


def test_key_sets() -> None:
    by_certificate = jwks({"kid": "k1", "kty": "RSA", "x5c": x5c(LEAF)})
    assert verify_by_keys(parse_token(GOOD), parse_jwks(by_certificate), ("RS256",)) == CLAIMS
    others = (jwk(use="enc"), {"kid": "o", "kty": "oct"}, jwk())
    assert [key.kid for key in parse_jwks(jwks(*others))] == ["k1"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys":[]}',
        b'{"keys":{}}',
        b'{"keys":[1]}',
        b'{"keys":[{"kty":"RSA"}]}',
        jwks(jwk(kid="")),
        jwks(jwk(use="enc")),
        jwks(jwk(n="")),
        jwks(jwk(n=1)),
        jwks(jwk(n="A" * 2049)),
        jwks(jwk(e="AA")),
        jwks(jwk(EC["ES256"], crv="P-192")),
        jwks(jwk(EC["ES256"], y="AAAA")),
        jwks({"kid": "k", "kty": "RSA", "x5c": []}),
        jwks({"kid": "k", "kty": "RSA", "x5c": ["!"]}),
        jwks({"kid": "k", "kty": "RSA", "x5c": [base64.b64encode(b"x").decode()]}),
        jwks(*[jwk()] * 65),
        b" " * 262_145,
    ],
)
def test_key_sets_that_are_none(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        parse_jwks(raw)


def test_text_of_escapes_is_text() -> None:
    assert load_json(b'{"a":"\\u00e9\\ud83d\\ude00"}', "x") == {"a": "\u00e9\U0001f600"}
    with pytest.raises(MalformedEvidence):
        load_json(b'{"a":"\\ud83d"}', "x")


def test_a_payload_can_be_shown_unverified() -> None:
    assert payload_for_display(parse_token(sign(CLAIMS, signature=b""))) == CLAIMS


ED25519: Any = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
ED25519_LEAF = certificate("leaf", ED25519, "root", OTHER)


def test_keys_of_another_kind() -> None:
    with pytest.raises(MalformedEvidence):
        parse_jwks(jwks({"kid": "k1", "kty": "RSA", "x5c": x5c(ED25519_LEAF)}))
    with pytest.raises(AttestError) as caught:
        verify_by_chain(parse_token(sign(CLAIMS, x5c=x5c(ED25519_LEAF))), (ROOT,), ("RS256",), NOW)
    assert caught.value.code == "key_strength"


@pytest.mark.parametrize("pem", [False, True])
@pytest.mark.parametrize("chain", [(LEAF,), (LEAF, ROOT)])
def test_certificates_in_the_token(chain: tuple[Any, ...], pem: bool) -> None:
    claims, expires = verify_by_chain(parse_token(sign(CLAIMS, x5c=x5c(*chain, pem=pem))), (ROOT,), ("RS256",), NOW)
    assert (claims, expires) == (CLAIMS, 1_900_000_000)


EVIL_ROOT = certificate("root", RSA, ca=True)
CHAINS: dict[str, tuple[bytes, str]] = {
    "leaf not issued by the root": (sign(CLAIMS, x5c=x5c(certificate("leaf", RSA, "root", RSA))), "untrusted_chain"),
    "a root of its own": (
        sign(CLAIMS, x5c=x5c(certificate("leaf", RSA, "root", RSA), EVIL_ROOT)), "untrusted_chain",
    ),
    "self-signed": (sign(CLAIMS, x5c=x5c(certificate("leaf", RSA))), "untrusted_chain"),
    "expired": (sign(CLAIMS, x5c=x5c(certificate("leaf", RSA, "root", OTHER, end=NOW - 1))), "certificate_expired"),
    "not yet valid": (
        sign(CLAIMS, x5c=x5c(certificate("leaf", RSA, "root", OTHER, start=NOW + 1))), "certificate_not_yet_valid",
    ),
    "weak leaf": (sign(CLAIMS, WEAK, x5c=x5c(certificate("leaf", WEAK, "root", OTHER))), "key_strength"),
    "signed by another": (sign(CLAIMS, OTHER, x5c=x5c(LEAF)), "signature"),
    "no x5c": (GOOD, "x5c_missing"),
    "empty x5c": (sign(CLAIMS, x5c=[]), "malformed_evidence"),
    "six certificates": (sign(CLAIMS, x5c=x5c(*[LEAF] * 6)), "malformed_evidence"),
    "x5c of numbers": (sign(CLAIMS, x5c=[1]), "malformed_evidence"),
    "neither base64 nor PEM": (sign(CLAIMS, x5c=["%"]), "malformed_evidence"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str) -> None:
    raw, code = CHAINS[name]
    with pytest.raises(AttestError) as caught:
        verify_by_chain(parse_token(raw), (ROOT,), ("RS256",), NOW)
    assert caught.value.code == code, caught.value


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"nbf": NOW, "exp": NOW + 100}, None),
        ({"nbf": NOW + 1, "exp": NOW + 100}, "token_not_yet_valid"),
        ({"nbf": NOW - 100, "exp": NOW}, "token_expired"),
        ({"nbf": NOW - 1, "exp": NOW + 100}, "token_lifetime"),
        ({"nbf": NOW, "exp": 253_402_300_799}, "token_lifetime"),
        ({"nbf": NOW, "exp": NOW}, "token_lifetime"),
        ({"nbf": NOW + 1, "exp": NOW}, "token_lifetime"),
        ({"exp": NOW + 1}, "malformed_evidence"),
        ({"nbf": NOW}, "malformed_evidence"),
        ({"nbf": NOW, "exp": "1900000000"}, "malformed_evidence"),
        ({"nbf": True, "exp": NOW}, "malformed_evidence"),
        ({"nbf": -1, "exp": NOW}, "malformed_evidence"),
        ({"nbf": NOW, "exp": float("inf")}, "malformed_evidence"),
    ],
)
def test_times(claims: dict[str, Any], code: str | None) -> None:
    if code is None:
        assert check_times(claims, NOW, max_lifetime_s=100) == claims["exp"]
        return
    with pytest.raises(AttestError) as caught:
        check_times(claims, NOW, max_lifetime_s=100)
    assert caught.value.code == code


def test_leeway_is_for_clocks_only() -> None:
    claims = {"nbf": NOW + 5, "exp": NOW + 100}
    assert check_times(claims, NOW, max_lifetime_s=100, leeway_s=5) == NOW + 100
    assert check_times(claims, NOW + 104, max_lifetime_s=100, leeway_s=5) == NOW + 100
    with pytest.raises(AttestError):
        check_times(claims, NOW + 105, max_lifetime_s=100, leeway_s=5)


def test_every_bit_of_a_token_counts() -> None:
    keys = parse_jwks(KEYS)
    for at in range(len(GOOD)):
        for mask in (1, 32):
            flipped = GOOD[:at] + bytes((GOOD[at] ^ mask,)) + GOOD[at + 1 :]
            with pytest.raises(AttestError):
                verify_by_keys(parse_token(flipped), keys, ("RS256",))


@given(st.binary(max_size=64))
def test_base64url_has_one_spelling(data: bytes) -> None:
    text = nonce_forms(data)[1]
    assert decode_base64url(text, "x") == data


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes(raw: bytes) -> None:
    for parse in (parse_token, parse_jwks, lambda data: load_json(data, "x")):
        try:
            parse(raw)
        except AttestError:
            continue


def test_json_numbers_of_any_length_are_an_error_of_the_library() -> None:
    with pytest.raises(MalformedEvidence):
        load_json(b'{"a":' + b"9" * 10_000 + b"}", "x")
    assert load_json(json.dumps({"a": [1]}).encode(), "x") == {"a": [1]}
