"""``python -m bench.atls``: connections/s, one at a time, and CPU per connection at each side.

A plain mutual TLS handshake of the same library is the yardstick, measured twice. A control connection attests with a
quote: simulated evidence (signed in the agent's process) and a TPM 2.0 in software by way of tpm2-tools; the tools are
charged to the server, the TPM's own process is not. An attached data connection stands on a session that a control
connection has made. Client on core 0, server on core 1; TCP and closing are in all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from bench import plot, processes, report
from bench.atls import ends
from bench.load.__main__ import OUT, scratch
from tests.support.tpm import software_tpm

PLAIN, AGAIN = "plain mutual TLS", "plain mutual TLS again"
ATTACHED, SIMULATED, TPM = "attached data connection", "control, simulated quote", "control, software TPM"
MIN_ROUNDS, MAX_NOISE = 7, 0.10
COLUMNS = (("per_s", "connections/s"), ("client_us", "client CPU us"), ("server_us", "server CPU us"))
Figures = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Row:
    name: str
    dial: ends.Dial
    server: int
    connections: int  # in a round


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.atls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--connections", type=int, default=200, help="a round; a tenth of them with the software TPM")
    parser.add_argument("--json", type=Path, default=OUT / "atls.json")
    options = parser.parse_args(argv)
    cores = os.sched_getaffinity(0)
    with scratch() as directory, ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cores)
        figures, absent = measure(stack, directory, options.rounds, options.connections)
    result = summary(figures, absent)
    rows = [(name, row["both_us"]) for name, row in result["rows"].items()]
    svg = plot.bars("CPU us per connection, both sides, median and range", rows)
    report.write(options.json, result, table(result), svg)
    return 0 if result["valid"] else 1


def measure(stack: ExitStack, directory: Path, rounds: int, connections: int) -> tuple[Figures, dict[str, str]]:
    """One value a round for each row, and what could not be run."""
    absent: dict[str, str] = {}
    simulated = ends.mesh_at(directory / "simulated")
    plain = stack.enter_context(ends.process(ends.plain_server(simulated)))
    agent = stack.enter_context(ends.process(ends.agent_server(simulated, None)))
    quoting = None
    if shutil.which("swtpm") and shutil.which("tpm2_quote"):
        with_tpm, collector = ends.with_tpm(directory / "tpm", stack.enter_context(software_tpm()))
        quoting = stack.enter_context(ends.process(ends.agent_server(with_tpm, collector)))
    else:
        absent[TPM] = "swtpm and tpm2-tools are not installed"
    os.sched_setaffinity(0, {ends.CLIENT_CORE})  # after the servers were made: they would inherit it
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        def rows() -> list[Row]:
            leaf = simulated.issue("proxy", "p1")
            keeper, dial = simulated.proxy_keeper(leaf), ends.plain_dial(simulated, leaf, plain.port)
            made = [Row(name, dial, plain.pid, connections) for name in (PLAIN, AGAIN)]
            attached = ends.attached_dial(keeper, agent.port)
            if attached is None:
                absent[ATTACHED] = "this version has no attested sessions"
            else:
                made.insert(1, Row(ATTACHED, attached, agent.pid, connections))
            other = simulated.proxy_keeper(leaf, boot_id=bytes(16))  # or its sessions would end those attached to
            made.insert(1, Row(SIMULATED, ends.control_dial(other, agent.port), agent.pid, max(1, connections // 2)))
            if quoting is not None:
                dial = ends.control_dial(with_tpm.proxy_keeper(), quoting.port)
                made.insert(1, Row(TPM, dial, quoting.pid, max(1, connections // 10)))
            return made

        return runner.run(_rounds(rows(), rounds)), absent


async def _rounds(rows: list[Row], rounds: int) -> Figures:
    figures: Figures = {}
    for row in rows:
        await _once(row.dial)  # warm; and the session that data connections attach to
    for number in range(rounds):
        for row in rows if number % 2 == 0 else rows[::-1]:
            for kind, value in (await _one_round(row)).items():
                figures.setdefault(row.name, {}).setdefault(kind, []).append(value)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    await asyncio.sleep(0.1)  # the last connections are closed
    return figures


async def _one_round(row: Row) -> dict[str, float]:
    began, client, server = time.perf_counter(), time.process_time(), _server_s(row.server)
    for _ in range(row.connections):
        await _once(row.dial)
    elapsed = time.perf_counter() - began
    client_us = (time.process_time() - client) / row.connections * 1e6
    server_us = (_server_s(row.server) - server) / row.connections * 1e6
    both = client_us + server_us
    return {"per_s": row.connections / elapsed, "client_us": client_us, "server_us": server_us, "both_us": both}


async def _once(dial: ends.Dial) -> None:
    end: Any = await dial()
    (getattr(end, "transport", None) or end).abort()


def _server_s(pid: int) -> float:
    """With the tools that it ran for its quotes."""
    return processes.cpu_s(pid) + processes.reaped_s(pid)


def summary(figures: Figures, absent: dict[str, str]) -> dict[str, Any]:
    """Medians, ratios to the plain handshake, and whether the run counts."""
    base = figures[PLAIN]
    rows = {
        name: {
            **{kind: report.spread(values) for kind, values in of.items()},
            "ratio": {kind: median(values) / median(base[kind]) for kind, values in of.items()},
        }
        for name, of in figures.items()
    }
    noise, rounds = rows[AGAIN]["ratio"], len(base["both_us"])
    faults = []
    if rounds < MIN_ROUNDS:
        faults.append(f"{rounds} rounds, and a figure is the median of at least {MIN_ROUNDS}")
    if not abs(noise["both_us"] - 1) <= MAX_NOISE:
        faults.append(f"the plain handshake against itself: {noise['both_us']:.2f}, more than {MAX_NOISE:.0%} apart")
    about = {"bench": "atls", "valid": not faults, "faults": faults, "rounds": rounds, "noise": noise, "absent": absent}
    return {**report.machine(), **about, "rows": rows}


def table(result: dict[str, Any]) -> str:
    rows = [["", *(title for _, title in COLUMNS), "both sides"]]
    for name, row in result["rows"].items():
        cells = [f"{row[kind]['median']:,.0f} x{row['ratio'][kind]:.2f}" for kind, _ in COLUMNS]
        rows.append([name, *cells, f"{row['both_us']['median']:,.0f} x{row['ratio']['both_us']:.2f}"])
    lines = [report.headline(result), "", *report.columns(rows), ""]
    lines.append(
        f"Median of {result['rounds']} interleaved rounds, x ratio to the first row; one connection at a time."
    )
    lines.append(
        f"Noise floor, the plain handshake against itself: {result['noise']['both_us']:.2f} CPU of both sides."
    )
    lines += [f"Not run: {name}: {why}." for name, why in result["absent"].items()]
    lines += [f"INVALID: {fault}." for fault in result["faults"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
