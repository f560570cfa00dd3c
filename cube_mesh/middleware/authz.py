"""Authz: may this caller do this here. Nothing is forwarded before this gate has said yes."""

from __future__ import annotations

from collections.abc import Awaitable

from cube_mesh.errors import InternalError, PolicyError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import Authorizer, Grant


class Authz:
    """Gate. Sets the grant. A method and path outside the table is 403 ``endpoint_not_allowed`` for everyone.

    Never 404 or 405: whether the backend has such a path is not the caller's to learn, and the table is the contract.
    """

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorize = authorizer.authorize

    def enter(self, exchange: Exchange) -> None | Awaitable[None]:
        principal, endpoint = exchange.principal, exchange.endpoint
        if principal is None:
            raise InternalError("no_principal", "The server made a mistake.", detail="authz ran without authn")
        if endpoint is None:
            raise PolicyError("endpoint_not_allowed", "This method and path are not available.")
        grant = self._authorize(principal, exchange.domain_id, endpoint.permission)
        if type(grant) is Grant:
            exchange.grant = grant
            return None
        return _wait(exchange, grant)  # type: ignore[arg-type]


async def _wait(exchange: Exchange, waiting: Awaitable[Grant]) -> None:
    exchange.grant = await waiting
