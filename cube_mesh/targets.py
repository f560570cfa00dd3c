"""Upstreams from the configuration to targets: which connector, which pool, which fields. Refuses what is not safe to
dial.

A plain target must be on this machine; an attested one needs a connector that attests. Nothing falls back from one kind
to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from cube_mesh.connectors import PlainConnector, TlsConnector
from cube_mesh.deadlines import Sweeper
from cube_mesh.errors import ConfigError
from cube_mesh.hops import Hop
from cube_mesh.listener import is_loopback
from cube_mesh.ports import Connector
from cube_mesh.settings import Limits, Timeouts, Upstream
from cube_mesh.upstream import Pool

PORTS = {"http": 80, "https": 443, "atls": 8901}


def split_url(upstream: Upstream) -> tuple[str, str, int]:
    """(scheme, host, port) of an upstream's URL; ConfigError for anything but scheme, host and port."""
    key = f"upstreams.{upstream.name}.url"
    try:
        url = urlsplit(upstream.url)
        port = url.port
    except ValueError as error:
        raise ConfigError(str(error), key=key) from None
    if url.scheme not in PORTS or not url.hostname:
        raise ConfigError("must be http://host:port, https://host:port or atls://host:port", key=key)
    if url.path not in ("", "/") or url.query or url.fragment or url.username is not None:
        raise ConfigError("must have a scheme, a host and a port, and nothing else", key=key)
    return url.scheme, url.hostname, port or PORTS[url.scheme]


def build_targets(
    upstreams: Iterable[Upstream],
    timeouts: Timeouts,
    limits: Limits,
    sweeper: Sweeper,
    attested: Callable[[Upstream, str, int], Connector] | None,
) -> dict[str, Hop]:
    """One Hop per upstream, by name. ``attested`` makes connectors of ``atls`` targets; None = this role has none."""
    targets: dict[str, Hop] = {}
    for upstream in upstreams:
        if upstream.name in targets:
            raise ConfigError("is there twice", key=f"upstreams.{upstream.name}")
        scheme, host, port = split_url(upstream)
        connector = _connector(upstream, scheme, host, port, attested)
        pool = Pool(connector, upstream.pool, timeouts, limits, sweeper)
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        targets[upstream.name] = Hop(
            upstream.name, shown, pool, mesh=scheme == "atls", api_key=_api_key(upstream, scheme)
        )
    return targets


def _connector(
    upstream: Upstream, scheme: str, host: str, port: int, attested: Callable[[Upstream, str, int], Connector] | None
) -> Connector:
    key = f"upstreams.{upstream.name}.url"
    if scheme == "atls":
        if attested is None:
            raise ConfigError("an agent's backend cannot be attested; use http or https", key=key)
        return attested(upstream, host, port)
    if scheme == "https":
        return TlsConnector(host, port, upstream.tls)
    if not is_loopback(host) and not upstream.unsafe_plain_non_loopback:
        raise ConfigError("a plain target must be on loopback; use https or atls", key=key)
    return PlainConnector(host, port)


def _api_key(upstream: Upstream, scheme: str) -> str:
    """The backend's own key. It never goes to an agent, which has its own configuration."""
    key = upstream.api_key
    if upstream.api_key_file:
        try:
            key = Path(upstream.api_key_file).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            where = f"upstreams.{upstream.name}.api_key_file"
            raise ConfigError(f"cannot be read: {error}", key=where) from None
    if key and scheme == "atls":
        raise ConfigError(
            "a backend key belongs to the agent's configuration", key=f"upstreams.{upstream.name}.api_key"
        )
    if any(not 0x21 <= ord(c) <= 0x7E for c in key):
        raise ConfigError("must be printable ASCII without spaces", key=f"upstreams.{upstream.name}.api_key")
    return key
