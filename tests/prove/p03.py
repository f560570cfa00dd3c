"""Issue 03, workers, sessions, durable audit and speed: what it must show.

The lines that measure run the benchmarks as an operator does, and hold when the run counts and the bars are met. What
does not count, as when the host was busy, is done again, three times in all; the figures say what it was.
"""

from __future__ import annotations

import asyncio
import compileall
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

from bench.load import measure, systems
from bench.load.run import body
from cube_mesh.demo.backend import Script, ScriptedBackend
from tests.integration.test_sessions import Quotes
from tests.prove.p01 import with_mesh
from tests.prove.proof import ROOT, Figures, Held, Line, run_tests, timed
from tests.support.client import bearer
from tests.support.kills import kill_under_load
from tests.support.load import Ledger, keep_busy
from tests.support.mesh import Mesh
from tests.support.node import Node

CPU_RATIO, FRAME_RATIO, ADDED_RATIO = 2.0, 1.5, 2.0
SCALES, SAME_CPU, ATTACH_RATIO = 1.8, 1.05, 1.5
QUOTES_RPS = 2500.0
BACK_S = 2.0
TRIES = 3
Json = dict[str, Any]


def _bench(scratch: Path, module: str, full: bool, *arguments: str) -> tuple[Json, str]:
    """What the benchmark wrote, {} when it did not end, and the command."""
    out = scratch / f"{module}.json"
    out.unlink(missing_ok=True)
    command = ["python", "-m", f"bench.{module}", *arguments]
    done = timed([sys.executable, *command[1:], "--json", str(out)], ROOT)
    found: Json = json.loads(out.read_text()) if out.exists() else {"output": done.output[-2000:]}
    return found, " ".join(command)


def _counted(scratch: Path, module: str, full: bool, *arguments: str) -> tuple[Json, str]:
    """As :func:`_bench`, until a run counts; ``did_not_count`` has those before it."""
    found, command = _bench(scratch, module, full, *arguments)
    others: list[Json] = []
    while full and not found.get("valid") and len(others) < TRIES - 1:
        others.append(found)
        found, command = _bench(scratch, module, full, *arguments)
    return {**found, "did_not_count": others}, command


def _rounds(full: bool) -> tuple[str, ...]:
    return ("--rounds", "7", "--seconds", "3") if full else ("--rounds", "1", "--seconds", "1")


def _ratio(found: Json, row: str, kind: str) -> float:
    return float(found.get("rows", {}).get(row, {}).get("ratio", {}).get(kind, float("inf")))


def cost(full: bool, scratch: Path) -> Held:
    """CPU per request of the whole chain, plain and attested, beside nginx in the same place."""
    found, command = _counted(scratch, "load", full, *_rounds(full), "--attested", "--no-latency")
    rows = ("cube-mesh", "cube-mesh proxy, attested", "cube-mesh agent")
    ratios = {row: round(_ratio(found, row, "cpu_us"), 3) for row in rows}
    met = all(ratio <= CPU_RATIO for ratio in ratios.values())
    held = bool(found.get("valid")) and met if full else bool(found.get("rows"))
    return Held(held, {"ratios": ratios, **found}, command)


def peers(full: bool, scratch: Path) -> Held:
    found, command = _counted(scratch, "peers", full, *_rounds(full))
    rows: Mapping[str, Json] = found.get("rows", {})
    rps = {name: row["rps"]["median"] for name, row in rows.items() if "rps" in row}
    ours = rps.get("cube-mesh", 0.0)
    vllm, litellm = (next((v for n, v in rps.items() if word in n.lower()), 0.0) for word in ("vllm", "litellm"))
    figures = {"rps": rps, "to_vllm_router": ours / vllm if vllm else None}
    figures |= {"to_litellm": ours / litellm if litellm else None, "absent": found.get("absent"), "full": found}
    met = found.get("valid") and vllm > 0 and litellm > 0 and ours > vllm and ours >= 100 * litellm
    return Held(bool(met) or not full, figures, command)


def streams(full: bool, scratch: Path) -> Held:
    """The added p99 is judged where the noise allows; otherwise CPU alone is."""
    arguments = ("--rounds", "10", "--seconds", "5") if full else (*_rounds(full), "--streams", "100")
    found, command = _counted(scratch, "load", full, "--paced", *arguments)
    cpu, p99 = (_ratio(found, "cube-mesh", kind) for kind in ("frame_cpu_us", "frame_added_p99_us"))
    noise = abs(_ratio(found, "nginx again", "frame_added_p99_us") - 1)
    judged = "p99 and CPU" if 1 + 2 * noise <= ADDED_RATIO else "CPU"
    met = found.get("valid") and cpu <= FRAME_RATIO and (p99 <= ADDED_RATIO or judged == "CPU")
    figures = {"cpu_ratio": cpu, "added_p99_ratio": p99, "added_p99_noise": round(noise, 3), "judged": judged, **found}
    return Held(bool(met) if full else bool(found.get("rows")), figures, command)


def alone(full: bool, scratch: Path) -> Held:
    """What is added at one connection."""
    found, command = _counted(scratch, "load", full, *_rounds(full))
    ratio = _ratio(found, "cube-mesh", "one_added_us")
    met = found.get("valid") and ratio <= ADDED_RATIO
    return Held(bool(met) or not full, {"added_p50_ratio": round(ratio, 3), **found}, command)


def scaling(full: bool, scratch: Path) -> Held:
    """Two workers; where the gateway is not the limit, CPU per request tells, at the same load for every worker."""
    rounds = ("--rounds", "9", "--seconds", "3") if full else _rounds(full)
    found, command = _counted(scratch, "load", full, *rounds, "--workers", "1", "2", "--no-latency")
    times: Json = next(iter(found.get("scaling", {}).values()), {})
    limit = times.get("gateway_was_the_limit", False)
    met = found.get("valid") and times and (times["rps"] >= SCALES if limit else times["even_cpu_us"] <= SAME_CPU)
    return Held(bool(met) or not full, {"scaling": times, **found}, command)


def attach(full: bool, scratch: Path) -> Held:
    arguments = ("--rounds", "9", "--connections", "300") if full else ("--rounds", "1", "--connections", "20")
    found, command = _counted(scratch, "atls", full, *arguments)
    row = next((name for name in found.get("rows", {}) if "attached" in name), "")
    ratios = found["rows"][row]["ratio"] if row else {}
    cpu = [ratio for kind, ratio in ratios.items() if kind.endswith("_us")]
    met = found.get("valid") and bool(cpu) and max(cpu) <= ATTACH_RATIO
    return Held(bool(met) or not full, {"ratios": ratios, **found}, command)


def sessions(full: bool, scratch: Path) -> Held:
    paths = ("tests/attacks/test_sessions.py", "tests/attacks/test_tenants.py", "tests/tls/test_sessions.py")
    more = ("tests/tls/test_keeper_link.py", "tests/tls/test_session_core.py", "tests/integration/test_sessions.py")
    return run_tests(*paths, *more, least=30)


def quotes(full: bool, scratch: Path) -> Held:
    """Quotes that take a second more, a renewal every 8 s: CPU per request of both nodes, beside a pair without, at the
    same time and rate. The two take turns: what one pair costs more by itself is in both halves of a ratio.
    """
    turns, seconds = (20, 8) if full else (2, 1)
    request_file = scratch / "body.json"
    request_file.write_bytes(body(False))

    def pair(stack: ExitStack, mesh: Mesh, made: Quotes, backend: str) -> systems.System:
        directory = made.directory.parent
        directory.mkdir()
        config = mesh.agent_config(backend, workers=2)
        config["attestation"] |= {"interval_s": 10.0}
        agent = stack.enter_context(Node("agent", config, directory / "agent", environ=made.environ()).wait_ready())
        proxy = stack.enter_context(mesh.proxy(directory / "proxy", agent.port, workers=2))
        return systems.System(directory.name, proxy.url, {"proxy": proxy.pid, "agent": agent.pid}, {})

    def measured(mesh: Mesh) -> Held:
        red = mesh.tenants[0]
        request = measure.Request(request_file, bearer(red.key)["authorization"], f"/{red.domain}/v1/chat/completions")
        both = [Quotes(scratch / name / "quotes", 0) for name in ("one", "other")]
        slow_us, usual_us = [], []
        with ExitStack() as stack:
            backend = f"http://127.0.0.1:{stack.enter_context(systems.upstream(scratch))}"
            running = [pair(stack, mesh, made, backend) for made in both]
            for system in running:
                measure.full_speed(system, request, 1)
            for turn in range(turns):
                slow = turn % 2
                both[slow].take(1.0)
                both[1 - slow].take(0.0)
                spent = measure.together(running, request, seconds, scratch, QUOTES_RPS)
                slow_us.append(spent[slow])
                usual_us.append(spent[1 - slow])
            made = {made.directory.parent.name: len(made.made) for made in both}
        turn_by_turn = [slow / usual for slow, usual in zip(slow_us, usual_us, strict=True)]
        ratios = [sqrt(one * other) for one, other in zip(turn_by_turn[::2], turn_by_turn[1::2], strict=True)]
        figures = {"ratio": round(median(ratios), 3), "least": round(min(ratios), 3), "most": round(max(ratios), 3)}
        figures |= {"slow_us": round(median(slow_us), 1), "usual_us": round(median(usual_us), 1), "quotes": made}
        met = median(ratios) <= SAME_CPU
        return Held(met or not full, {**figures, "ratios": ratios}, "python -m tests.prove 03 --only quotes")

    return with_mesh(scratch, measured)


def memory(full: bool, scratch: Path) -> Held:
    requests = 1_000_000 if full else 10_000
    found, command = _bench(scratch, "soak", full, "--requests", str(requests))
    return Held(bool(found.get("held")) if full else "faults" in found, found, command)


def kills(full: bool, scratch: Path) -> Held:
    """Each kind of process 50 times, on a node of two workers with a keeper, its agent behind it."""
    count = 50 if full else 3
    for package in ("cube_mesh", "attest"):  # as an installation does: processes start without compiling
        compileall.compile_dir(ROOT / package, quiet=2)

    async def measured(mesh: Mesh) -> Held:
        figures: Figures = {}
        held = True
        async with ScriptedBackend() as backend:
            agent = await asyncio.to_thread(mesh.agent, scratch / "agent", backend.url)
            with agent:
                for seed, kind in enumerate(("worker", "keeper", "supervisor")):
                    directory = scratch / kind
                    proxy = await asyncio.to_thread(mesh.proxy, directory, agent.port, workers=2)
                    with proxy:
                        found = await kill_under_load(proxy, mesh.tenants[0], directory, kind, kills=count, seed=seed)
                    slowest = max(found.back_s)
                    figures[kind] = {**asdict(found), "wrong": len(found.wrong), "slowest_back_s": round(slowest, 2)}
                    figures[kind]["back_s"] = round(median(found.back_s), 3)
                    soon = slowest <= (BACK_S if full else 3 * BACK_S)
                    held = held and not found.wrong and soon and found.whole > 10 * count
        return Held(held, figures, "python -m tests.prove 03 --only kills")

    return with_mesh(scratch, lambda mesh: asyncio.run(measured(mesh)))


def power(full: bool, scratch: Path) -> Held:
    return run_tests("tests/integration/test_audit_power.py", "tests/integration/test_audit_crash.py", least=15)


def signals(full: bool, scratch: Path) -> Held:
    """SIGHUP and then SIGTERM to a loaded node of two workers, again and again: nobody fails, nothing is cut."""
    turns = 20 if full else 2

    async def measured(mesh: Mesh) -> Held:
        seen, codes = Ledger(), []
        async with ScriptedBackend() as backend:
            backend.script = Script(events=10, gap_s=0.02)
            agent = await asyncio.to_thread(mesh.agent, scratch / "agent", backend.url)
            with agent:
                for turn in range(turns):
                    proxy = await asyncio.to_thread(mesh.proxy, scratch / f"proxy{turn}", agent.port, workers=2)
                    with proxy:
                        codes.append(await _reload_and_drain(proxy, mesh, seen))
        failed = {"odd": len(seen.odd), "truncated": len(seen.broken), "unanswered": len(seen.unanswered)}
        figures = {"drains": turns, "reloads": 3 * turns, "whole": len(seen.whole), **failed, "exit_codes": codes}
        held = not any(failed.values()) and not any(codes) and len(seen.whole) > 20 * turns
        return Held(held, figures, "python -m tests.prove 03 --only signals")

    return with_mesh(scratch, lambda mesh: asyncio.run(measured(mesh)))


async def _reload_and_drain(proxy: Node, mesh: Mesh, seen: Ledger) -> int:
    """The node's exit code. Clients stop when nothing listens any more."""
    stop = asyncio.Event()
    load = asyncio.create_task(keep_busy(proxy.port, mesh.tenants[0], seen, stop))
    for _ in range(3):
        await asyncio.sleep(0.2)
        os.kill(proxy.pid, signal.SIGHUP)
    await asyncio.sleep(0.3)
    os.kill(proxy.pid, signal.SIGTERM)
    code = await asyncio.to_thread(proxy.popen.wait, 30)
    stop.set()
    await load
    return code


LINES = [
    Line("cost", "CPU per request <= 2.0 times nginx's: full chain plain, proxy attested, agent", cost),
    Line("peers", "ahead of vLLM's router on one core, 100 times LiteLLM", peers),
    Line("streams", "1,000 streams of 10 events/s: CPU per event <= 1.5, added p99 <= 2.0 times nginx's", streams),
    Line("alone", "added p50 at one connection <= 2.0 times what nginx adds", alone),
    Line("scaling", "two workers do 1.8 times one, or cost at most 5 % more, each at the same load", scaling),
    Line("attach", "an attached connection <= 1.5 times a plain mutual TLS handshake in CPU", attach),
    Line("sessions", "one quote per pair and interval over all workers; attacks A18 and A19", sessions),
    Line("quotes", "quotes of a second: CPU per request <= 1.05 of that without the delay", quotes),
    Line("memory", "1,000,000 mixed requests: <= 80 MB, <= 3 MB more than after a tenth, descriptors equal", memory),
    Line("kills", "kill -9 of worker, keeper, supervisor, 50 times each: nothing lost, back within 2 s", kills),
    Line("power", "power loss: no last byte precedes its sync in batch and each", power),
    Line("signals", "reload and drain under load: 0 failed, 0 truncated", signals),
]  # fmt: skip
