"""Confidential Space tokens: OIDC and PKI, one thing wrong at a time, and real tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attest.errors import AttestError
from attest.jws import parse_jwks
from attest.schemes.gcp.appraise import ReferenceValues, Rules, appraise_token, claims_of
from attest.schemes.gcp.token import VerifiedSpaceToken, verify_oidc_token, verify_pki_token
from attest.testkit.gcp import root, signer_certificate
from attest.testkit.tokens import jwks, sign, space_claims, x5c

NOW = 1_800_000_000.0
NONCE = b"0123456789abcdef"
AUDIENCE = "https://relying.example"
KEYS = parse_jwks(jwks())
RULES = Rules(audiences=(AUDIENCE,))
IMAGE = "sha256:" + "ab" * 32
REFERENCE = ReferenceValues(image_digests=(IMAGE,), project_ids=("p",), zones=("us-central1-a",), instance_ids=("42",),
                            service_accounts=("w@p.iam.gserviceaccount.com",))  # fmt: skip


def _claims(**changes: Any) -> dict[str, Any]:
    return space_claims(NOW, NONCE.decode(), changes)


def _oidc(raw: bytes, **changes: Any) -> VerifiedSpaceToken:
    arguments: dict[str, Any] = {"audiences": (AUDIENCE,), "now": NOW, "nonce": NONCE} | changes
    return verify_oidc_token(raw, KEYS, **arguments)


def _pki(raw: bytes, **changes: Any) -> VerifiedSpaceToken:
    arguments: dict[str, Any] = {"audiences": (AUDIENCE,), "now": NOW, "nonce": NONCE, "roots": (root(),)} | changes
    return verify_pki_token(raw, **arguments)


def test_accepted() -> None:
    for nonce in (NONCE.decode(), ["another-nonce", NONCE.decode()], "MDEyMzQ1Njc4OWFiY2RlZg"):
        verified = _oidc(sign(_claims(eat_nonce=nonce)))
        assert appraise_token(verified, RULES, REFERENCE) == () and verified.expires == NOW + 3540
    assert claims_of(verified)["gcp.image_digest"] == IMAGE
    for pem in (False, True):
        chain = x5c(signer_certificate(), root(), pem=pem)
        assert _pki(sign(_claims(), x5c=chain)).kind == "pki"
    short = x5c(signer_certificate(end=NOW + 10))
    assert _pki(sign(_claims(), x5c=short)).expires == NOW + 10


REFUSED: dict[str, tuple[bytes, str]] = {
    "lives two hours": (sign(_claims(exp=NOW + 7200)), "token_lifetime"),
    "audience empty": (sign(_claims(aud="")), "audience"),
    "nonce number": (sign(_claims(eat_nonce=1)), "malformed_evidence"),
    "seven nonces": (sign(_claims(eat_nonce=[NONCE.decode()] * 7)), "malformed_evidence"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_thing_wrong(name: str) -> None:
    raw, code = REFUSED[name]
    with pytest.raises(AttestError) as caught:
        _oidc(raw)
    assert caught.value.code == code, caught.value


def test_an_audience_is_needed_even_where_nobody_compares_it() -> None:
    assert _oidc(sign(_claims(aud="https://other.example")), audiences=None).audience == "https://other.example"
    with pytest.raises(AttestError):
        _oidc(sign(_claims(aud=["a", "b"])), audiences=None)
    with pytest.raises(AttestError):
        _oidc(sign(_claims(eat_nonce="")), nonce=b"")


CHAINS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "Google's root does not know it": ({"x5c": x5c(signer_certificate(), root())}, {"roots": None}, "untrusted_chain"),
    "no certificates": ({}, {}, "x5c_missing"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_pki_chains(name: str) -> None:
    header, arguments, code = CHAINS[name]
    with pytest.raises(AttestError) as caught:
        _pki(sign(_claims(), **header), **arguments)
    assert caught.value.code == code, caught.value


C, G, P = "submods/container/", "submods/gce/", "submods/confidential_space"
MISMATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "hardware unsaid": ({"hwmodel": None}, "hardware"),
    "secure boot as text": ({"secboot": "true"}, "secure_boot"),
    "support unsaid": ({P: None}, "support_attributes"),
    "support is text": ({P + "/support_attributes": "STABLE"}, "support_attributes"),
    "version of words": ({"swversion": ["new"]}, "swversion"),
    "two versions": ({"swversion": ["251001", "1"]}, "swversion"),
    "container unsaid": ({"submods/container": None}, "image"),
    "environment is a list": ({C + "env_override": []}, "env_override"),
    "one foreign account": ({"google_service_accounts": ["w@p.iam.gserviceaccount.com", "x"]}, "service_account"),
    "no account": ({"google_service_accounts": None}, "service_account"),
}
STRICT = Rules(audiences=(AUDIENCE,), min_swversion=250_000, restart_policies=("Never",), env_override=("A",),
               arguments=("/app",))  # fmt: skip


def test_the_strict_rules_hold_for_the_good_token() -> None:
    assert appraise_token(_oidc(sign(_claims())), STRICT, REFERENCE) == ()


@pytest.mark.parametrize("name", MISMATCHES)
def test_rules(name: str) -> None:
    changes, code = MISMATCHES[name]
    verified = _oidc(sign(_claims(**changes)))
    found = [m.code for m in appraise_token(verified, STRICT, REFERENCE)]
    expected = ["image", "restart_policy", "arguments"] if name == "container unsaid" else [code]
    assert found == expected


def test_unsafe_forms_and_a_policy_that_names_nothing() -> None:
    verified = _oidc(sign(_claims(dbgstat="enabled", secboot=False, **{P: None})))
    rules = Rules(unsafe_any_audience=True, unsafe_any_image=True, unsafe_any_support=True, unsafe_allow_debug=True,
                  unsafe_allow_no_secure_boot=True)  # fmt: skip
    assert appraise_token(verified, rules, ReferenceValues()) == ()
    good = _oidc(sign(_claims()))
    assert [m.code for m in appraise_token(good, Rules(), ReferenceValues())] == ["audience", "image"]


REAL = {
    "flare/cs_pki_token.jwt": (1_730_678_400.0, "https://sts.google.com", b"0x" + b"0" * 36 + b"dEaD"),
    "synddb/cs_oidc_token_0.jwt": (1_764_709_200.0, "https://synddb-sequencer.example.com", None),
    "synddb/cs_oidc_token_s1.jwt": (1_764_708_696.0, "https://synddb-sequencer.example.com",
                                    b"sp1-test-nonce-1764708636"),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_tokens_verify_and_are_of_debug_images(vectors: Path, name: str) -> None:
    now, audience, nonce = REAL[name]
    raw = (vectors / "gcp" / name).read_bytes()
    keys = parse_jwks((vectors / "gcp/synddb/jwks.json").read_bytes())

    def verify(when: float) -> VerifiedSpaceToken:
        if "pki" in name:
            return verify_pki_token(raw, audiences=(audience,), now=when, nonce=nonce)
        return verify_oidc_token(raw, keys, audiences=(audience,), now=when, nonce=nonce)

    rules = Rules(audiences=(audience,), hardware=("GCP_AMD_SEV",), unsafe_any_image=True, unsafe_any_support=True)
    assert [m.code for m in appraise_token(verify(now), rules, ReferenceValues())] == ["debug"]
    with pytest.raises(AttestError) as caught:
        verify(1_795_000_000.0)
    assert caught.value.code in ("token_expired", "certificate_expired")


def test_the_real_oidc_token_whose_key_is_gone(vectors: Path) -> None:
    keys = parse_jwks((vectors / "gcp/synddb/jwks.json").read_bytes())
    raw = (vectors / "gcp/flare/cs_oidc_token.jwt").read_bytes()
    with pytest.raises(AttestError) as caught:
        verify_oidc_token(raw, keys, audiences=None, now=1_730_678_400.0, nonce=None)
    assert caught.value.code == "kid_unknown"
