"""The keeper's process, made by exec as the supervisor makes it: it serves a worker, and comes back after kill -9."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cube_mesh import keeper_link, plan, process
from cube_mesh.errors import DependencyError
from cube_mesh.remote_keeper import RemoteKeeper, remote_keeper_from_settings
from cube_mesh.settings import Attestation, Mesh, Settings
from cube_mesh.tls import ca


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    ca.init_ca(tmp_path / "ca", "cube")
    seed = tmp_path / "seed"
    seed.write_bytes(b"s" * 32)
    return Settings(
        unsafe_allow_simulated=True,
        mesh=Mesh(node_id="a1", ca_file=str(tmp_path / "ca" / "ca.crt")),
        attestation=Attestation(attester="simulated-sev-snp", simulated_seed_file=str(seed), handshake_timeout_s=10.0),
    )


class Spawned:
    def __init__(self, settings: Settings) -> None:
        made = plan.Plan(
            role="agent", settings=settings, workers=2, instance="i", tenants_fd=-1, local_fd=-1, slab_fd=-1,
            spans_fd=-1, export_fd=-1,
        )  # fmt: skip
        self.plan_fd = process.sealed(msgspec.json.encode(made))
        self.workers_end, self.keepers_end = keeper_link.rendezvous()
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        fds = (self.plan_fd, self.keepers_end.fileno())
        self.children.append(process.spawn("cube_mesh.keeper_main", *fds, pass_fds=fds))

    def kill(self) -> None:
        self.children[-1].kill()
        self.children[-1].wait()


@pytest.fixture
def spawned(settings: Settings) -> Iterator[Spawned]:
    made = Spawned(settings)
    yield made
    for child in made.children:
        child.kill()
        child.wait()
    os.close(made.plan_fd)
    made.workers_end.close()
    made.keepers_end.close()


async def until_connected(worker: RemoteKeeper) -> None:
    async with asyncio.timeout(10):
        while not worker.connected:
            await asyncio.sleep(0.02)


async def test_a_worker_has_a_leaf_and_after_kill_9_the_next_keepers(settings: Settings, spawned: Spawned) -> None:
    worker = remote_keeper_from_settings(settings, "agent", spawned.workers_end)
    spawned.start()
    await worker.start()
    first = worker.leaf
    spawned.kill()
    async with asyncio.timeout(2):
        while worker.connected:
            await asyncio.sleep(0.02)
    assert worker.leaf == first, "what it has it may go on with"
    assert worker.not_ready == "no keeper", "and what is new it has to refuse"
    spawned.start()
    await until_connected(worker)
    async with asyncio.timeout(5):
        while worker.leaf == first:
            await asyncio.sleep(0.02)
    assert worker.not_ready == ""
    await worker.close()


async def test_without_a_keeper_a_worker_does_not_start(settings: Settings, spawned: Spawned) -> None:
    hurried = msgspec.structs.replace(
        settings, attestation=msgspec.structs.replace(settings.attestation, handshake_timeout_s=0.2)
    )
    worker = remote_keeper_from_settings(hurried, "agent", spawned.workers_end)
    with pytest.raises(DependencyError, match="keeper"):
        await worker.start()
    await worker.close()
