"""Forward: the last gate. Decides whether the request can be sent as it is, and hands the connection its target.

What it refuses are bodies that we could not read as the backend would: a content coding on an endpoint whose JSON we
act on, or a length beyond the limit, known before a byte of it is read.
"""

from __future__ import annotations

from collections.abc import Mapping

from cube_mesh._fastpath import ForwardGate
from cube_mesh.errors import InternalError, PeerError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import Target
from cube_mesh.settings import Limits


class Forward(ForwardGate):
    """Gate. Sets ``exchange.target``; the connection does the rest."""

    def __init__(self, targets: Mapping[str, Target], limits: Limits) -> None:
        super().__init__(targets, limits.max_json_body, limits.max_body_bytes)

    def _unfit(self, exchange: Exchange, json: bool) -> None:
        """Raises, unless the coding is none."""
        coding = exchange.head.get(b"content-encoding") if json else None
        if coding is not None and coding.lower() != b"identity":
            raise PeerError("content_encoding", "The request body must not have a content coding.", status=415)
        if exchange.head.content_length > self.limit(json):
            raise PeerError("body_too_large", "The request body is too large.", status=413)

    def _no_target(self) -> InternalError:
        return InternalError("no_target", "The server made a mistake.", detail="route without an upstream")


class TenantForward(Forward):
    """Gate. ``own``: by domain, the targets (by upstream) that it has instead of those of all others."""

    def __init__(self, targets: Mapping[str, Target], limits: Limits, own: Mapping[str, Mapping[str, Target]]) -> None:
        super().__init__(targets, limits)
        self._own = {domain: Forward(theirs, limits) for domain, theirs in own.items()}

    def enter(self, exchange: Exchange) -> None:
        own = self._own.get(exchange.domain_id or "")
        return super().enter(exchange) if own is None else own.enter(exchange)
