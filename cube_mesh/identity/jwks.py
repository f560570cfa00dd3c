"""Key sets that an issuer publishes at a URL: fetched in the background, one request at a time, kept for a bounded
time.

When the issuer cannot be reached, the last good set serves on for ``MAX_STALE_S`` and not longer: a key that the
issuer has withdrawn must not live on because its announcement can be blocked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from logging import getLogger
from time import monotonic

from cube_mesh.errors import DependencyError
from cube_mesh.identity.fetch import fetch
from cube_mesh.identity.keyset import BadKey, KeySet, parse_jwks

MAX_STALE_S = 3600.0
MIN_REFRESH_S = 10.0  # between two fetches that tokens with unknown keys may cause
TIMEOUT_S = 5.0
MAX_BYTES = 262_144
_log = getLogger("cube_mesh.identity")


async def _fetch(url: str) -> bytes:
    return await fetch(url, timeout_s=TIMEOUT_S, max_bytes=MAX_BYTES)


class RemoteKeys:
    """The key set behind one URL. ``on_change`` is called after a fetch that brought other keys."""

    def __init__(
        self,
        url: str,
        refresh_s: float,
        on_change: Callable[[], None],
        *,
        get: Callable[[str], Awaitable[bytes]] = _fetch,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self.url = url
        self._refresh_s = refresh_s
        self._on_change = on_change
        self._get = get
        self._now = now
        self._raw = b""
        self._keys: KeySet | None = None
        self._good_at = float("-inf")
        self._tried_at = float("-inf")
        self._running: asyncio.Task[None] | None = None
        self._background: asyncio.Task[None] | None = None
        self.last_error = "not fetched yet"

    def current(self) -> KeySet | None:
        """The keys, or None when there are none that are fresh enough."""
        return self._keys if self._now() - self._good_at <= MAX_STALE_S else None

    def may_refresh(self) -> bool:
        """Whether an unknown key is a reason to look again now, or to join a look that is under way."""
        return self._running is not None or self._now() - self._tried_at >= MIN_REFRESH_S

    async def refresh(self) -> None:
        """Fetch once; callers that come meanwhile share it. Failure keeps the old keys and is logged, not raised."""
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._once())
        await asyncio.shield(self._running)

    async def _once(self) -> None:
        self._tried_at = self._now()
        try:
            raw = await self._get(self.url)
            if raw != self._raw:
                self._keys, self._raw = parse_jwks(raw), raw
                for reason in self._keys.skipped:
                    _log.warning("a key of %s is not used: %s", self.url, reason)
                self._on_change()
            self._good_at, self.last_error = self._now(), ""
        except (DependencyError, BadKey) as error:
            detail = error.detail if isinstance(error, DependencyError) else str(error)
            if detail != self.last_error:
                _log.warning("the key set %s cannot be refreshed: %s", self.url, detail)
            self.last_error = detail
        finally:
            self._running = None

    def start(self) -> None:
        """Begin to refresh in the background, the first time at once. Needs a running loop."""
        self._background = asyncio.get_running_loop().create_task(self._forever())

    async def _forever(self) -> None:
        retry_s = 1.0
        while True:
            await self.refresh()
            retry_s = 1.0 if not self.last_error else min(retry_s * 2, self._refresh_s)
            await asyncio.sleep(self._refresh_s if not self.last_error else retry_s)

    async def close(self) -> None:
        for task in (self._background, self._running):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
