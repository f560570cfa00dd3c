"""The numbers of a node of several processes: one page, and no count that goes with a process."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.edge.door import ask, open_door, request
from tests.integration.test_observability import trace_store
from tests.support.node import Node, children
from tests.telemetry.test_slab import Samples

TOTAL = "cube_requests_total"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with open_door(tmp_path, "http://127.0.0.1:9", workers=2) as proxy:
        yield proxy


def scraped(node: Node) -> Samples:
    status, text = node.local("/metrics")
    assert status == 200
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def total(found: Samples, name: str) -> float:
    return sum(value for (at, _), value in found.items() if at == name)


async def refused(node: Node, times: int) -> None:
    for _ in range(times):
        assert (await ask(node.port, request(authorization="Bearer nothing"))).startswith(b"HTTP/1.1 401")


def _serves_without(node: Node, pids: set[int]) -> bool:
    return node.local("/readyz")[0] == 200 and not pids & {node.supervisor_pid, *node.worker_pids().values()}


async def until(true: Callable[[], bool], timeout_s: float = 15.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not come"
        await asyncio.sleep(0.05)


async def test_all_workers_are_on_one_page(node: Node) -> None:
    await refused(node, 20)
    found = scraped(node)
    assert total(found, TOTAL) == total(found, "cube_request_duration_seconds_count") == 20
    assert found["cube_workers", (("state", "up"),)] == 2
    assert found[
        "cube_build_info", (("role", "proxy"), ("version", dict(_labels(found, "cube_build_info"))["version"]))
    ]
    processes = {dict(labels)["process"] for name, labels in found if name == "process_resident_memory_bytes"}
    assert processes == {"supervisor", "worker-0", "worker-1"}
    assert total(found, "cube_audit_events_total") == 20, "what others count is fresh when asked for"


def _labels(found: Samples, name: str) -> tuple[tuple[str, str], ...]:
    return next(labels for at, labels in found if at == name)


async def test_counters_outlive_workers_and_the_supervisor(node: Node) -> None:
    sent = 0
    for victim in ("worker", "supervisor"):
        await refused(node, 10)
        sent += 10
        assert total(scraped(node), TOTAL) == sent
        if victim == "worker":
            before = set(node.worker_pids().values())
            for pid in before:
                os.kill(pid, signal.SIGKILL)
        else:
            before = {node.supervisor_pid}
            os.kill(node.supervisor_pid, signal.SIGKILL)
        await until(partial(_serves_without, node, before))
        found = scraped(node)
        assert total(found, TOTAL) == total(found, "cube_request_duration_seconds_count") == sent
        restarts = {
            dict(labels)["process"]: v for (name, labels), v in found.items() if name == "cube_process_restarts_total"
        }
        assert (restarts["worker"], restarts["supervisor"]) == (2, int(victim == "supervisor"))
        assert total(found, "cube_connections") == 0
    await refused(node, 1)
    assert total(scraped(node), TOTAL) == sent + 1


@pytest.mark.slow
async def test_spans_of_all_workers_reach_a_collector_through_the_exporter(tmp_path: Path) -> None:
    """And the exporter's end costs what it held, not the node."""
    received: list[dict[str, Any]] = []
    with trace_store(received) as store:
        tracing = {"otlp_endpoint": f"http://127.0.0.1:{store}/v1/traces"}
        with open_door(tmp_path, "http://127.0.0.1:9", workers=2, tracing=tracing) as proxy:
            (exporter,) = children(proxy.supervisor_pid, "cube_mesh.exporter")
            os.kill(exporter, signal.SIGKILL)
            await until(lambda: children(proxy.supervisor_pid, "cube_mesh.exporter") not in ([], [exporter]))
            await refused(proxy, 10)
            assert total(scraped(proxy), "cube_spans_lost_total") == 0
            proxy.stop()  # what waits is sent on the way out
    assert len({span["id"] for span in received}) == len(received) == 10
    assert {span["kind"] for span in received} == {2}, "server spans: nothing was sent on"
