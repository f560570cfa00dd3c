"""What a peer's evidence calls for and does not bring: a chip's VCEK, the set of a TDX platform. Off by default.

Evidence that nobody has verified says what is asked for, so that a forger can make a node ask for what it likes. What
it can get is bounded: items of these kinds only, products that configuration names, so many pieces of evidence a
minute, so many items kept. What was fetched is its vendor's (``fetcher`` looks), and the verifier verifies it again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection

from attest.errors import AttestError
from attest.items import Item, Record, check
from attest.needs import needed_items
from attest.vouch import tdx_set
from cube_mesh.collateral.fetcher import CollateralUnavailable, Fetcher
from cube_mesh.errors import ConfigError

__all__ = ["OnDemand"]

MAX_A_MINUTE = 12  # pieces of evidence for which something is fetched
MAX_ITEMS = 256
_TDX = ("intel-tcb-info", "intel-qe-identity", "intel-pck-crl", "intel-root-crl")
_log = logging.getLogger(__name__)


class OnDemand:
    """``products``: of AMD's, whose VCEKs may be fetched. ``clock`` is Unix time."""

    def __init__(self, fetcher: Fetcher, products: Collection[str], *, clock: Callable[[], float] = time.time) -> None:
        self._fetcher, self._products, self._clock = fetcher, frozenset(products), clock
        self._records: dict[Item, Record] = {}  # in the order of their use
        self._asked: deque[float] = deque()

    def ready(self, evidence: bytes, now: float) -> tuple[bytes, ...]:
        """What has been fetched for such evidence and is in its time: endorsements, empty when not all is there."""
        records = [self._records.get(item) for item in self._wanted(evidence)]
        usable = [record for record in records if record is not None and check(record).state(now) in ("fresh", "due")]
        if not usable or len(usable) != len(records):
            return ()
        return (tdx_set(*usable),) if len(usable) == len(_TDX) else tuple(record.body for record in usable)

    async def obtain(self, evidence: bytes) -> bool:
        """Fetch what is missing for ``evidence``; whether ``ready`` gives it now and did not before. Never raises."""
        if self.ready(evidence, self._clock()) or not (items := self._wanted(evidence)) or not self._may_ask():
            return False
        try:
            for item in items:
                record = await self._fetcher.get(item)
                self._records.pop(item, None)
                self._records[item] = record
        except (CollateralUnavailable, ConfigError) as error:
            _log.warning("collateral for a peer's evidence: %s", error.detail or str(error))
            return False
        while len(self._records) > MAX_ITEMS:
            del self._records[next(iter(self._records))]
        return True

    def _wanted(self, evidence: bytes) -> tuple[Item, ...]:
        """The VCEK, or the four items of a TDX set in their order; nothing for other evidence."""
        try:
            items = needed_items(evidence)
        except AttestError:
            return ()
        tdx = {item.kind: item for item in items if item.kind in _TDX}
        if len(tdx) == len(_TDX):
            return tuple(tdx[kind] for kind in _TDX)
        return tuple(i for i in items if i.kind == "amd-vcek" and i.key.partition("/")[0] in self._products)

    def _may_ask(self) -> bool:
        now = self._clock()
        while self._asked and not now - 60 <= self._asked[0] <= now:
            self._asked.popleft()
        if len(self._asked) >= MAX_A_MINUTE:
            _log.warning("collateral for a peer's evidence: not asked for, %d in a minute", len(self._asked))
            return False
        self._asked.append(now)
        return True
