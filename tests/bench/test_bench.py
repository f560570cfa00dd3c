"""The harness says what it measured: its arithmetic on known figures, its upstream, and one short run of each part."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.load import __main__ as load
from bench.load import measure, upstream
from bench.micro import __main__ as micro

FIGURES = {
    "nginx": {"rps": [60_000.0, 70_000.0, 50_000.0], "cpu_us": [10.0, 12.0, 11.0], "p50_us": [], "p99_us": []},
    "cube-mesh": {"rps": [30_000.0, 20_000.0, 40_000.0], "cpu_us": [22.0, 33.0, 11.0], "p50_us": [], "p99_us": []},
}
AGAINST = {"nginx": "nginx", "cube-mesh": "nginx"}


def test_summary_is_medians_and_their_ratio() -> None:
    result = load.summary(FIGURES, AGAINST, {}, stream=False)
    assert result["valid"]
    assert result["rows"]["cube-mesh"]["cpu_us"] == {"median": 22.0, "min": 11.0, "max": 33.0}
    assert result["rows"]["cube-mesh"]["ratio"] == {"rps": 0.5, "cpu_us": 2.0}
    assert "x2.00" in load.table(result)


def test_a_run_with_a_slow_nginx_is_invalid_and_says_so() -> None:
    slow = {**FIGURES, "nginx": {**FIGURES["nginx"], "rps": [49_999.0]}}
    result = load.summary(slow, AGAINST, {}, stream=False)
    assert not result["valid"]
    assert "INVALID" in load.table(result)


def test_rounds_take_turns() -> None:
    seen: list[str] = []
    load.interleaved(["a", "b", "c"], 2, seen.append)
    assert seen == ["a", "b", "c", "c", "b", "a"]


def test_cpu_time_is_the_process_trees() -> None:
    before = measure.cpu_s(os.getpid())
    while measure.cpu_s(os.getpid()) < before + 0.05:
        pass
    assert measure.cpu_s(os.getpid()) - before < 0.5


class Written:
    def __init__(self) -> None:
        self.data: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.data.append(data)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_upstream_answers_each_request_however_it_is_cut(size: int) -> None:
    transport, protocol = Written(), upstream.Canned()
    protocol.connection_made(transport)
    stream = b'{"stream": true}'
    sent = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    sent += b"POST / HTTP/1.1\r\ncontent-length: 16\r\n\r\n" + stream
    sent += b"POST / HTTP/1.1\r\nContent-Length: 2\r\nHost: x\r\n\r\n{}"
    for start in range(0, len(sent), size):
        protocol.data_received(sent[start : start + size])
    assert transport.data == [upstream.WHOLE, upstream.STREAM, upstream.WHOLE]


def test_the_canned_answers_are_what_they_say() -> None:
    head, _, body = upstream.WHOLE.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert 400 < len(body) < 550
    assert upstream.STREAM.count(b"data: {") == upstream.EVENTS
    assert len(load.body(False)) in range(650, 800)
    assert json.loads(load.body(True))["stream"] is True


def test_a_short_micro_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert micro.main(["--rounds", "3", "--only", "a JSON body of 0.7", "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    first = rows["scan a JSON body of 0.7 kB"]
    assert first["ns"] > 0
    assert first["ratio"] == pytest.approx(first["ns"] / rows[first["against"]]["ns"], rel=0.5)
    assert "scan a JSON body" in capsys.readouterr().out


@pytest.mark.needs("nginx", "wrk", "h2load", "taskset", "swtpm", "tpm2_quote")
def test_a_short_load_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every part of it runs, the attested pair too; how fast is not this test's business."""
    load.main(["--rounds", "1", "--seconds", "1", "--attested", "--json", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    rows = result["rows"]
    assert {row["against"] for row in rows.values()} == {"nginx", "nginx to mutual TLS", "nginx from mutual TLS"}
    assert {"cube-mesh", "nginx again", "cube-mesh proxy, attested", "cube-mesh agent"} < set(rows)
    assert set(result["latency_rps"]) == {"plain", "mutual TLS"}
    assert all(row[kind]["median"] > 0 for row in rows.values() for kind in ("rps", "cpu_us", "p50_us", "p99_us"))
    assert "requests/s" in capsys.readouterr().out
