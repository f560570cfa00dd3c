"""``python -m bench.soak``: a million mixed requests; memory and descriptors of every process of the proxy, over time.

Of twenty requests ten are answered whole, five are event streams, three are refused (no such key, no such endpoint, no
JSON) and two are cancelled in the middle of a stream. After the first tenth, and at the end, the clients close and the
proxy comes to rest; between these two moments nothing may have been added. Exit 0 when every request ended as it should
and every bound held.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from bench import plot, processes, report
from bench.load import measure, systems
from bench.load.__main__ import OUT, scratch
from bench.load.run import body
from bench.soak.clients import Crowd, Kind
from tests.support.mesh import Tenant, identity, make_tenant
from tests.support.node import Node

MAX_GROWTH_KB, MAX_RSS_KB = 3 * 1024, 80 * 1024
POOL_IDLE_S = 1.0
REST_S = POOL_IDLE_S + 2.0  # clients gone, idle upstream connections closed, timers run out
SAMPLES = 100


@dataclass
class Watch:
    """Samples of every process of a node: ``rss_kb`` by its name, as (requests so far, KiB)."""

    pid: int
    rss_kb: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def sample(self, requests: int) -> None:
        for name, pid in named(self.pid).items():
            self.rss_kb.setdefault(name, []).append((requests, processes.rss_kb(pid)))

    def at_rest(self) -> dict[str, dict[str, int]]:
        return {
            name: {"rss_kb": processes.rss_kb(pid), "descriptors": processes.descriptors(pid)}
            for name, pid in named(self.pid).items()
        }


def named(pid: int) -> dict[str, int]:
    """The processes of a node by what they are, with their number when it makes several of a kind. One that was
    restarted keeps its name: then its memory begins anew, and ``cube_mesh`` says so in its log."""
    found: dict[str, int] = {}
    for each in processes.tree(pid):
        words = Path(f"/proc/{each}/cmdline").read_bytes().decode().split("\0")
        module = next((word for word in words if word.startswith("cube_mesh")), words[0])
        name = module.removeprefix("cube_mesh.")
        found[name if name not in found else f"{name} {sum(key.startswith(name) for key in found)}"] = each
    return found


def mixture(tenant: Tenant) -> tuple[Kind, ...]:
    """Twenty requests, the kinds spread among them."""
    path, key = f"/{tenant.domain}/v1/chat/completions", f"Bearer {tenant.key}"
    whole, stream = body(stream=False), body(stream=True)
    kinds = {
        "j": Kind("JSON", measure.on_the_wire(path, key, whole), b"200"),
        "s": Kind("stream", measure.on_the_wire(path, key, stream), b"200"),
        "k": Kind("refused: key", measure.on_the_wire(path, key[:-1] + "!", whole), b"401"),
        "e": Kind("refused: endpoint", measure.on_the_wire(f"/{tenant.domain}/v1/nothing", key, whole), b"403"),
        "b": Kind("refused: body", measure.on_the_wire(path, key, b"{" + whole), b"400"),
        "c": Kind("cancelled", measure.on_the_wire(path, key, b'{"endless": true, ' + stream[1:]), b"200", cancel=True),
    }
    return tuple(kinds[letter] for letter in "jsjkjsjcjsjejsjcjsbj")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, default=OUT / "soak.json")
    options = parser.parse_args(argv)
    tenant = make_tenant("bench")
    with (
        scratch() as directory,
        systems.upstream(directory) as port,
        Node("proxy", _config(tenant, port, directory, options.workers), directory / "node") as node,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        node.wait_ready()
        found = runner.run(_soak(node, mixture(tenant), options.requests, options.connections))
    result = verdict(found, {"bench": "soak", "requests": options.requests, "workers": options.workers})
    lines = {name: [(at, kb / 1024) for at, kb in points] for name, points in found["rss_kb"].items()}
    report.write(options.json, result, table(result), plot.lines("resident memory, MiB", lines, "requests"))
    return 0 if result["held"] else 1


def _config(tenant: Tenant, port: int, directory: Path, workers: int) -> dict[str, Any]:
    pool = {"idle_timeout_s": POOL_IDLE_S}
    return {
        "upstreams": [{"name": "model", "url": f"http://127.0.0.1:{port}", "pool": pool}],
        "routes": [{"name": "all", "upstream": "model", "match": {"path_prefix": "/"}}],
        "identity": identity(tenant),
        "audit": {"path": directory / "audit.jsonl"},
        "log": {"format": "json"},
        **systems.workers(workers),
    }


async def _soak(node: Node, kinds: tuple[Kind, ...], requests: int, connections: int) -> dict[str, Any]:
    watch, began = Watch(node.pid), time.monotonic()
    step, done = max(1, requests // SAMPLES), 0

    def on_one() -> None:
        nonlocal done
        done += 1
        if done % step == 0:
            watch.sample(done)

    crowd = Crowd(node.port, kinds, on_one)
    rests = []
    for part in (requests // 10, requests - requests // 10):
        await crowd.send(part, connections)
        await asyncio.sleep(REST_S)
        rests.append(watch.at_rest())
    return {
        "seconds": round(time.monotonic() - began, 1),
        "done": dict(crowd.done),
        "odd": dict(crowd.odd),
        "after_a_tenth": rests[0],
        "at_the_end": rests[1],
        "rss_kb": watch.rss_kb,
    }


def verdict(found: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """What did not hold, each in a line; empty ``faults``, and only then, means that everything did."""
    faults = [f"{count} requests: {what}" for what, count in found["odd"].items()]
    if sum(found["done"].values()) + sum(found["odd"].values()) != about["requests"]:
        faults.append(f"{sum(found['done'].values())} of {about['requests']} requests were counted")
    before, after = found["after_a_tenth"], found["at_the_end"]
    if not before or before.keys() != after.keys():
        faults.append(f"the processes were {sorted(before)} and are {sorted(after)}")
    for name in before.keys() & after.keys():
        growth = after[name]["rss_kb"] - before[name]["rss_kb"]
        if growth > MAX_GROWTH_KB:
            faults.append(f"{name} grew by {growth:,} KiB, more than {MAX_GROWTH_KB:,}")
        if after[name]["rss_kb"] > MAX_RSS_KB:
            faults.append(f"{name} has {after[name]['rss_kb']:,} KiB, more than {MAX_RSS_KB:,}")
        if after[name]["descriptors"] != before[name]["descriptors"]:
            faults.append(f"{name} had {before[name]['descriptors']} descriptors and has {after[name]['descriptors']}")
    return {**report.machine(), **about, **found, "held": not faults, "faults": faults}


def table(result: Mapping[str, Any]) -> str:
    rows = [["", "RSS KiB after a tenth", "at the end", "growth", "descriptors", "at the end"]]
    for name, before in result["after_a_tenth"].items():
        after = result["at_the_end"].get(name, {"rss_kb": 0, "descriptors": 0})
        numbers = (before["rss_kb"], after["rss_kb"], after["rss_kb"] - before["rss_kb"])
        rows.append(
            [name, *(f"{number:,}" for number in numbers), str(before["descriptors"]), str(after["descriptors"])]
        )
    lines = [report.headline(dict(result)), "", *report.columns(rows), ""]
    lines.append(f"{result['requests']:,} requests in {result['seconds']} s: ")
    lines[-1] += ", ".join(f"{count:,} {name}" for name, count in sorted(result["done"].items())) + "."
    lines += [f"NOT HELD: {fault}." for fault in result["faults"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
