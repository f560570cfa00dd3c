"""The file sink of "write": whole lines or none, 0600, one writer, torn lines moved aside, a full disk is a refusal."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cube_mesh.audit import open_sink
from cube_mesh.audit.file import FileSink
from cube_mesh.audit.outcome import Outcome
from cube_mesh.audit.trail import Trail
from cube_mesh.errors import ConfigError, CubeMeshError, DependencyError
from cube_mesh.settings import Audit

LINE = b'{"n":1}\n'


def sink(path: Path) -> FileSink:
    """One whose turns end when ``record`` says so."""
    return FileSink(Trail(Audit(path=str(path))), Outcome(shed=False), lambda flush: None)


def record(made: FileSink, *lines: bytes) -> list[CubeMeshError | None]:
    """One turn of the loop: these events, one write. How each ended; raises the refusal if all were refused."""
    ends: list[CubeMeshError | None] = []
    for line in lines:
        made.append(line).then(ends.append)
    assert not ends
    made.flush()
    if all(isinstance(end, CubeMeshError) for end in ends):
        raise ends[0]  # type: ignore[misc]
    return ends


def test_the_file_and_its_folder_are_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "var" / "deep" / "audit.jsonl"
    made = sink(path)
    record(made, LINE)
    made.close()
    assert path.read_bytes() == LINE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_lines_are_there_when_they_are_said_to_be_and_follow_what_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"{}\n")
    path.chmod(0o644)
    made = sink(path)
    record(made, LINE)
    assert path.read_bytes() == b"{}\n" + LINE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (made.outcome.written, made.outcome.failed, made.trail.torn_bytes) == (1, 0, 0)
    made.close()


def test_the_events_of_a_turn_share_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, written = sink(tmp_path / "a"), []
    real = os.write
    monkeypatch.setattr("cube_mesh.audit.trail.os.write", lambda fd, data: written.append(data) or real(fd, data))
    assert record(made, b"1\n", b"2\n", b"3\n") == [None] * 3
    assert written == [b"1\n2\n3\n"]


async def test_a_turn_of_the_running_loop(tmp_path: Path) -> None:
    ends: list[CubeMeshError | None] = []
    made = open_sink(Audit(path=str(tmp_path / "a")))
    for _ in range(2):
        recording = made.append(LINE)
        assert recording is not None
        recording.then(ends.append)
    assert (tmp_path / "a").read_bytes() == b"" and not ends
    await asyncio.sleep(0)
    assert (tmp_path / "a").read_bytes() == LINE * 2 and ends == [None, None]


def test_what_waits_is_written_at_the_end(tmp_path: Path) -> None:
    made, ends = sink(tmp_path / "a"), []
    made.append(LINE).then(ends.append)
    made.close()
    assert (tmp_path / "a").read_bytes() == LINE and ends == [None]


def test_a_bug_in_one_exchange_does_not_hold_up_the_others(tmp_path: Path) -> None:
    made, ends = sink(tmp_path / "a"), []

    def bug(error: CubeMeshError | None) -> None:
        raise ValueError

    made.append(LINE).then(bug)
    made.append(LINE).then(ends.append)
    made.flush()
    assert ends == [None]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = sink(tmp_path / "a")
    with pytest.raises(ConfigError, match="another process"):
        sink(tmp_path / "a")
    first.close()
    sink(tmp_path / "a").close()


@pytest.mark.parametrize("make", ["folder", "fifo", "under a file"])
def test_paths_that_are_no_file(tmp_path: Path, make: str) -> None:
    path = tmp_path / "a"
    if make == "folder":
        path.mkdir()
    elif make == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(b"")
        path = path / "b"
    with pytest.raises(ConfigError):
        sink(path)


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (b"", b""), (b"{}\n", b"{}\n"), (b"{}\n{\"x\":", b"{}\n"), (b"{\"x\":", b""),
        (b"{}\n" + b"y" * 200_000, b"{}\n"),
        (b"y" * 200_000, b""), (b"z" * 65_535 + b"\n" + b"t", b"z" * 65_535 + b"\n"), (b"\n", b"\n"),
    ],
)  # fmt: skip
def test_a_torn_last_line_is_moved_aside(tmp_path: Path, before: bytes, kept: bytes) -> None:
    path, aside = tmp_path / "a", tmp_path / "a.torn"
    path.write_bytes(before)
    made = sink(path)
    torn = before[len(kept) :]
    assert made.trail.torn_bytes == len(torn)
    record(made, LINE)
    made.close()
    assert path.read_bytes() == kept + LINE
    assert aside.exists() == bool(torn)
    if torn:
        assert aside.read_bytes() == torn + b"\n"
        assert stat.S_IMODE(aside.stat().st_mode) == 0o600


def test_torn_lines_of_several_crashes_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for n in range(3):
        with path.open("ab") as file:
            file.write(b"torn%d" % n)
        sink(path).close()
    assert (tmp_path / "a.torn").read_bytes() == b"torn0\ntorn1\ntorn2\n"


class Disk:
    """os.write with a script: an int takes that many bytes, an errno name fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *script: int | str) -> None:
        self._script = list(script)
        self._real = os.write
        monkeypatch.setattr("cube_mesh.audit.trail.os.write", self)

    def __call__(self, fd: int, data: Any) -> int:
        step = self._script.pop(0) if self._script else len(data)
        if isinstance(step, str):
            raise OSError(getattr(errno, step), step)
        return self._real(fd, bytes(data[:step]))


@pytest.mark.parametrize("script", [(3,), (1, 1, 1, 1), (7,)])
def test_a_write_that_takes_a_part_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: tuple[int, ...]
) -> None:
    made = sink(tmp_path / "a")
    Disk(monkeypatch, *script)
    record(made, LINE)
    record(made, LINE)
    assert (tmp_path / "a").read_bytes() == LINE * 2


@pytest.mark.parametrize("script", [("ENOSPC",), (3, "ENOSPC"), (3, 2, "EIO"), (3, 0), ("EBADF",), (0, 0)])
def test_a_write_that_fails_is_a_refusal_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: tuple[int | str, ...]
) -> None:
    made = sink(tmp_path / "a")
    record(made, LINE)
    Disk(monkeypatch, *script)
    with pytest.raises(DependencyError) as caught:
        record(made, LINE)
    assert (caught.value.code, caught.value.status) == ("audit_unavailable", 503)
    assert (tmp_path / "a").read_bytes() == LINE
    record(made, LINE)  # the disk has room again
    assert (tmp_path / "a").read_bytes() == LINE * 2
    assert (made.outcome.written, made.outcome.failed) == (2, 1)


def test_a_half_line_that_cannot_be_taken_back_blocks_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sink(tmp_path / "a")
    Disk(monkeypatch, 3, "ENOSPC")
    real = os.ftruncate
    broken = True

    def ftruncate(fd: int, size: int) -> None:
        if broken:
            raise OSError(errno.EIO, "EIO")
        real(fd, size)

    monkeypatch.setattr("cube_mesh.audit.trail.os.ftruncate", ftruncate)
    for _ in range(2):
        with pytest.raises(DependencyError):
            record(made, LINE)
    broken = False
    record(made, LINE)
    assert (tmp_path / "a").read_bytes() == LINE


def test_a_really_full_file(tmp_path: Path) -> None:
    """The kernel's own limit on file size, in a process of its own: a short write, then EFBIG."""
    program = f"""
import resource
from cube_mesh.audit.file import FileSink
from cube_mesh.audit.outcome import Outcome
from cube_mesh.audit.trail import Trail
from cube_mesh.errors import DependencyError
from cube_mesh.settings import Audit
sink = FileSink(Trail(Audit(path={str(tmp_path / "a")!r})), Outcome(shed=False), lambda flush: None)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
refused = 0
for n in range(200):
    ends = []
    sink.append(b'{{"n":%03d}}\\n' % n).then(ends.append)
    sink.flush()
    refused += isinstance(ends[0], DependencyError)
print(sink.outcome.written, refused)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    written, refused = map(int, done.stdout.split())
    assert written + refused == 200 and refused > 0
    content = (tmp_path / "a").read_bytes()
    assert content.count(b"\n") == written and content.endswith(b"\n")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000
