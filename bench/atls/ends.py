"""The two ends of each kind of connection: a server in a process of its own, and what its client dials."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import uvloop

from attest.attester import Collector
from attest.schemes.vtpm.collect import TpmCollector
from bench.atls import plain
from cube_mesh.keeper import Keeper
from cube_mesh.tls.connector import ControlEnd
from cube_mesh.tls.identity import Leaf
from tests.support.mesh import PCRS
from tests.support.mesh import Mesh as NodeMesh
from tests.tls import mesh as parts
from tests.tls.mesh import Mesh

CLIENT_CORE, SERVER_CORE = 0, 1
Dial: TypeAlias = Callable[[], Awaitable[Any]]  # one connection, open; it has ``abort`` or a ``transport`` that has
Serving: TypeAlias = Callable[[Connection], Awaitable[None]]  # sends its port, ends when it is told to


@dataclass(frozen=True)
class Served:
    """A server's process, and where it listens."""

    pid: int
    port: int


@contextmanager
def process(serving: Serving) -> Iterator[Served]:
    """Run ``serving`` on an event loop in a process on the other core. Forked before this one has threads or a loop."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_run, args=(serving, theirs), daemon=True)
    child.start()
    try:
        if not ours.poll(30):
            raise RuntimeError("the server did not start")
        yield Served(child.pid or 0, ours.recv())
    finally:
        ours.send(None)
        child.join(10)
        if child.is_alive():
            child.kill()
            child.join()


def _run(serving: Serving, pipe: Connection) -> None:
    os.sched_setaffinity(0, {SERVER_CORE})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving(pipe))  # type: ignore[arg-type]


async def _told_to_end(pipe: Connection) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), ended.set)
    await ended.wait()


def plain_server(mesh: Mesh) -> Serving:
    context = plain.context(mesh.issue("agent", "a1"), mesh.roots, server=True)

    async def serve(pipe: Connection) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: plain.End(context, server=True), "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await _told_to_end(pipe)
        server.close()

    return serve


def agent_server(mesh: Mesh, collector: Collector | None) -> Serving:
    """An agent's listener: control and attached connections, evidence from ``collector`` (None: simulated)."""

    async def serve(pipe: Connection) -> None:
        async with parts.running_agent(mesh.agent_keeper(collector)) as agent:
            pipe.send(agent.port)
            await _told_to_end(pipe)

    return serve


def plain_dial(mesh: Mesh, leaf: Leaf, port: int) -> Dial:
    context = plain.context(leaf, mesh.roots, server=False)
    return lambda: plain.connect(context, port)


def control_dial(keeper: Keeper, port: int) -> Dial:
    dial = parts.connector(keeper, port)
    return lambda: dial.connect_control(ControlEnd)


def attached_dial(keeper: Keeper, port: int) -> Dial | None:
    """Data connections under one session, which the first of them makes; None where this version has no sessions."""
    attaching = getattr(parts, "attaching", None)
    if attaching is None:
        return None
    dial = attaching(keeper, port)
    return lambda: dial.connect(ControlEnd)


def with_tpm(directory: Path, tcti: str) -> tuple[Mesh, Collector]:
    """A mesh whose policy is of the software TPM (a real TPM 2.0 implementation, by tpm2-tools), and its collector."""
    made = NodeMesh(directory / "first", tcti).build()
    collector = TpmCollector(tcti, PCRS, ak_file=str(directory / "first" / "ak"))
    return mesh_at(directory / "second", made.policy.read_text()), collector


def mesh_at(directory: Path, policy: str = "") -> Mesh:
    directory.mkdir(parents=True)
    return Mesh(directory, policy=policy)
