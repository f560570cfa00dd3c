"""The tables: one file a class, one line a case. What arrives on a connection, and what has to come of it.

``OUTCOME BYTES [=> MESSAGE [| MESSAGE]...]``. In BYTES, ``¶`` is CR LF, backslash escapes are those of Python,
``<text*n>`` repeats, ``$A``, ``$B`` and ``$KEY`` are two domains and a key of the first. OUTCOME is one of

    ok       every request is answered and the connection stays
    close    every request is answered and the connection closes
    wait     the complete requests are answered, for the rest we wait
    NNN      refused with that status, after the messages given, and the connection closes
    NNN!     the same for a request that is well framed: the connection stays

A MESSAGE is what has to arrive at the upstream: method, target, and body, if there is one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.middleware import fakes

TABLES = Path(__file__).with_name("tables")
_REPEAT = re.compile(r"<([^<>]*)\*(\d+)>")
_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|.)")
_NAMES = {"\\r": "\r", "\\n": "\n", "\\t": "\t", "\\0": "\0", "\\\\": "\\"}

Message = tuple[str, str, bytes]


@dataclass(frozen=True)
class Case:
    """``status`` is 0 unless the last thing that happens is a refusal."""

    name: str
    data: bytes
    status: int
    closes: bool
    waits: bool
    messages: tuple[Message, ...]
    chain: str  # "stream", "json" or "proxy"

    @property
    def statuses(self) -> tuple[int, ...]:
        answered = (204,) * len(self.messages)
        return (*answered, self.status) if self.status else answered


def load(table: Path) -> list[Case]:
    """The cases of one class; ValueError for a line that is not a case."""
    lines = table.read_text("utf-8").split("\n")
    chain = next((c for c in ("json", "proxy") if f"Chain: {c}." in lines[0]), "stream")
    cases = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            cases.append(_case(f"{table.stem}:{number}", line, chain))
    return cases


def _case(name: str, line: str, chain: str) -> Case:
    outcome, _, rest = line.partition(" ")
    if re.fullmatch(r"ok|close|wait|\d{3}!?", outcome) is None:
        raise ValueError(f"{name}: {outcome!r} is no outcome")
    data, _, wanted = rest.partition(" => ")
    messages = tuple(_message(text) for text in wanted.split(" | ")) if wanted else ()
    status = int(outcome[:3]) if outcome[0].isdigit() else 0
    closes = outcome == "close" or (status != 0 and not outcome.endswith("!"))
    return Case(name, unescape(data), status, closes, outcome == "wait", messages, chain)


def _message(text: str) -> Message:
    method, target, *body = text.split(" ", 2)
    return method, unescape(target).decode(), unescape(body[0]) if body else b""


def unescape(text: str) -> bytes:
    """The bytes that a cell of a table stands for."""
    text = text.replace("$A", fakes.A).replace("$B", fakes.B).replace("$KEY", fakes.KEY_A)
    while _REPEAT.search(text):  # the innermost first
        text = _REPEAT.sub(lambda found: found[1] * int(found[2]), text)
    text = text.replace("¶", "\\r\\n")
    return _ESCAPE.sub(lambda found: _NAMES.get(found[0]) or chr(int(found[1][1:], 16)), text).encode("latin-1")


def all_cases() -> list[Case]:
    return [case for table in sorted(TABLES.glob("*.txt")) for case in load(table)]


CASES = all_cases()
ACCEPTED = [case for case in CASES if case.messages]
