"""The composition root: builds the parts of one node, runs it until a signal, and takes it down in order.

The one file that knows all parts. Start-up order: log, what both roles share, the role, its listeners, the local
listener for metrics and health. SIGTERM or SIGINT drains: not ready, no new connection, finish what runs until
``timeouts.drain_s``, cut the rest honestly, exit 0. A second signal cuts at once. As a worker of several processes it
has no local listener, and hears of draining from the supervisor.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cube_mesh import __version__
from cube_mesh.admission import Admission
from cube_mesh.agent import AgentRole
from cube_mesh.connection import Downstream
from cube_mesh.deadlines import Sweeper
from cube_mesh.endpoints import load_endpoints
from cube_mesh.errors import ConfigError, CubeMeshError, PeerError
from cube_mesh.exchange import Exchange
from cube_mesh.health import Health
from cube_mesh.listener import bind
from cube_mesh.message import Response, error_response
from cube_mesh.page_cache import DropBehind
from cube_mesh.parts import Parts, Place
from cube_mesh.ports import Done
from cube_mesh.proxy import ProxyRole
from cube_mesh.service import Service
from cube_mesh.settings import Settings
from cube_mesh.telemetry import log
from cube_mesh.telemetry.metrics import Metrics, NodeCollector, registry

Role: TypeAlias = Literal["proxy", "agent"]
EX_FAILURE, EX_CONFIG = 1, 78
_POLL_S = 0.02
_log = logging.getLogger("cube_mesh.node")


class NodeRole(Protocol):
    """A role that the node runs. ``start`` returns when it listens; ``stop_listening`` keeps what is open, and the
    connections that are ``opening``.
    """

    service: Service

    @property
    def opening(self) -> int: ...

    async def start(self) -> None: ...
    def stop_listening(self) -> None: ...
    def reload(self) -> None: ...
    async def close(self) -> None: ...


def run(role: Role, settings: Settings) -> int:
    """Run a node until it is told to stop. Returns the exit code; raises ConfigError before anything is served."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(role, settings))


class StopSource(Protocol):
    """Who tells a node to stop: ``asked`` to drain, then ``now`` to cut what is left."""

    asked: asyncio.Event
    now: asyncio.Event


async def _serve(role: Role, settings: Settings) -> int:
    stop = Stop(asyncio.get_running_loop())
    return await serve(Node(role, settings), stop)


async def serve(node: Node, stop: StopSource, on_up: Callable[[], None] = lambda: None) -> int:
    """Start ``node``, run it until ``stop``, take it down; ``on_up`` is called when it serves. The exit code."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, node.reload)
    try:
        await node.start()
    except ConfigError:
        await node.close()
        raise
    except Exception as error:
        detail = str(error) if isinstance(error, CubeMeshError) or type(error).__module__.startswith("attest") else ""
        _log.error("the node could not start: %s %s", type(error).__name__, detail, exc_info=not detail)
        await node.close()
        return EX_FAILURE
    on_up()
    await stop.asked.wait()
    await node.drain(stop.now)
    await node.close()
    return 0


class Stop:
    """Signals: the first asks the node to drain, the second to stop now."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.asked = asyncio.Event()
        self.now = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self.asked.is_set():
            self.now.set()
        self.asked.set()


class Node:
    """One running node: the shared parts, the role, and the local listener."""

    def __init__(self, role: Role, settings: Settings, place: Place | None = None) -> None:
        """``place``: which worker of a node of several processes this is; None: all of it."""
        self._role_name = role
        self._settings = settings
        unsafe = settings.unsafe_allow_simulated
        self._place = place if place is not None else Place()
        process = "" if self._place.worker is None else f"worker-{self._place.worker}"
        self._writer, json_lines = log.setup(
            settings.log.level, settings.log.format, settings.mesh.node_id, unsafe=unsafe, process=process
        )
        self._phase = "starting"  # "" while the node may serve
        self._local: asyncio.Server | None = None
        self._role: NodeRole | None = None
        self._numbers = Metrics((domain.id for domain in settings.identity.domains), self._place.slab)
        self._collector = NodeCollector(self._numbers, {"version": __version__, "role": role}, unsafe=unsafe)
        self._health = Health(f"cube-{role}", __version__, unsafe=unsafe, instance=self._place.instance)
        self._parts = Parts(
            settings=settings,
            place=self._place,
            sweeper=Sweeper(),
            health=self._health,
            numbers=self._numbers,
            admission=Admission(settings.limits),
            collector=self._collector,
            endpoints=load_endpoints(settings.authz.endpoints_file),
            write_line=self._writer,
            json_lines=json_lines,
        )
        self._registry = registry(self._collector)
        self._behind = DropBehind(Path(settings.audit.path) if role == "proxy" else None, log_fd=2)

    async def start(self) -> None:
        """Build the role and listen. What is wrong with the configuration comes out here, as ConfigError."""
        loop = asyncio.get_running_loop()
        if self._settings.unsafe_allow_simulated:
            _log.warning("unsafe_allow_simulated is on: simulated evidence is accepted; this node proves nothing")
        self._parts.sweeper.start(loop)
        self._health.checks["node"] = lambda: self._phase
        role: NodeRole = ProxyRole(self._parts) if self._role_name == "proxy" else AgentRole(self._parts)
        self._role = role
        self._collector.gauge("cube_requests_in_flight", "Requests being served.", lambda: role.service.in_flight)
        self._collector.gauge("cube_ready", "1 while every readiness check holds.", self._is_ready, "min")
        self._collector.gauge("cube_connections", "Open client connections.", lambda: len(role.service.connections))
        self._collector.counter(
            "cube_admissions_refused",
            "Connections and requests turned away at a limit.",
            "limit",
            lambda: self._parts.admission.refused,
        )
        self._collector.counter(
            "cube_log_lines_lost", "Log lines that nobody read in time.", "log", lambda: {"node": self._writer.lost}
        )
        await self._listen_locally()
        await role.start()
        self._writer.start(loop)
        if self._place.worker is not None:
            self._collector.start(loop)
        else:
            self._behind.start()
        self._phase = ""
        _log.info("%s is up", self._role_name)

    async def _listen_locally(self) -> None:
        """Metrics and health, on loopback, apart from tenants."""
        metrics = self._settings.metrics
        if metrics.port < 0 or self._place.worker is not None:
            return
        paths = {"/metrics": self._metrics, **self._health.paths()}
        limits, timeouts = self._settings.limits, self._settings.timeouts
        service = Service(NothingHere(), limits, timeouts, self._parts.sweeper, paths, self._numbers.protocol_error)
        socket = bind(metrics.host, metrics.port, 16)
        self._local = await asyncio.get_running_loop().create_server(partial(Downstream, service), sock=socket)

    def _metrics(self, query: bytes) -> Response:
        return Response(200, generate_latest(self._registry), CONTENT_TYPE_LATEST.encode("ascii"))

    def _is_ready(self) -> bool:
        return not self._health.missing()

    def checks(self) -> dict[str, str]:
        """The readiness checks, each with what it waits for, "" when it holds. Who asks sees fresh numbers, too."""
        self._collector.publish()
        missing = self._health.missing()
        return {name: missing.get(name, "") for name in self._health.checks}

    def reload(self) -> None:
        """SIGHUP: the edge certificate. The configuration itself is read at the start only."""
        _log.info("SIGHUP: the files of the edge certificate are read again, if there are any; settings are not")
        if self._role is not None:
            self._role.reload()

    async def drain(self, now: asyncio.Event) -> None:
        """Stop taking work, let what runs finish, cut what is left at the deadline or when ``now`` is set."""
        role = self._role
        assert role is not None
        self._phase = "draining"
        role.stop_listening()
        role.service.drain()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.timeouts.drain_s
        _log.info("draining: %d requests are running", role.service.in_flight)
        while (role.service.connections or role.opening) and loop.time() < deadline and not now.is_set():
            await asyncio.sleep(_POLL_S)
        if role.service.connections:
            _log.warning("cutting %d connections", len(role.service.connections))
            role.service.cut()
            await asyncio.sleep(_POLL_S)  # the last frames leave

    async def close(self) -> None:
        """Release everything; safe at any stage of the start."""
        if self._role is not None:
            await self._role.close()
        if self._local is not None:
            self._local.close()
        self._parts.sweeper.stop()
        self._behind.stop()
        self._collector.stop()
        _log.info("%s is down", self._role_name)
        self._writer.close()


class NothingHere:
    """The chain of the local listener: no path but the local ones."""

    def enter(self, exchange: Exchange) -> Response:
        return error_response(PeerError("not_found", "There is nothing here.", status=404))

    def leave(self, exchange: Exchange, done: Done) -> None:
        done(None)
