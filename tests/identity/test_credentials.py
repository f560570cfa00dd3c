"""The authenticator: keys and tokens, cache, expiry, key rotation, and one phrase for every failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from cube_mesh.errors import ConfigError, CubeMeshError, DependencyError, PolicyError
from cube_mesh.identity import CredentialAuthenticator, build_authenticator
from cube_mesh.identity.api_keys import format_key, hash_key, key_table
from cube_mesh.identity.jwks import MAX_STALE_S, MIN_REFRESH_S, RemoteKeys
from cube_mesh.identity.keyset import parse_jwks
from cube_mesh.identity.tokens import Issuer
from cube_mesh.ports import Principal
from cube_mesh.settings import ApiKey, Domain, Identity, JwtIssuer
from tests.identity.keys import AUDIENCE, ISSUER, NOW, claims, jwk, jwks, public_pem, rsa_key, token

DOMAIN = "6b1e1b2c-9a1c-4d57-9d53-0d6a3c1f2e11"
KEY = format_key("app", b"k" * 32)
OLD = format_key("old", b"o" * 32)
KEYS = (
    ApiKey(id="app", hash=hash_key(KEY), subject="alice", domain=DOMAIN),
    ApiKey(id="old", hash=hash_key(OLD), subject="alice", domain=DOMAIN, expires="2026-09-21T14:13:20Z"),  # NOW
)
RULES = Issuer(ISSUER, AUDIENCE, frozenset({"RS256"}), 30.0)


class Clock:
    def __init__(self, at: float = NOW) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def made(clock: Clock | None = None, **more: Any) -> CredentialAuthenticator:
    auth = CredentialAuthenticator(key_table(KEYS, frozenset({DOMAIN})), [RULES], now=clock or Clock(), **more)
    auth.add_keys(ISSUER, parse_jwks(jwks(jwk(rsa_key(), kid="k1"))))
    return auth


def at_once(auth: CredentialAuthenticator, credential: bytes | str) -> Principal:
    raw = credential if isinstance(credential, bytes) else credential.encode()
    got = auth.authenticate(b"Bearer " + raw)
    assert isinstance(got, Principal)
    return got


def refused(auth: CredentialAuthenticator, credential: bytes) -> CubeMeshError:
    with pytest.raises(CubeMeshError) as caught:
        auth.authenticate(credential)
    return caught.value


def test_an_api_key() -> None:
    who = at_once(made(), KEY)
    assert (who.subject, who.method, who.credential_id, who.domain_id) == ("alice", "api_key", "app", DOMAIN)


@pytest.mark.parametrize("form", [b"bearer ", b"BEARER "])
def test_the_scheme_is_read_in_any_case(form: bytes) -> None:
    assert isinstance(made().authenticate(form + KEY.encode()), Principal)


WRONG = [
    b"", b"Bearer", b"Bearer ", b"Basic YTpi", KEY.encode(), b"Bearer" + KEY.encode(), b"Token " + KEY.encode(),
    b"Bearer x", b"Bearer cm_app_", b"Bearer  " + KEY.encode(), b"Bearer " + KEY.encode() + b" ",
    b"Bearer " + KEY.encode() + b"\xff",
    b"Bearer " + KEY.encode()[:-1], b"Bearer " + KEY.encode().swapcase(), b"Bearer " + hash_key(KEY).encode(),
    b"Bearer " + OLD.encode(), b"Bearer " + KEY.encode() + b", Bearer " + KEY.encode(), b"Bearer a.b.c",
    b"Bearer " + token(claims(exp=NOW - 100)), b"Bearer " + token(key=rsa_key(2048, 9)),
]  # fmt: skip


@pytest.mark.parametrize("credential", WRONG, ids=range(len(WRONG)))
def test_one_phrase_for_every_failure(credential: bytes) -> None:
    error = refused(made(), credential)
    assert isinstance(error, PolicyError)
    assert (error.status, error.code, error.message) == (401, "invalid_api_key", "The API key or token is not valid.")
    for secret in (KEY, OLD, "eyJ"):
        assert secret not in error.detail


def test_a_key_expires_at_its_second() -> None:
    clock = Clock(NOW - 0.5)
    auth = made(clock)
    at_once(auth, OLD)
    clock.at = NOW
    refused(auth, b"Bearer " + OLD.encode())


def test_a_token_is_verified_once_and_forgotten_when_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    import cube_mesh.identity as module

    real = module.verify_token
    monkeypatch.setattr(module, "verify_token", lambda *a: (calls.append(1), real(*a))[1])
    clock = Clock()
    auth = made(clock, cache_ttl_s=20.0)
    raw = token(claims(exp=NOW + 25))
    assert at_once(auth, raw) is at_once(auth, raw) and len(calls) == 1
    clock.at = NOW + 20
    at_once(auth, raw)
    assert len(calls) == 2  # the time to live is over
    auth.forget_tokens()
    at_once(auth, raw)
    assert len(calls) == 3
    clock.at = NOW + 54
    at_once(auth, raw)
    clock.at = NOW + 55  # exp + leeway, before the time to live
    assert refused(auth, b"Bearer " + raw).detail == "expired"


def test_the_cache_is_bounded_and_holds_no_token() -> None:
    auth = made(cache_entries=5)
    raws = [token(claims(jti=f"t{n}")) for n in range(8)]
    for raw in raws:
        at_once(auth, raw)
    assert len(auth.tokens) == 5 and all(len(digest) == 32 for digest in auth.tokens)
    off = made(cache_entries=0)
    at_once(off, raws[0])
    assert not off.tokens


# -- remote key sets


class Source:
    """A place that publishes key sets, and can be out of order."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.body = jwks(*keys)
        self.calls = 0
        self.broken = False
        self.wait: asyncio.Event | None = None

    async def get(self, url: str) -> bytes:
        self.calls += 1
        if self.wait is not None:
            await self.wait.wait()
        if self.broken:
            raise DependencyError("fetch_failed", "m", detail="refused", status=503)
        return self.body


def remote(source: Source, clock: Clock) -> tuple[CredentialAuthenticator, RemoteKeys]:
    auth = CredentialAuthenticator({}, [RULES], now=Clock())
    keys = RemoteKeys("https://id.example/jwks", 300.0, auth.forget_tokens, get=source.get, now=clock)
    auth.add_keys(ISSUER, keys)
    return auth, keys


async def wait_for(auth: CredentialAuthenticator, raw: bytes) -> Principal:
    got = auth.authenticate(b"Bearer " + raw)
    assert isinstance(got, Awaitable)
    return await got


async def test_the_first_token_waits_for_the_keys() -> None:
    source = Source(jwk(rsa_key(), kid="k1"))
    auth, _ = remote(source, Clock())
    assert auth.not_ready()
    assert (await wait_for(auth, token())).subject == "alice"
    assert auth.not_ready() == ""
    at_once(auth, token())
    assert source.calls == 1


async def test_an_unknown_key_looks_once_and_then_not_for_a_while() -> None:
    source, clock = Source(jwk(rsa_key(), kid="k1")), Clock()
    auth, _ = remote(source, clock)
    await wait_for(auth, token())
    stranger = token(key=rsa_key(2048, 9), header={"kid": "k9"})
    for _ in range(5):
        assert refused(auth, b"Bearer " + stranger).detail == "unknown_key"
    assert source.calls == 1
    source.body = jwks(jwk(rsa_key(2048, 9), kid="k9"))  # the issuer has rotated
    clock.at += MIN_REFRESH_S
    await wait_for(auth, stranger)
    assert source.calls == 2
    assert refused(auth, b"Bearer " + token()).detail == "unknown_key"  # the old key, though it was cached


async def test_many_waiting_requests_fetch_once() -> None:
    source = Source(jwk(rsa_key(), kid="k1"))
    source.wait = asyncio.Event()
    auth, _ = remote(source, Clock())
    waiting = [asyncio.ensure_future(wait_for(auth, token(claims(jti=str(n))))) for n in range(20)]
    await asyncio.sleep(0)
    source.wait.set()
    await asyncio.gather(*waiting)
    assert source.calls == 1


async def test_one_client_that_leaves_does_not_stop_the_fetch_for_the_others() -> None:
    source = Source(jwk(rsa_key(), kid="k1"))
    source.wait = asyncio.Event()
    auth, _ = remote(source, Clock())
    first, second = (asyncio.ensure_future(wait_for(auth, token())) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    source.wait.set()
    assert (await second).subject == "alice"
    assert source.calls == 1


async def test_old_keys_serve_on_while_the_issuer_is_away_and_not_for_ever() -> None:
    source, clock = Source(jwk(rsa_key(), kid="k1")), Clock()
    auth, keys = remote(source, clock)
    await keys.refresh()
    source.broken = True
    clock.at += MAX_STALE_S
    await keys.refresh()
    at_once(auth, token())
    auth.forget_tokens()
    clock.at += 1
    error = refused(auth, b"Bearer " + token())
    assert isinstance(error, DependencyError)
    assert (error.status, error.code) == (503, "identity_unavailable")
    assert "refused" in auth.not_ready()


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"keys":[]}', jwks({"kty": "oct", "k": "AA"})])
async def test_a_broken_answer_changes_nothing(body: bytes) -> None:
    source = Source(jwk(rsa_key(), kid="k1"))
    auth, keys = remote(source, Clock())
    await keys.refresh()
    source.body = body
    await keys.refresh()
    at_once(auth, token())
    assert keys.last_error


async def test_the_background_refreshes_and_stops() -> None:
    source = Source(jwk(rsa_key(), kid="k1"))
    auth, keys = remote(source, Clock())
    auth.start()
    for _ in range(5):
        await asyncio.sleep(0)
    assert source.calls == 1 and keys.current() is not None
    await auth.close()


# -- configuration


def settings(tmp_path: Path, **jwt: Any) -> Identity:
    (tmp_path / "keys.json").write_bytes(jwks(jwk(rsa_key(), kid="k1")))
    (tmp_path / "key.pem").write_bytes(public_pem(rsa_key()))
    (tmp_path / "secret").write_bytes(b"s" * 64)
    named = {n: str(tmp_path / v) if n.endswith("_file") else v for n, v in jwt.items()}
    good = {"issuer": ISSUER, "audience": AUDIENCE, "algorithms": ("RS256",)}
    return Identity(domains=(Domain(id=DOMAIN),), jwt=(JwtIssuer(**{**good, **named}),))


@pytest.mark.parametrize(
    ("jwt", "raw"),
    [
        ({"jwks_file": "keys.json"}, token()),
        ({"key_file": "key.pem"}, token()),
        ({"key_file": "secret", "algorithms": ("HS512",)}, token(key=b"s" * 64, alg="HS512")),
    ],
)
def test_keys_from_files(tmp_path: Path, jwt: dict[str, Any], raw: bytes) -> None:
    auth = build_authenticator(settings(tmp_path, **jwt), now=Clock())
    assert at_once(auth, raw).subject == "alice"


@pytest.mark.parametrize(
    "jwt",
    [
        {}, {"jwks_file": "keys.json", "key_file": "key.pem"}, {"jwks_file": "gone.json"}, {"jwks_file": "key.pem"},
        {"key_file": "keys.json"}, {"key_file": "secret"}, {"jwks_file": "keys.json", "algorithms": ()},
        {"jwks_file": "keys.json", "algorithms": ("none",)}, {"jwks_file": "keys.json", "algorithms": ("HS256",)},
        {"key_file": "secret", "algorithms": ("HS256", "RS256")}, {"key_file": "key.pem", "algorithms": ("HS256",)},
        {"jwks_file": "keys.json", "audience": ""}, {"jwks_file": "keys.json", "issuer": ""},
        {"jwks_file": "keys.json", "leeway_s": 301.0}, {"jwks_file": "keys.json", "leeway_s": -1.0},
        {"jwks_url": "http://id.example/jwks"}, {"jwks_url": "https://user:pw@id.example/"},
        {"jwks_url": "file:///etc/x"},
        {"jwks_url": "https://id.example/jwks", "jwks_refresh_s": 0.0},
    ],
)  # fmt: skip
def test_a_configuration_that_could_not_work_or_would_be_unsafe(tmp_path: Path, jwt: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build_authenticator(settings(tmp_path, **jwt))


def test_no_way_to_log_in_is_an_error() -> None:
    with pytest.raises(ConfigError):
        build_authenticator(Identity(domains=(Domain(id=DOMAIN),)))


@pytest.mark.parametrize("prefixes", [("", ""), ("a:", "a:"), ("a", "b"), ("", "b:"), ("a:", "a:b:"), (":", "b:")])
def test_two_issuers_must_not_share_subjects(tmp_path: Path, prefixes: tuple[str, str]) -> None:
    one = settings(tmp_path, jwks_file="keys.json").jwt[0]
    issuers = tuple(
        JwtIssuer(issuer=f"https://{n}.example", audience="a", algorithms=("RS256",), jwks_file=one.jwks_file,
                  subject_prefix=prefix)
        for n, prefix in enumerate(prefixes)
    )  # fmt: skip
    with pytest.raises(ConfigError):
        build_authenticator(Identity(domains=(Domain(id=DOMAIN),), jwt=issuers))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "App"}, {"id": "a_b"}, {"id": ""}, {"hash": KEY}, {"hash": "sha256:00"}, {"subject": ""},
        {"hash": hash_key(KEY).upper()}, {"domain": "other"}, {"expires": "tomorrow"},
        {"expires": "2026-01-01T00:00:00"},
        {"id": "app2"},  # the same hash again
    ],
)  # fmt: skip
def test_bad_api_keys_do_not_load(change: dict[str, str]) -> None:
    good = {"id": "app", "hash": hash_key(KEY), "subject": "alice", "domain": DOMAIN}
    keys = [ApiKey(**{**good, **change})] + ([ApiKey(**good)] if change == {"id": "app2"} else [])
    with pytest.raises(ConfigError):
        key_table(keys, frozenset({DOMAIN}))


@pytest.mark.parametrize(
    ("key_id", "secret"), [("A", b"k" * 32), ("a_b", b"k" * 32), ("a", b"k" * 31), ("", b"k" * 32)]
)
def test_keys_that_are_not_made(key_id: str, secret: bytes) -> None:
    with pytest.raises(ValueError, match=r"key id|secret"):
        format_key(key_id, secret)
