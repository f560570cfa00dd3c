"""The files of a trail: how they are called, which there are, and what a crash left at their ends.

A trail at ``audit.jsonl`` is the file of that name, written by the first worker, ``audit.w1.jsonl`` by the second and
so on. A file that is full is renamed: ``audit.00000001.jsonl``, ``audit.w1.00000001.jsonl``, counting up. So everything
that matches ``audit*.jsonl`` is the trail, and nothing else is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cube_mesh.errors import ConfigError

_BLOCK = 1 << 20
_LIVE = 10**8  # the number of a file that is being written: behind all others


class Member(NamedTuple):
    """One file of a trail. ``number`` counts the full ones of a worker; the one that is written has none, 0."""

    worker: int
    number: int
    path: Path
    size: int


def live(path: Path, worker: int) -> Path:
    """The file that a worker writes."""
    return path if worker == 0 else path.with_name(f"{path.stem}.w{worker}{path.suffix}")


def full(path: Path, worker: int, number: int) -> Path:
    """What a worker's file is called when it is full."""
    own = live(path, worker)
    return own.with_name(f"{own.stem}.{number:08d}{own.suffix}")


def members(path: Path) -> list[Member]:
    """All files of the trail at ``path``, by worker, oldest first. Events of several workers are in no common order."""
    pattern = re.compile(rf"{re.escape(path.stem)}(?:\.w([1-9]\d{{0,4}}))?(?:\.(\d{{8}}))?{re.escape(path.suffix)}")
    found = []
    for entry in os.scandir(path.parent):
        named = pattern.fullmatch(entry.name)
        if named is not None and entry.is_file():
            worker, number = (int(part or 0) for part in named.groups())
            found.append(Member(worker, number, Path(entry.path), entry.stat().st_size))
    return sorted(found, key=lambda member: (member.worker, member.number or _LIVE))


def lines(path: Path) -> Iterator[bytes]:
    """The whole lines of the trail at ``path``. One that is still being written, or was cut short, is left out."""
    for member in members(path):
        with member.path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def recover(fd: int, path: Path) -> int:
    """Cut off what a crash left unfinished, and keep it for the auditor in ``<path>.torn``. How many bytes that was.

    That is what follows the last newline, and everything from the first line on that holds a NUL: no event does, so
    there the kernel had made room and never filled it. Both can only be behind what was synced. OSError when the file
    cannot be read or mended.
    """
    size = os.fstat(fd).st_size
    end = _whole(fd, size)
    if end == size:
        return 0
    aside = os.open(f"{path}.torn", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for at in range(end, size, _BLOCK):
            _write_all(aside, os.pread(fd, min(_BLOCK, size - at), at))
        _write_all(aside, b"\n")
        os.fsync(aside)
    finally:
        os.close(aside)
    sync_folder(path.parent)
    os.ftruncate(fd, end)
    os.fsync(fd)
    return size - end


def _whole(fd: int, size: int) -> int:
    """The length of the whole lines at the beginning of a file."""
    end = 0  # behind the last newline so far
    for start in range(0, size, _BLOCK):
        block = os.pread(fd, _BLOCK, start)
        hole = block.find(b"\0")
        found = block.rfind(b"\n", 0, len(block) if hole < 0 else hole)
        if found >= 0:
            end = start + found + 1
        if hole >= 0:
            break
    return end


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def unusable(path: Path, error: OSError) -> ConfigError:
    """The trail cannot be opened: the node does not start."""
    return ConfigError(f"{path}: {error.strerror or error}", key="audit.path")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
