"""Tokens of Microsoft Azure Attestation: another verifier's result, signed. Proves what that service saw and says.

Keys and issuers are handed in; ``jku`` is never followed, and a token whose ``jku`` is not under its issuer is refused.
Not checked: what the claims say (``maa_appraise``), the SGX quotes in the service's certificates.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from attest.errors import BindingMismatch, MalformedEvidence, UnsupportedEvidence, VerificationFailed
from attest.jws import Jwk, Token, check_times, nonce_forms, parse_token, payload_for_display, verify_by_keys

__all__ = ["MAX_TOKEN_LIFETIME_S", "TYPES", "VerifiedMaaToken", "own_issuer", "verify_maa"]

ALGORITHMS = ("RS256",)
TYPES = ("azurevm", "sevsnpvm", "tdxvm")
_PUBLIC_CLOUD = re.compile(r"https://[a-z0-9-]+(?:\.[a-z0-9]+)?\.attest\.azure\.net\Z")
MAX_TOKEN_LIFETIME_S = 8 * 3600.0  # what the service issues


class VerifiedMaaToken(msgspec.Struct, frozen=True):
    """A token signed by one of the keys for an issuer of the caller's.

    ``tee``: the claims about the hardware, which an ``azurevm`` token nests; empty when it has none (a trusted-launch
    VM). ``tee_type`` is "sevsnpvm", "tdxvm" or "none". ``expires``: Unix seconds.
    """

    claims: dict[str, Any]
    issuer: str
    type: str
    tee_type: str
    tee: dict[str, Any]
    expires: float


def verify_maa(
    raw_token: bytes,
    keys: Sequence[Jwk],
    *,
    issuers: Collection[str],
    now: float,
    nonce: bytes | None,
    max_lifetime_s: float = MAX_TOKEN_LIFETIME_S,
) -> VerifiedMaaToken:
    """Verify a token. ``issuers`` are exact texts; ``keys`` are those of the issuers, from ``jws.parse_jwks``.

    ``nonce``: what the relying party asked to see repeated, None to leave that unchecked (a replayed token then passes
    until it expires). Raises MalformedEvidence, UnsupportedEvidence, EndorsementUnavailable, VerificationFailed, Stale
    or BindingMismatch, each with its own code.
    """
    token = parse_token(raw_token)
    # 1. Signature, by a pinned key and algorithm.
    claims = verify_by_keys(token, keys, ALGORITHMS)
    # 2. Issuer, exactly, and the key's address under it.
    issuer = _check_issuer(token, claims, issuers)
    # 3. Times.
    expires = check_times(claims, now, max_lifetime_s=max_lifetime_s)
    # 4. Kind of evidence.
    kind = claims.get("x-ms-attestation-type")
    if kind not in TYPES:
        raise UnsupportedEvidence(f"attestation type {kind!r}", code="maa_type")
    tee = claims.get("x-ms-isolation-tee", {}) if kind == "azurevm" else claims
    if not isinstance(tee, dict):
        raise MalformedEvidence("token: x-ms-isolation-tee is no object")
    tee_type = tee.get("x-ms-attestation-type", "none")
    if tee_type not in ("sevsnpvm", "tdxvm", "none"):
        raise UnsupportedEvidence(f"attestation type {tee_type!r} inside of {kind}", code="maa_type")
    # 5. The nonce.
    if nonce is not None:
        _check_nonce(claims, kind, nonce)
    return VerifiedMaaToken(claims, issuer, kind, tee_type, tee, expires)


def own_issuer(raw_token: bytes) -> tuple[str, ...]:
    """The issuer that an unverified token names, if it is an address of Azure's public attestation service; else none.

    For policies that accept any of them: then the keys that the caller hands in are all that tells providers apart.
    """
    issuer = payload_for_display(parse_token(raw_token)).get("iss")
    return (issuer,) if isinstance(issuer, str) and _PUBLIC_CLOUD.match(issuer) else ()


def _check_issuer(token: Token, claims: dict[str, Any], issuers: Collection[str]) -> str:
    issuer = claims.get("iss")
    if not isinstance(issuer, str) or issuer not in issuers:
        raise VerificationFailed(f"the token's issuer is {issuer!r}", code="issuer")
    address = token.header.get("jku")
    if address is not None and not (isinstance(address, str) and address.startswith(issuer + "/")):
        raise VerificationFailed("the token's jku is not under its issuer", code="jku_foreign")
    return issuer


def _check_nonce(claims: dict[str, Any], kind: str, nonce: bytes) -> None:
    """``azurevm``: client payload, as base64. The others: runtime data, which the hardware's report data covers, either
    its ``nonce`` or the user data that the guest of an Azure VM has written.
    """
    runtime = claims.get("x-ms-runtime")
    members = runtime if isinstance(runtime, dict) else {}
    if kind == "azurevm":
        payload = members.get("client-payload")
        found = _decoded(payload.get("nonce") if isinstance(payload, dict) else None)
    else:
        text = members.get("nonce")
        found = text.encode() if isinstance(text, str) else b""
        if "nonce" not in members and len(nonce) == 32 and _is_user_data(members.get("user-data"), nonce):
            return
    if not nonce or not any(hmac.compare_digest(found, form) for form in nonce_forms(nonce)):
        raise BindingMismatch("the token repeats no or another nonce", code="nonce_mismatch")


def _is_user_data(text: Any, nonce: bytes) -> bool:
    """Whether ``text`` is the hex of the 64 bytes in which a digest speaks: its own 32, and zeros."""
    try:
        return hmac.compare_digest(bytes.fromhex(text), nonce + bytes(32))
    except (TypeError, ValueError):
        return False


def _decoded(text: Any) -> bytes:
    if not isinstance(text, str):
        return b""
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        raise MalformedEvidence("token: the nonce of the client payload is not base64") from None
