"""Metrics: plain numbers in plain objects, found by one look-up per exchange, made into Prometheus families when
scraped.

Every label is bounded: endpoints by the table, domains by the configuration (and at most ``MAX_DOMAINS`` of them),
statuses, outcomes and codes by the code. Nothing that a client chooses becomes a label. docs/metrics.md lists all
families.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from cube_mesh.exchange import Exchange

MAX_DOMAINS = 200
OTHER = "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_BOUNDS = (*(str(bound) for bound in SECONDS), "+Inf")


class Histogram:
    """Counts by bucket of ``SECONDS`` and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        total = 0
        buckets = []
        for bound, count in zip(_BOUNDS, self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Cell:
    """What one combination of labels has seen: domain, endpoint, method, status, outcome."""

    __slots__ = ("bytes_in", "bytes_out", "first_byte", "requests", "seconds", "tokens_in", "tokens_out")

    def __init__(self, seconds: Histogram, first_byte: Histogram) -> None:
        self.requests = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.tokens_in = 0
        self.tokens_out = 0
        self.seconds = seconds  # shared by the cells of one endpoint, method and status class
        self.first_byte = first_byte  # shared by the cells of one endpoint and method


class Metrics:
    """The node's numbers. ``observe`` is called once per exchange; the other methods where their name says.

    ``domains`` are the configured ids; others, and those beyond ``MAX_DOMAINS``, count as "other".
    """

    def __init__(self, domains: Iterable[str] = ()) -> None:
        self._domains = {domain: domain for domain in sorted(domains)[:MAX_DOMAINS]}
        self._cells: dict[tuple[str, str, str, int, str], Cell] = {}
        self._seconds: dict[tuple[str, ...], Histogram] = {}
        self._first: dict[tuple[str, ...], Histogram] = {}
        self._protocol_errors: dict[str, int] = {}
        self._attestations: dict[tuple[str, str, str, str], int] = {}
        self._attestation_seconds: dict[tuple[str, ...], Histogram] = {}

    # -- counting

    def observe(self, exchange: Exchange) -> None:
        endpoint = exchange.endpoint
        if endpoint is not None:
            key = (
                self._domains.get(exchange.domain_id, OTHER),
                endpoint.name,
                endpoint.method,
                exchange.status,
                exchange.outcome,
            )
        else:
            key = (self._domains.get(exchange.domain_id, OTHER), OTHER, OTHER, exchange.status, exchange.outcome)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._new_cell(key)
        cell.requests += 1
        cell.bytes_in += exchange.request_size
        cell.bytes_out += exchange.response_size
        cell.seconds.add(exchange.ended_at - exchange.started_at)
        if exchange.first_byte_at and exchange.forwarded_at:
            cell.first_byte.add(exchange.first_byte_at - exchange.forwarded_at)
        tokens = exchange.input_tokens
        if tokens is not None:
            cell.tokens_in += tokens
        tokens = exchange.output_tokens
        if tokens is not None:
            cell.tokens_out += tokens

    def _new_cell(self, key: tuple[str, str, str, int, str]) -> Cell:
        _, endpoint, method, status, _ = key
        seconds = self._seconds.setdefault((endpoint, method, f"{status // 100}xx"), Histogram())
        first = self._first.setdefault((endpoint, method), Histogram())
        cell = self._cells[key] = Cell(seconds, first)
        return cell

    def protocol_error(self, code: str) -> None:
        """A connection sent what is no request. ``code`` is a FramingError's: a fixed set."""
        self._protocol_errors[code] = self._protocol_errors.get(code, 0) + 1

    def attestation(self, role: str, verdict: str, reason: str, platform: str, seconds: float) -> None:
        """A gate decided about a peer: ``verdict`` "accept" or "refuse", ``reason`` a stable code, "" when accepted.

        None of the four may be text that the peer chose.
        """
        key = (role, verdict, reason, platform)
        self._attestations[key] = self._attestations.get(key, 0) + 1
        self._attestation_seconds.setdefault((verdict,), Histogram()).add(seconds)

    # -- rendering

    def families(self) -> Iterator[Metric]:
        cells = self._cells.items()
        yield _counter(
            "cube_requests", "Requests that ended.", ["domain", "endpoint", "method", "status", "outcome"],
            (((domain, *key, str(status), outcome), cell.requests) for (domain, *key, status, outcome), cell in cells),
        )  # fmt: skip
        total = self._by_domain
        yield _counter("cube_request_body_bytes", "Request body bytes.", ["domain"], total(lambda c: c.bytes_in))
        yield _counter("cube_response_body_bytes", "Response body bytes.", ["domain"], total(lambda c: c.bytes_out))
        tokens = [((*key, "input"), n) for key, n in total(lambda c: c.tokens_in)]
        tokens += [((*key, "output"), n) for key, n in total(lambda c: c.tokens_out)]
        yield _counter("cube_tokens", "Tokens as the backends reported them.", ["domain", "type"], tokens)
        yield _histogram(
            "cube_request_duration_seconds", "Head read to end of the answer.", ["endpoint", "method", "status"],
            self._seconds,
        )  # fmt: skip
        yield _histogram(
            "cube_upstream_first_byte_seconds", "Request sent to first byte of the answer.", ["endpoint", "method"],
            self._first,
        )  # fmt: skip
        errors = [((code,), n) for code, n in self._protocol_errors.items()]
        yield _counter("cube_protocol_errors", "Connections that sent what is no request.", ["code"], errors)
        yield _counter(
            "cube_attestations", "Decisions of the attestation gate.", ["role", "verdict", "reason", "platform"],
            self._attestations.items(),
        )  # fmt: skip
        yield _histogram(
            "cube_attestation_duration_seconds", "Handshake and attestation.", ["verdict"], self._attestation_seconds
        )

    def _by_domain(self, read: Callable[[Cell], int]) -> list[tuple[tuple[str], int]]:
        totals: dict[str, int] = {}
        for (domain, *_), cell in self._cells.items():
            totals[domain] = totals.get(domain, 0) + read(cell)
        return [((domain,), n) for domain, n in totals.items()]


def _counter(
    name: str, text: str, labels: list[str], rows: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _histogram(
    name: str, text: str, labels: list[str], rows: dict[tuple[str, ...], Histogram]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, histogram in rows.items():
        family.add_metric(values, histogram.cumulative(), histogram.sum)
    return family


class NodeCollector(Collector):
    """All families of the node: its metrics, gauges and counters that other parts keep themselves, and the build.

    ``gauge`` and ``counter`` register a function that is asked at each scrape. ``unsafe`` adds the label
    ``unsafe="true"`` to every sample, so that no dashboard mistakes a simulated node for a real one.
    """

    def __init__(self, metrics: Metrics, info: dict[str, str], *, unsafe: bool = False) -> None:
        self._metrics = metrics
        self._info = info
        self._unsafe = unsafe
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []
        self._counters: list[tuple[str, str, str, Callable[[], dict[str, int]]]] = []

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._gauges.append((name, text, read))

    def counter(self, name: str, text: str, label: str, read: Callable[[], dict[str, int]]) -> None:
        """``read`` gives the totals by label value; ``name`` without ``_total``."""
        self._counters.append((name, text, label, read))

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for family in self._collect():
            if self._unsafe:
                for at, sample in enumerate(family.samples):
                    family.samples[at] = sample._replace(labels={**sample.labels, "unsafe": "true"})
            yield family

    def _collect(self) -> Iterator[Metric]:
        yield from self._metrics.families()
        for name, text, read in self._gauges:
            yield GaugeMetricFamily(name, text, value=read())
        for name, text, label, totals in self._counters:
            yield _counter(name, text, [label], (((value,), n) for value, n in totals().items()))
        build = GaugeMetricFamily("cube_build_info", "What runs here; always 1.", labels=list(self._info))
        build.add_metric(list(self._info.values()), 1)
        yield build


def registry(collector: NodeCollector) -> CollectorRegistry:
    """A registry with the node's families and those of the process (CPU, memory, descriptors)."""
    from prometheus_client import ProcessCollector

    made = CollectorRegistry()
    made.register(collector)
    ProcessCollector(registry=made)
    return made
