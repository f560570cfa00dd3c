"""What a node of several processes is started from: one sealed copy of its role and settings, read by each process.

A process that is started again gets the settings of the node's start, whatever has happened to the configuration file
since. The files that the settings name (certificates, policies) are read by each process when it starts.
"""

from __future__ import annotations

import os
import uuid
from typing import Literal, NoReturn

import msgspec

from cube_mesh import process, turns
from cube_mesh.listener import bind, bind_edge
from cube_mesh.settings import Settings
from cube_mesh.telemetry import slab
from cube_mesh.telemetry.spans import span_socket

Role = Literal["proxy", "agent"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """``tenants_fd`` and ``local_fd`` are the numbers of the listening sockets in every process; -1: no local one.

    ``slab_fd``: of what all processes count in. A worker's region has its index, then come supervisor and keeper.
    ``turns_fd``: of the memory in which workers see whose turn it is to accept.
    ``spans_fd`` and ``export_fd``: the workers' and the exporter's end of the socket for spans; -1: none are recorded.
    """

    role: Role
    settings: Settings
    workers: int
    instance: str  # of /health: one for the node
    tenants_fd: int
    local_fd: int
    slab_fd: int
    spans_fd: int
    export_fd: int
    turns_fd: int = -1

    @property
    def supervisor_region(self) -> int:
        return self.workers

    @property
    def keeper_region(self) -> int:
        return self.workers + 1


def worker_count(role: Role, settings: Settings) -> int:
    """How many workers the settings mean; 0: everything in one process."""
    return process.cores() if settings.workers < 0 else settings.workers


def launch(role: Role, settings: Settings) -> NoReturn:
    """Bind the listeners and become the launcher, by exec: what the checks of the configuration left in memory is gone.

    Raises ConfigError when an address cannot be had.
    """
    listen, metrics = settings.listen, settings.metrics
    tenants = bind_edge(listen) if role == "proxy" else bind(listen.host, listen.port, listen.backlog)
    local = bind(metrics.host, metrics.port, 16) if metrics.port >= 0 else None
    fds = (tenants.detach(), local.detach() if local is not None else -1)
    workers = worker_count(role, settings)
    spans = span_socket() if settings.tracing.otlp_endpoint else (-1, -1)
    kept = (slab.create(workers + 2), *spans, turns.create(workers))
    for fd in (*fds, *kept):
        if fd >= 0:
            os.set_inheritable(fd, True)
    plan = Plan(
        role=role, settings=settings, workers=workers, instance=str(uuid.uuid4()),
        tenants_fd=fds[0], local_fd=fds[1], slab_fd=kept[0], spans_fd=kept[1], export_fd=kept[2], turns_fd=kept[3],
    )  # fmt: skip
    argv = process.command("cube_mesh.launcher", process.sealed(msgspec.json.encode(plan)), *kept, *fds)
    os.execve(argv[0], argv, process.environment())


def read(fd: int) -> Plan:
    return msgspec.json.decode(process.unsealed(fd), type=Plan)


def share(settings: Settings, workers: int) -> Settings:
    """One worker's settings: its part of every limit that is meant for the node.

    Rounded down, at least 1, so that the node never takes more than it was told to (unless that is less than one for
    each worker). The kernel does not spread connections evenly: a worker may turn some away before the others are full.
    """
    replace = msgspec.structs.replace

    def part(total: int) -> int:
        return max(1, total // workers)

    limits = settings.limits
    limits = replace(
        limits,
        max_connections=part(limits.max_connections),
        max_connections_per_address=part(limits.max_connections_per_address),
        max_in_flight=part(limits.max_in_flight),
    )
    upstreams = tuple(
        replace(
            upstream,
            pool=replace(
                upstream.pool,
                max_idle_per_host=part(upstream.pool.max_idle_per_host),
                max_connections_per_host=part(upstream.pool.max_connections_per_host),
            ),
        )
        for upstream in settings.upstreams
    )
    audit = replace(settings.audit, max_spool_bytes=part(settings.audit.max_spool_bytes))
    return replace(settings, limits=limits, upstreams=upstreams, audit=audit)
