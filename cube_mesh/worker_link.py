"""Between the supervisor and a worker: commands of one byte down, reports up, over a socket pair.

``D`` drain, ``N`` stop now, ``H`` read files again, ``?`` report. A report is a length of four bytes (big endian) and a
``Report`` in MessagePack; the worker sends one when it is up, when asked, and last of all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import msgspec

ASK = b"?"
_LENGTH = 4
_MAX_BYTES = 1_048_576


class Report(msgspec.Struct, frozen=True, array_like=True):
    """``checks``: the worker's readiness checks, each with what it waits for, "" when it holds."""

    checks: dict[str, str]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Report).decode


def frame(report: Report) -> bytes:
    data = _encode(report)
    return len(data).to_bytes(_LENGTH, "big") + data


async def read_report(reader: asyncio.StreamReader) -> Report:
    """The next report. asyncio.IncompleteReadError at the end; ValueError when it is none."""
    size = int.from_bytes(await reader.readexactly(_LENGTH), "big")
    if size > _MAX_BYTES:
        raise ValueError("a report is too long")
    return _decode(await reader.readexactly(size))


class WorkerEnd(asyncio.Protocol):
    """The worker's end. ``on_command`` gets each command but ``?``; when the supervisor is gone it gets ``N``."""

    def __init__(self, report: Callable[[], Report], on_command: Callable[[bytes], None]) -> None:
        self._report = report
        self._on_command = on_command
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        for at in range(len(data)):
            command = data[at : at + 1]
            if command == ASK:
                self.send()
            else:
                self._on_command(command)

    def connection_lost(self, error: Exception | None) -> None:
        self._closed.set()
        self._on_command(b"N")

    def send(self) -> None:
        """Report now."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(self._report()))

    async def close(self) -> None:
        """The last report, and the end of the link when the supervisor has it."""
        self.send()
        if self._transport is not None:
            self._transport.close()
            await self._closed.wait()
