"""CORS: which web pages may read answers in a browser. In the chain only when origins are configured.

A preflight is answered here, before authn (browsers send it without credentials), audited like any other request and
never forwarded. It grants nothing but the browser's permission to ask: authn and authz judge what follows. Credentials
in the sense of CORS (cookies) are never allowed. Fetch standard, section 3.3; upstreams' own fields do not cross
(``hops``).
"""

from __future__ import annotations

import re

from cube_mesh.errors import PolicyError
from cube_mesh.exchange import Exchange
from cube_mesh.message import Response
from cube_mesh.settings import Cors as Settings

_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch
_MAX_NAMES = 64


class Cors:
    """Gate. Answers preflights: 204, or 403 ``origin_not_allowed``; gives other answers the fields that let an allowed
    page read them. A request of another origin goes on without: CORS is no access control.
    """

    def __init__(self, settings: Settings) -> None:
        self._any = "*" in settings.allowed_origins
        self._origins = frozenset(origin.encode("ascii") for origin in settings.allowed_origins)
        names = [name.lower().encode("ascii") for name in settings.allowed_headers]
        self._names = frozenset(name for name in names if not name.endswith(b"*"))
        self._prefixes = tuple(name[:-1] for name in names if name.endswith(b"*"))
        self._exposed = ", ".join(settings.exposed_headers).lower().encode("ascii")
        self._max_age = b"%d" % settings.max_age_s

    def enter(self, exchange: Exchange) -> Response | None:
        head = exchange.head
        origin = head.get(b"origin")
        if origin is None:
            return None
        allowed = head.count(b"origin") == 1 and (self._any or origin in self._origins)
        preflight = exchange.method == "OPTIONS" and head.get(b"access-control-request-method") is not None
        if not allowed:
            if preflight:
                raise PolicyError("origin_not_allowed", "Pages of this origin may not use this API.")
            return None
        exchange.answer_fields = self._fields(origin, preflight=preflight)
        return self._preflight(exchange) if preflight else None

    def _fields(self, origin: bytes, *, preflight: bool) -> bytes:
        if self._any:
            fields = b"access-control-allow-origin: *\r\n"
        else:
            fields = b"access-control-allow-origin: %b\r\nvary: origin\r\n" % origin
        if self._exposed and not preflight:
            fields += b"access-control-expose-headers: %b\r\n" % self._exposed
        return fields

    def _preflight(self, exchange: Exchange) -> Response:
        fields = [(b"access-control-allow-methods", _METHODS), (b"access-control-max-age", self._max_age)]
        asked = (exchange.head.get(b"access-control-request-headers") or b"").lower().split(b",")[:_MAX_NAMES]
        names = [name for name in (word.strip(b" \t") for word in asked) if self._may_send(name)]
        if names:
            fields.append((b"access-control-allow-headers", b", ".join(names)))
        exchange.outcome = "completed"
        return Response(204, fields=tuple(fields))

    def _may_send(self, name: bytes) -> bool:
        return _TOKEN(name) is not None and (name in self._names or name.startswith(self._prefixes))
