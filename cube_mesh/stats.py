"""The numbers of all processes of a node as one: what workers count is summed, also after the worker's end.

Counters and histograms are sums, those of ended workers included (up to the worker's last report). Gauges are sums of
what runs now, except those that describe the node and not a part of its load. ``process_*`` keep a series for each
process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

from prometheus_client.core import Metric

from cube_mesh.worker_link import Family, Sample

Labels: TypeAlias = tuple[tuple[str, str], ...]
Key: TypeAlias = tuple[str, Labels]

_NOT_SUMMED: dict[str, Callable[[float, float], float]] = {
    "cube_build_info": max,
    "cube_edge_certificate_expiry_seconds": min,
}
_OF_ONE_PROCESS = "process_"


class Stats(Protocol):
    """Where the supervisor has the workers' numbers from."""

    def take(self, worker: int, families: tuple[Family, ...]) -> None: ...
    def ended(self, worker: int) -> None: ...
    def families(self) -> Iterator[Metric]: ...


class ReportedStats:
    """Stats out of the workers' reports, by the worker's index."""

    def __init__(self) -> None:
        self._now: dict[int, tuple[Family, ...]] = {}
        self._kept: dict[str, Family] = {}  # totals of workers that have ended

    def take(self, worker: int, families: tuple[Family, ...]) -> None:
        """A worker's numbers since its start; they replace what it said before."""
        self._now[worker] = families

    def ended(self, worker: int) -> None:
        """The worker is gone: its counters stay, its gauges do not."""
        totals = _Totals()
        for family in (*self._kept.values(), *self._now.pop(worker, ())):
            if family.kind in ("counter", "histogram") and not family.name.startswith(_OF_ONE_PROCESS):
                totals.add(family)
        self._kept = {family.name: family for family in totals.families()}

    def families(self) -> Iterator[Metric]:
        totals = _Totals()
        for family in self._kept.values():
            totals.add(family)
        for worker, families in sorted(self._now.items()):
            for family in families:
                own = family.name.startswith(_OF_ONE_PROCESS)
                totals.add(family, (("process", f"worker-{worker}"),) if own else ())
        for family in totals.families():
            yield as_metric(family)


def as_metric(family: Family) -> Metric:
    metric = Metric(family.name, family.text, family.kind)
    for sample in family.samples:
        metric.add_sample(sample.name, sample.labels, sample.value)
    return metric


class _Totals:
    """Families with the same name made one."""

    def __init__(self) -> None:
        self._heads: dict[str, Family] = {}
        self._values: dict[str, dict[Key, float]] = {}

    def add(self, family: Family, labels: Labels = ()) -> None:
        self._heads.setdefault(family.name, family)
        values = self._values.setdefault(family.name, {})
        combine = _NOT_SUMMED.get(family.name)
        for sample in family.samples:
            key = sample.name, (*sample.labels.items(), *labels)
            known = values.get(key)
            if known is None:
                values[key] = sample.value
            else:
                values[key] = combine(known, sample.value) if combine is not None else known + sample.value

    def families(self) -> Iterator[Family]:
        for name, head in self._heads.items():
            samples = tuple(Sample(key[0], dict(key[1]), value) for key, value in self._values[name].items())
            yield Family(name, head.text, head.kind, samples)
