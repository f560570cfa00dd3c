"""Ways in which a signed token must be refused, whoever has signed it: part of the tables of Azure and Google Cloud."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attest.offline import Case
from attest.testkit.tokens import fixed_key, jwk, jwks, sign


def of_any_token(
    claims: Callable[..., dict[str, Any]],
    case: Callable[[bytes, bytes], Case],
    *,
    issuer: str,
    now: float,
    lifetime_s: float,
) -> dict[str, tuple[Case, str]]:
    """Name → a case in which that alone is wrong, and its reason code.

    ``claims(**changes)`` makes a service's claims, ``case(token, keys)`` judges a token under a set of keys. ``now`` is
    the time of the verdict, ``lifetime_s`` how long such a token may last.
    """
    other, weak = fixed_key("service-other"), fixed_key("weak")
    good, keys = sign(claims()), jwks()
    head, _, signature = good.split(b".")
    flipped = b".".join((head, sign(claims(flipped=True)).split(b".")[1], signature))

    def changed(**changes: Any) -> Case:
        return case(sign(claims(**changes)), keys)

    return {
        "alg none": (case(sign(claims(), alg="none", signature=b""), keys), "token_alg"),
        "alg HS256 with RSA key": (case(sign(claims(), alg="HS256", signature=bytes(32)), keys), "token_alg"),
        "alg RS384": (case(sign(claims(), alg="RS384"), keys), "token_alg"),
        "kid unknown": (case(sign(claims(), kid="k2"), keys), "kid_unknown"),
        "kid duplicate": (case(good, jwks(jwk(), jwk(other))), "kid_ambiguous"),
        "signed by another key": (case(sign(claims(), other), keys), "signature"),
        "payload flip": (case(flipped, keys), "signature"),
        "jku to attacker": (case(sign(claims(), jku="https://evil.example/certs"), keys), "jku_foreign"),
        "expired": (changed(nbf=now - lifetime_s, exp=now), "token_expired"),
        "nbf future": (changed(nbf=now + 1), "token_not_yet_valid"),
        "huge exp": (changed(exp=253_402_300_799), "token_lifetime"),
        "iss suffix trick": (changed(iss=issuer + ".evil"), "issuer"),
        "iss absent": (changed(iss=None), "issuer"),
        "1024-bit RSA key": (case(sign(claims(), weak), jwks(jwk(weak))), "key_strength"),
        "oversize": (case(b"a" * 70_000, keys), "oversize"),
    }
