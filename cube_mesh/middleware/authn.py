"""Authn: who is calling. One ``Authorization: Bearer`` field; every other form of credential is no credential."""

from __future__ import annotations

from collections.abc import Awaitable

from cube_mesh.errors import PolicyError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import Authenticator, Principal


class Authn:
    """Gate. Sets the principal; 401 ``missing_credentials`` or ``invalid_api_key``, one phrase for every reason."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticate = authenticator.authenticate

    def enter(self, exchange: Exchange) -> None | Awaitable[None]:
        head = exchange.head
        authorization = head.get(b"authorization")
        if authorization is None:
            raise PolicyError("missing_credentials", "You did not provide an API key or token.", status=401)
        if head.count(b"authorization") != 1:
            message = "The API key or token is not valid."
            raise PolicyError("invalid_api_key", message, status=401, detail="Authorization appears twice")
        principal = self._authenticate(authorization)
        if type(principal) is Principal:
            exchange.principal = principal
            return None
        return _wait(exchange, principal)  # type: ignore[arg-type]


async def _wait(exchange: Exchange, waiting: Awaitable[Principal]) -> None:
    exchange.principal = await waiting
