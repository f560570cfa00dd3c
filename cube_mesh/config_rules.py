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

from attest.errors import AttestError
from attest.policy import load_policy
from cube_mesh.authz import DomainAuthorizer, load_roles
from cube_mesh.config import Loaded, Role, is_path, source_of
from cube_mesh.connectors import PlainConnector
from cube_mesh.deadlines import Sweeper
from cube_mesh.endpoints import load_endpoints
from cube_mesh.errors import ConfigError
from cube_mesh.identity import build_authenticator
from cube_mesh.identity.api_keys import key_table
from cube_mesh.listener import check_plain, is_loopback
from cube_mesh.ports import Connector
from cube_mesh.routes import RouteTable
from cube_mesh.settings import BackendTls, Identity, JwtIssuer, Settings, Upstream
from cube_mesh.targets import build_targets
from cube_mesh.tls.ca import load_certificates, load_key
from cube_mesh.tls.identity import parse_spiffe_id

Problem: TypeAlias = tuple[str, str]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}").fullmatch
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+").fullmatch
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


def _asked(key: str, build: Callable[[], object]) -> Iterator[Problem]:
    """The problem that a part itself finds when it is built, if any."""
    try:
        build()
    except ConfigError as error:
        reason = f"{error.where}: {error.reason}" if error.where else error.reason
        yield error.key or key, reason


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
        elif (name.startswith("max_") or name in ("backlog", "cache_entries", "write_low_water")) and value < 1:
            yield key, f"must be at least 1, not {value}"
    limits, attestation = settings.limits, settings.attestation
    if limits.write_low_water >= limits.write_high_water:
        yield "limits.write_low_water", "must be below limits.write_high_water"
    if limits.max_json_body > limits.max_body_bytes:
        yield "limits.max_json_body", "must not be above limits.max_body_bytes"
    if not 0 <= settings.tracing.sample_ratio <= 1:
        yield "tracing.sample_ratio", "must be between 0 and 1"
    if attestation.interval_s > attestation.max_age_s:
        yield "attestation.interval_s", "must not be above attestation.max_age_s"
    if attestation.leaf_lifetime_s > 86_400:
        yield "attestation.leaf_lifetime_s", "must not be above one day"


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
    if listen.path_prefix and not _PREFIX(listen.path_prefix):
        yield "listen.path_prefix", "must be like /proxy: whole segments, no slash at the end"


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
    if scheme == "atls":
        yield from _attested(upstream)
    elif upstream.node_id or upstream.policy:
        yield "policy", f"an {scheme} target is not attested: node_id and policy would be ignored; use atls"


def _targets(settings: Settings, *, attested: bool) -> Iterator[Problem]:
    """URL, plaintext, TLS files and backend key: what ``targets`` refuses, found for each upstream by itself."""
    for upstream in settings.upstreams:
        make = (lambda upstream, host, port: PlainConnector(host, port)) if attested else None
        yield from _asked("upstreams", partial(_build_target, upstream, settings, make))


def _build_target(
    upstream: Upstream, settings: Settings, attested: Callable[[Upstream, str, int], Connector] | None
) -> None:
    try:
        build_targets([upstream], settings.timeouts, settings.limits, Sweeper(), attested)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"unusable TLS file: {error}", key=f"upstreams.{upstream.name}.tls") from None


def _attested(upstream: Upstream) -> Iterator[Problem]:
    if not upstream.node_id:
        yield "node_id", "an attested upstream names the node that it expects (spiffe://<trust-domain>/agent/<id>)"
    else:
        yield from _spiffe("node_id", upstream.node_id, "agent")
    if not upstream.policy:
        yield "policy", "an attested upstream needs an evidence policy file"
    elif os.path.isfile(upstream.policy):
        yield from _evidence_policy(Path(upstream.policy))


def _spiffe(key: str, text: str, role: Role) -> Iterator[Problem]:
    try:
        parsed = parse_spiffe_id(text)
    except ValueError as error:
        yield key, str(error)
        return
    if parsed.role != role:
        yield key, f"must be the id of an {role}" if role == "agent" else f"must be the id of a {role}"


def _evidence_policy(path: Path) -> Iterator[Problem]:
    try:
        load_policy(path)
    except (AttestError, OSError) as error:
        yield "policy", f"{path}: {error}"


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
    yield from _asked("routes", lambda: RouteTable(settings.routes))


# -- who may call ------------------------------------------------------------------------------------------------------


def _identity(settings: Settings) -> Iterator[Problem]:
    identity = settings.identity
    roles = settings.authz.roles_file
    yield from _asked("authz.endpoints_file", lambda: load_endpoints(settings.authz.endpoints_file))
    yield from _asked("identity.domains", lambda: DomainAuthorizer(identity.domains, load_roles(roles)))
    domains = frozenset(domain.id for domain in identity.domains)
    single = [
        problem for key in identity.api_keys for problem in _asked("identity", partial(key_table, [key], domains))
    ]
    single += [problem for jwt in identity.jwt for problem in _asked("identity", partial(_build_issuer, jwt))]
    yield from single
    if not single and (identity.api_keys or identity.jwt):
        yield from _asked("identity", lambda: build_authenticator(identity))
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


def _proxy(settings: Settings) -> Iterator[Problem]:
    identity, mesh = settings.identity, settings.mesh
    yield from _asked("listen.host", lambda: check_plain(settings.listen))
    yield from _targets(settings, attested=True)
    if not settings.routes:
        yield "routes", "there is none: nothing would be forwarded"
    if not identity.domains:
        yield "identity.domains", "there is none: every request would be refused"
    if not identity.api_keys and not identity.jwt:
        yield "identity", "neither api_keys nor jwt: nobody could log in"
    if settings.attestation.attester not in ("", "none"):
        yield "attestation.attester", 'a proxy does not attest in this version; say "none"'
    if not any(upstream.url.startswith("atls:") for upstream in settings.upstreams):
        return
    if settings.attestation.attester != "none":
        yield "attestation.attester", 'attestation is one-way in this version: a proxy must say "none"'
    for name in ("ca_file", "cert_file", "key_file"):
        if not getattr(mesh, name):
            yield f"mesh.{name}", "attested upstreams need it: `cube-mesh ca issue` makes a proxy's certificate"
    yield from _own_id(settings, "proxy")
    if os.path.isfile(mesh.cert_file):
        yield from _asked("mesh.cert_file", lambda: load_certificates(mesh.cert_file))
    if os.path.isfile(mesh.key_file):
        yield from _asked("mesh.key_file", lambda: load_key(mesh.key_file))


def _agent(settings: Settings) -> Iterator[Problem]:
    attestation, mesh = settings.attestation, settings.mesh
    if attestation.attester in ("", "none"):
        yield "attestation.attester", "an agent must attest; choose one of vtpm, simulated-sev-snp"
    if attestation.attester.startswith("simulated"):
        if not settings.unsafe_allow_simulated:
            yield "attestation.attester", "simulated evidence needs unsafe_allow_simulated = true"
        if not attestation.simulated_seed_file:
            yield "attestation.simulated_seed_file", "a simulated platform needs its seed"
    if attestation.attester == "vtpm":
        if not attestation.tcti:
            yield "attestation.tcti", "must not be empty"
        if not attestation.pcrs or any(not 0 <= pcr <= 23 for pcr in attestation.pcrs):
            yield "attestation.pcrs", "name at least one PCR, each 0 to 23"
        yield from _twice("attestation.pcrs", map(str, attestation.pcrs))
    if not mesh.allowed_proxies:
        yield "mesh.allowed_proxies", "empty: no proxy could call this agent"
    for proxy in mesh.allowed_proxies:
        yield from _spiffe("mesh.allowed_proxies", proxy, "proxy")
    if not mesh.ca_file:
        yield "mesh.ca_file", "an agent needs the mesh CA to know its proxies"
    yield from _targets(settings, attested=False)
    if len(settings.upstreams) > 1 and not settings.routes:
        yield "routes", "with more than one upstream, say which requests go where"
    yield from _own_id(settings, "agent")


def _own_id(settings: Settings, role: Role) -> Iterator[Problem]:
    mesh = settings.mesh
    if not mesh.node_id:
        yield "mesh.node_id", "must be set"
    else:
        yield from _spiffe("mesh.node_id", f"spiffe://{mesh.trust_domain}/{role}/{mesh.node_id}", role)
    if os.path.isfile(mesh.ca_file):
        yield from _asked("mesh.ca_file", lambda: load_certificates(mesh.ca_file))


_RULES: tuple[Callable[[Settings], Iterator[Problem]], ...] = (
    _numbers,
    _files,
    _listeners,
    _upstreams,
    _routes,
    _identity,
    _telemetry,
)
