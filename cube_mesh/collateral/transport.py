"""The network of a node's collectors: asks of ``attest`` carried out, with patience for an endpoint that is busy.

Blocks the calling thread, which is one of the keeper's; no event loop may run in it. What is asked stands in the
configuration: the metadata service of this machine, a launcher's socket, an attestation service.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from attest.errors import CollectionFailed
from attest.transport import BUSY, Answer, Ask
from cube_mesh import https
from cube_mesh.collateral.fetcher import retry_after_s

__all__ = ["BlockingTransport"]

MAX_ATTEMPTS = 5
FIRST_PAUSE_S = 0.25


class _Send(Protocol):
    def __call__(
        self,
        url: str,
        *,
        timeout_s: float,
        max_bytes: int,
        method: str,
        fields: dict[str, str],
        body: bytes,
        unix_socket: str,
    ) -> Awaitable[https.Answer]: ...


class BlockingTransport:
    """A ``attest.transport.Transport``. ``deadline_s`` bounds all attempts of one ask, pauses included.

    Busy answers and connections that fail are tried again, after a pause that doubles or that the endpoint asks for
    (``Retry-After``, where the deadline allows it); redirects are not followed. ``clock``: Unix time; ``draw``: 0 to 1.
    """

    def __init__(
        self,
        deadline_s: float,
        *,
        send: _Send = https.send,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._deadline_s, self._send = deadline_s, send
        self._clock, self._sleep, self._draw = clock, sleep, draw

    def __call__(self, ask: Ask) -> Answer:
        """The last answer, whatever its status. CollectionFailed when the last attempt got none."""
        give_up, attempts, least_s = self._clock() + self._deadline_s, 0, FIRST_PAUSE_S
        while True:
            last, failed, asked_for_s = self._once(ask, max(give_up - self._clock(), 0.001))
            attempts += 1
            # From a half to the whole of a doubling pause, so that many nodes do not come back together.
            pause_s = max(asked_for_s, least_s * (0.5 + self._draw() / 2))
            final = attempts == MAX_ATTEMPTS or self._clock() + pause_s >= give_up
            if last is not None and (last.status not in BUSY or final):
                return last
            if final:
                raise CollectionFailed(f"{ask.unix_socket or ask.url}: {failed}", code="endpoint_unreachable")
            self._sleep(pause_s)
            least_s *= 2

    def _once(self, ask: Ask, timeout_s: float) -> tuple[Answer | None, str, float]:
        """The answer, or None and why; and how long the endpoint asks to be left alone."""
        try:
            got = asyncio.run(self._sent(ask, timeout_s))
        except https.FetchError as error:
            if error.kind != "unreachable":
                raise CollectionFailed(f"{ask.url}: {error}", code="endpoint_answer") from None
            return None, str(error), 0.0
        return Answer(got.status, got.body), "", retry_after_s(got.fields.get("retry-after", ""), self._clock())

    async def _sent(self, ask: Ask, timeout_s: float) -> https.Answer:
        return await self._send(
            ask.url,
            timeout_s=timeout_s,
            max_bytes=ask.max_bytes,
            method=ask.method,
            fields=ask.fields,
            body=ask.body,
            unix_socket=ask.unix_socket,
        )
