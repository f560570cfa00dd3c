"""Three thousand slow clients at once, and what honest ones feel of them.

Proxy on one core; generator, both upstreams and the crowd on the other, the crowd at the lowest priority: what it takes
from the generator would be charged to the proxy. Rounds in turn: nobody else, the crowd, nobody else again. The crowd
comes and goes within its round. ``python -m tests.prove.crowded backend`` and ``... crowd PORT EACH`` are processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from bench import processes
from bench.load import measure, systems
from tests.edge.crowd import Backend, Ended, slow_body, slow_head, slow_reader
from tests.edge.door import CHAT, RED, metric, open_door, resident
from tests.support.client import bearer, chat
from tests.support.node import Node
from tests.support.process import Child

RATE, CONNECTIONS = 1_000, 40
ROUND_S = {"base": 6, "crowd": 12, "again": 6}
ARRIVING_S, DEADLINE_S = 3.0, 5.0  # all of them are there before the first has to go
LATE_S = 2.5  # a sweep, and a core that the crowd shares with everything else
TIMEOUTS = {"head_s": DEADLINE_S, "body_s": DEADLINE_S, "write_s": DEADLINE_S, "linger_s": 0.5}
WATER = (64 + 64 + 16) * 1024  # of a slow reader: unsent, one read of its upstream on top, usage's end of the answer
SPACE = 16 * 1024  # of any connection, a client's or an upstream's
ROUNDS = ("base", "crowd", "again")
HERE = (*systems.OTHERS, sys.executable, "-m", "tests.prove.crowded")


@contextmanager
def scene(scratch: Path) -> Iterator[Node]:
    """A proxy on its core, with an upstream for honest requests and one for those who read slowly."""
    with systems.upstream(scratch) as port, Child((*HERE, "backend"), scratch / "slow.log") as slow:
        urls = {"model": f"http://127.0.0.1:{port}", "large": slow.first_line()}
        routes = [
            {"name": "large", "upstream": "large", "priority": 1, "match": {"path": "/v1/completions"}},
            {"name": "all", "upstream": "model", "match": {"path_prefix": "/"}},
        ]
        config: dict[str, Any] = {
            "upstreams": [{"name": name, "url": url} for name, url in urls.items()],
            "routes": routes,
            "timeouts": TIMEOUTS,
            "limits": {"max_connections_per_address": 5_000, "max_in_flight": 5_000},
        }
        with open_door(scratch / "proxy", urls["model"], launcher=systems.GATEWAY, **config) as proxy:
            yield proxy


class Rounds:
    """``p99_us`` and ``cpu_us`` by kind of round, one value a round. The CPU is the proxy's for each honest
    request, and of a crowd that while all of it is there: its coming and going is work of its own."""

    def __init__(self, proxy: Node, scratch: Path, each: int) -> None:
        self.p99_us: dict[str, list[int]] = {kind: [] for kind in ROUNDS}
        self.cpu_us: dict[str, list[float]] = {kind: [] for kind in ROUNDS}
        self.ended: list[list[Ended]] = []  # of every crowd: heads, bodies, readers, ``each`` of them
        self.grown = 0  # most memory above what the proxy had before the first crowd, bytes
        self.together = 0  # most connections at the same time
        self._proxy, self._scratch, self._each = proxy, scratch, each
        self._honest(3)  # warm
        self._before = resident(proxy.pid)

    def carry_out(self, number: int) -> None:
        for kind in ROUNDS if number % 2 == 0 else reversed(ROUNDS):
            os.sync()  # the disk is busy for nobody else
            if kind == "crowd":
                with Child((*HERE, "crowd", str(self._proxy.port), str(self._each)), self._scratch / "crowd") as crowd:
                    times = self._watched(kind, 3 * self._each)
                    crowd.popen.wait(60)
                self.ended.append([Ended(*one) for one in json.loads(crowd.output)])
            else:
                times = self._watched(kind, CONNECTIONS)
            self.p99_us[kind].append(times[len(times) * 99 // 100])

    def _honest(self, seconds: int) -> list[int]:
        """Latencies at the fixed rate, sorted; BenchError when one of the answers is not 200."""
        body, log = self._scratch / "body.json", self._scratch / "h2load.log"
        body.write_bytes(chat())
        log.unlink(missing_ok=True)
        argv = [
            *(*systems.OTHERS, "h2load", "--h1", "-t1", f"-c{CONNECTIONS}", f"-D{seconds}"),
            *(f"--rps={RATE // CONNECTIONS}", f"--log-file={log}", "-d", str(body)),
            *("-H", f"authorization: {bearer(RED.key)['authorization']}", self._proxy.url + CHAT),
        ]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=60)
        rows = [line.split() for line in log.read_text().splitlines()]
        bad = [row for row in rows if row[1] != "200"]
        if bad or len(rows) < 0.95 * RATE * seconds:
            raise measure.BenchError(f"{len(bad)} of {len(rows)} honest answers were not 200")
        return sorted(int(row[2]) for row in rows)

    def _watched(self, kind: str, there: int) -> list[int]:
        """The latencies of a round. Meanwhile, five times a second: memory, and CPU while ``there`` connections are."""
        over, samples = threading.Event(), []

        def watch() -> None:
            while not over.wait(0.2):
                self.grown = max(self.grown, resident(self._proxy.pid) - self._before)
                connections = int(metric(self._proxy, "cube_connections"))
                self.together = max(self.together, connections)
                if connections >= there:
                    samples.append((time.perf_counter(), processes.cpu_s(self._proxy.pid)))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            times = self._honest(ROUND_S[kind])
        finally:
            over.set()
            thread.join()
        (began, before), (ended, after) = samples[0], samples[-1]
        self.cpu_us[kind].append((after - before) / (ended - began) / RATE * 1e6)
        return times

    def figures(self) -> dict[str, Any]:
        p99, cpu = ({kind: median(values[kind]) for kind in ROUNDS} for values in (self.p99_us, self.cpu_us))
        return {
            "p99_us": p99,
            "p99_ratio": round(p99["crowd"] / p99["base"], 3),
            "noise": round(abs(p99["again"] / p99["base"] - 1), 3),
            "p99_us_rounds": self.p99_us,
            "proxy_cpu_us_per_honest_request": {kind: round(value, 1) for kind, value in cpu.items()},
            "together": self.together,
            "grown_mib": round(self.grown / 2**20, 1),
            "not_in_time": [asdict(one) for one in self.wrong()][:10],
        }

    def wrong(self) -> list[Ended]:
        """Those who were not told 408 (readers: not cut) between their deadline and a little later."""
        found = []
        for crowd in self.ended:
            for number, one in enumerate(crowd):
                status = 0 if number >= 2 * self._each else 408
                if one.status != status or not DEADLINE_S - 0.3 < one.after_s < DEADLINE_S + LATE_S:
                    found.append(one)
        return found


async def _backend() -> None:
    async with Backend().serve() as url:
        print(url, flush=True)
        await asyncio.Event().wait()


async def _crowd(port: int, each: int) -> None:
    """Wait until the honest round is under way; then all of them arrive, every kind evenly."""
    await asyncio.sleep(1.0)
    start = time.perf_counter()

    async def late(number: int, client: Coroutine[Any, Any, Ended]) -> Ended:
        await asyncio.sleep(max(0.0, start + number * ARRIVING_S / each - time.perf_counter()))
        return await client

    readers = [slow_reader(port, 30.0, f"/{RED.domain}/v1/completions") for _ in range(each)]
    kinds = [[slow_head(port, 1.0) for _ in range(each)], [slow_body(port, 1.0) for _ in range(each)], readers]
    ended = await asyncio.gather(*(late(number, one) for kind in kinds for number, one in enumerate(kind)))
    print(json.dumps([[one.status, one.after_s] for one in ended]))


if __name__ == "__main__":
    os.nice(19)
    uvloop.run(_backend() if sys.argv[1] == "backend" else _crowd(int(sys.argv[2]), int(sys.argv[3])))
