"""Identity: turns the value of ``Authorization`` into a Principal. API keys and JSON Web Tokens, with a bounded cache.

A credential seen before costs one SHA-256 and one look-up. Secrets are never kept: tables are keyed by digest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from hashlib import sha256
from logging import getLogger
from pathlib import Path
from time import time

from cube_mesh._fastpath import CredentialTable
from cube_mesh.errors import ConfigError, DependencyError, PolicyError
from cube_mesh.identity.api_keys import PREFIX, key_table
from cube_mesh.identity.fetch import check_url
from cube_mesh.identity.jwks import RemoteKeys
from cube_mesh.identity.keyset import FAMILIES, BadKey, KeySet, parse_jwks, parse_pem, parse_secret
from cube_mesh.identity.tokens import Issuer, Rejected, UnknownKey, verify_token
from cube_mesh.ports import Principal
from cube_mesh.settings import Identity, JwtIssuer

__all__ = ["CredentialAuthenticator", "build_authenticator"]

_log = getLogger("cube_mesh.identity")
_INVALID = "The API key or token is not valid."


class CredentialAuthenticator(CredentialTable):
    """The ``Authenticator`` of the node. ``authenticate`` answers at once, except for a token whose key may be newer
    than what we have: then it is an awaitable that looks for it, at most once in ten seconds per issuer.

    Raises PolicyError 401 ``invalid_api_key`` whatever is wrong with the credential, and DependencyError 503
    ``identity_unavailable`` when a token cannot be judged because its issuer's keys cannot be had.
    """

    def __init__(
        self,
        api_keys: dict[bytes, Principal],
        issuers: Iterable[Issuer] = (),
        *,
        cache_entries: int = 10_000,
        cache_ttl_s: float = 30.0,
        now: Callable[[], float] = time,
    ) -> None:
        super().__init__(api_keys, now)
        self._now = now
        self._ttl_s = cache_ttl_s
        self._max = cache_entries
        self._issuers = {issuer.name: issuer for issuer in issuers}
        self._static: dict[str, KeySet] = {}
        self._remote: dict[str, RemoteKeys] = {}

    # -- keys

    def add_keys(self, issuer: str, keys: KeySet | RemoteKeys) -> None:
        if isinstance(keys, RemoteKeys):
            self._remote[issuer] = keys
        else:
            self._static[issuer] = keys

    def forget_tokens(self) -> None:
        """Judge every token anew: the keys have changed."""
        self.tokens.clear()

    def start(self) -> None:
        """Begin to fetch the remote key sets. Needs a running loop."""
        for remote in self._remote.values():
            remote.start()

    async def close(self) -> None:
        for remote in self._remote.values():
            await remote.close()

    def not_ready(self) -> str:
        """For readiness: "" or which key sets are missing and why."""
        missing = [f"{name}: {remote.last_error}" for name, remote in self._remote.items() if remote.current() is None]
        return "; ".join(missing)

    # -- credentials

    def authenticate(self, authorization: bytes) -> Principal | Awaitable[Principal]:
        token = authorization[7:] if authorization[:7] == b"Bearer " else _bearer(authorization)
        principal = self.known(token)
        if principal is not None:
            return principal
        digest = sha256(token).digest()
        if digest in self.api_keys:
            raise _invalid("API key expired")
        if token.startswith(PREFIX):
            raise _invalid("unknown API key")
        return self._verify(token, digest)

    def _verify(self, token: bytes, digest: bytes) -> Principal | Awaitable[Principal]:
        try:
            return self._judge(token, digest)
        except UnknownKey as error:
            remote = self._remote.get(error.issuer.name)
            if remote is not None and remote.may_refresh():
                return self._look_again(remote, token, digest)
            raise self._refusal(error) from None
        except Rejected as error:
            raise self._refusal(error) from None

    async def _look_again(self, remote: RemoteKeys, token: bytes, digest: bytes) -> Principal:
        await remote.refresh()
        try:
            return self._judge(token, digest)
        except Rejected as error:
            raise self._refusal(error) from None

    def _judge(self, token: bytes, digest: bytes) -> Principal:
        now = self._now()
        keys: dict[str, KeySet | None] = {**self._static, **{n: r.current() for n, r in self._remote.items()}}
        verified = verify_token(token, self._issuers, keys, now)
        if self._max > 0:
            self.tokens.pop(digest, None)
            if len(self.tokens) >= self._max:
                del self.tokens[next(iter(self.tokens))]
            self.tokens[digest] = (min(now + self._ttl_s, verified.good_until), verified.principal)
        return verified.principal

    def _refusal(self, error: Rejected) -> PolicyError | DependencyError:
        if error.reason == "no_keys":
            message = "The identity service cannot be reached."
            return DependencyError("identity_unavailable", message, detail=str(error), status=503, retryable=True)
        return _invalid(error.reason)


def _bearer(authorization: bytes) -> bytes:
    """The token of a Bearer credential in any letter case (RFC 9110 section 11.1)."""
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not token:
        raise _invalid("not a Bearer credential")
    return token


def _invalid(detail: str) -> PolicyError:
    return PolicyError("invalid_api_key", _INVALID, status=401, detail=detail)


def build_authenticator(settings: Identity, *, now: Callable[[], float] = time) -> CredentialAuthenticator:
    """The authenticator of a configuration; reads key files. Raises ConfigError with the setting at fault.

    No domain, key or issuer at all is an error: such a node could only refuse.
    """
    if not settings.api_keys and not settings.jwt:
        raise ConfigError("needs api_keys or a jwt issuer", key="identity")
    domains = frozenset(domain.id for domain in settings.domains)
    _check_prefixes(settings.jwt)
    authenticator = CredentialAuthenticator(
        key_table(settings.api_keys, domains),
        [_issuer(jwt) for jwt in settings.jwt],
        cache_entries=settings.cache_entries,
        cache_ttl_s=settings.cache_ttl_s,
        now=now,
    )
    for jwt in settings.jwt:
        authenticator.add_keys(jwt.issuer, _keys(jwt, authenticator))
    return authenticator


def _check_prefixes(issuers: tuple[JwtIssuer, ...]) -> None:
    """Two issuers may both know an "alice". Prefixes that end in their only colon keep the two apart."""
    if len({jwt.issuer for jwt in issuers}) != len(issuers):
        raise ConfigError("an issuer is there twice", key="identity.jwt.issuer")
    if len(issuers) < 2:
        return
    prefixes = [jwt.subject_prefix for jwt in issuers]
    if len(set(prefixes)) != len(prefixes) or any(p.find(":") != len(p) - 1 or len(p) < 2 for p in prefixes):
        raise ConfigError(
            'with several issuers each needs its own, a name that ends in a colon ("corp:")',
            key="identity.jwt.subject_prefix",
        )


def _issuer(jwt: JwtIssuer) -> Issuer:
    where = f"identity.jwt.{jwt.issuer}"
    if not jwt.issuer or not jwt.audience:
        raise ConfigError("issuer and audience must not be empty", key=where)
    unknown = [a for a in jwt.algorithms if a not in FAMILIES]
    if unknown or not jwt.algorithms:
        raise ConfigError(f"must be of {', '.join(FAMILIES)}; got {unknown}", key=f"{where}.algorithms")
    secret = [a for a in jwt.algorithms if FAMILIES[a] == "secret"]
    if secret and (len(secret) != len(jwt.algorithms) or not jwt.key_file):
        raise ConfigError("HS algorithms stand alone and need key_file", key=f"{where}.algorithms")
    if not 0 <= jwt.leeway_s <= 300:
        raise ConfigError("must be 0 to 300", key=f"{where}.leeway_s")
    if jwt.jwks_refresh_s < 1:
        raise ConfigError("must be at least 1", key=f"{where}.jwks_refresh_s")
    return Issuer(
        jwt.issuer, jwt.audience, frozenset(jwt.algorithms), jwt.leeway_s, jwt.subject_prefix, jwt.required_typ
    )


def _keys(jwt: JwtIssuer, authenticator: CredentialAuthenticator) -> KeySet | RemoteKeys:
    where = f"identity.jwt.{jwt.issuer}"
    if sum(bool(source) for source in (jwt.jwks_file, jwt.jwks_url, jwt.key_file)) != 1:
        raise ConfigError("needs exactly one of jwks_file, jwks_url, key_file", key=where)
    if jwt.jwks_url:
        check_url(jwt.jwks_url, f"{where}.jwks_url")
        return RemoteKeys(jwt.jwks_url, jwt.jwks_refresh_s, authenticator.forget_tokens)
    try:
        raw = Path(jwt.jwks_file or jwt.key_file).read_bytes()
        if jwt.jwks_file:
            keys = parse_jwks(raw)
        elif FAMILIES[jwt.algorithms[0]] == "secret":
            keys = parse_secret(raw, jwt.algorithms)
        else:
            keys = parse_pem(raw)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", key=where) from None
    except BadKey as error:
        raise ConfigError(str(error), key=where) from None
    for reason in keys.skipped:
        _log.warning("a key of %s is not used: %s", jwt.issuer, reason)
    return keys
