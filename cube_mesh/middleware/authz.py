"""Authz: may this caller do this here. Nothing is forwarded before this gate has said yes."""

from __future__ import annotations

from collections.abc import Awaitable

from cube_mesh._fastpath import AuthzGate
from cube_mesh.errors import CubeMeshError, InternalError, PolicyError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import Grant, Principal


class Authz(AuthzGate):
    """Gate. Sets the grant. A method and path outside the table is 403 ``endpoint_not_allowed`` for everyone.

    Never 404 or 405: whether the backend has such a path is not the caller's to learn, and the table is the contract.
    """

    def _impossible(self, principal: Principal | None) -> CubeMeshError:
        if principal is None:
            return InternalError("no_principal", "The server made a mistake.", detail="authz ran without authn")
        return PolicyError("endpoint_not_allowed", "This method and path are not available.")

    async def _wait(self, exchange: Exchange, waiting: Awaitable[Grant]) -> None:
        exchange.grant = await waiting
