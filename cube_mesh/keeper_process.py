"""The keeper's process: owner of the TEE or TPM, the leaf key, the control connections and the session table."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Coroutine
from functools import partial
from typing import Any, Literal

import msgspec
import uvloop

from attest.errors import AttestError
from cube_mesh import keeper_link as wire
from cube_mesh._fastpath import Slab
from cube_mesh.errors import DependencyError
from cube_mesh.keeper import Keeper, count_sessions, keeper_from_settings
from cube_mesh.settings import Settings
from cube_mesh.telemetry.metrics import Metrics, NodeCollector
from cube_mesh.tls.connector import AttestedConnector, log_gate
from cube_mesh.tls.control import ControlLink
from cube_mesh.tls.port import GateEvent, OnGate
from cube_mesh.tls.reasons import Refusal
from cube_mesh.tls.sessions import Session

_log = logging.getLogger(__name__)
_LOOK_S = 0.2  # between two looks for a change that workers must hear of
_Lookup = wire.Evidence | wire.Appraise | wire.AppraiseSession | wire.Register | wire.Find | wire.To


class KeeperServer:
    """Serves every worker that is introduced at ``keepers_end``, until ``close``."""

    def __init__(self, keeper: Keeper, keepers_end: socket.socket, targets: tuple[str, ...] = ()) -> None:
        self.keeper = keeper
        self._keepers_end = keepers_end
        self._targets = targets
        self._workers: set[_Worker] = set()
        self._looking: asyncio.Task[None] | None = None
        self._last: wire.State | None = None

    def start(self) -> None:
        """From now on workers are taken. The keeper need not have a leaf yet: they hear of it."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._keepers_end.fileno(), self._introduced)
        self._looking = loop.create_task(self._look())

    async def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._keepers_end.fileno())
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        for worker in tuple(self._workers):
            worker.link.abort()

    def _introduced(self) -> None:
        while (theirs := wire.accept(self._keepers_end)) is not None:
            worker = _Worker(self)
            self._workers.add(worker)
            self.keeper.sessions.watchers.append(worker)
            worker.run(worker.join(theirs))

    def gone(self, worker: _Worker) -> None:
        self._workers.discard(worker)
        self.keeper.sessions.watchers.remove(worker)

    def state(self) -> wire.State:
        keeper, sessions = self.keeper, self.keeper.sessions
        return wire.State(
            wire.pack_leaf(keeper.leaf) if keeper.has_leaf else None,
            {target: sessions.not_ready(target) for target in self._targets},
        )

    async def _look(self) -> None:
        while True:
            state = self.state()
            if state != self._last:
                self._last = state
                for worker in self._workers:
                    worker.link.send(state)
            await asyncio.sleep(_LOOK_S)


class _Worker:
    """One worker's link, its calls, and the news that it gets."""

    def __init__(self, server: KeeperServer) -> None:
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()
        self.link = wire.FrameProtocol(self._on_frame, self._lost)

    async def join(self, theirs: socket.socket) -> None:
        """Take the worker's end; the first news."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self.link, sock=theirs)
        self.link.send(self._server.state())

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def renewed(self, session: Session) -> None:
        self.link.send(wire.Renewed(session.without_evidence()))

    def revoked(self, peer_id: str) -> None:
        self.link.send(wire.Revoked(peer_id))

    def _lost(self) -> None:
        for task in self._tasks:
            task.cancel()  # a quote for nobody
        self._server.gone(self)

    def _on_frame(self, frame: bytes) -> None:
        call = wire.decode_call(frame)
        if len(self._tasks) > wire.MAX_CALLS:
            self.link.send(wire.Failed(call.number, "refusal", "keeper", "too many calls"))
            return
        self.run(self._answer(call))

    async def _answer(self, call: wire.Call) -> None:
        self.link.send(await _answered(self._server.keeper, call))


async def _answered(keeper: Keeper, call: wire.Call) -> wire.Answer | wire.Failed:
    number = call.number
    try:
        value = await _carry_out(keeper, call.what)
    except AttestError as error:
        return wire.Failed(number, "attest", error.code, str(error))
    except Refusal as refusal:
        return wire.Failed(number, "refusal", refusal.reason, refusal.detail)
    except DependencyError as error:
        return wire.Failed(number, "dependency", error.code, error.detail, error.status, error.retryable)
    except Exception as error:
        _log.exception("the keeper failed")
        return wire.Failed(number, "internal", "internal", repr(error))
    return wire.Answer(number, msgspec.Raw(wire.encode(value)))


async def _carry_out(keeper: Keeper, what: _Lookup) -> object:
    match what:
        case wire.Evidence():
            return await keeper.evidence(
                what.role,
                what.phase,
                spki_hash=what.spki_hash,
                nonce=what.nonce,
                channel_binding=what.channel_binding,
                peer_spki_hash=what.peer_spki_hash,
            )
        case wire.Appraise(raw, expected, policy):
            return await keeper.appraise(raw, expected, policy)
        case wire.AppraiseSession(name, policy):
            return await keeper.appraise_session(name, policy)
        case wire.Register(session):
            return (await keeper.sessions.register(session)).without_evidence()
        case wire.Find(session_id):
            return keeper.sessions.find(session_id).without_evidence()
        case wire.To(target, refused):
            found = keeper.sessions.to(target, refused)
            return (found if isinstance(found, Session) else await found).without_evidence()


def run_keeper(
    settings: Settings, role: Literal["proxy", "agent"], keepers_end: socket.socket, slab: Slab | None = None
) -> int:
    """The keeper of a node with ``role``, until SIGTERM; its exit code. ConfigError as by ``keeper_from_settings``.

    ``keepers_end`` is inherited: ``keeper_link.rendezvous``. ``slab``: the region that it counts in. The caller has
    hardened the process already.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings, role, keepers_end, slab))


async def _run(
    settings: Settings, role: Literal["proxy", "agent"], keepers_end: socket.socket, slab: Slab | None
) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal's goes to all: the supervisor decides
    keeper = keeper_from_settings(settings, role)
    metrics = Metrics(slab=slab)
    numbers = NodeCollector(metrics, {})
    count_sessions(keeper, numbers)
    if keeper.feed is not None:
        keeper.feed.register(numbers)
    links = make_links(settings, keeper, partial(_on_gate, metrics)) if role == "proxy" else []
    server = KeeperServer(keeper, keepers_end, tuple(link.peer_id for link in links))
    server.start()
    numbers.start(loop)
    try:
        await keeper.start()
        for link in links:
            link.start()
        await stop.wait()
    except AttestError as error:
        _log.error("the keeper could not start: %s", error)
        return 1
    finally:
        numbers.stop()
        await server.close()
        await keeper.close()
    return 0


def _on_gate(metrics: Metrics, event: GateEvent) -> None:
    """A control connection's end: for the log, and for the node's numbers."""
    log_gate(event)
    verdict = "accept" if event.reason == "ok" else "refuse"
    metrics.attestation(event.side, verdict, event.reason, event.platform, event.duration_ms / 1e3)


def make_links(settings: Settings, keeper: Keeper, on_gate: OnGate = log_gate) -> list[ControlLink]:
    """One for each agent that an upstream names; not started."""
    links: dict[str, ControlLink] = {}
    for upstream in settings.upstreams:
        if not upstream.url.startswith("atls://"):
            continue
        connector = AttestedConnector(upstream, keeper, settings.attestation, on_gate=on_gate)
        if str(connector.target) not in links:
            links[str(connector.target)] = ControlLink(connector, keeper.sessions)
            keeper.sessions.add_link(links[str(connector.target)])
    return list(links.values())
