"""A node of several processes, seen from outside: who serves, who dies, who comes back, and what clients notice."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cube_mesh.demo.backend import Script, ScriptedBackend
from tests.edge.certificates import issue
from tests.support.client import Client, Reply, bearer, chat, once
from tests.support.load import Ledger, keep_busy
from tests.support.mesh import identity, make_tenant, read_events
from tests.support.node import Config, Node, children, command_line
from tests.support.process import Child, accepts

RED = make_tenant("red")
CHAT = f"/{RED.domain}/v1/chat/completions"
UP_S = 20.0


def config(backend_url: str, directory: Path, **changes: Any) -> Config:
    return {
        "workers": 2,
        "upstreams": [{"name": "model", "url": backend_url}],
        "routes": [{"name": "all", "upstream": "model", "match": {"path_prefix": "/"}}],
        "identity": identity(RED),
        "audit": {"path": directory / "audit.jsonl"},
        "log": {"format": "json"},
        **changes,
    }


def start(backend: ScriptedBackend, directory: Path, **changes: Any) -> Node:
    return Node("proxy", config(backend.url, directory, **changes), directory).wait_ready()


async def ask(node: Node, *, stream: bool = False) -> Reply:
    return await once(node.port, "POST", CHAT, bearer(RED.key), chat("hello", stream=stream))


async def until(what: str, ready: Callable[[], bool], timeout_s: float = UP_S) -> float:
    """Seconds until ``ready``, asked on a thread; AssertionError when it takes too long."""
    began = time.monotonic()
    while not await asyncio.to_thread(ready):
        assert time.monotonic() - began < timeout_s, what
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def metric(node: Node, name: str, *labels: str) -> float:
    """The sum of a metric's samples that have all these labels, each as ``name="value"``."""
    _, page = node.local("/metrics")
    found = re.findall(rf"^{name}(?:{{(.*?)}})? (\S+)$", page, re.M)
    return sum(float(value) for shown, value in found if all(label in shown for label in labels))


def trail(directory: Path, worker: int) -> list[dict[str, Any]]:
    name = f"audit.w{worker}.jsonl" if worker else "audit.jsonl"
    return [msgspec.json.decode(line) for line in (directory / name).read_bytes().split(b"\n")[:-1]]


def alive(pid: int) -> bool:
    return bool(command_line(pid))


async def streams(node: Node, count: int) -> list[asyncio.Task[Reply]]:
    """So many streams, each on a connection of its own and under way."""
    tasks = []
    for _ in range(count):  # one by one: of a burst one worker may take all
        tasks.append(asyncio.create_task(ask(node, stream=True)))
        await asyncio.sleep(0.02)
    await until("streams run", lambda: metric(node, "cube_requests_in_flight") == count)
    return tasks


# -- serving -----------------------------------------------------------------------------------------------------------


async def test_both_workers_serve_and_the_numbers_are_of_both(backend: ScriptedBackend, tmp_path: Path) -> None:
    with start(backend, tmp_path) as node:
        ledger, stop = Ledger(), asyncio.Event()
        load = asyncio.create_task(keep_busy(node.port, RED, ledger, stop, clients=32))
        await asyncio.sleep(0.5)
        stop.set()
        await load
        answered = len(ledger.whole)
        counted = await asyncio.to_thread(metric, node, "cube_requests_total")
        running = await asyncio.to_thread(metric, node, "cube_connections")
        memory = [metric(node, "process_resident_memory_bytes", f'process="{name}"')
                  for name in ("worker-0", "worker-1", "supervisor")]  # fmt: skip
        readyz, health = node.local("/readyz"), node.local("/health")
    assert (ledger.broken, ledger.odd, ledger.unanswered) == ([], [], [])
    assert counted == answered > 50
    assert running == 0
    assert all(value > 1e6 for value in memory)
    assert readyz[0] == health[0] == 200
    served = [len(trail(tmp_path, worker)) for worker in (0, 1)]
    assert sum(served) == answered and min(served) > 0
    assert ledger.wrongly_recorded(tmp_path) == []


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_burst_is_spread_over_the_workers(backend: ScriptedBackend, tmp_path: Path, encrypted: bool) -> None:
    backend.script = Script(first_byte_s=1.0)
    changes, context = {}, None
    if encrypted:
        authority = issue("authority")
        issue("server", authority).write(tmp_path / "server.crt", tmp_path / "server.key")
        authority.write(tmp_path / "ca.crt", tmp_path / "ca.key")
        changes = {"tls": {"cert_file": tmp_path / "server.crt", "key_file": tmp_path / "server.key"}}
        context = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    with start(backend, tmp_path, listen=changes) as node:
        clients = await asyncio.gather(*(Client.connect(node.port, tls=context) for _ in range(64)))
        replies = await asyncio.gather(
            *(client.request("POST", CHAT, bearer(RED.key), chat("hello")) for client in clients)
        )
        for client in clients:
            await client.close()
        await asyncio.to_thread(node.stop)
    assert [reply.status for reply in replies] == [200] * 64
    served = [len(trail(tmp_path, worker)) for worker in (0, 1)]
    assert sum(served) == 64 and max(served) <= 56, served  # one alone would have all of them; 50 has been seen


async def test_the_processes_are_closed_to_others_and_say_nothing_secret(
    backend: ScriptedBackend, tmp_path: Path
) -> None:
    """No core file, and no process of the same user reads their memory or descriptors."""
    environ = {"CUBE_MESH_UPSTREAMS__0__API_KEY": "of-the-backend"}
    file = config(backend.url, tmp_path)
    with (
        Child((*AS_A_USER, "sleep", "60"), tmp_path / "open.log") as other,
        Node("proxy", file, tmp_path, environ=environ, launcher=AS_A_USER).wait_ready() as node,
    ):
        pids = [node.pid, node.supervisor_pid, *node.worker_pids().values()]
        assert len(pids) == 4
        await until("the reader can read what is open", lambda: may_read(other.pid))
        for pid in pids:
            assert not may_read(pid), command_line(pid)
            assert re.search(r"^Max core file size +0 +0 ", proc(pid, "limits").decode(), re.M)
            assert "of-the-backend" not in str(command_line(pid))
            if os.getuid() == 0:  # it may read in spite of it all, so that what is there can be seen
                assert b"of-the-backend" not in proc(pid, "environ")
        await ask(node)
    assert dict(backend.requests[-1].headers)[b"authorization"] == b"Bearer of-the-backend"


# Root without capabilities is a user like any other: PR_CAPBSET_DROP takes effect at the exec. CAP_SETPCAP goes last.
AS_A_USER = (
    sys.executable,
    "-c",
    "import ctypes, os, sys\n"
    "for capability in sorted(range(64), key=lambda number: number == 8):\n"
    "    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n",
)


def may_read(pid: int) -> bool:
    """Whether a process of that user may read another's environment, which is to read its memory."""
    argv = [*AS_A_USER, "head", "-c1", f"/proc/{pid}/environ"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def proc(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


# -- ends --------------------------------------------------------------------------------------------------------------


async def test_kill_9_of_a_worker_hurts_nobody_elses_connection(backend: ScriptedBackend, tmp_path: Path) -> None:
    backend.script = Script(events=60, gap_s=0.05)
    with start(backend, tmp_path) as node:
        for _ in range(8):  # counted before the kill, and still afterwards
            assert (await once(node.port, "POST", CHAT, {}, chat())).status == 401
        tasks = await streams(node, 16)
        before = node.worker_pids()
        os.kill(before[1], signal.SIGKILL)
        replies = await asyncio.gather(*tasks)
        await until("restarted", lambda: metric(node, "cube_workers", 'state="up"') == 2)
        after = node.worker_pids()
        counts = [
            await asyncio.to_thread(metric, node, *which)
            for which in (
                ("cube_process_restarts_total", 'process="worker"'),
                ("cube_requests_total", 'status="401"'),
                ("cube_requests_in_flight",),
            )
        ]
        backend.script = Script()
        assert [(await ask(node)).status for _ in range(8)] == [200] * 8
    whole = [reply.headers["x-request-id"] for reply in replies if reply.whole]
    cut = [reply.headers["x-request-id"] for reply in replies if not reply.whole]
    assert len(whole) + len(cut) == 16 and cut, "the kill hit nothing"
    of_the_other = {event["request_id"]: event["outcome"] for event in trail(tmp_path, 0)}
    assert {of_the_other[name] for name in whole} == {"completed"}
    assert not of_the_other.keys() & set(cut)
    assert before[0] == after[0] and before[1] != after[1]
    assert counts == [1, 8, 0]


async def test_a_crash_loop_ends_readiness_until_the_worker_stays(backend: ScriptedBackend, tmp_path: Path) -> None:
    with start(backend, tmp_path) as node:
        killed, began = 0, time.monotonic()
        while killed < 5:
            assert time.monotonic() - began < UP_S
            pid = node.worker_pids().get(0)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                await until("dead", lambda pid=pid: not alive(pid))  # type: ignore[misc]
                killed += 1
            await asyncio.sleep(0.01)
        await until("not ready", lambda: node.local("/readyz")[0] == 503)
        assert "worker 0 ended 5 times in a row" in node.local("/readyz")[1]
        assert (await ask(node)).status == 200, "the other worker serves"
        assert node.output.count("worker 0 was killed by signal 9") == 5
        await until("ready", lambda: node.local("/readyz")[0] == 200)
        assert metric(node, "cube_process_restarts_total", 'process="worker"') == 5


async def test_kill_9_of_the_supervisor(backend: ScriptedBackend, tmp_path: Path) -> None:
    """Its workers go with it, service is back within 2 s, and no connection is refused meanwhile."""
    with start(backend, tmp_path) as node:
        assert (await ask(node)).status == 200
        supervisor, workers = node.supervisor_pid, node.worker_pids().values()
        began = time.monotonic()
        os.kill(supervisor, signal.SIGKILL)
        await until("workers die", lambda: not any(map(alive, workers)), 1.0)
        assert accepts(node.port)
        reply = await ask(node)  # waits in the socket's queue for the next worker
        took = time.monotonic() - began
        assert (reply.status, reply.whole) == (200, True)
        assert took < 2.0
        await until("ready", lambda: node.local("/readyz")[0] == 200)
        assert node.supervisor_pid not in (0, supervisor)
        assert metric(node, "cube_process_restarts_total", 'process="supervisor"') == 1
        assert metric(node, "cube_requests_total") == 2, "what was counted before is kept"
        code = await asyncio.to_thread(node.stop)
    assert code == 0


async def test_nothing_outlives_the_launcher(backend: ScriptedBackend, tmp_path: Path) -> None:
    with start(backend, tmp_path) as node:
        pids = [node.supervisor_pid, *node.worker_pids().values()]
        node.kill()
        await until("all end", lambda: not any(map(alive, pids)), 2.0)
        await until("refused", lambda: not accepts(node.port), 2.0)  # the kernel closes files after it frees memory


async def test_a_worker_that_starts_again_has_the_settings_of_the_start(
    backend: ScriptedBackend, tmp_path: Path
) -> None:
    with start(backend, tmp_path) as node:
        (tmp_path / "proxy.toml").write_text("this is no configuration\n")
        for pid in node.worker_pids().values():
            os.kill(pid, signal.SIGKILL)
            await until("dead", lambda pid=pid: not alive(pid))  # type: ignore[misc]
        await until("both up", lambda: metric(node, "cube_workers", 'state="up"') == 2)
        assert (await ask(node)).status == 200


async def test_sigterm_to_one_worker_replaces_it_when_it_has_finished(backend: ScriptedBackend, tmp_path: Path) -> None:
    backend.script = Script(events=10, gap_s=0.05)
    with start(backend, tmp_path) as node:
        tasks = await streams(node, 8)
        before = node.worker_pids()
        os.kill(before[0], signal.SIGTERM)
        assert all(reply.whole for reply in await asyncio.gather(*tasks))
        await until("another one", lambda: node.worker_pids().get(0) not in (None, before[0]))


# -- stopping ----------------------------------------------------------------------------------------------------------


def to_the_node(node: Node) -> None:
    os.kill(node.pid, signal.SIGTERM)


def to_every_process(node: Node) -> None:
    """As a service manager does to a control group: still one request to stop, not two."""
    os.killpg(node.pid, signal.SIGTERM)


def ctrl_c(node: Node) -> None:
    """A terminal sends it to all processes in the foreground."""
    os.killpg(node.pid, signal.SIGINT)


@pytest.mark.parametrize("stop", [to_the_node, to_every_process, ctrl_c])
async def test_drain_finishes_what_runs(backend: ScriptedBackend, tmp_path: Path, stop: Callable[[Node], None]) -> None:
    backend.script = Script(events=60, gap_s=0.05)
    with start(backend, tmp_path) as node:
        tasks = await streams(node, 8)
        pids = [node.supervisor_pid, *node.worker_pids().values()]
        stop(node)
        await until("refused", lambda: not accepts(node.port), 2.0)
        status, page = await asyncio.to_thread(node.local, "/readyz")
        replies = await asyncio.gather(*tasks)
        code = await asyncio.to_thread(node.popen.wait, 10.0)
    assert (status, "draining" in page) == (503, True)
    assert [(reply.status, reply.whole, b"[DONE]" in reply.body) for reply in replies] == [(200, True, True)] * 8
    assert code == 0
    assert not any(map(alive, pids))
    assert [event["outcome"] for event in read_events(tmp_path)] == ["completed"] * 8


async def test_a_second_signal_stops_at_once(backend: ScriptedBackend, tmp_path: Path) -> None:
    backend.script = Script(events=400, gap_s=0.05)
    with start(backend, tmp_path) as node:
        tasks = await streams(node, 4)
        to_the_node(node)
        await until("refused", lambda: not accepts(node.port), 2.0)
        await asyncio.sleep(0.2)
        assert node.popen.poll() is None, "the first one waits"
        began = time.monotonic()
        to_the_node(node)
        code = await asyncio.to_thread(node.popen.wait, 10.0)
        took = time.monotonic() - began
        replies = await asyncio.gather(*tasks)
    assert code == 0
    assert took < 2.0
    assert all(reply.status == 200 and b"[DONE]" not in reply.body for reply in replies)
    assert all(b'"error"' in reply.body for reply in replies), "cut with a frame that says so"


async def test_a_stream_that_does_not_end_is_cut_at_the_deadline(backend: ScriptedBackend, tmp_path: Path) -> None:
    backend.script = Script(events=400, gap_s=0.05)
    with start(backend, tmp_path, timeouts={"drain_s": 0.5}) as node:
        tasks = await streams(node, 2)
        began = time.monotonic()
        code = await asyncio.to_thread(node.stop)
        assert (code, time.monotonic() - began < 3.0) == (0, True)
        assert all(b'"error"' in reply.body for reply in await asyncio.gather(*tasks))


async def test_reload_under_load_reaches_every_worker_and_fails_nobody(
    backend: ScriptedBackend, tmp_path: Path
) -> None:
    issue("server").write(tmp_path / "server.crt", tmp_path / "server.key")
    tls = {"cert_file": tmp_path / "server.crt", "key_file": tmp_path / "server.key"}
    with start(backend, tmp_path / "tls", listen={"tls": tls}) as secured, start(backend, tmp_path) as node:
        ledger, stop = Ledger(), asyncio.Event()
        load = asyncio.create_task(keep_busy(node.port, RED, ledger, stop))
        for _ in range(3):
            for each in (secured, node):
                os.kill(each.pid, signal.SIGHUP)
            await asyncio.sleep(0.2)
        reloads = "cube_edge_certificate_reloads_total"
        await until("reloaded", lambda: metric(secured, reloads, 'result="ok"') == 6)
        stop.set()
        await load
    assert (ledger.broken, ledger.odd, ledger.unanswered, ledger.no_connection) == ([], [], [], 0)
    assert len(ledger.whole) > 20


# -- starting ----------------------------------------------------------------------------------------------------------


async def test_an_address_that_is_taken_is_a_configuration_error(backend: ScriptedBackend, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for section in ("listen", "metrics"):
            with Node("proxy", config(backend.url, tmp_path, **{section: {"port": port}}), tmp_path) as node:
                assert await asyncio.to_thread(node.popen.wait, 10.0) == 78
                assert f"cannot listen on 127.0.0.1:{port}" in node.output


async def test_a_node_whose_workers_cannot_start_ends_with_their_code(backend: ScriptedBackend, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = config(backend.url, tmp_path, audit={"path": tmp_path / "file" / "audit.jsonl"})
    with Node("proxy", file, tmp_path) as node:
        assert await asyncio.to_thread(node.popen.wait, 10.0) == 78
        assert "audit.path" in node.output
        assert children(node.pid, "cube_mesh.supervisor") == []


async def test_without_a_local_listener(backend: ScriptedBackend, tmp_path: Path) -> None:
    with Node("proxy", config(backend.url, tmp_path, metrics={"port": -1}), tmp_path) as node:
        await until("up", lambda: accepts(node.port))
        assert (await ask(node)).status == 200
        assert await asyncio.to_thread(node.stop) == 0


async def test_limits_are_those_of_the_node(backend: ScriptedBackend, tmp_path: Path) -> None:
    """Four in flight for the node are two for each worker: never more than four run."""
    backend.script = Script(events=40, gap_s=0.05)
    with start(backend, tmp_path, limits={"max_in_flight": 4}) as node:
        tasks = [asyncio.create_task(ask(node, stream=True)) for _ in range(24)]
        await until("turned away", lambda: metric(node, "cube_admissions_refused_total", 'limit="in_flight"') >= 20)
        assert 2 <= metric(node, "cube_requests_in_flight") <= 4
        statuses = [reply.status for reply in await asyncio.gather(*tasks)]
    assert statuses.count(503) >= 20 and 2 <= statuses.count(200) <= 4
