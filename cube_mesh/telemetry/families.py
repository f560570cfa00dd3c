"""From rows to Prometheus families: what all regions counted, added up.

A region may have been written by a process that is not to be trusted with more than its own numbers: a row that means
nothing here is left out, and the page stays one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from cube_mesh._fastpath import Slab
from cube_mesh.telemetry.slab import COUNTS, GAUGE, GAUGE_KIND, PROCESS_KIND, SECONDS, TIMES

REQUESTS, DURATION, FIRST_BYTE = "requests", "duration", "first_byte"
PROTOCOL_ERRORS, ATTESTATIONS, ATTESTATION_DURATION = "protocol_errors", "attestations", "attestation_duration"
AUDIT_SYNC = "audit_sync"
COUNTER = "counter"  # of another part: family, text, name of the label, its value
KINDS: dict[str, tuple[Struct, int]] = {  # how to read a row's numbers, and how many labels it has
    REQUESTS: (COUNTS, 5),
    DURATION: (TIMES, 3),
    FIRST_BYTE: (TIMES, 2),
    PROTOCOL_ERRORS: (COUNTS, 1),
    ATTESTATIONS: (COUNTS, 4),
    ATTESTATION_DURATION: (TIMES, 1),
    AUDIT_SYNC: (TIMES, 0),
    COUNTER: (COUNTS, 4),
    GAUGE_KIND: (GAUGE, 3),  # family, text, "sum" or "min"
    PROCESS_KIND: (GAUGE, 3),  # sample, family, text: of the process itself
}
Labels = tuple[str, ...]
Numbers = tuple[float, ...]
_BOUNDS = (*(str(bound) for bound in SECONDS), "+Inf")
_FAMILY = re.compile(r"cube_[a-z0-9_]{1,80}")
_PROCESS = re.compile(r"process_[a-z_]{1,40}")
_LABEL = re.compile(r"[a-z][a-z0-9_]{0,40}")
_SUFFIXES = ("_total", "_count", "_sum", "_bucket", "_created", "_info")  # of samples, not of families
_decode = msgspec.json.Decoder(list[str]).decode


def merged(slabs: Iterable[Slab]) -> dict[str, dict[Labels, Numbers]]:
    """The numbers by kind and labels, of all regions together."""
    table: dict[str, dict[Labels, Numbers]] = {kind: {} for kind in KINDS}
    for slab in slabs:
        for row in slab.rows():
            _add(table, row.key, row.numbers())
    return table


def _add(table: dict[str, dict[Labels, Numbers]], key: bytes, raw: bytes) -> None:
    try:
        kind, *names = _decode(key)
    except (msgspec.DecodeError, ValueError):
        return
    numbers, count = KINDS.get(kind, (COUNTS, -1))
    if len(names) != count or not _plausible(kind, names):
        return
    labels, rows, now = tuple(names), table[kind], numbers.unpack(raw)
    if numbers is GAUGE and not now[1]:
        return
    before = rows.get(labels)
    if before is None:
        rows[labels] = now
    elif kind == GAUGE_KIND and labels[2] == "min":
        rows[labels] = min(before, now)
    else:
        rows[labels] = tuple(map(sum, zip(before, now, strict=True)))


def _plausible(kind: str, names: list[str]) -> bool:
    """Whether names that other parts chose make a family of its own."""
    if kind == PROCESS_KIND:
        return bool(_PROCESS.fullmatch(names[0]))
    if kind == COUNTER and not _LABEL.fullmatch(names[2]):
        return False
    return kind not in (COUNTER, GAUGE_KIND) or _is_free(names[0])


def _is_free(name: str) -> bool:
    return bool(_FAMILY.fullmatch(name)) and name not in _OWN and not name.endswith(_SUFFIXES)


def families(slabs: Sequence[Slab]) -> Iterator[Metric]:
    """What processes count for themselves: exchanges, protocol errors, attestations. Then what ``published`` gives."""
    table = merged(slabs)
    requests = table[REQUESTS]
    yield _counter(
        "cube_requests", "Requests that ended.", ("domain", "endpoint", "method", "status", "outcome"), requests
    )
    yield _by_domain("cube_request_body_bytes", "Request body bytes.", requests, {(): 1})
    yield _by_domain("cube_response_body_bytes", "Response body bytes.", requests, {(): 2})
    text = "Tokens as the backends reported them."
    yield _by_domain("cube_tokens", text, requests, {("input",): 3, ("output",): 4}, ("type",))
    yield _histogram(
        "cube_request_duration_seconds", "Head read to end of the answer.", ("endpoint", "method", "status"),
        table[DURATION],
    )  # fmt: skip
    yield _histogram(
        "cube_upstream_first_byte_seconds", "Request sent to first byte of the answer.", ("endpoint", "method"),
        table[FIRST_BYTE],
    )  # fmt: skip
    yield _counter(
        "cube_protocol_errors", "Connections that sent what is no request.", ("code",), table[PROTOCOL_ERRORS]
    )
    yield _counter(
        "cube_attestations", "Decisions of the attestation gate.", ("role", "verdict", "reason", "platform"),
        table[ATTESTATIONS],
    )  # fmt: skip
    yield _histogram(
        "cube_attestation_duration_seconds", "Handshake and attestation.", ("verdict",), table[ATTESTATION_DURATION]
    )
    yield _histogram("cube_audit_sync_duration_seconds", "Syncs of the audit trail.", (), table[AUDIT_SYNC])
    full = CounterMetricFamily("cube_metrics_overflows", "Counted as other because the table of labels was full.")
    full.add_metric((), sum(slab.overflowed for slab in slabs))
    yield full
    yield from _published(table)


def _published(table: dict[str, dict[Labels, Numbers]]) -> Iterator[Metric]:
    """Gauges and counters of other parts, each family once, by the text and label of its first row."""
    seen: dict[str, Metric] = {}
    for (name, text, _), (value, _) in table[GAUGE_KIND].items():
        if name not in seen:
            seen[name] = GaugeMetricFamily(name, text, value=value)
    for (name, text, label, shown), (value, *_) in table[COUNTER].items():
        family = seen.setdefault(name, CounterMetricFamily(name, text, labels=(label,)))
        if isinstance(family, CounterMetricFamily) and family._labelnames == (label,):
            family.add_metric((shown,), value)
    yield from seen.values()


def _counter(name: str, text: str, labels: Labels, rows: dict[Labels, Numbers]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, numbers in rows.items():
        family.add_metric(values, numbers[0])
    return family


def _by_domain(
    name: str, text: str, requests: dict[Labels, Numbers], parts: dict[Labels, int], extra: Labels = ()
) -> Metric:
    """One of the numbers behind the first of an exchange's row, added up by domain; ``parts``: by label, which one."""
    family = CounterMetricFamily(name, text, labels=("domain", *extra))
    for more, number in parts.items():
        totals: dict[str, float] = {}
        for (domain, *_), numbers in requests.items():
            totals[domain] = totals.get(domain, 0) + numbers[number]
        for domain, total in totals.items():
            family.add_metric((domain, *more), total)
    return family


def _histogram(name: str, text: str, labels: Labels, rows: dict[Labels, Numbers]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, numbers in rows.items():
        family.add_metric(values, _cumulative(numbers), numbers[-1])
    return family


def _cumulative(counts: Numbers) -> list[tuple[str, float]]:
    total = 0.0
    buckets = []
    for bound, count in zip(_BOUNDS, counts, strict=False):
        total += count
        buckets.append((bound, total))
    return buckets


def process_families(slabs: Iterable[tuple[str, Slab]]) -> Iterator[Metric]:
    """``process_*`` of the processes that publish them, by the name that each gets in the label ``process``."""
    found: dict[str, Metric] = {}
    for process, slab in slabs:
        for (sample, name, text), (value, _) in merged((slab,))[PROCESS_KIND].items():
            kind = "counter" if sample.endswith("_total") else "gauge"
            family = found.setdefault(sample, Metric(name, text, kind))
            family.add_sample(sample, {"process": process}, value)
    yield from found.values()


_OWN = frozenset(family.name for family in families(()))
