"""The attack list for JSON Web Tokens: each token is wrong in one thing, and that thing is what refuses it."""

from __future__ import annotations

import hmac
import json
import warnings
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube_mesh.identity.keyset import KeySet, parse_jwks, parse_pem, parse_secret
from cube_mesh.identity.tokens import Issuer, Rejected, UnknownKey, Verified, verify_token
from tests.identity.keys import (
    AUDIENCE,
    ISSUER,
    NOW,
    b64,
    claims,
    ec_key,
    ed_key,
    jwk,
    jwks,
    public_pem,
    raw_token,
    rsa_key,
    token,
)  # fmt: skip

RS = Issuer(ISSUER, AUDIENCE, frozenset({"RS256"}), 30.0)
KEYS = parse_jwks(jwks(jwk(rsa_key(), kid="k1", use="sig"), jwk(rsa_key(2048, 1), kid="k2")))
SECRET = b"s" * 64


def verify(raw: bytes, issuer: Issuer = RS, keys: KeySet | None = KEYS, now: float = NOW) -> Verified:
    return verify_token(raw, {issuer.name: issuer}, {issuer.name: keys}, now)


def reason(raw: bytes, issuer: Issuer = RS, keys: KeySet | None = KEYS, now: float = NOW) -> str:
    with pytest.raises(Rejected) as caught:
        verify(raw, issuer, keys, now)
    return caught.value.reason


def test_a_good_token() -> None:
    verified = verify(token())
    who = verified.principal
    assert (who.subject, who.method, who.credential_id, who.domain_id) == ("alice", "jwt", "t1", None)
    assert (who.expires_at, verified.good_until) == (NOW + 600, NOW + 630)


@pytest.mark.parametrize(
    ("alg", "key", "keys"),
    [
        ("RS512", rsa_key(), parse_pem(public_pem(rsa_key()))),
        ("PS256", rsa_key(), parse_pem(public_pem(rsa_key()))),
        ("ES256", ec_key(), parse_jwks(jwks(jwk(ec_key(), kid="k1")))),
        ("ES384", ec_key("secp384r1"), parse_jwks(jwks(jwk(ec_key("secp384r1"), kid="k1")))),
        ("EdDSA", ed_key(), parse_jwks(jwks(jwk(ed_key(), kid="k1", alg="EdDSA")))),
        ("HS256", SECRET, parse_secret(SECRET + b"\n", ("HS256",))),
    ],
)
def test_every_family(alg: str, key: Any, keys: KeySet) -> None:
    issuer = Issuer(ISSUER, AUDIENCE, frozenset({alg}), 30.0)
    assert verify(token(key=key, alg=alg), issuer, keys).principal.subject == "alice"
    assert reason(token(key=key, alg=alg)[:-8] + b"AAAAAAAA", issuer, keys) == "InvalidSignatureError"


TIMES: list[tuple[dict[str, Any], str]] = [
    ({"exp": NOW - 30}, "expired"),
    ({"exp": NOW - 1000}, "expired"),
    ({"nbf": NOW + 31}, "not_yet_valid"),
    ({"iat": NOW + 31}, "issued_in_the_future"),
    ({"exp": str(NOW + 600)}, "bad_time"),
    ({"exp": True}, "bad_time"),
    ({"exp": None}, "MissingRequiredClaimError"),
    ({"exp": 1e300}, "bad_time"),
    ({"iat": "now"}, "bad_time"),
    ({"nbf": None}, "bad_time"),
    ({"exp": ...}, "MissingRequiredClaimError"),
    ({"iat": ...}, "MissingRequiredClaimError"),
    ({"sub": ...}, "MissingRequiredClaimError"),
    ({"aud": ...}, "MissingRequiredClaimError"),
    ({"aud": "other"}, "InvalidAudienceError"),
    ({"aud": AUDIENCE + "x"}, "InvalidAudienceError"),
    ({"aud": []}, "MissingRequiredClaimError"),
    ({"sub": ""}, "bad_subject"),
    ({"sub": "x" * 257}, "bad_subject"),
    ({"sub": 7}, "InvalidSubjectError"),
    ({"jti": 7}, "bad_token_id"),
    ({"iss": ...}, "malformed"),
    ({"iss": [ISSUER]}, "malformed"),
    ({"iss": ISSUER + ".evil.example"}, "unknown_issuer"),
    ({"iss": ISSUER + "/"}, "unknown_issuer"),
    ({"iss": "evil" + ISSUER}, "unknown_issuer"),
    ({"iss": ISSUER.upper()}, "unknown_issuer"),
    ({"iss": ""}, "unknown_issuer"),
]


@pytest.mark.parametrize(("change", "why"), TIMES, ids=[f"{c}".replace(" ", "")[:50] for c, _ in TIMES])
def test_one_claim_wrong(change: dict[str, Any], why: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library that signs warns of some of these
        payload = json.dumps(claims(**change)).encode()
    header = b'{"alg":"RS256","kid":"k1"}'
    signed = b64(header) + b"." + b64(payload)
    raw = raw_token(header, payload, _sign_rs256(signed))
    assert reason(raw) == why


def _sign_rs256(data: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    return rsa_key().sign(data, PKCS1v15(), SHA256())


@pytest.mark.parametrize(
    "change",
    [
        {"exp": NOW - 29}, {"nbf": NOW + 29}, {"iat": NOW + 29}, {"nbf": ...}, {"jti": ...}, {"exp": NOW + 0.5},
        {"aud": ["x", AUDIENCE]},
    ],
)  # fmt: skip
def test_inside_the_leeway_and_optional_claims(change: dict[str, Any]) -> None:
    verify(token(claims(**change)))


# -- the header


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", ""])
@pytest.mark.parametrize("signature", [b"", b"x", b"\0" * 256])
def test_alg_none(alg: str, signature: bytes) -> None:
    raw = raw_token(json.dumps({"alg": alg, "kid": "k1"}).encode(), json.dumps(claims()).encode(), signature)
    assert reason(raw) in ("malformed", "algorithm_not_allowed")


@pytest.mark.parametrize("material", ["pem", "pem stripped", "der", "modulus", "jwk"])
def test_hs256_signed_with_the_public_key(material: str) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = rsa_key().public_key()
    secret = {
        "pem": public_pem(rsa_key()),
        "pem stripped": public_pem(rsa_key()).strip(),
        "der": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "modulus": public.public_numbers().n.to_bytes(256, "big"),
        "jwk": json.dumps(jwk(rsa_key(), kid="k1")).encode(),
    }[material]
    signed = b64(b'{"alg":"HS256","kid":"k1"}') + b"." + b64(json.dumps(claims()).encode())
    raw = signed + b"." + b64(hmac.digest(secret, signed, sha256))
    assert reason(raw) == "algorithm_not_allowed"
    # even an issuer that allowed both finds no secret among public keys
    both = Issuer(ISSUER, AUDIENCE, frozenset({"RS256", "HS256"}), 30.0)
    assert reason(raw, both) == "unknown_key"


@pytest.mark.parametrize("alg", ["RS384", "PS256", "ES256", "EdDSA", "HS256", "RS256 ", "rs256"])
def test_the_token_does_not_choose_the_algorithm(alg: str) -> None:
    header = json.dumps({"alg": alg, "kid": "k1"}).encode()
    assert reason(raw_token(header, json.dumps(claims()).encode(), b"x" * 256)) == "algorithm_not_allowed"


def test_a_key_of_another_kind_with_the_same_kid() -> None:
    keys = parse_jwks(jwks(jwk(ec_key(), kid="k1")))
    assert reason(token(), RS, keys) == "unknown_key"
    es384 = Issuer(ISSUER, AUDIENCE, frozenset({"ES384"}), 30.0)
    assert reason(token(key=ec_key("secp384r1"), alg="ES384"), es384, keys) == "unknown_key"


def test_a_key_is_used_only_for_its_own_alg() -> None:
    keys = parse_jwks(jwks(jwk(rsa_key(), kid="k1", alg="PS256")))
    assert reason(token(), RS, keys) == "unknown_key"


@pytest.mark.parametrize(
    "kid", ["k3", "", "K1", "k1 ", "k1\x00", "../../../dev/null", "k1' OR '1'='1", "https://evil.example/jwks", "k2"]
)
def test_kid_selects_and_does_nothing_else(kid: str) -> None:
    why = reason(token(header={"kid": kid}))
    assert why == ("InvalidSignatureError" if kid == "k2" else "unknown_key")


@pytest.mark.parametrize("kid", [7, None, ["k1"], {"k": 1}])
def test_a_kid_that_is_no_string(kid: Any) -> None:
    raw = raw_token(json.dumps({"alg": "RS256", "kid": kid}).encode(), json.dumps(claims()).encode(), b"x")
    assert reason(raw) in ("malformed", "ambiguous_key")


def test_no_kid_needs_a_single_key() -> None:
    assert reason(token(header={"kid": ...})) == "ambiguous_key"
    one = parse_jwks(jwks(jwk(rsa_key(), kid="k1")))
    assert verify(token(header={"kid": ...}), RS, one)
    assert verify(token(), RS, parse_pem(public_pem(rsa_key())))


@pytest.mark.parametrize(
    "more",
    [
        {"jku": "https://evil.example/jwks"}, {"x5u": "https://evil.example/cert"}, {"jwk": jwk(rsa_key(2048, 9))},
        {"x5c": ["MIIB"]}, {"typ": "at+jwt"}, {"cty": "JWT"},
    ],
)  # fmt: skip
def test_keys_offered_by_the_token_are_not_looked_at(more: dict[str, Any]) -> None:
    assert reason(token(key=rsa_key(2048, 9), header=more)) == "InvalidSignatureError"
    assert verify(token(header=more))


@pytest.mark.parametrize("more", [{"crit": ["exp"]}, {"crit": []}, {"crit": None}, {"b64": False}, {"b64": True}])
def test_extensions_that_we_do_not_understand(more: dict[str, Any]) -> None:
    header = json.dumps({"alg": "RS256", "kid": "k1", **more}).encode()
    payload = json.dumps(claims()).encode()
    raw = raw_token(header, payload, _sign_rs256(b64(header) + b"." + b64(payload)))
    assert reason(raw) == "critical_extension"


# -- use, subject, keys


@pytest.mark.parametrize(
    ("wanted", "given_type", "good"),
    [("access", "access", True), ("access", "refresh", False), ("access", ..., False), ("access", ["access"], False),
     ("0", 0, True), ("0", 1, False), ("0", False, False), ("0", None, False), ("access", "Access", False)],
)  # fmt: skip
def test_the_type_claim(wanted: str, given_type: Any, good: bool) -> None:
    issuer = Issuer(ISSUER, AUDIENCE, frozenset({"RS256"}), 30.0, "", wanted)
    raw = token(claims(type=given_type))
    if good:
        verify(raw, issuer)
    else:
        assert reason(raw, issuer) == "wrong_type"


def test_the_prefix_keeps_two_issuers_apart() -> None:
    first = Issuer(ISSUER, AUDIENCE, frozenset({"RS256"}), 30.0, "one:")
    other = Issuer("https://two.example", AUDIENCE, frozenset({"RS256"}), 30.0, "two:")
    issuers = {i.name: i for i in (first, other)}
    keys = {ISSUER: KEYS, other.name: parse_jwks(jwks(jwk(rsa_key(2048, 5), kid="k1")))}
    assert verify_token(token(), issuers, keys, NOW).principal.subject == "one:alice"
    stolen = token(claims(iss=ISSUER), rsa_key(2048, 5))  # the other issuer signs in the first one's name
    with pytest.raises(Rejected):
        verify_token(stolen, issuers, keys, NOW)


def test_without_keys_nothing_is_accepted() -> None:
    with pytest.raises(UnknownKey) as caught:
        verify(token(), RS, None)
    assert caught.value.reason == "no_keys"


@pytest.mark.parametrize(
    "raw",
    [
        b"", b".", b"..", b"a.b", b"a.b.c.d", b"a.b.", b".b.c", b"a b.c.d", b"a.b.c\n", "é.b.c".encode(), b"!.b.c",
        b"e30.e30.e30", b"bnVsbA.bnVsbA.eA", b"x" * 9000, b"a.b.c=",
    ],
)  # fmt: skip
def test_what_is_no_token(raw: bytes) -> None:
    assert reason(raw) == "malformed"


def test_an_oversize_token_is_not_even_decoded() -> None:
    assert reason(token(claims(pad="x" * 9000))) == "malformed"


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_rejected(raw: bytes) -> None:
    reason(raw)


@given(st.data())
def test_no_changed_byte_passes(data: st.DataObject) -> None:
    good = token(header={"kid": "k1"})
    at = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.sampled_from(b"ABCxyz019-_.="))
    changed = good[:at] + bytes([byte]) + good[at + 1 :]
    last = len(good) - 1  # base64url's last digit of 2048 bits has bits that carry nothing
    if changed != good and at != last:
        reason(changed)
