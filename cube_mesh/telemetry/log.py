"""The node's log: one JSON object a line, or text on a terminal, collected and written in pieces.

Lines are written 0.2 s after the first one waits, at 32 KiB, at the end of the loop's turn when a warning is among
them, and at once at an error. A crash may lose what waits, and a reader that stalls loses lines (counted) instead of
stalling the node: unlike the audit trail, a log may be lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import stat
from threading import get_ident

import msgspec

from cube_mesh._fastpath import LineQueue
from cube_mesh.text import Stamp, clean, describe

FLUSH_S = 0.2
_FLUSH_BYTES = 32_768
_MAX_BYTES = 1_048_576  # waiting at most; more is dropped
_PIPE_PIECE = 4_096  # PIPE_BUF: what a pipe that polls as writable takes without blocking
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
NAMES = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn", logging.ERROR: "error"}


class LineWriter(LineQueue):
    """Writes lines to one descriptor. ``lost`` counts those dropped because nobody read them."""

    def __init__(self, fd: int, mark: bytes = b"") -> None:
        super().__init__(mark, _FLUSH_BYTES, _MAX_BYTES)
        self._fd = fd
        mode = os.fstat(fd).st_mode
        self._poll: select.poll | None = None
        if not stat.S_ISREG(mode):
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)
        self._soon = False  # written when this turn of the loop ends
        self._thread = 0  # the loop's

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on lines may wait for a timer of this loop; before, each is written at once."""
        self._loop = loop
        self._thread = get_ident()

    def _wait(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(FLUSH_S, self.flush)

    def write_event(self, line: bytes, level: int) -> None:
        """Take a line of the node itself, from any thread; ``level`` says how soon it is written."""
        loop = self._loop
        if loop is not None and get_ident() != self._thread:
            loop.call_soon_threadsafe(self.write_event, line, level)
            return
        for part in line.splitlines(keepends=True):  # a text may be of several: each is marked
            self.write(part)
        if level >= logging.ERROR:
            self.flush()
        elif level >= logging.WARNING and loop is not None and not self._soon:
            self._soon = True
            loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what waits, as far as the other end takes it."""
        self._soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        data = self.take()
        done = 0
        try:
            while done < len(data) and self._ready():
                done += os.write(self._fd, self._piece(data, done))
        except OSError:  # a closed or full log: nothing to tell it to
            self.lost += data.count(b"\n", done)
            done = len(data)
        self._rest = data[done:]
        if self._rest and self._loop is not None:
            self._wait()

    def _piece(self, data: bytes, start: int) -> bytes:
        """What one write takes. Into a pipe whole lines as far as they fit: other processes write to it, too."""
        if self._poll is None:
            return data[start:]
        end = data.rfind(b"\n", start, start + _PIPE_PIECE) + 1
        return data[start : end or start + _PIPE_PIECE]

    def _ready(self) -> bool:
        return self._poll is None or bool(self._poll.poll(0))

    def close(self) -> None:
        self._loop = None
        self.flush()


class _Record(msgspec.Struct, omit_defaults=True):
    time: str
    level: str
    msg: str
    logger: str
    node_id: str = ""
    error: str = ""
    unsafe: bool = False


class NodeFormatter:
    """Formats the records of stdlib logging like request lines. ``unsafe`` marks every line of a node that runs unsafe.

    Of an exception only type and stack are shown: its text may quote what a tenant sent.
    """

    def __init__(self, node_id: str, *, json: bool, unsafe: bool = False) -> None:
        self._node_id = node_id
        self._json = json
        self._unsafe = unsafe
        self._stamp = Stamp()
        self._encode_lines = msgspec.json.Encoder().encode_lines

    def format(self, record: logging.LogRecord) -> bytes:
        error = ""
        if record.exc_info and record.exc_info[1] is not None:
            error = describe(record.exc_info[1])
        level = NAMES.get(record.levelno, record.levelname.lower())
        stamp, text = self._stamp(record.created), record.getMessage()
        if self._json:
            text, error = _lines(text, 8192), _lines(error, 8192)
            line = _Record(stamp, level, text, record.name, self._node_id, error, self._unsafe)
            return self._encode_lines([line])
        mark = " UNSAFE" if self._unsafe else ""
        shown = "\n    ".join(clean(part, 2048) for part in f"{text}\n{error}".strip().split("\n"))
        return f"{stamp} {level.upper():5}{mark} {record.name}: {shown}\n".encode("utf-8", "replace")


def _lines(text: str, limit: int) -> str:
    return "\n".join(clean(part, limit) for part in text[:limit].split("\n"))


class NodeHandler(logging.Handler):
    """Hands stdlib records to the line writer."""

    def __init__(self, writer: LineWriter, formatter: NodeFormatter) -> None:
        super().__init__()
        self._writer = writer
        self._format = formatter.format

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._writer.write_event(self._format(record), record.levelno)
        except Exception:
            self.handleError(record)


def setup(
    level: str, form: str, node_id: str, *, fd: int = 2, unsafe: bool = False, process: str = ""
) -> tuple[LineWriter, bool]:
    """Make the logger ``cube_mesh`` write to ``fd``. Returns the writer, to start and close, and whether lines are
    JSON.

    ``form`` is "json", "text" or "auto" (text on a terminal). ``process``: the name of this process in a node of
    several; each line carries it, and the pid. Replaces an earlier set-up of this logger.
    """
    json = form == "json" or (form == "auto" and not os.isatty(fd))
    writer = LineWriter(fd, _mark(process, json=json) if process else b"")
    logger = logging.getLogger("cube_mesh")
    logger.handlers[:] = [NodeHandler(writer, NodeFormatter(node_id, json=json, unsafe=unsafe))]
    logger.setLevel(LEVELS[level])
    logger.propagate = False
    return writer, json


def _mark(process: str, *, json: bool) -> bytes:
    if not json:
        return f"[{process} {os.getpid()}] ".encode()
    return msgspec.json.encode({"process": process, "pid": os.getpid()})[1:-1] + b","
