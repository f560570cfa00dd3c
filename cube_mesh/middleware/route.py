"""Route: which upstream a request goes to. Refuses with 404 when no rule takes it; there is no default."""

from __future__ import annotations

from cube_mesh._fastpath import RouteGate
from cube_mesh.errors import PeerError


class Route(RouteGate):
    """Gate. Looks the request up in the table and notes rule and upstream name on the exchange."""

    def _no_route(self) -> PeerError:
        return PeerError("no_route", "No route serves this path.", status=404)
