"""Tokens of Google Cloud Confidential Space: Google's verdict about a workload, signed. Two kinds, told apart by the
caller's trust: OIDC (RS256 by a key of a set handed in) and PKI (RS256 by a certificate that leads to Google's root).

Not checked: what the claims say (``appraise``). That the hardware evidence was good is Google's word.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from cryptography import x509

from attest.errors import BindingMismatch, MalformedEvidence, VerificationFailed
from attest.jws import Jwk, Token, check_times, nonce_forms, parse_token, verify_by_chain, verify_by_keys
from attest.schemes.gcp.roots import confidential_space_roots

__all__ = ["ISSUER", "MAX_TOKEN_LIFETIME_S", "VerifiedSpaceToken", "verify_oidc_token", "verify_pki_token"]

ISSUER = "https://confidentialcomputing.googleapis.com"
ALGORITHMS = ("RS256",)
MAX_TOKEN_LIFETIME_S = 3600.0  # what the service issues
_MAX_NONCES = 6


class VerifiedSpaceToken(msgspec.Struct, frozen=True):
    """A token of ``ISSUER``. ``kind`` is "oidc" or "pki"; ``audience`` as the caller wanted it; ``expires``: Unix s."""

    claims: dict[str, Any]
    kind: str
    audience: str
    expires: float


def verify_oidc_token(
    raw_token: bytes,
    keys: Sequence[Jwk],
    *,
    audiences: Collection[str] | None,
    now: float,
    nonce: bytes | None,
    issuer: str = ISSUER,
) -> VerifiedSpaceToken:
    """Verify an OIDC token with Google's key set, from ``jws.parse_jwks`` (it changes within days: snapshot it).

    ``audiences``: who the token may be for, None to leave that unchecked (a token for another service then passes).
    ``nonce``: one that ``eat_nonce`` must hold, None to leave that unchecked. Raises MalformedEvidence,
    UnsupportedEvidence, EndorsementUnavailable, VerificationFailed, Stale or BindingMismatch, each with its own code.
    """
    token = parse_token(raw_token)
    claims = verify_by_keys(token, keys, ALGORITHMS)
    return _checked(token, claims, "oidc", audiences, now, nonce, issuer)


def verify_pki_token(
    raw_token: bytes,
    *,
    audiences: Collection[str] | None,
    now: float,
    nonce: bytes | None,
    roots: Sequence[x509.Certificate] | None = None,
    issuer: str = ISSUER,
) -> VerifiedSpaceToken:
    """Verify a PKI token, by default to Google's Confidential Space root; otherwise as :func:`verify_oidc_token`."""
    token = parse_token(raw_token)
    trusted = confidential_space_roots() if roots is None else roots
    claims, chain_expires = verify_by_chain(token, trusted, ALGORITHMS, now)
    verified = _checked(token, claims, "pki", audiences, now, nonce, issuer)
    return msgspec.structs.replace(verified, expires=min(verified.expires, chain_expires))


def _checked(
    token: Token,
    claims: dict[str, Any],
    kind: str,
    audiences: Collection[str] | None,
    now: float,
    nonce: bytes | None,
    issuer: str,
) -> VerifiedSpaceToken:
    if claims.get("iss") != issuer:
        raise VerificationFailed(f"the token's issuer is {claims.get('iss')!r}", code="issuer")
    if any(name in token.header for name in ("jku", "x5u", "jwk")):
        raise VerificationFailed("the token's header points to keys of its own", code="jku_foreign")
    expires = check_times(claims, now, max_lifetime_s=MAX_TOKEN_LIFETIME_S)
    # One audience: a token for several parties can be passed on by any of them.
    audience = claims.get("aud")
    if not isinstance(audience, str) or not audience:
        raise VerificationFailed("the token is not for exactly one audience", code="audience")
    if audiences is not None and audience not in audiences:
        raise VerificationFailed(f"the token is for {audience!r}", code="audience")
    if nonce is not None:
        _check_nonce(claims, nonce)
    return VerifiedSpaceToken(claims, kind, audience, expires)


def _check_nonce(claims: dict[str, Any], nonce: bytes) -> None:
    """``eat_nonce`` is a text, or a list of at most six."""
    found = claims.get("eat_nonce", [])
    items = found if isinstance(found, list) else [found]
    if len(items) > _MAX_NONCES or not all(isinstance(item, str) for item in items):
        raise MalformedEvidence("token: eat_nonce is neither text nor a list of at most six")
    equal = [hmac.compare_digest(item.encode(), form) for item in items for form in nonce_forms(nonce)]
    if not nonce or not any(equal):
        raise BindingMismatch("the token repeats no or another nonce", code="nonce_mismatch")
