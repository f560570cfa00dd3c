"""A node's collateral: what its verifiers need, from the cache at start and refreshed before it goes stale.

Which items, the configuration says: evidence of a peer can name any platform and any issuer, and makes the node fetch
only where ``on_demand`` is on. What is out of its time is not handed out, so that a verifier then refuses by name.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from attest.appraise import AttestationResult
from attest.binding import Expected
from attest.errors import AttestError, EndorsementUnavailable
from attest.items import Item, Record, check, parse_item
from attest.jws import Jwk, parse_jwks
from attest.plugins import Scheme
from attest.policy import EvidencePolicy
from attest.schemes.gcp.token import ISSUER
from attest.verifier import Verifier
from attest.vouch import tdx_items, tdx_set
from cube_mesh.collateral.fetcher import CollateralUnavailable, Fetcher
from cube_mesh.collateral.on_demand import OnDemand
from cube_mesh.collateral.sources import Sources
from cube_mesh.collateral.store import Store
from cube_mesh.errors import ConfigError
from cube_mesh.https import check_url
from cube_mesh.settings import Collateral

__all__ = ["Appraiser", "Feed", "FedVerifier", "feed_from_settings"]

MIN_WAIT_S, MAX_WAIT_S = 15.0, 600.0
_log = logging.getLogger(__name__)


class Appraiser(Protocol):
    """What judges evidence under one policy: a ``Verifier``, or one that is fed."""

    def appraise(self, raw: bytes, expected: Expected, *, now: float) -> AttestationResult: ...


class Numbers(Protocol):
    """Where numbers for metrics are registered: telemetry's collector."""

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None: ...
    def counter(self, name: str, text: str, label: str, read: Callable[[], dict[str, int]]) -> None: ...


class Feed:
    """The items of ``sets`` (each four, as ``vouch.tdx_items`` names them) and ``single``. Nothing is there before
    ``start``. ``on_demand``: what peers' evidence may call for beside those, if anything. ``clock`` is Unix time.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        sets: Sequence[tuple[Item, Item, Item, Item]],
        single: Sequence[Item],
        *,
        on_demand: OnDemand | None = None,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.items = tuple(dict.fromkeys([*(item for items in sets for item in items), *single]))
        self._fetcher, self._sets, self._single = fetcher, sets, single
        self.on_demand = on_demand
        self._clock, self._draw = clock, draw
        self._records: dict[Item, Record] = {}
        self._ready: list[tuple[float, bytes]] = []  # each with its end
        self._keys: dict[str, tuple[float, tuple[Jwk, ...]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._failing: dict[Item, str] = {}

    def register(self, collector: Numbers) -> None:
        """Show this feed in the node's metrics; once, in the process that runs it."""
        collector.counter("cube_collateral_fetches", "Fetches of collateral, by their end.", "result", self.fetches)
        collector.gauge("cube_collateral_missing_items", "Items wanted and not usable.", lambda: len(self.missing()))
        collector.gauge("cube_collateral_oldest_seconds", "Age of the oldest item in use.", self.oldest_age_s)

    async def start(self) -> None:
        """Take what the cache has, and go on refreshing; does not wait for any vendor."""
        self._load()
        self._task = asyncio.get_running_loop().create_task(self._forever())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._fetcher.close()

    def endorsements(self, now: float) -> tuple[bytes, ...]:
        """Revocation lists and sets of TDX collateral that are in their time at ``now``."""
        return tuple(raw for end, raw in self._ready if now < end)

    def token_keys(self, issuers: Sequence[str], now: float) -> tuple[Jwk, ...]:
        """The keys of these issuers only: one issuer's key must not sign for another."""
        known = (self._keys.get(issuer, (0.0, ())) for issuer in issuers)
        return tuple(key for end, keys in known if now < end for key in keys)

    def missing(self) -> tuple[str, ...]:
        """The items that are wanted and not usable now, by name."""
        return tuple(str(item) for item in self.items if not self._usable(item, self._clock()))

    def oldest_age_s(self) -> float:
        """Since when the oldest item that is in use was fetched; 0 without any."""
        return max((self._clock() - record.fetched_at for record in self._records.values()), default=0.0)

    def fetches(self) -> dict[str, int]:
        """Fetches so far by "source_outcome"."""
        return {f"{source}_{outcome}": count for (source, outcome), count in self._fetcher.counts.items()}

    async def refresh(self) -> None:
        """One round: ask for what is missing or due. Failures are logged once, not raised."""
        for item in self.items:
            try:
                self._records[item] = await self._fetcher.get(item)
                self._failing.pop(item, None)
            except (CollateralUnavailable, ConfigError) as error:
                reason = error.detail or str(error)
                if self._failing.get(item) != reason:
                    _log.warning("collateral is missing: %s", reason)
                self._failing[item] = reason
        self._compose()

    async def _forever(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(self._wait_s())

    def _wait_s(self) -> float:
        """To the first item that is due, spread so that nodes do not come together; soon when one is missing."""
        now = self._clock()
        due = [check(self._records[i]).refresh_at - now if i in self._records else 0.0 for i in self.items]
        return min(max(min(due, default=MAX_WAIT_S), MIN_WAIT_S), MAX_WAIT_S) * (1.0 + self._draw() / 4)

    def _load(self) -> None:
        for item in self.items:
            record = self._fetcher.kept(item)
            if record is not None:
                self._records[item] = record
        self._compose()

    def _usable(self, item: Item, now: float) -> bool:
        record = self._records.get(item)
        return record is not None and check(record).state(now) in ("fresh", "due")

    def _compose(self) -> None:
        now = self._clock()
        self._ready, self._keys = [], {}
        for item in self._single:
            if not self._usable(item, now):
                continue
            record = self._records[item]
            end = check(record).end
            if item.kind == "jwks":
                self._keys[item.key] = (end, parse_jwks(record.body))
            else:
                self._ready.append((end, record.body))
        for items in self._sets:
            if all(self._usable(item, now) for item in items):
                records = [self._records[item] for item in items]
                self._ready.append((min(check(record).end for record in records), tdx_set(*records)))


class FedVerifier:
    """A ``Verifier`` of ``policy`` with what the feed has at the time of each call."""

    def __init__(
        self, policy: EvidencePolicy, feed: Feed, *, allow_simulated: bool = False, schemes: Sequence[Scheme] = ()
    ) -> None:
        self._feed = feed
        self._make = partial(Verifier, policy, allow_simulated=allow_simulated, schemes=schemes)
        self._issuers = issuers_of(policy)
        self._keys: tuple[Jwk, ...] = ()
        self._verifier = self._make()

    def appraise(self, raw: bytes, expected: Expected, *, now: float) -> AttestationResult:
        """As ``Verifier.appraise``."""
        keys = self._feed.token_keys(self._issuers, now)
        if keys != self._keys:
            self._keys = keys
            self._verifier = self._make(token_keys=keys)
        kept = self._feed.endorsements(now)
        try:
            return self._verifier.appraise(raw, expected, now=now, endorsements=kept)
        except EndorsementUnavailable:
            own = self._feed.on_demand.ready(raw, now) if self._feed.on_demand is not None else ()
            if not own:
                raise
        return self._verifier.appraise(raw, expected, now=now, endorsements=(*own, *kept))


def issuers_of(policy: EvidencePolicy) -> tuple[str, ...]:
    """The token issuers that a policy believes, those of its branches included."""
    views = [policy, *(view for branch in getattr(policy, "branches", ()) for view in branch.views)]
    named = [issuer for view in views if view.maa is not None for issuer in view.maa.issuers or ()]
    return tuple(dict.fromkeys([*named, *(ISSUER for view in views if view.gcp is not None)]))


def feed_from_settings(settings: Collateral) -> Feed | None:
    """The feed of a node; None without a cache directory. ConfigError says which setting is wrong."""
    if not settings.cache_dir:
        if settings.tdx_platforms or settings.snp_products or settings.token_issuers or settings.on_demand:
            raise ConfigError("is needed for what collateral names", key="collateral.cache_dir")
        return None
    fetcher = Fetcher(
        Store(settings.cache_dir, create=True),
        Sources(amd_url=settings.amd_url, intel_url=settings.intel_url, intel_root_crl_url=settings.intel_root_crl_url),
        offline=settings.offline,
        deadline_s=settings.deadline_s,
    )
    sets = [_set(platform) for platform in settings.tdx_platforms]
    lists = [_item("collateral.snp_products", f"amd-crl:{product}") for product in settings.snp_products]
    for issuer in settings.token_issuers:
        check_url(issuer, "collateral.token_issuers")
    keys = [_item("collateral.token_issuers", f"jwks:{issuer}") for issuer in settings.token_issuers]
    on_demand = OnDemand(fetcher, settings.snp_products) if settings.on_demand else None
    return Feed(fetcher, sets, [*lists, *keys], on_demand=on_demand)


def _set(platform: str) -> tuple[Item, Item, Item, Item]:
    fmspc, _, ca = platform.partition("/")
    try:
        return tdx_items(fmspc, ca or "platform")
    except ValueError as error:
        raise ConfigError(str(error), key="collateral.tdx_platforms") from None


def _item(key: str, text: str) -> Item:
    try:
        return parse_item(text)
    except AttestError as error:
        raise ConfigError(str(error), key=key) from None
