"""What a power cut would leave of a trail, from the order of writes, syncs and sends (tests/audit/order.c)."""

from __future__ import annotations

import re
import struct
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h11

_SOURCE = Path(__file__).resolve().parents[1] / "audit" / "order.c"
_HEAD = struct.Struct("=cQI")
_ID = re.compile(rb'"request_id":"([0-9a-f]{32})"')


def build(directory: Path) -> Path:
    """The shim, compiled; for LD_PRELOAD."""
    made = directory / "order.so"
    argv = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(made), str(_SOURCE), "-ldl"]
    subprocess.run([*argv, "-lpthread"], check=True)
    return made


def records(log: Path) -> Iterator[tuple[bytes, int, bytes]]:
    """(kind, inode, bytes); one that a kill cut short is left out."""
    data, at = log.read_bytes(), 0
    while at + _HEAD.size <= len(data):
        kind, inode, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if at + size > len(data):
            return
        yield kind, inode, data[at : at + size]
        at += size


class Answers:
    """Reads what one socket was given, and tells the request ids of answers that are whole."""

    def __init__(self) -> None:
        self._http: h11.Connection | None = None
        self._id = ""

    def feed(self, data: bytes) -> list[str]:
        if self._http is None:
            if not data.startswith(b"HTTP/1.1 "):
                return []  # towards an upstream
            self._http = self._client()
        if data:
            self._http.receive_data(data)
        whole = []
        while (event := self._http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Response):
                self._id = dict(event.headers).get(b"x-request-id", b"").decode()
            elif isinstance(event, h11.EndOfMessage):
                whole.append(self._id)
                rest, _ = self._http.trailing_data
                self._http = self._client()
                if rest:
                    self._http.receive_data(rest)
        return whole

    @staticmethod
    def _client() -> h11.Connection:
        made = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        made.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
        made.send(h11.EndOfMessage())
        return made


@dataclass
class Order:
    """``unsafe``: answers whose last byte was handed over before a sync covered their event and its file's name.
    ``durable``: by inode, what a power cut at the end of the record surely leaves. ``syncs``: that worked, of files.
    """

    answered: list[str] = field(default_factory=list)
    unsafe: list[str] = field(default_factory=list)
    durable: dict[int, bytes] = field(default_factory=dict)
    syncs: int = 0


def judge(log: Path, folder_inode: int) -> Order:
    """Replay the record; ``folder_inode``: the trail's folder, whose syncs make names durable."""
    order = Order()
    content: dict[int, bytearray] = defaultdict(bytearray)
    begun: dict[int, bytes] = {}
    names: set[int] = set()  # of files whose name a power cut may take back
    covered: set[int] = set()  # those whose names the sync that runs makes durable
    sockets: dict[int, Answers] = defaultdict(Answers)
    for kind, inode, data in records(log):
        if kind == b"W":
            content[inode] += data
        elif kind == b"T":
            del content[inode][int.from_bytes(data, "little") :]
        elif kind == b"N" and inode not in content:  # a file with content had a name; renamed, it has one or the other
            names.add(inode)
        elif kind == b"B" and inode == folder_inode:
            covered = set(names)
        elif kind == b"B":
            begun[inode] = bytes(content[inode])
        elif kind == b"E" and inode == folder_inode:
            names -= covered
        elif kind == b"E":
            order.durable[inode] = begun[inode]
            order.syncs += 1
        elif kind == b"S":
            whole = sockets[inode].feed(data)
            if whole:
                kept = set(_kept(order.durable, names))
                order.answered += whole
                order.unsafe += [request_id for request_id in whole if request_id and request_id not in kept]
    for inode in names:
        order.durable.pop(inode, None)
    return order


def _kept(durable: dict[int, bytes], names: set[int]) -> Iterator[str]:
    for inode, lines in durable.items():
        if inode not in names:
            yield from ids_in(lines)


def ids_in(lines: bytes) -> list[str]:
    """The request ids of the whole lines."""
    return [found.decode() for found in _ID.findall(lines[: lines.rfind(b"\n") + 1])]
