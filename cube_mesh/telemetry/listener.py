"""The metrics listener: its own port, loopback unless configured, the same strict HTTP as everywhere, no chain behind
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import CollectorRegistry

from cube_mesh.connection import Service
from cube_mesh.deadlines import Sweeper
from cube_mesh.errors import PeerError
from cube_mesh.exchange import Exchange
from cube_mesh.listener import bind
from cube_mesh.message import Response, error_response
from cube_mesh.settings import Limits, Timeouts

_NOT_FOUND = error_response(PeerError("not_found", "There is nothing here.", status=404))
_LIMITS = Limits(max_head_bytes=8_192, max_connections=64)


class _Nothing:
    """The chain of a listener that answers its own paths only."""

    def enter(self, exchange: Exchange) -> Response:
        return _NOT_FOUND

    def leave(self, exchange: Exchange) -> None:
        return None


def metrics_page(registry: CollectorRegistry) -> Callable[[bytes], Response]:
    """A local path that renders all families as text. Costs about 10 µs a sample, on the loop that serves it."""
    kind = CONTENT_TYPE_PLAIN_0_0_4.encode("ascii")
    return lambda query: Response(200, generate_latest(registry), kind)


async def serve(
    host: str, port: int, local: dict[str, Callable[[bytes], Response]], timeouts: Timeouts, sweeper: Sweeper
) -> asyncio.Server:
    """Listen and answer ``local`` ("/metrics", "/livez", ...). The paths have no authentication: whoever binds this
    to more than loopback decides who may read them. Raises ConfigError when the port cannot be had.
    """
    service = Service(_Nothing(), _LIMITS, timeouts, sweeper, local, lambda code: None)
    return await asyncio.get_running_loop().create_server(service.protocol, sock=bind(host, port, 64))
