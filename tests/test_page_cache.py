"""The trail and the log do not stay in the page cache, and are whole on the disk. The kernel is asked what it keeps."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cube_mesh.audit.trail import Trail
from cube_mesh.page_cache import DropBehind
from cube_mesh.settings import Audit

ROOT = Path(__file__).parents[1]
LINES = (b'{"n":1}'.ljust(1023) + b"\n") * 1024  # 1 MiB
MIB = 1 << 20


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory on the disk of the checkout: files in memory are nowhere else."""
    with tempfile.TemporaryDirectory(dir=ROOT) as name:
        yield Path(name)


def cached(path: Path) -> int:
    """Bytes of a file that are in the page cache (mincore(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as area:
        at = ctypes.addressof(ctypes.c_char.from_buffer(area))
        pages = (ctypes.c_ubyte * -(-len(area) // mmap.PAGESIZE))()
        assert libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(len(area)), pages) == 0, os.strerror(
            ctypes.get_errno()
        )
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def written(path: Path, size: int = 8) -> Path:
    path.write_bytes(LINES * size)
    return path


def settled(behind: DropBehind, *paths: Path) -> None:
    """Two looks, with the disk done between them."""
    behind.look()
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file)
    behind.look()


def test_what_was_written_leaves_memory_and_stays_in_the_file(disk: Path) -> None:
    trail = Trail(Audit(path=str(disk / "audit.jsonl")))
    for _ in range(8):
        trail.write(LINES)
    log = written(disk / "log")
    assert cached(trail.path) == cached(log) == 8 * MIB
    with log.open("rb") as file:
        settled(DropBehind(trail.path, file.fileno()), trail.path, log)
    assert cached(trail.path) <= MIB and cached(log) <= MIB
    assert trail.path.read_bytes() == log.read_bytes() == LINES * 8
    trail.close()


def test_every_worker_and_a_file_that_was_set_aside_in_between(disk: Path) -> None:
    base, second = written(disk / "audit.jsonl"), written(disk / "audit.w1.jsonl")
    other = written(disk / "notes.txt")
    with open(os.devnull, "rb") as null:
        behind = DropBehind(base, null.fileno())
        behind.look()
        aside = base.rename(disk / "audit.00000001.jsonl")
        settled(behind, aside, second)
    assert cached(aside) <= MIB and cached(second) <= MIB
    assert cached(other) == 8 * MIB, "not ours"


def test_a_file_at_rest_is_left_alone(disk: Path) -> None:
    trail = written(disk / "audit.jsonl")
    with open(os.devnull, "rb") as null:
        behind = DropBehind(trail, null.fileno())
        settled(behind, trail)
        for _ in range(10):
            behind.look()
        trail.read_bytes()  # somebody looks for something in it
        behind.look()
    assert cached(trail) == 8 * MIB


def test_what_is_less_than_a_step_may_stay(disk: Path) -> None:
    trail = written(disk / "audit.jsonl", 1)
    os.truncate(trail, MIB - 1)
    with open(os.devnull, "rb") as null:
        behind = DropBehind(trail, null.fileno())
        settled(behind, trail)
        assert cached(trail) == MIB
        written(trail, 1)
        settled(behind, trail)
    assert cached(trail) == 0


def test_a_trail_that_is_gone_and_a_log_that_is_no_file_end_nothing(disk: Path) -> None:
    reader, writer = os.pipe()
    try:
        DropBehind(disk / "gone" / "audit.jsonl", writer).look()
        DropBehind(None, writer).look()
    finally:
        os.close(reader)
        os.close(writer)


async def test_it_looks_by_itself_until_it_is_stopped(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cube_mesh.page_cache.EVERY_S", 0.01)
    trail = written(disk / "audit.jsonl")
    reader, writer = os.pipe()
    behind = DropBehind(trail, writer)
    behind.stop()  # before it was started
    behind.start()
    async with asyncio.timeout(10):
        while cached(trail) > MIB:
            await asyncio.sleep(0.02)
    behind.stop()
    trail.read_bytes()
    written(disk / "audit.w1.jsonl")
    await asyncio.sleep(0.2)
    assert cached(trail) == cached(disk / "audit.w1.jsonl") == 8 * MIB
    os.close(reader)
    os.close(writer)
