"""Authn: who is calling. One ``Authorization: Bearer`` field; every other form of credential is no credential."""

from __future__ import annotations

from collections.abc import Awaitable

from cube_mesh._fastpath import AuthnGate
from cube_mesh.errors import PolicyError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import Principal


class Authn(AuthnGate):
    """Gate. Sets the principal; 401 ``missing_credentials`` or ``invalid_api_key``, one phrase for every reason."""

    def _missing(self, several: bool) -> PolicyError:
        if several:
            message = "The API key or token is not valid."
            return PolicyError("invalid_api_key", message, status=401, detail="Authorization appears twice")
        return PolicyError("missing_credentials", "You did not provide an API key or token.", status=401)

    async def _wait(self, exchange: Exchange, waiting: Awaitable[Principal]) -> None:
        exchange.principal = await waiting
