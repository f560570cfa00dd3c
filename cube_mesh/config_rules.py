"""What a configuration must satisfy before a node of a role may start. All problems are found, not just the first.

Every rule is a generator of (key, reason). Rules that belong to a part (a route's pattern, a domain's members, a URL)
are that part's own: it is built here and asked. Production is the default: what is missing or empty is refused, and
only a key called ``unsafe_...`` relaxes anything. Reads the files that the settings name; opens no socket, no device.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import msgspec

from cube_mesh.authz import DomainAuthorizer, load_roles
from cube_mesh.config import Loaded, Role, is_path, source_of
from cube_mesh.deadlines import Sweeper
from cube_mesh.endpoints import load_endpoints
from cube_mesh.errors import ConfigError
from cube_mesh.forwarded import Trust
from cube_mesh.identity import build_authenticator
from cube_mesh.identity.api_keys import key_table
from cube_mesh.keeper import Keeper, keeper_from_settings
from cube_mesh.listener import check_plain, is_loopback
from cube_mesh.ports import Connector
from cube_mesh.routes import RouteTable
from cube_mesh.settings import BackendTls, EdgeTls, Identity, JwtIssuer, Settings, Upstream
from cube_mesh.targets import build_targets
from cube_mesh.tls.connector import AttestedConnector, check_allow_list
from cube_mesh.tls.edge import EdgeCertificate

Problem: TypeAlias = tuple[str, str]
Attested: TypeAlias = Callable[[Upstream, str, int], Connector]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}").fullmatch
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+").fullmatch
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?").fullmatch
_FIELD = re.compile(r"[A-Za-z0-9-]+\*?").fullmatch
_MAX_WORKERS = 256
_MADE_BY_THE_NODE = frozenset({"attestation.ak_context_file"})


def check(loaded: Loaded, role: Role) -> None:
    """Raises the first problem. For a node that is about to start."""
    for problem in problems(loaded, role):
        raise problem


def problems(loaded: Loaded, role: Role) -> Iterator[ConfigError]:
    """Every problem, as a ConfigError with the source of the key at fault."""
    settings = loaded.settings
    rules = (*_RULES, _proxy if role == "proxy" else _agent)
    for rule in rules:
        for key, reason in rule(settings):
            yield ConfigError(reason, key=key, where=source_of(key, loaded.origins))


def _asked(settings: Settings, key: str, build: Callable[[], object]) -> Iterator[Problem]:
    """The problem that a part itself finds when it is built, if any. A part that knows only a file's name has its key
    looked up.
    """
    try:
        build()
    except ConfigError as error:
        named = next((name for name, value in _values(settings) if is_path(name) and value == error.where), key)
        yield error.key or named, f"{error.where}: {error.reason}" if error.where else error.reason


def _twice(key: str, names: Iterable[str]) -> Iterator[Problem]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield key, f"{name!r} is there twice"
        seen.add(name)


# -- values by themselves ----------------------------------------------------------------------------------------------


def _values(section: msgspec.Struct, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, msgspec.Struct):
            yield from _values(value, f"{prefix}{name}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
            for index, item in enumerate(value):
                yield from _values(item, f"{prefix}{name}.{index}.")
        else:
            yield prefix + name, value


def _numbers(settings: Settings) -> Iterator[Problem]:
    """The unit in a key's name bounds it."""
    for key, value in _values(settings):
        name = key.rpartition(".")[2]
        if name == "port" and not (0 <= value <= 65_535 or (key == "metrics.port" and value == -1)):
            yield key, f"not a port: {value}"
        elif name.endswith("_s") and not (math.isfinite(value) and 0 < value <= 86_400 * 365):
            if not (name == "leeway_s" and value == 0):
                yield key, f"must be more than 0 seconds and finite, not {value}"
        elif (name.startswith("max_") or name in ("backlog", "write_low_water")) and value < 1:
            yield key, f"must be at least 1, not {value}"
    if not -1 <= settings.workers <= _MAX_WORKERS:
        yield "workers", f"must be from -1 to {_MAX_WORKERS}, not {settings.workers}"
    limits, attestation = settings.limits, settings.attestation
    if limits.write_low_water >= limits.write_high_water:
        yield "limits.write_low_water", "must be below limits.write_high_water"
    if limits.max_json_body > limits.max_body_bytes:
        yield "limits.max_json_body", "must not be above limits.max_body_bytes"
    if settings.identity.cache_entries < 0:
        yield "identity.cache_entries", "must not be negative"
    if not 0 <= settings.tracing.sample_ratio <= 1:
        yield "tracing.sample_ratio", "must be between 0 and 1"
    if attestation.interval_s > attestation.max_age_s:
        yield "attestation.interval_s", "must not be above attestation.max_age_s"


def _files(settings: Settings) -> Iterator[Problem]:
    for key, value in _values(settings):
        if not value or not is_path(key) or key in _MADE_BY_THE_NODE:
            continue
        if key == "audit.path":
            if Path(value).is_dir():
                yield key, f"is a directory: {value}"
        elif not os.path.isfile(value):
            yield key, f"no such file: {value}"
        elif not os.access(value, os.R_OK):
            yield key, f"may not be read by this user: {value}"


# -- listeners ---------------------------------------------------------------------------------------------------------


def _listeners(settings: Settings) -> Iterator[Problem]:
    listen, metrics = settings.listen, settings.metrics
    if settings.unsafe_allow_simulated:
        if not is_loopback(listen.host):
            yield "listen.host", "unsafe_allow_simulated starts only on loopback"
        for index, upstream in enumerate(settings.upstreams):
            if upstream.url.startswith("atls:") and not is_loopback(urlsplit(upstream.url).hostname or ""):
                yield f"upstreams.{index}.url", "with unsafe_allow_simulated an attested upstream must be on loopback"
    if metrics.port != -1 and not is_loopback(metrics.host):
        yield "metrics.host", "metrics and health have no authentication: loopback only"
    if metrics.port == listen.port and metrics.host == listen.host and metrics.port > 0:
        yield "metrics.port", "is listen.port too"
    if listen.proxy_protocol and not listen.trusted_peers:
        yield "listen.proxy_protocol", "nobody may speak it: listen.trusted_peers is empty"
    yield from _asked(settings, "listen.trusted_peers", lambda: Trust(listen.trusted_peers, listen.forwarded))
    yield from _edge_tls(settings)
    if listen.path_prefix and not _PREFIX(listen.path_prefix):
        yield "listen.path_prefix", "must be like /proxy: whole segments, no slash at the end"


def _edge_tls(settings: Settings) -> Iterator[Problem]:
    tls = settings.listen.tls
    if bool(tls.cert_file) != bool(tls.key_file):
        yield "listen.tls.cert_file", "cert_file and key_file go together"
    elif not tls.cert_file and (tls.client_ca_file or tls.require_client_certificate):
        yield "listen.tls.cert_file", "client certificates need TLS: give cert_file and key_file"
    elif tls.require_client_certificate and not tls.client_ca_file:
        yield "listen.tls.client_ca_file", "without it no client certificate could be verified"
    elif tls.cert_file and not any(_files(settings)):
        yield from _asked(settings, "listen.tls", lambda: EdgeCertificate(tls))


def _cors(settings: Settings) -> Iterator[Problem]:
    for origin in settings.cors.allowed_origins:
        if origin != "*" and _ORIGIN(origin) is None:
            yield "cors.allowed_origins", f"not an origin (scheme://host[:port], lower case) or *: {origin!r}"
    for key in ("allowed_headers", "exposed_headers"):
        for name in getattr(settings.cors, key):
            if _FIELD(name) is None:
                yield f"cors.{key}", f"not a field name: {name!r}"


# -- where requests go -------------------------------------------------------------------------------------------------


def _upstreams(settings: Settings) -> Iterator[Problem]:
    if not settings.upstreams:
        yield "upstreams", "there is none: nothing could be forwarded"
    yield from _twice("upstreams", (upstream.name for upstream in settings.upstreams))
    for index, upstream in enumerate(settings.upstreams):
        for key, reason in _upstream(upstream):
            yield f"upstreams.{index}.{key}", reason


def _upstream(upstream: Upstream) -> Iterator[Problem]:
    if not _NAME(upstream.name):
        yield "name", f"not a name: {upstream.name!r}"
    scheme = upstream.url.partition(":")[0]
    if upstream.api_key and upstream.api_key_file:
        yield "api_key", "give either api_key or api_key_file"
    if scheme != "https" and upstream.tls != BackendTls():
        yield "tls", f"has no effect on an {scheme} target"
    if bool(upstream.tls.cert_file) != bool(upstream.tls.key_file):
        yield "tls.cert_file", "cert_file and key_file go together"
    if scheme != "atls" and (upstream.node_id or upstream.policy):
        yield "policy", f"an {scheme} target is not attested: node_id and policy would be ignored; use atls"


def _routes(settings: Settings) -> Iterator[Problem]:
    known = {upstream.name for upstream in settings.upstreams}
    yield from _twice("routes", (rule.name for rule in settings.routes))
    for index, rule in enumerate(settings.routes):
        if not _NAME(rule.name):
            yield f"routes.{index}.name", f"not a name: {rule.name!r}"
        if rule.upstream not in known:
            yield f"routes.{index}.upstream", f"unknown upstream {rule.upstream!r}; known: {', '.join(sorted(known))}"
        for name in rule.match.headers:
            if name != name.lower() or not name.isascii():
                yield f"routes.{index}.match.headers", f"field names are written in lower case: {name!r}"
    yield from _asked(settings, "routes", lambda: RouteTable(settings.routes))


# -- who may call ------------------------------------------------------------------------------------------------------


def _identity(settings: Settings) -> Iterator[Problem]:
    identity = settings.identity
    roles = settings.authz.roles_file
    yield from _asked(settings, "authz.endpoints_file", lambda: load_endpoints(settings.authz.endpoints_file))
    yield from _asked(settings, "identity.domains", lambda: DomainAuthorizer(identity.domains, load_roles(roles)))
    domains = frozenset(domain.id for domain in identity.domains)
    single = [
        problem
        for key in identity.api_keys
        for problem in _asked(settings, "identity", partial(key_table, [key], domains))
    ]
    single += [problem for jwt in identity.jwt for problem in _asked(settings, "identity", partial(_build_issuer, jwt))]
    yield from single
    if not single and (identity.api_keys or identity.jwt):
        yield from _asked(settings, "identity", lambda: build_authenticator(identity))
    members = {(domain.id, member.subject) for domain in identity.domains for member in domain.members}
    for index, key in enumerate(identity.api_keys):
        if key.domain in domains and (key.domain, key.subject) not in members:
            reason = f"{key.subject!r} is no member of the domain {key.domain}: the key could open nothing"
            yield f"identity.api_keys.{index}.subject", reason


def _build_issuer(jwt: JwtIssuer) -> None:
    build_authenticator(Identity(jwt=(jwt,)))


# -- the rest, and the two roles ---------------------------------------------------------------------------------------


def _telemetry(settings: Settings) -> Iterator[Problem]:
    endpoint = urlsplit(settings.tracing.otlp_endpoint)
    if settings.tracing.otlp_endpoint and (endpoint.scheme not in ("http", "https") or not endpoint.hostname):
        yield "tracing.otlp_endpoint", "must be an http or https URL"
    if not settings.audit.path:
        yield "audit.path", "must not be empty: every request is audited"
    if settings.audit.rotate_bytes < 4096:
        yield "audit.rotate_bytes", f"must be at least 4096, not {settings.audit.rotate_bytes}"
    if settings.audit.max_spool_bytes < 2 * settings.audit.rotate_bytes:
        yield "audit.max_spool_bytes", "must hold two files of audit.rotate_bytes"


def _proxy(settings: Settings) -> Iterator[Problem]:
    identity = settings.identity
    yield from _asked(settings, "listen.host", lambda: check_plain(settings.listen))
    if not settings.routes:
        yield "routes", "there is none: nothing would be forwarded"
    if not identity.domains:
        yield "identity.domains", "there is none: every request would be refused"
    if not identity.api_keys and not identity.jwt:
        yield "identity", "neither api_keys nor jwt: nobody could log in"
    if any(upstream.url.startswith("atls:") for upstream in settings.upstreams):
        yield from _mesh("proxy", settings)
        return
    for index, domain in enumerate(identity.domains):
        if domain.evidence_policy:
            yield f"identity.domains.{index}.evidence_policy", "no upstream is attested: all of it would be refused"
    yield from _targets(settings, None)
    if settings.attestation.attester not in ("", "none"):
        yield "attestation.attester", 'a proxy does not attest in this version; say "none"'


def _agent(settings: Settings) -> Iterator[Problem]:
    mesh, listen = settings.mesh, settings.listen
    if listen.tls != EdgeTls() or listen.trusted_peers or listen.proxy_protocol:
        yield "listen", "tls, trusted_peers and proxy_protocol are a proxy's: an agent's callers prove who they are"
    yield from _asked(
        settings, "mesh.allowed_proxies", lambda: check_allow_list(mesh.allowed_proxies, mesh.trust_domain)
    )
    if len(settings.upstreams) > 1 and not settings.routes:
        yield "routes", "with more than one upstream, say which requests go where"
    if any(upstream.url.startswith("atls:") for upstream in settings.upstreams):
        yield "upstreams", "an agent's backend cannot be attested; use http or https"
    else:
        yield from _mesh("agent", settings)


def _mesh(role: Role, settings: Settings) -> Iterator[Problem]:
    """The node's own place in the mesh first; only a keeper that can be built can judge attested targets."""
    if any(_files(settings)):
        return
    keeper: list[Keeper] = []
    yield from _asked(settings, "mesh", lambda: keeper.append(keeper_from_settings(settings, role)))
    if keeper and role == "proxy":
        yield from _targets(settings, lambda upstream, *_: AttestedConnector(upstream, keeper[0], settings.attestation))
    elif keeper:
        yield from _targets(settings, None)


def _targets(settings: Settings, attested: Attested | None) -> Iterator[Problem]:
    """URL, plaintext, TLS files, backend key, expected peer: what ``targets`` refuses, each upstream by itself."""
    for upstream in settings.upstreams:
        yield from _asked(settings, "upstreams", partial(_build_target, upstream, settings, attested))


def _build_target(upstream: Upstream, settings: Settings, attested: Attested | None) -> None:
    try:
        build_targets([upstream], settings.timeouts, settings.limits, Sweeper(), attested)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"unusable TLS file: {error}", key=f"upstreams.{upstream.name}.tls") from None


_RULES: tuple[Callable[[Settings], Iterator[Problem]], ...] = (
    _numbers,
    _files,
    _listeners,
    _cors,
    _upstreams,
    _routes,
    _identity,
    _telemetry,
)
