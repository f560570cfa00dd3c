"""JSON Web Tokens (RFC 7519, RFC 8725) against configured issuers. No I/O and no clock: keys and ``now`` are arguments.

The token chooses nothing but which of the configured issuers is asked and which of that issuer's keys is tried.
``jku``, ``x5u``, ``jwk`` and ``x5c`` in its header are never read; ``crit`` is refused, since we understand no
extension.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

import jwt
import msgspec

from cube_mesh.identity.keyset import Key, KeySet
from cube_mesh.ports import Principal

MAX_TOKEN = 8_192  # bytes
MAX_SUBJECT = 256  # characters
_SHAPE = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+").fullmatch
_OPTIONS: Any = {
    "verify_signature": True, "verify_exp": False, "verify_nbf": False, "verify_iat": False,  # times are step 7
    "verify_aud": True, "verify_iss": True, "verify_sub": True, "verify_jti": False,
    "require": ["exp", "iat", "iss", "aud", "sub"],
}  # fmt: skip


class Rejected(Exception):
    """A token that is not accepted. ``reason`` is for log and metric; the client is told one phrase for all."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownKey(Rejected):
    """Well formed, from a known issuer, and no key fits: newer keys may. ``issuer`` is whose."""

    def __init__(self, reason: str, issuer: Issuer) -> None:
        super().__init__(reason)
        self.issuer = issuer


class Issuer(msgspec.Struct, frozen=True):
    """The rules for one issuer's tokens. ``algorithms`` are of one kind: public key or shared secret, never both."""

    name: str
    audience: str
    algorithms: frozenset[str]
    leeway_s: float
    subject_prefix: str = ""
    required_typ: str = ""


class Verified(msgspec.Struct, frozen=True):
    """Who the token says, and the Unix time until which it says so (expiry plus leeway)."""

    principal: Principal
    good_until: float


class _Header(msgspec.Struct):
    """Unverified. Only what is needed to choose the check; every other member is ignored."""

    alg: str
    kid: str | None = None
    crit: Any = msgspec.UNSET
    b64: Any = msgspec.UNSET


class _UnverifiedClaims(msgspec.Struct):
    iss: str


_decode_header = msgspec.json.Decoder(_Header).decode
_decode_claims = msgspec.json.Decoder(_UnverifiedClaims).decode


def unverified_issuer(token: bytes, issuers: Mapping[str, Issuer]) -> tuple[Issuer, str, str | None]:
    """Steps 1 to 4: the configured issuer that the token names, its algorithm and kid. Raises Rejected."""
    # 1 size and shape
    if len(token) > MAX_TOKEN or _SHAPE(token) is None:
        raise Rejected("malformed")
    raw_header, raw_claims, _ = token.split(b".")
    # 2 header: RFC 7515 section 4.1.11
    try:
        header = _decode_header(_decode64(raw_header))
        claims = _decode_claims(_decode64(raw_claims))
    except (msgspec.DecodeError, binascii.Error, ValueError):
        raise Rejected("malformed") from None
    if header.crit is not msgspec.UNSET or header.b64 is not msgspec.UNSET:
        raise Rejected("critical_extension")
    # 3 the issuer, by equality: no prefix, suffix or case rule
    issuer = issuers.get(claims.iss)
    if issuer is None:
        raise Rejected("unknown_issuer")
    # 4 the algorithm, by configuration
    if header.alg not in issuer.algorithms:
        raise Rejected("algorithm_not_allowed")
    return issuer, header.alg, header.kid


def verify_token(
    token: bytes, issuers: Mapping[str, Issuer], keys: Mapping[str, KeySet | None], now: float
) -> Verified:
    """Check a token in full. ``keys`` are the current key sets by issuer name. Raises Rejected, UnknownKey.

    Does not check revocation: a token is good until it expires.
    """
    issuer, alg, kid = unverified_issuer(token, issuers)
    # 5 the key: exactly one of the issuer's that fits algorithm and kid
    key_set = keys.get(issuer.name)
    if key_set is None:
        raise UnknownKey("no_keys", issuer)
    found = key_set.find(kid, alg) or _unnamed(key_set, alg)
    if not found:
        raise UnknownKey("unknown_key", issuer)
    if len(found) > 1:
        raise Rejected("ambiguous_key")
    # 6 signature, then issuer, audience and presence of the claims, by the library
    try:
        claims: dict[str, Any] = jwt.decode(
            token, found[0].value, algorithms=[alg], audience=issuer.audience, issuer=issuer.name, options=_OPTIONS
        )
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise Rejected(type(error).__name__) from None
    # 7 time and use
    return _judge(claims, issuer, now)


def _unnamed(key_set: KeySet, alg: str) -> tuple[Key, ...]:
    """A single static key has no kid, so a kid in the token says nothing about it."""
    if len(key_set.keys) == 1 and key_set.keys[0].kid == "":
        return key_set.find(None, alg)
    return ()


def _judge(claims: dict[str, Any], issuer: Issuer, now: float) -> Verified:
    expires, issued = _time(claims, "exp"), _time(claims, "iat")
    if expires + issuer.leeway_s <= now:
        raise Rejected("expired")
    if issued - issuer.leeway_s > now:
        raise Rejected("issued_in_the_future")
    if "nbf" in claims and _time(claims, "nbf") - issuer.leeway_s > now:
        raise Rejected("not_yet_valid")
    if issuer.required_typ and not _is(claims.get("type"), issuer.required_typ):
        raise Rejected("wrong_type")
    subject, token_id = claims["sub"], claims.get("jti", "")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT:
        raise Rejected("bad_subject")
    if not isinstance(token_id, str) or len(token_id) > MAX_SUBJECT:
        raise Rejected("bad_token_id")
    principal = Principal(issuer.subject_prefix + subject, "jwt", token_id, None, expires)
    return Verified(principal, expires + issuer.leeway_s)


def _time(claims: dict[str, Any], name: str) -> float:
    """NumericDate, RFC 7519 section 2. A string, a boolean or infinity is none."""
    value = claims[name]
    if type(value) not in (int, float) or not abs(value) < 1e12:
        raise Rejected("bad_time")
    return float(value)


def _is(value: object, wanted: str) -> bool:
    """The claim as text: SuperMQ writes ``type`` as a number."""
    return type(value) in (str, int) and str(value) == wanted


def _decode64(raw: bytes) -> bytes:
    return base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4))
