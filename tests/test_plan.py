"""What a worker is given: its part of the limits, over memory that nobody can change."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from cube_mesh import plan, process
from cube_mesh.settings import Audit, Limits, Pool, Settings, Upstream


def settings(total: int) -> Settings:
    limits = Limits(max_connections=total, max_connections_per_address=total, max_in_flight=total)
    pool = Pool(max_idle_per_host=total, max_connections_per_host=total)
    return Settings(limits=limits, upstreams=(Upstream(name="a", url="http://127.0.0.1:1", pool=pool),))


@pytest.mark.parametrize(("total", "workers", "part"), [(100, 1, 100), (100, 3, 33), (2, 3, 1), (7, 7, 1)])
def test_each_worker_has_its_part_of_what_is_meant_for_the_node(total: int, workers: int, part: int) -> None:
    shared = plan.share(settings(total), workers)
    limits, pool = shared.limits, shared.upstreams[0].pool
    assert (limits.max_connections, limits.max_connections_per_address, limits.max_in_flight) == (part,) * 3
    assert (pool.max_idle_per_host, pool.max_connections_per_host) == (part, part)
    assert shared.limits.max_json_body == Limits().max_json_body, "of one request: not shared"


def test_how_many_workers() -> None:
    cores = process.cores()
    counts = [plan.worker_count("proxy", Settings(workers=number)) for number in (-1, 0, 1, 5)]
    assert counts == [cores, 0, 1, 5]


@pytest.mark.parametrize(
    ("group", "limits", "most"),
    [
        ("0::/", {"": "max 100000"}, 8),
        ("0::/", {"": "200000 100000"}, 2),
        ("0::/", {"": "150000 100000"}, 2),
        ("0::/", {"": "5000 100000"}, 1),
        ("0::/", {"": "1600000 100000"}, 8),
        ("0::/a/b", {"a/b": "max 100000", "a": "300000 100000"}, 3),
        ("0::/a/b", {"a/b": "300000 100000", "a": "100000 100000"}, 1),
        ("0::/a/b", {"c": "100000 100000"}, 8),
        ("5:cpu:/a\n0::/b", {"b": "400000 100000"}, 4),
        ("0::/", {"": "nonsense"}, 8),
        ("0::/", {}, 8),
        ("", {}, 8),
    ],
)
def test_a_cpu_quota_is_looked_at(
    group: str, limits: dict[str, str], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(group + "\n")
    for name, text in limits.items():
        (tmp_path / "sys/fs/cgroup" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/fs/cgroup" / name / "cpu.max").write_text(text + "\n")
    assert process.cores(tmp_path) == most


def test_without_control_groups_it_is_the_cores(tmp_path: Path) -> None:
    assert process.cores(tmp_path) == len(os.sched_getaffinity(0))


def test_a_plan_crosses_exec_whole_and_cannot_be_changed() -> None:
    made = plan.Plan(
        role="proxy", settings=Settings(audit=Audit(path="/a"), upstreams=settings(3).upstreams), workers=2,
        instance="i", tenants_fd=3, local_fd=-1, slab_fd=4, spans_fd=-1, export_fd=-1,
    )  # fmt: skip
    fd = process.sealed(msgspec.json.encode(made))
    try:
        assert plan.read(fd) == plan.read(fd) == made, "as often as wanted: the offset does not move"
        for change in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 1), lambda: os.ftruncate(fd, 1 << 20)):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(fd)


def test_our_own_settings_leave_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBE_MESH_UPSTREAMS__0__API_KEY", "secret")
    monkeypatch.setenv("SSL_CERT_FILE", "/kept")
    made = process.environment()
    assert "secret" not in made.values() and made["SSL_CERT_FILE"] == "/kept"
