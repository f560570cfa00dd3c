"""A run: everything started, each round measures each system once, everything stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from bench import processes
from bench.load import measure, systems
from bench.load.summary import Figures, one_of
from bench.load.systems import System, Variant
from bench.report import interleaved
from tests.support.mesh import make_tenant

Starts: TypeAlias = Callable[["Run", int], Iterable[AbstractContextManager[System]]]  # run, port of the upstream


class Run:
    """``figures``: one value a round. ``against``: the row each is compared with. ``rates``: of latency, by group.
    ``absent``: what was asked for and could not be run, and why."""

    def __init__(self, scratch: Path, seconds: int, *, stream: bool = False) -> None:
        self.figures: Figures = {}
        self.against: dict[str, str] = {}
        self.rates: dict[str, float] = {}
        self.absent: dict[str, str] = {}
        self.faults: list[str] = []
        self.scratch, self._seconds = scratch, seconds
        self.tenant = tenant = make_tenant("bench")
        file = scratch / "body.json"
        file.write_bytes(body(stream))
        self._request = measure.Request(file, f"Bearer {tenant.key}", f"/{tenant.domain}/v1/chat/completions")

    def at_full_speed(self, rounds: int, starts: Starts, *, latency: bool) -> None:
        """Requests/s and CPU per request with 32 connections; then latency at a fixed rate and at one connection."""
        with ExitStack() as stack:
            port = stack.enter_context(systems.upstream(self.scratch))
            running = self._start(stack, starts(self, port))
            for system in running:
                measure.full_speed(system, self._request, 1)  # warm: connections, caches, allocators
            interleaved(running, rounds, self._load)
            if latency:
                self.rates = {group: self._half_of_the_slowest(group, running) for group in {s.group for s in running}}
                interleaved(running, rounds, self._latency)
                plain = [stack.enter_context(systems.direct(port)), *(s for s in running if s.group == "plain")]
                interleaved(plain, rounds, self._one_connection)
            self._evenly(running, rounds)

    def paced(self, rounds: int, variants: Sequence[Variant], streams: int, rate: float) -> None:
        """Event streams at a reader's pace: CPU per event, and how much later each event comes than without gateway."""
        with ExitStack() as stack:
            program, port, server = stack.enter_context(systems.paced_server(self.scratch, rate))
            running = self._start(stack, plain(variants)(self, port))
            running.insert(0, stack.enter_context(systems.direct(port)))
            pace = measure.Pace(program, server, streams, rate, self._seconds)

            def measured(system: System) -> None:
                self._note_paced(system, measure.paced_streams(system, self._request, pace, self.scratch))

            interleaved(running, rounds, measured)

    def _start(self, stack: ExitStack, managers: Iterable[AbstractContextManager[System]]) -> list[System]:
        running = [stack.enter_context(manager) for manager in managers]
        for system in running:
            self.against |= system.against
        return running

    def _note(self, name: str, **values: float) -> None:
        of = self.figures.setdefault(name, {})
        for kind, value in values.items():
            of.setdefault(kind, []).append(value)

    def _load(self, system: System) -> None:
        got = measure.full_speed(system, self._request, self._seconds)
        for name, cpu_us in got.cpu_us.items():
            self._note(name, rps=got.rps, cpu_us=cpu_us, busy=got.busy)

    def _half_of_the_slowest(self, group: str, running: Sequence[System]) -> float:
        names = [name for system in running if system.group == group for name in system.measured]
        return min(median(self.figures[name]["rps"]) for name in names) / 2

    def _latency(self, system: System) -> None:
        rate = self.rates[system.group]
        times = measure.latencies_us(system, self._request, self._seconds, self.scratch, rps=rate)
        for name in system.measured:
            self._note(name, p50_us=measure.quantile(times, 0.5), p99_us=measure.quantile(times, 0.99))

    def _evenly(self, running: Sequence[System], rounds: int) -> None:
        """Several workers beside one, at the same time: every worker has the same load, and all may use the same cores.
        At full speed a worker that is not the limit has fewer requests in a turn of its loop, and pays for more turns.
        """
        for system in running:
            alone = next((one for one in running if one.name == one_of(system.name) != system.name), None)
            if alone is None or system.workers > system.cores:
                continue
            pair = (alone, system)
            for each in pair:
                processes.allow(each.measured[each.name], {0, 1})
            rps = EVEN_SHARE * median(self.figures[alone.name]["rps"])
            for _ in range(rounds):
                spent = measure.together(pair, self._request, self._seconds, self.scratch, rps)
                for each, cpu_us in zip(pair, spent, strict=True):
                    self._note(each.name, even_cpu_us=cpu_us)

    def _one_connection(self, system: System) -> None:
        times = measure.latencies_us(system, self._request, self._seconds, self.scratch, connections=1)
        for name in system.measured:
            self._note(name, one_p50_us=measure.quantile(times, 0.5))

    def _note_paced(self, system: System, got: measure.Paced) -> None:
        for what, busy in (("reader", got.reader_busy), ("server", got.server_busy)):
            if busy > MAX_TOOL_BUSY:
                self.faults.append(f"the paced {what} used {busy:.0%} of its core: it was measured too")
        for name in system.measured:
            cost = {"frame_cpu_us": got.cpu_us[name]} if name in got.cpu_us else {}
            self._note(name, frame_p50_us=got.p50_us, frame_p99_us=got.p99_us, **cost)


EVEN_SHARE = 0.15  # of what one worker can do: three of them leave room for the generators beside them
MAX_TOOL_BUSY = 0.45  # of the core that reader and server of paced streams share


def plain(variants: Sequence[Variant]) -> Starts:
    """nginx, the variants of cube-mesh, and nginx again, before a plain upstream."""

    def starts(run: Run, port: int) -> Iterable[AbstractContextManager[System]]:
        yield systems.nginx(systems.PLAIN, run.scratch, port)
        for variant in variants:
            if variant.missing:
                run.absent[variant.name] = variant.missing
            else:
                yield systems.cube_mesh(run.scratch, port, run.tenant, variant)
        yield systems.nginx(systems.AGAIN, run.scratch, port)

    return starts


def with_attested(variants: Sequence[Variant]) -> Starts:
    """The same, with two nginx over mutual TLS, and proxy and agent over attested TLS."""

    def starts(run: Run, port: int) -> Iterable[AbstractContextManager[System]]:
        yield from plain(variants)(run, port)
        yield systems.nginx_pair(run.scratch, port)
        yield systems.cube_mesh_pair(run.scratch, port, run.tenant)

    return starts


def body(stream: bool) -> bytes:
    """A chat request of about 0.7 KB."""
    system = "You are a careful assistant. Answer in one short paragraph and name your sources. "
    user = "Why does a gateway between tenants and model servers have to verify evidence before it forwards anything? "
    messages = [{"role": "system", "content": system * 3}, {"role": "user", "content": user * 3}]
    request: dict[str, Any] = {"model": "canned-model", "messages": messages, "temperature": 0.2, "max_tokens": 128}
    return json.dumps({**request, "stream": stream}).encode()
