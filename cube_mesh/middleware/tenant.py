"""Tenant: the path contract. ``[prefix]/{domain}/rest?query`` or nothing: the domain is a UUID in its canonical form.

Sets the domain, the request-target for the upstream and, from the table, the endpoint: metrics and audit need its
name also for requests that are refused next. Whether the domain exists is not asked here, so that the answer cannot
tell.
"""

from __future__ import annotations

import re

from cube_mesh.endpoints import EndpointTable
from cube_mesh.errors import ConfigError, PeerError
from cube_mesh.exchange import Exchange

_UUID = re.compile(r"/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?:/|\Z)").match
_WIDTH = 37  # a slash and 36 characters
_MAX_SEEN = 4096


class Tenant:
    """Gate. Refuses with 400 ``invalid_domain`` what has no tenant; RFC 9562 section 4, lower case, hyphens, no
    braces.
    """

    def __init__(self, endpoints: EndpointTable, path_prefix: str = "") -> None:
        if path_prefix and (path_prefix[0] != "/" or path_prefix[-1] == "/" or not path_prefix.isascii()):
            raise ConfigError("must start with a slash and not end with one", key="listen.path_prefix")
        self._find = endpoints.find
        self._prefix = path_prefix
        self._at = len(path_prefix)
        self._end = len(path_prefix) + _WIDTH
        self._seen: dict[str, str] = {}  # well-formed first segments, whether or not there is such a domain

    def enter(self, exchange: Exchange) -> None:
        path = exchange.path
        at, end = self._at, self._end
        if at and not path.startswith(self._prefix):
            raise _invalid()
        first = path[at : end + 1]
        exchange.domain_id = self._seen.get(first) or self._read(first)
        rest = path[end:]
        if rest:
            exchange.upstream_target = exchange.head.target[end:]
            exchange.endpoint = self._find(exchange.method, rest)
        else:
            exchange.upstream_target = b"/" + exchange.head.query

    def _read(self, first: str) -> str:
        if _UUID(first) is None:
            raise _invalid()
        if len(self._seen) >= _MAX_SEEN:
            self._seen.clear()
        domain_id = self._seen[first] = first[1:_WIDTH]
        return domain_id


def _invalid() -> PeerError:
    return PeerError("invalid_domain", "The path must start with the id of a domain, a UUID in canonical form.")
