"""What every durability promises, and what each promises alone."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from cube_mesh.audit import Ageing, Sink, open_sink, spool
from cube_mesh.errors import ConfigError, CubeMeshError, DependencyError
from cube_mesh.settings import Audit

ALL = ("write", "batch", "each", "async")
SYNCED = ("batch", "each")
End = CubeMeshError | None


def line(number: int, size: int = 40) -> bytes:
    return (b'{"n":%03d,"pad":"' % number).ljust(size - 3, b"x") + b'"}\n'


class Used:
    """A sink in the running loop, and how its events ended."""

    def __init__(self, folder: Path, durability: str, **settings: Any) -> None:
        self.path = folder / "audit.jsonl"
        self.settings = Audit(path=str(self.path), durability=durability, **settings)  # type: ignore[arg-type]
        self.sink: Sink = open_sink(self.settings)
        self.ends: list[End] = []

    def append(self, event: bytes) -> None:
        try:
            recording = self.sink.append(event)
        except CubeMeshError as error:
            self.ends.append(error)
            return
        if recording is None:
            self.ends.append(None)
        else:
            recording.then(self.ends.append)

    async def record(self, *events: bytes) -> list[End]:
        """Append them in one turn; how they ended."""
        self.ends.clear()
        for event in events:
            self.append(event)
        await self.until(lambda: len(self.ends) == len(events))
        return list(self.ends)

    async def until(self, true: Any) -> None:
        deadline = time.monotonic() + 5
        while not true():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)

    async def settled(self) -> None:
        """Also what "async" has answered is on the disk."""
        await self.until(lambda: self.path.exists() and not getattr(self.sink, "_busy", False))

    def lines(self) -> list[bytes]:
        return list(spool.lines(self.path))


@pytest.mark.parametrize("durability", ALL)
async def test_every_event_once_in_order_and_whole(tmp_path: Path, durability: str) -> None:
    used = Used(tmp_path, durability)
    for start in range(0, 30, 10):
        assert await used.record(*(line(start + n) for n in range(10))) == [None] * 10
    await used.settled()
    assert used.lines() == [line(n) for n in range(30)]
    assert used.sink.outcome.counts() == {"written": 30, "failed": 0, "shed": 0, "lost": 0}
    used.sink.close()


@pytest.mark.parametrize("durability", ALL)
async def test_closing_writes_what_waits(tmp_path: Path, durability: str) -> None:
    used = Used(tmp_path, durability)
    for n in range(5):
        used.append(line(n))
    used.sink.close()
    await used.until(lambda: len(used.ends) == 5)
    assert used.ends == [None] * 5 and used.lines() == [line(n) for n in range(5)]
    assert used.sink.outcome.written == 5
    ends = await used.record(line(6))
    assert isinstance(ends[0], DependencyError), "who comes after the end is refused, and nobody waits for ever"
    assert len(used.lines()) == 5


@pytest.mark.parametrize("durability", ALL)
async def test_files_are_set_aside_and_hold_all_lines(tmp_path: Path, durability: str) -> None:
    used = Used(tmp_path, durability, rotate_bytes=400)
    for n in range(50):
        assert await used.record(line(n)) == [None]
        await used.settled()
    used.sink.close()
    members = spool.members(used.path)
    assert len(members) == 5 and all(member.size <= 400 for member in members)
    assert [member.path.name for member in members[:2]] == ["audit.00000001.jsonl", "audit.00000002.jsonl"]
    assert all(member.path.stat().st_mode & 0o777 == 0o600 for member in members)
    assert used.lines() == [line(n) for n in range(50)]
    again = Used(tmp_path, durability, rotate_bytes=400)
    assert await again.record(*(line(n) for n in range(50, 65))) == [None] * 15
    again.sink.close()
    assert again.lines() == [line(n) for n in range(65)], "a restart goes on counting"


@pytest.mark.parametrize("durability", ALL)
@pytest.mark.parametrize("on_error", ["refuse", "shed"])
async def test_a_full_spool(tmp_path: Path, durability: str, on_error: str) -> None:
    """Counts as full until somebody takes files away; then it goes on by itself."""
    used = Used(tmp_path, durability, rotate_bytes=400, max_spool_bytes=1200, on_error=on_error)
    ends: list[End] = []
    for n in range(60):
        ends += await used.record(line(n))
        await used.settled()
    assert sum(member.size for member in spool.members(used.path)) <= 1200
    refused = [end for end in ends if end is not None]
    assert all(isinstance(end, DependencyError) and end.code == "audit_unavailable" for end in refused)
    assert (len(refused) > 20) == (on_error == "refuse")
    counts = used.sink.outcome.counts()
    assert (counts["failed"] > 0, counts["shed"] > 0) == (on_error == "refuse", on_error == "shed")
    for member in spool.members(used.path)[:2]:
        member.path.unlink()
    used.sink.reopen()
    await asyncio.sleep(0.02)
    await used.record(line(70))
    await used.settled()
    assert await used.record(line(71)) == [None]
    used.sink.close()
    assert line(71) in used.lines()


@pytest.mark.parametrize("durability", ALL)
async def test_the_oldest_go_only_when_the_operator_says_so(tmp_path: Path, durability: str) -> None:
    used = Used(tmp_path, durability, rotate_bytes=400, max_spool_bytes=1200, remove_oldest=True)
    for n in range(100):
        assert await used.record(line(n)) == [None]
        await used.settled()
    used.sink.close()
    assert sum(member.size for member in spool.members(used.path)) <= 1200
    kept = used.lines()
    assert kept == [line(n) for n in range(100 - len(kept), 100)] and len(kept) >= 20
    assert used.sink.trail.removed > 0


@pytest.mark.parametrize("durability", ALL)
async def test_a_file_that_was_moved_away_is_left_behind_on_sighup(tmp_path: Path, durability: str) -> None:
    used = Used(tmp_path, durability)
    await used.record(line(1))
    await used.settled()
    used.path.rename(tmp_path / "taken")
    used.sink.reopen()
    await used.until(used.path.exists)
    await used.record(line(2))
    used.sink.close()
    assert ((tmp_path / "taken").read_bytes(), used.path.read_bytes()) == (line(1), line(2))


@pytest.mark.parametrize("durability", ALL)
async def test_an_old_file_is_set_aside_by_the_time_of_its_first_event(tmp_path: Path, durability: str) -> None:
    (tmp_path / "audit.jsonl").write_bytes(b'{"timestamp":"2020-01-02T03:04:05.678Z"}\n')
    used = Used(tmp_path, durability, rotate_s=3600.0)
    ageing = Ageing(used.sink, 3600.0)
    ageing.on_deadline(100.0)
    assert ageing.deadline == 160.0
    await used.until(lambda: used.sink.trail.rotated == 1)
    ageing.on_deadline(160.0)  # an empty one stays
    await used.record(line(1))
    used.sink.close()
    assert used.path.read_bytes() == line(1) and used.sink.trail.rotated == 1


@pytest.mark.parametrize("durability", ALL)
async def test_one_process_writes_a_trail(tmp_path: Path, durability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cube_mesh.audit.trail._PATIENCE_S", 0.05)
    used = Used(tmp_path, durability)
    with pytest.raises(ConfigError, match="another process"):
        open_sink(used.settings)
    beside = open_sink(used.settings, worker=3)
    used.sink.close()
    beside.close()
    assert [member.path.name for member in spool.members(used.path)] == ["audit.jsonl", "audit.w3.jsonl"]


# -- what is synced ----------------------------------------------------------------------------------------------------


class Disk:
    """``os.fdatasync`` that takes its time, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> None:
        self.syncs, self.seconds, self.error = 0, seconds, 0
        self._real = os.fdatasync
        monkeypatch.setattr("cube_mesh.audit.trail.os.fdatasync", self)

    def __call__(self, fd: int) -> None:
        self.syncs += 1
        time.sleep(self.seconds)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self._real(fd)


@pytest.mark.parametrize("durability", SYNCED)
async def test_nobody_is_answered_before_the_sync(
    tmp_path: Path, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, 0.05)
    used = Used(tmp_path, durability)
    used.append(line(1))
    started = time.monotonic()
    await asyncio.sleep(0.02)
    assert time.monotonic() - started < 0.045, "the loop does not wait for the disk"
    assert used.ends == [] and disk.syncs == 1
    await used.until(lambda: used.ends == [None])
    used.sink.close()


@pytest.mark.parametrize(("durability", "syncs"), [("batch", 2), ("each", 41), ("write", 0)])
async def test_how_many_syncs_for_forty_that_come_during_one(
    tmp_path: Path, durability: str, syncs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, 0.005)
    used = Used(tmp_path, durability)
    used.append(line(0))
    await asyncio.sleep(0.001)
    for n in range(1, 41):
        used.append(line(n))
    await used.until(lambda: len(used.ends) == 41)
    assert disk.syncs == syncs
    assert used.lines() == [line(n) for n in range(41)]
    used.sink.close()


@pytest.mark.parametrize("durability", SYNCED)
async def test_a_sync_that_fails_is_a_refusal_and_takes_the_events_back(
    tmp_path: Path, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    used = Used(tmp_path, durability)
    await used.record(line(1))
    disk.error = errno.EIO
    (end,) = await used.record(line(2))
    assert isinstance(end, DependencyError) and end.status == 503
    assert used.lines() == [line(1)]
    disk.error = 0
    assert await used.record(line(3)) == [None]
    assert used.lines() == [line(1), line(3)]
    assert (used.sink.trail.sync_failures, used.sink.outcome.failed) == (1, 1)
    used.sink.close()


async def test_async_answers_at_once_within_a_bound_and_loses_nothing_that_can_be_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, 0.05)
    used = Used(tmp_path, "async", max_unwritten_bytes=200)
    for n in range(8):
        used.append(line(n))
    assert [end is None for end in used.ends] == [True] * 5 + [False] * 3
    disk.error = errno.ENOSPC
    await used.settled()
    assert used.lines() == [] and used.sink.outcome.lost == 0
    disk.error, disk.seconds = 0, 0.0
    used.append(line(9))  # refused: nobody knows yet; but it is the attempt
    await used.settled()
    assert isinstance(used.ends[-1], DependencyError)
    assert await used.record(line(10)) == [None]
    used.sink.close()
    assert used.lines() == [line(n) for n in (0, 1, 2, 3, 4, 10)]


async def test_async_says_what_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    used = Used(tmp_path, "async")
    disk.error = errno.EIO
    used.append(line(1))
    used.append(line(2))
    used.sink.close()
    assert used.sink.outcome.counts() == {"written": 0, "failed": 0, "shed": 0, "lost": 2}


async def test_a_bug_in_the_trail_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = Used(tmp_path, "batch")
    monkeypatch.setattr(used.sink.trail, "write", None)
    (end,) = await used.record(line(1))
    assert isinstance(end, DependencyError)
    monkeypatch.undo()
    assert await used.record(line(2)) == [None]
    used.sink.close()


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_is_of_a_trail_and_in_which_order(tmp_path: Path) -> None:
    mine = [
        "audit.00000009.jsonl", "audit.00000010.jsonl", "audit.jsonl", "audit.w1.00000001.jsonl", "audit.w1.jsonl",
        "audit.w10.jsonl",
    ]  # fmt: skip
    others = ["audit.jsonl.torn", "audit.jsonl.lock", "audit.w0.jsonl", "audit.w1.1.jsonl", "audit2.jsonl", "b.jsonl"]
    for name in sorted([*mine, *others]):
        (tmp_path / name).write_bytes(b"{}\n")
    assert [member.path.name for member in spool.members(tmp_path / "audit.jsonl")] == mine


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (b"{}\n\0\0\0\0", b"{}\n"), (b"{}\n{\"a\"\0\0}\n{}\n", b"{}\n"), (b"\0", b""), (b"{}\n{}\n", b"{}\n{}\n"),
        (b"y" * (1 << 20) + b"\n" + b"z" * 9, b"y" * (1 << 20) + b"\n"),
        (b"y" * ((1 << 20) - 1) + b"\n\0", b"y" * ((1 << 20) - 1) + b"\n"),
    ],
)  # fmt: skip
async def test_what_a_power_cut_left_unfinished_is_no_event(tmp_path: Path, before: bytes, kept: bytes) -> None:
    (tmp_path / "audit.jsonl").write_bytes(before)
    used = Used(tmp_path, "batch")
    assert used.sink.trail.torn == (before != kept)
    await used.record(line(1))
    used.sink.close()
    assert used.path.read_bytes() == kept + line(1)
    if before != kept:
        assert (tmp_path / "audit.jsonl.torn").read_bytes() == before[len(kept) :] + b"\n"


async def test_a_rotation_that_fails_is_a_refusal_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = Used(tmp_path, "batch", rotate_bytes=100)
    await used.record(line(1), line(2))
    real, broken = os.rename, [True, True, False]

    def rename(old: Any, new: Any) -> None:
        if not str(old).endswith(".new") or not broken.pop(0):
            return real(old, new)
        raise OSError(errno.EIO, "EIO")

    monkeypatch.setattr("cube_mesh.audit.trail.os.rename", rename)
    for _ in range(2):  # the old file has its new name already, and is still the one that is open
        (end,) = await used.record(line(3))
        assert isinstance(end, DependencyError)
    assert await used.record(line(4)) == [None]
    used.sink.close()
    assert used.lines() == [line(1), line(2), line(4)]
