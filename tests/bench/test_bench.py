"""The harness's upstream and request are what they say, and one short run of each part comes to its end."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from bench import report
from bench.load import __main__ as load
from bench.load import answers, systems
from bench.load.run import body
from bench.micro import __main__ as micro
from bench.micro.case import Case


@pytest.mark.needs("cc", "taskset")
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_upstream_answers_each_request_however_it_is_cut(tmp_path: Path, size: int) -> None:
    sent = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    sent += b'POST / HTTP/1.1\r\ncontent-length: 16\r\n\r\n{"stream": true}'
    sent += b"POST / HTTP/1.1\r\nContent-Length: 2\r\nHost: x\r\n\r\n{}"
    sent += b'POST / HTTP/1.1\r\nContent-Length: 33\r\n\r\n{"stream": true, "endless": true}'
    expected = answers.WHOLE + answers.STREAM + answers.WHOLE + answers.BEGUN
    with systems.upstream(tmp_path) as port, socket.create_connection(("127.0.0.1", port), 5) as sock:
        for start in range(0, len(sent), size):
            sock.sendall(sent[start : start + size])
        found = b""
        while len(found) < len(expected):
            found += sock.recv(65_536)
        assert found == expected


@pytest.mark.needs("cc", "taskset")
def test_the_upstream_waits_for_who_does_not_read(tmp_path: Path) -> None:
    """More answers than sockets hold: each is whole, and in its place, when they are read at last."""
    request = b'POST / HTTP/1.1\r\nContent-Length: 16\r\n\r\n{"stream": true}'
    with systems.upstream(tmp_path) as port, socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(request * 900)  # 12 MB of answers
        time.sleep(0.2)
        left = memoryview(answers.STREAM * 900)
        while left:
            piece = sock.recv(1_048_576)
            assert piece == left[: len(piece)] and piece
            left = left[len(piece) :]


def test_the_canned_answers_are_what_they_say() -> None:
    head, _, answer = answers.WHOLE.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(answer)}".encode() in head
    assert 400 < len(answer) < 550
    assert answers.STREAM.count(b"data: {") == answers.EVENTS
    assert len(body(False)) in range(650, 800)
    assert json.loads(body(True))["stream"] is True


def test_a_short_micro_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert micro.main(["--rounds", "3", "--only", "a JSON body of 0.7", "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    first = rows["scan a JSON body of 0.7 kB"]
    assert first["ns"] > 0
    assert first["ratio"] == pytest.approx(first["ns"] / rows[first["against"]]["ns"], rel=0.5)
    assert "scan a JSON body" in capsys.readouterr().out


def test_a_bar_is_judged_by_ratio_or_by_time() -> None:
    cases = [
        Case("whole", lambda: sum(range(200)), bar=1e9),
        Case("part", lambda: sum(range(20)), "whole", bar=1.0),
        Case("late", lambda: sum(range(200)), "part", bar=1.0),
        Case("alone", lambda: None, "what was not asked for", bar=1.0),
    ]
    rows = micro.measure(cases, 3)
    assert [row.get("held") for row in rows.values()] == [True, True, False, None]
    assert rows["late"]["ratio"] > rows["late"]["bar"] == 1.0
    shown = micro.table({**report.machine(), "rows": rows}).splitlines()
    assert [line.split()[0] for line in shown if "MISSED" in line] == ["late"]


@pytest.mark.slow
@pytest.mark.needs("nginx", "wrk", "h2load", "taskset", "swtpm", "tpm2_quote")
def test_a_short_load_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every part of it runs, the attested pair too; how fast is not this test's business."""
    out = tmp_path / "out.json"
    assert load.main(["--rounds", "1", "--seconds", "1", "--attested", "--json", str(out)]) == 1, (
        "one round is no figure"
    )
    result = json.loads(out.read_text())
    rows = result["rows"]
    assert {row["against"] for row in rows.values()} == {"nginx", "nginx to mutual TLS", "nginx from mutual TLS"}
    assert {"cube-mesh", "nginx again", "cube-mesh proxy, attested", "cube-mesh agent"} < set(rows)
    assert set(result["latency_rps"]) == {"plain", "mutual TLS"}
    assert all(row[kind]["median"] > 0 for row in rows.values() for kind in ("rps", "cpu_us", "p50_us", "p99_us"))
    assert "requests/s" in capsys.readouterr().out
    assert out.with_suffix(".svg").read_text().startswith("<svg")


@pytest.mark.slow
@pytest.mark.needs("nginx", "cc", "taskset")
def test_a_short_paced_run(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    shape = ["--paced", "--rounds", "1", "--seconds", "1", "--streams", "50", "--chain", "full", "bare"]
    load.main([*shape, "--json", str(out)])
    result = json.loads(out.read_text())
    assert set(result["rows"]) == {"nginx", "nginx again", "cube-mesh", "cube-mesh, bare"}, (
        "what has no gateway is only compared with"
    )
    for row in result["rows"].values():
        assert row["frame_cpu_us"]["median"] > 0
        assert row["frame_added_p50_us"]["median"] < row["frame_p50_us"]["median"]
