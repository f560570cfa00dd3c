"""Metrics: numbers in a region of the slab, found by one look-up per exchange, made into Prometheus families when
scraped.

Every label is bounded: endpoints by the table, domains by the configuration (and at most ``MAX_DOMAINS`` of them),
statuses, outcomes and codes by the code. Nothing that a client chooses becomes a label; and a table that is full counts
the rest as "other". docs/metrics.md lists all families.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from cube_mesh._fastpath import ExchangeCounts, Slab, SlabCell, SlabRow
from cube_mesh.telemetry import families
from cube_mesh.telemetry.process import ProcessFamilies
from cube_mesh.telemetry.slab import COUNTS, GAUGE_KIND, PROCESS_KIND, anonymous, row_key

MAX_DOMAINS = 200
OTHER = "other"
PUBLISH_S = 0.5


class Metrics(ExchangeCounts):
    """What this process counts. ``observe`` is called once per exchange; the other methods where their name says.

    ``domains`` are the configured ids; others, and those beyond ``MAX_DOMAINS``, count as "other". ``slab``: the region
    of this process, in which counting goes on where its last owner stopped; without one, memory of our own.
    """

    def __init__(self, domains: Iterable[str] = (), slab: Slab | None = None) -> None:
        self.slab = slab if slab is not None else anonymous()
        super().__init__({domain: domain for domain in sorted(domains)[:MAX_DOMAINS]})
        self._rows: dict[tuple[str, ...], SlabRow] = {}

    def _cell(self, key: tuple[str, str, str, int, str]) -> SlabCell:
        domain, endpoint, method, status, outcome = key
        counts, kept = self._row(families.REQUESTS, domain, endpoint, method, str(status), outcome)
        seconds, _ = self._row(families.DURATION, endpoint, method, f"{status // 100}xx")
        first, _ = self._row(families.FIRST_BYTE, endpoint, method)
        cell = SlabCell(counts, seconds, first)
        if kept:
            self.cells[key] = cell
        return cell

    def _row(self, *key: str) -> tuple[SlabRow, bool]:
        """The row of a kind and labels, or the one that stands for all that found no room; and whether it is its own.

        Only what has its own row is remembered: what is remembered is bounded as the table is.
        """
        row = self._rows.get(key)
        if row is not None:
            return row, True
        row = self.slab.row(row_key(*key))
        if row is not None:
            self._rows[key] = row
            return row, True
        kind, *labels = key
        row = self.slab.row(row_key(kind, *(OTHER for _ in labels)), True)
        assert row is not None, "more kinds than spare rows"
        return row, False

    def protocol_error(self, code: str) -> None:
        """A connection sent what is no request. ``code`` is a FramingError's: a fixed set."""
        self._row(families.PROTOCOL_ERRORS, code)[0].add(0, 1)

    def attestation(self, role: str, verdict: str, reason: str, platform: str, seconds: float) -> None:
        """A gate decided about a peer: ``verdict`` "accept" or "refuse", ``reason`` a stable code, "" when accepted.

        None of the four may be text that the peer chose.
        """
        self._row(families.ATTESTATIONS, role, verdict, reason, platform)[0].add(0, 1)
        self._row(families.ATTESTATION_DURATION, verdict)[0].time(seconds)

    def audit_sync(self, seconds: float) -> None:
        """One sync of the trail worked. Called by the thread that syncs; nobody else writes this row."""
        self._row(families.AUDIT_SYNC)[0].time(seconds)

    def families(self) -> Iterator[Metric]:
        """Of this process alone."""
        return families.families((self.slab,))


class NodeCollector(Collector):
    """All families of the node: its metrics, gauges and counters that other parts keep themselves, and the build.

    ``gauge`` and ``counter`` register a function of this process; its value is copied into the process's region by
    ``publish``, which ``collect`` calls. A process that nobody scrapes calls ``start`` instead, and the one that is
    scraped gets the others' regions as ``others``. ``unsafe`` adds the label ``unsafe="true"`` to every sample, so that
    no dashboard mistakes a simulated node for a real one.
    """

    def __init__(
        self, metrics: Metrics, info: dict[str, str], *, unsafe: bool = False, others: Sequence[Slab] = ()
    ) -> None:
        self._slab = metrics.slab
        self._slabs = (metrics.slab, *others)
        self._info = info
        self._unsafe = unsafe
        self._gauges: list[tuple[bytes, Callable[[], float]]] = []
        self._counters: list[tuple[tuple[str, str, str], Callable[[], dict[str, int]]]] = []
        self._totals: dict[bytes, tuple[SlabRow, int]] = {}  # the row of a total, and what earlier owners counted there
        self._process = ProcessFamilies()
        self._timer: asyncio.TimerHandle | None = None

    def gauge(self, name: str, text: str, read: Callable[[], float], merge: Literal["sum", "min"] = "sum") -> None:
        """``merge``: how the values of several processes make one."""
        self._gauges.append((row_key(GAUGE_KIND, name, text, merge), read))

    def counter(self, name: str, text: str, label: str, read: Callable[[], dict[str, int]]) -> None:
        """``read`` gives this process's totals by label value; ``name`` without ``_total``."""
        self._counters.append(((name, text, label), read))

    def publish(self) -> None:
        """Copy gauges and totals as they are now into the region. What finds no room is counted as overflow alone."""
        for key, read in self._gauges:
            self._put_gauge(key, read())
        for family, totals in self._counters:
            for value, total in totals().items():
                self._put_total(row_key(families.COUNTER, *family, value), total)

    def _put_gauge(self, key: bytes, value: float) -> None:
        row = self._slab.row(key, True)
        if row is not None:
            row.put_real(0, value)
            row.put(1, 1)

    def _put_total(self, key: bytes, total: int) -> None:
        known = self._totals.get(key)
        if known is None:
            row = self._slab.row(key)
            if row is None:
                return
            known = self._totals[key] = (row, COUNTS.unpack(row.numbers())[0])
        row, before = known
        row.put(0, before + total)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Publish now and every ``PUBLISH_S`` until ``stop``; of the process itself, too."""
        self.publish()
        for family in self._process.collect():
            for sample in family.samples:
                self._put_gauge(row_key(PROCESS_KIND, sample.name, family.name, family.documentation), sample.value)
        self._timer = loop.call_later(PUBLISH_S, self.start, loop)

    def stop(self) -> None:
        """Publish a last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.publish()

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        self.publish()
        for family in self._collect():
            if self._unsafe:
                for at, sample in enumerate(family.samples):
                    family.samples[at] = sample._replace(labels={**sample.labels, "unsafe": "true"})
            yield family

    def _collect(self) -> Iterator[Metric]:
        yield from families.families(self._slabs)
        build = GaugeMetricFamily("cube_build_info", "What runs here; always 1.", labels=list(self._info))
        build.add_metric(list(self._info.values()), 1)
        yield build


def registry(collector: NodeCollector) -> CollectorRegistry:
    """A registry with the node's families and those of the process (CPU, memory, descriptors)."""
    made = CollectorRegistry()
    made.register(collector)
    made.register(ProcessFamilies())
    return made
