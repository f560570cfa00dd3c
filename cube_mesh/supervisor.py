"""The supervisor: ``python -m cube_mesh.supervisor <launcher's pid> <plan> <commands> <restarts>``.

Makes the workers by exec with the listening socket inherited, starts them again when they end, drains and stops them,
and serves /metrics, /livez, /readyz and /health for all of them. It accepts no tenant's connection, holds no key, and
makes no request of its own. When it ends the kernel ends its workers (``process.die_with``): nothing serves unwatched.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from cube_mesh import __version__, process
from cube_mesh import plan as plans
from cube_mesh.connection import Downstream
from cube_mesh.deadlines import Sweeper
from cube_mesh.errors import PeerError
from cube_mesh.exchange import Exchange
from cube_mesh.exporter_process import ExporterProcess
from cube_mesh.health import Health
from cube_mesh.keeper_child import KeeperChild
from cube_mesh.message import Response, error_response
from cube_mesh.page_cache import DropBehind
from cube_mesh.ports import Done
from cube_mesh.restarts import Slot, unready
from cube_mesh.service import Service
from cube_mesh.telemetry import log, slab
from cube_mesh.telemetry.families import process_families
from cube_mesh.telemetry.metrics import Metrics, NodeCollector
from cube_mesh.telemetry.process import ProcessFamilies
from cube_mesh.turns import Turns
from cube_mesh.worker_process import WorkerProcess

DRAIN, NOW, RELOAD = b"D", b"N", b"H"
_PATIENCE_S = 2.0  # for the supervisor before this one, should it still be dying
_ANSWER_S = 1.0  # a worker that takes longer to report does not answer
_GRACE_S = 5.0  # beyond timeouts.drain_s, then a worker is killed
_log = logging.getLogger("cube_mesh.supervisor")

Page: TypeAlias = Callable[[], Awaitable[Response]]


class Supervisor:
    """One life of the supervisor. ``restarts``: how many there were before it."""

    def __init__(self, plan: plans.Plan, plan_fd: int, commands_fd: int, restarts: int) -> None:
        self._plan = plan
        self._plan_fd = plan_fd
        self._commands_fd = commands_fd
        self._restarts = restarts
        settings = plan.settings
        self._writer, _ = log.setup(
            settings.log.level, settings.log.format, settings.mesh.node_id,
            unsafe=settings.unsafe_allow_simulated, process="supervisor",
        )  # fmt: skip
        self._slots = [Slot() for _ in range(plan.workers)]
        self._workers: dict[int, WorkerProcess] = {}
        self._keeper = KeeperChild(plan, plan_fd, self._keeper_ended)
        self._exporter = ExporterProcess(plan, plan_fd)
        self._behind = DropBehind(Path(settings.audit.path) if plan.role == "proxy" else None, log_fd=2)
        mine = plan.supervisor_region
        numbers = Metrics(slab=slab.attach(plan.slab_fd, mine, _PATIENCE_S))
        self._regions = slab.regions(plan.slab_fd)
        others = tuple(region for index, region in enumerate(self._regions) if index != mine)
        for region in others:  # whoever wrote there died with the supervisor before this one
            slab.retire(region)
        for index in range(plan.workers):
            Turns(plan.turns_fd, index).leave()
        info = {"version": __version__, "role": plan.role}
        self._numbers = NodeCollector(numbers, info, unsafe=settings.unsafe_allow_simulated, others=others)
        text = "Processes that ended and were started again."
        self._numbers.counter("cube_process_restarts", text, "process", self._restarted)
        self._health = Health(
            f"cube-{plan.role}", __version__, unsafe=settings.unsafe_allow_simulated, instance=plan.instance
        )
        self._phase = "starting"  # until every worker has been up once; "" while the node may serve
        self._came_up: set[int] = set()
        self._code = 0
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until the node is told to stop, or cannot start. Returns its exit code."""
        loop = self._loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal's goes to all: the launcher passes it on
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_reader(self._commands_fd, self._commanded)
        self._writer.start(loop)
        local = await self._listen_locally()
        self._exporter.start()
        self._behind.start()
        self._keeper.start()
        for index in range(self._plan.workers):
            self._start(index)
        await self._over.wait()
        await self._keeper.close()
        await self._exporter.close()
        self._behind.stop()
        if local is not None:
            local.close()
        _log.info("%s is down", self._plan.role)
        self._writer.close()
        return self._code

    # -- workers

    def _start(self, index: int) -> None:
        if self._phase == "draining":
            return
        plan = self._plan
        fds = [fd for fd in (self._plan_fd, plan.tenants_fd, plan.slab_fd, plan.spans_fd, plan.turns_fd) if fd >= 0]
        worker = WorkerProcess(
            index, fds, self._keeper.workers_fd, partial(self._reported, index), partial(self._ended, index)
        )
        self._workers[index] = worker
        self._slots[index].started()
        self._run(worker.watch())

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _reported(self, index: int) -> None:
        self._slots[index].up(self._loop.time())
        self._came_up.add(index)
        if self._phase == "starting" and len(self._came_up) == self._plan.workers:
            self._phase = ""
            _log.info("%s is up: %d workers", self._plan.role, self._plan.workers)

    def _keeper_ended(self, code: int) -> None:
        """The keeper's process is gone. One that never had evidence, before any worker was up, will not have it."""
        slab.retire(self._regions[self._plan.keeper_region])
        if not self._came_up and not self._restarts and code > 0:
            self._give_up("the keeper", code)

    def _ended(self, index: int, code: int) -> None:
        """A worker's process is gone; ``code`` is negative for a signal."""
        del self._workers[index]
        slab.retire(self._regions[index])
        Turns(self._plan.turns_fd, index).leave()
        if self._phase == "draining":
            if not self._workers:
                self._over.set()
            return
        if not self._came_up and not self._restarts and code > 0:
            self._give_up("a worker", code)
            return
        pause = self._slots[index].ended(self._loop.time())
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        _log.error("worker %d %s; the next one starts in %.1f s", index, how, pause)
        self._loop.call_later(pause, self._start, index)

    def _give_up(self, who: str, code: int) -> None:
        """The first process of a kind could not start: so it is with a node of one process, and so it is here."""
        _log.error("the node could not start: %s ended with %d", who, code)
        self._code = code
        self._now()

    def _tell(self, command: bytes) -> None:
        for worker in self._workers.values():
            worker.tell(command)

    # -- what it is told

    def _commanded(self) -> None:
        data = os.read(self._commands_fd, 64)
        if not data:  # the launcher has ended, and with it this process in a moment
            self._loop.remove_reader(self._commands_fd)
        actions = {DRAIN: self._drain, NOW: self._now, RELOAD: self._reload}
        for at in range(len(data)):
            actions[data[at : at + 1]]()

    def _reload(self) -> None:
        _log.info("SIGHUP: every worker reads the files of the edge certificate again; settings are not read")
        self._tell(RELOAD)

    def _drain(self) -> None:
        if self._phase == "draining":
            return
        self._phase = "draining"
        os.close(self._plan.tenants_fd)
        self._tell(DRAIN)
        if not self._workers:
            self._over.set()
        self._loop.call_later(self._plan.settings.timeouts.drain_s + _GRACE_S, self._kill)

    def _now(self) -> None:
        self._drain()
        self._tell(NOW)
        self._loop.call_later(_GRACE_S / 2, self._kill)

    def _kill(self) -> None:
        for worker in self._workers.values():
            _log.error("worker %d did not stop: killed", worker.index)
            worker.kill()

    # -- for operators

    async def _listen_locally(self) -> asyncio.Server | None:
        if self._plan.local_fd < 0:
            return None
        settings, sweeper = self._plan.settings, Sweeper()
        sweeper.start(self._loop)
        pages: dict[str, Page] = {"/metrics": self._metrics, "/readyz": self._readyz, "/healthz": self._readyz}
        paths: dict[str, Callable[[bytes], Response]] = {"/livez": self._health.livez, "/health": self._health.health}
        service = Service(Pages(pages), settings.limits, settings.timeouts, sweeper, paths, lambda code: None)
        sock = socket.socket(fileno=self._plan.local_fd)
        return await self._loop.create_server(partial(Downstream, service), sock=sock)

    async def _ask(self) -> dict[int, dict[str, str] | None]:
        """The readiness checks of every worker that is up, fresh; None for one that does not answer."""
        asked = {i: worker for i, worker in self._workers.items() if self._slots[i].state == "up"}
        answered = await asyncio.gather(*(worker.ask(_ANSWER_S) for worker in asked.values()))
        return {
            index: worker.report.checks if answer else None
            for (index, worker), answer in zip(asked.items(), answered, strict=True)
            if index in self._workers
        }

    async def _readyz(self) -> Response:
        answers = await self._ask()
        found = unready(self._phase, self._slots, answers, self._loop.time())
        self._health.checks = {name: partial(str, reason) for name, reason in found.items()}
        return self._health.readyz(b"")

    async def _metrics(self) -> Response:
        await self._ask()
        shown = CollectorRegistry()
        shown.register(Families(self._families()))
        return Response(200, generate_latest(shown), CONTENT_TYPE_LATEST.encode("ascii"))

    def _families(self) -> Iterator[Metric]:
        labels = {"unsafe": "true"} if self._plan.settings.unsafe_allow_simulated else {}
        yield from self._numbers.collect()
        yield from process_families((f"worker-{i}", self._regions[i]) for i in range(self._plan.workers))
        yield from _own_process()
        workers = GaugeMetricFamily("cube_workers", "Worker processes.")
        for state in ("up", "starting", "waiting"):
            count = sum(slot.state == state for slot in self._slots)
            workers.add_sample("cube_workers", {"state": state, **labels}, count)
        yield workers

    def _restarted(self) -> dict[str, int]:
        """In this life of the supervisor, its own start included; the lives before are in its region."""
        return {
            "supervisor": int(self._restarts > 0),
            "worker": sum(slot.restarts for slot in self._slots),
            "keeper": self._keeper.restarts,
            "exporter": self._exporter.restarts,
        }


def _own_process() -> Iterator[Metric]:
    for family in ProcessFamilies().collect():
        family.samples = [
            sample._replace(labels={**sample.labels, "process": "supervisor"}) for sample in family.samples
        ]
        yield family


class Families(Collector):
    """A collector of what was collected already. Families of one name become one."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families: dict[str, Metric] = {}
        for family in families:
            known = self._families.setdefault(family.name, family)
            if known is not family:
                known.samples = [*known.samples, *family.samples]

    def collect(self) -> Iterable[Metric]:
        return self._families.values()


class Pages:
    """The chain of the local listener: pages that have to be asked for; no tenant, no stage."""

    def __init__(self, pages: dict[str, Page]) -> None:
        self._pages = pages

    def enter(self, exchange: Exchange) -> Response | Awaitable[Response]:
        page = self._pages.get(exchange.path)
        if page is None:
            return error_response(PeerError("not_found", "There is nothing here.", status=404))
        if exchange.method not in ("GET", "HEAD"):
            return error_response(PeerError("method_not_allowed", "Only GET is answered here.", status=405))
        return page()

    def leave(self, exchange: Exchange, done: Done) -> None:
        done(None)


async def _run(*numbers: int) -> int:
    plan_fd, commands_fd, restarts = numbers
    return await Supervisor(plans.read(plan_fd), plan_fd, commands_fd, restarts).run()


def main() -> int:
    parent, *numbers = map(int, sys.argv[1:])
    process.die_with(parent)
    process.harden()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(*numbers))


if __name__ == "__main__":
    sys.exit(main())
