"""Forward: the last gate. Decides whether the request can be sent as it is, and hands the connection its target.

What it refuses are bodies that we could not read as the backend would: a content coding on an endpoint whose JSON we
act on, or a length beyond the limit, known before a byte of it is read.
"""

from __future__ import annotations

from collections.abc import Mapping

from cube_mesh.errors import InternalError, PeerError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import Target
from cube_mesh.settings import Limits


class Forward:
    """Gate. Sets ``exchange.target``; the connection does the rest."""

    def __init__(self, targets: Mapping[str, Target], limits: Limits) -> None:
        self._targets = targets
        self._max_json = limits.max_json_body
        self._max_body = limits.max_body_bytes

    def enter(self, exchange: Exchange) -> None:
        head = exchange.head
        json = exchange.endpoint is not None and exchange.endpoint.body == "json"
        if json:
            coding = head.get(b"content-encoding")
            if coding is not None and coding.lower() != b"identity":
                raise PeerError("content_encoding", "The request body must not have a content coding.", status=415)
        if head.content_length > (self._max_json if json else self._max_body):
            raise PeerError("body_too_large", "The request body is too large.", status=413)
        route = exchange.route
        target = self._targets.get(route.upstream) if route is not None else None
        if target is None:
            raise InternalError("no_target", "The server made a mistake.", detail="route without an upstream")
        exchange.target = target
