"""Route: which upstream a request goes to. Refuses with 404 when no rule takes it; there is no default."""

from __future__ import annotations

from cube_mesh.errors import PeerError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import RouteSource


class Route:
    """Gate. Looks the request up in the current table and notes rule and upstream name on the exchange."""

    def __init__(self, source: RouteSource) -> None:
        self._match = source.match

    def enter(self, exchange: Exchange) -> None:
        exchange.route = self._match(exchange)
        if exchange.route is None:
            raise PeerError("no_route", "No route serves this path.", status=404)
