"""Log lines: one each, JSON or text, marked when unsafe, never in the way."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cube_mesh.errors import DependencyError, PeerError
from cube_mesh.middleware.logging import Logging
from cube_mesh.ports import Principal
from cube_mesh.telemetry.log import FLUSH_S, LineWriter, NodeFormatter, NodeHandler, setup
from tests.middleware.fakes import A, end, exchange

SECRET = "a tenant's " + "prompt"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("cube_mesh")
    before = (made.handlers[:], made.level, made.propagate)
    yield made
    made.handlers[:], made.level, made.propagate = before[0], before[1], before[2]


def request_line(json_lines: bool = True, unsafe: bool = False, level: str = "info", **changes: Any) -> list[bytes]:
    lines: list[bytes] = []
    passing = end(exchange())
    passing.request_id, passing.trace_id, passing.domain_id = "r1", "f" * 32, A
    passing.principal = Principal("alice", "jwt", "")
    for name, value in changes.items():
        setattr(passing, name, value)
    Logging(lines.append, "n1", json=json_lines, level=level, unsafe=unsafe).leave(passing)
    return lines


def test_a_request_line() -> None:
    (line,) = request_line(upstream="u:1", request_size=3, response_size=5)
    said = json.loads(line)
    assert said.pop("time").endswith("Z")
    assert said == {
        "level": "info", "msg": "request", "request_id": "r1", "trace_id": "f" * 32, "node_id": "n1", "domain_id": A,
        "subject": "alice", "method": "POST", "endpoint": None, "status": 200, "outcome": "completed",
        "error_code": None, "error": None, "duration_ms": pytest.approx(250, abs=0.01), "bytes_in": 3, "bytes_out": 5,
        "upstream": "u:1", "unsafe": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "info"), ({"outcome": "cancelled", "status": 499}, "info"),
        ({"outcome": "refused", "status": 401}, "warn"),
        ({"outcome": "failed", "status": 200}, "error"), ({"status": 500}, "error"), ({"status": 404}, "info"),
    ],
)  # fmt: skip
def test_levels(changes: dict[str, Any], level: str) -> None:
    assert json.loads(request_line(**changes)[0])["level"] == level
    ranks = {"info": ("info",), "warn": ("info", "warning"), "error": ("info", "warning", "error")}
    for least in ("info", "warning", "error"):
        assert bool(request_line(level=least, **changes)) == (least in ranks[level])


@pytest.mark.parametrize("json_lines", [True, False])
@pytest.mark.parametrize("nasty", ["\n", "\r", "\x1b[0m", "\u2028", "\x85", "\x9b", "\ud800", '"'])
def test_one_line_whatever_is_in_it(json_lines: bool, nasty: str) -> None:
    (line,) = request_line(
        json_lines, principal=Principal("s" + nasty, "jwt", ""), error=PeerError("c", "m", detail="d" + nasty)
    )
    text = line.decode("utf-8")
    assert len(text.splitlines()) == 1 and text[:-1].isprintable()


@pytest.mark.parametrize("json_lines", [True, False])
def test_unsafe_marks_every_line(json_lines: bool) -> None:
    (line,) = request_line(json_lines, unsafe=True)
    assert (b'"unsafe":true' if json_lines else b" UNSAFE ") in line
    record = logging.LogRecord("cube_mesh.x", logging.INFO, "", 0, "hello", (), None)
    line = NodeFormatter("n1", json=json_lines, unsafe=True).format(record)
    assert (b'"unsafe":true' if json_lines else b" UNSAFE ") in line


def test_text_shows_what_failed() -> None:
    error = DependencyError("upstream_unreachable", "m", detail="refused")
    (line,) = request_line(False, outcome="failed", status=502, error=error)
    assert b"ERROR POST - 502 failed upstream_unreachable" in line and b"(refused)" in line


def test_node_events_look_the_same(tmp_path: Path, logger: logging.Logger) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    writer, is_json = setup("info", "auto", "n1", fd=fd)
    assert is_json
    logging.getLogger("cube_mesh.part").warning("key %s is\nold", "k1\x1b")
    logging.getLogger("cube_mesh.part").debug("not shown")
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("cube_mesh").exception("it broke")
    writer.close()
    os.close(fd)
    first, second = (json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines())
    assert (first["level"], first["msg"], first["logger"], first["node_id"]) == (
        "warn", "key k1\\u001b is\nold", "cube_mesh.part", "n1",
    )  # fmt: skip
    assert SECRET not in json.dumps(second) and "ValueError" in second["error"] and "test_log.py" in second["error"]


async def test_lines_wait_for_the_timer_and_errors_do_not(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    writer = LineWriter(fd)
    writer.write(b"early\n")
    assert path.read_bytes() == b"early\n"
    writer.start(asyncio.get_running_loop())
    writer.write(b"one\n")
    assert path.read_bytes() == b"early\n"
    await asyncio.sleep(FLUSH_S * 1.5)
    assert path.read_bytes() == b"early\none\n"
    writer.write(b"x" * 40_000 + b"\n")
    assert path.stat().st_size > 40_000
    writer.write(b"last\n")
    writer.close()
    assert path.read_bytes().endswith(b"last\n")
    os.close(fd)


class Writes(LineWriter):
    """Remembers what each write was given."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.pieces: list[bytes] = []

    def _piece(self, data: bytes, start: int) -> bytes:
        self.pieces.append(super()._piece(data, start))
        return self.pieces[-1]


async def test_the_lines_of_a_turn_share_one_write_and_an_error_does_not_wait(
    tmp_path: Path, logger: logging.Logger
) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    writer = Writes(fd)
    writer.start(asyncio.get_running_loop())
    logger.handlers[:] = [NodeHandler(writer, NodeFormatter("n1", json=True))]
    for _ in range(10):
        writer.write(b"request\n")
        logger.warning("odd")
    assert writer.pieces == []
    await asyncio.sleep(0)
    assert [piece.count(b"\n") for piece in writer.pieces] == [20]
    logger.warning("odd")
    logger.error("wrong")
    assert [piece.count(b"\n") for piece in writer.pieces] == [20, 2]
    await asyncio.sleep(0)
    await asyncio.to_thread(logger.error, "from another thread")
    await asyncio.sleep(0.01)
    assert [piece.count(b"\n") for piece in writer.pieces] == [20, 2, 1]
    logger.warning("last")
    writer.close()
    os.close(fd)
    assert (tmp_path / "log").read_bytes() == b"".join(writer.pieces)
    assert writer.pieces[-1].count(b"\n") == 1


async def test_a_stalled_reader_is_not_tried_for_every_line() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    writer = Writes(writing)
    writer.start(asyncio.get_running_loop())
    for _ in range(500):
        writer.write(b"x" * 999 + b"\n")
    assert len(writer.pieces) == 1 and writer.lost == 0
    os.close(reading)
    writer.close()
    os.close(writing)


async def test_a_reader_that_stalls_loses_lines_and_not_the_node() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    writer = LineWriter(writing)
    writer.start(asyncio.get_running_loop())
    line = b"x" * 999 + b"\n"
    for _ in range(2000):
        writer.write(line)
    assert writer.lost > 900
    assert writer.waiting <= 1_048_576
    got = b""
    os.set_blocking(reading, False)
    for _ in range(5000):
        writer.flush()
        try:
            got += os.read(reading, 65_536)
        except BlockingIOError:
            break
    assert got.count(b"\n") == 2000 - writer.lost and len(got) % 1000 == 0
    os.close(reading)
    writer.write(line)
    writer.close()  # nobody reads any more: dropped and counted
    os.close(writing)


@pytest.mark.parametrize("form", ["json", "text"])
def test_every_line_says_which_process_wrote_it(tmp_path: Path, logger: logging.Logger, form: str) -> None:
    """Node events and request lines; a text of many lines on each of them."""
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    writer, is_json = setup("info", form, "n1", fd=fd, process="worker-1")
    logging.getLogger("cube_mesh.part").warning("one\ntwo {\n{")
    request = request_line(is_json)[0]
    for _ in range(3):
        writer.write(request)
    writer.close()
    os.close(fd)
    lines = (tmp_path / "log").read_bytes().splitlines()
    if is_json:
        found = [json.loads(line) for line in lines]
        assert [line["msg"] for line in found] == ["one\ntwo {\n{", "request", "request", "request"]
        assert {(line["process"], line["pid"]) for line in found} == {("worker-1", os.getpid())}
        assert json.loads(request).items() <= found[1].items()
    else:
        assert all(line.startswith(f"[worker-1 {os.getpid()}] ".encode()) for line in lines)
        assert len(lines) == 3 + 3


def test_processes_that_share_a_pipe_do_not_cut_each_others_lines() -> None:
    """Each write is of whole lines and no larger than what a pipe takes at once; only a longer line is cut."""
    reading, writing = os.pipe()
    writer = LineWriter(writing, b'"process":"worker-0",')
    timer = SimpleNamespace(cancel=lambda: None)
    writer.start(SimpleNamespace(call_later=lambda *_: timer))  # type: ignore[arg-type]
    for size in (1_500, 1_500, 1_500, 20, 4_090, 6_000, 20):
        writer.write(b'{"a":"' + b"x" * (size - 9) + b'"}\n')
    writes: list[bytes] = []
    real, os.write = os.write, lambda fd, data: writes.append(bytes(data)) or len(data)  # type: ignore[func-returns-value]
    try:
        writer.flush()
    finally:
        os.write = real
    os.close(reading)
    os.close(writing)
    assert max(map(len, writes)) <= 4096
    assert [write.endswith(b"\n") for write in writes] == [True, True, False, True, False, True]
    assert [json.loads(line)["process"] for line in b"".join(writes).splitlines()] == ["worker-0"] * 7
