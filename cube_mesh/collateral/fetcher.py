"""Fetches items and keeps them: one request for all who ask at once, patience with a vendor that is busy, no trust.

An answer is taken when it reads as the item, its vendor signed it, it is in its time and not older than what is kept;
then it replaces that. Everything else leaves the cache as it was. Offline, nothing touches the network.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import email.utils
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol
from urllib.parse import urlsplit

from attest.errors import AttestError, MalformedEvidence
from attest.items import KINDS, Item, Record, check, make_record
from attest.vouch import Trust, vendor_roots, vouch
from cube_mesh import https
from cube_mesh.collateral.sources import Request, Sources, issuer_chain, jwks_address
from cube_mesh.collateral.store import Store
from cube_mesh.errors import DependencyError

__all__ = ["CollateralUnavailable", "Fetcher", "retry_after_s"]

MAX_ATTEMPTS = 4
FIRST_PAUSE_S = 1.0
MAX_RETRY_AFTER_S = 3_600.0
_BUSY = (429, 500, 502, 503, 504)
_MAX_DISCOVERY_BYTES = 65_536
_log = logging.getLogger(__name__)


class CollateralUnavailable(DependencyError):
    """No usable record of ``item``. ``reason``: ``offline`` ``not_found`` ``busy`` ``unreachable`` ``refused``
    ``redirect`` ``oversize`` ``bad_answer`` or ``older``.
    """

    def __init__(self, item: Item, reason: str, detail: str) -> None:
        super().__init__(
            "collateral_unavailable",
            "Collateral for attestation is not available.",
            detail=f"{item}: {reason}: {detail}",
            status=503,
            retryable=reason in ("busy", "unreachable"),
        )
        self.item, self.reason = item, reason


class _Get(Protocol):
    def __call__(
        self, url: str, *, timeout_s: float, max_bytes: int, fields: dict[str, str]
    ) -> Awaitable[https.Answer]: ...


class Fetcher:
    """Items by name, from the cache or their source. ``counts`` has fetches by (source, outcome).

    ``deadline_s`` bounds all attempts for one item, ``timeout_s`` each. ``clock`` is Unix time, ``draw`` gives 0 to 1.
    """

    def __init__(
        self,
        store: Store,
        sources: Sources | None = None,
        *,
        offline: bool = False,
        trust: Trust | None = None,
        deadline_s: float = 30.0,
        timeout_s: float = 10.0,
        get: _Get = https.get,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.store = store
        self.counts: Counter[tuple[str, str]] = Counter()
        self._sources = sources or Sources()
        self._sources.check()
        self._offline = offline
        self._trust = trust or vendor_roots()
        self._deadline_s, self._timeout_s = deadline_s, timeout_s
        self._get, self._clock, self._sleep, self._draw = get, clock, sleep, draw
        self._running: dict[Item, asyncio.Task[Record]] = {}
        self._not_before: dict[str, float] = {}  # by origin: a vendor that said "later" is not asked before

    async def get(self, item: Item, now: float | None = None) -> Record:
        """A record that may be used at ``now`` (default: the clock): the kept one while it is fresh, else a new one.

        Where fetching fails, the kept one until its end. Raises CollateralUnavailable.
        """
        when = self._clock() if now is None else now
        kept = self.kept(item)
        state = check(kept).state(when) if kept is not None else ""
        if kept is not None and (state == "fresh" or (self._offline and state == "due")):
            return kept
        try:
            return await self.refresh(item)
        except CollateralUnavailable as error:
            if kept is None or state != "due":
                raise
            _log.warning("%s; the one of the cache still serves", error.detail)
            return kept

    def kept(self, item: Item) -> Record | None:
        """The record in the cache, of any age; None when there is none, or a damaged one, which is logged."""
        try:
            return self.store.get(item)
        except MalformedEvidence as error:
            _log.warning("the cache's file is not used: %s", error)
            return None

    async def refresh(self, item: Item) -> Record:
        """Fetch ``item`` now; callers that come meanwhile share it. Raises CollateralUnavailable."""
        if self._offline:
            raise CollateralUnavailable(item, "offline", "not in the cache, or out of its time there")
        task = self._running.get(item)
        if task is None:
            task = self._running[item] = asyncio.get_running_loop().create_task(self._counted(item))
            task.add_done_callback(lambda done: self._finished(item, done))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up what is being fetched."""
        running = tuple(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _finished(self, item: Item, task: asyncio.Task[Record]) -> None:
        del self._running[item]
        if not task.cancelled():
            task.exception()  # every caller may have gone: then nobody else looks

    async def _counted(self, item: Item) -> Record:
        outcome = "failed"
        try:
            record = await self._fetched(item)
            outcome = "ok"
            return record
        except CollateralUnavailable as error:
            outcome = error.reason
            raise
        finally:
            self.counts[KINDS[item.kind].source, outcome] += 1

    async def _fetched(self, item: Item) -> Record:
        give_up = self._clock() + self._deadline_s
        request = self._sources.request(item)
        if request.discovery:
            document = await self._asked(item, request, _MAX_DISCOVERY_BYTES, give_up)
            try:
                request = Request(jwks_address(item, document.body))
            except ValueError as error:
                raise CollateralUnavailable(item, "bad_answer", str(error)) from None
        answer = await self._asked(item, request, KINDS[item.kind].max_bytes, give_up)
        return self._taken(item, request.url, answer)

    def _taken(self, item: Item, url: str, answer: https.Answer) -> Record:
        now, kept = self._clock(), self.kept(item)
        try:
            chain = issuer_chain(item, answer)
            record = make_record(item, url=url, fetched_at=now, body=answer.body, issuer_chain=chain)
            vouch(record, now, self._trust)
        except AttestError as error:
            raise CollateralUnavailable(item, "bad_answer", f"{error.code}: {error}") from None
        if kept is not None and check(record).start < check(kept).start:
            # A mirror that goes back in time would bring back what was revoked.
            raise CollateralUnavailable(item, "older", "the answer is older than what the cache has")
        self.store.put(record)
        return record

    async def _asked(self, item: Item, request: Request, max_bytes: int, give_up: float) -> https.Answer:
        """The 200 answer, after as many attempts as the deadline allows."""
        origin, last = urlsplit(request.url).netloc, ("busy", "the source said to come back later")
        for attempt in range(MAX_ATTEMPTS):
            await self._turn(item, origin, give_up, last)
            try:
                left_s = min(self._timeout_s, max(give_up - self._clock(), 0.001))
                answer = await self._get(request.url, timeout_s=left_s, max_bytes=max_bytes, fields=request.fields)
            except https.FetchError as error:
                if error.kind != "unreachable":
                    raise CollateralUnavailable(item, error.kind, str(error)) from None
                last, asked_for_s = ("unreachable", str(error)), 0.0
            else:
                if answer.status == 200:
                    return answer
                if answer.status not in _BUSY:
                    reason = "not_found" if answer.status == 404 else "redirect" if answer.status // 100 == 3 else ""
                    raise CollateralUnavailable(item, reason or "refused", f"status {answer.status}")
                last = ("busy", f"status {answer.status}")
                asked_for_s = retry_after_s(answer.fields.get("retry-after", ""), self._clock())
            # From a half to the whole of a doubling pause, so that many nodes do not come back together.
            pause_s = FIRST_PAUSE_S * 2**attempt * (0.5 + self._draw() / 2)
            self._not_before[origin] = self._clock() + asked_for_s + pause_s
        raise CollateralUnavailable(item, *last)

    async def _turn(self, item: Item, origin: str, give_up: float, last: tuple[str, str]) -> None:
        wait_s = self._not_before.get(origin, 0.0) - self._clock()
        if self._clock() + max(wait_s, 0.0) >= give_up:
            raise CollateralUnavailable(item, *last)
        if wait_s > 0:
            await self._sleep(wait_s)


def retry_after_s(text: str, now: float) -> float:
    """RFC 9110 §10.2.3: seconds or a date; at most ``MAX_RETRY_AFTER_S``, and 0 for what is neither."""
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER_S)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return min(max(moment.timestamp() - now, 0.0), MAX_RETRY_AFTER_S)
