"""The same strictness toward upstreams: one answer for one request, or none at all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.connection.wire import OTHER, Rig
from tests.smuggling.cases import unescape
from tests.smuggling.edge import LIMITS

TABLE = Path(__file__).with_name("responses.txt")
_LINE = re.compile(r"(\d{3}\+?|cut|wait) (HEAD )?(.*?)(?: => (.*))?$")


@dataclass(frozen=True)
class Answer:
    name: str
    outcome: str
    method: str
    data: bytes
    body: bytes


def load() -> list[Answer]:
    answers = []
    for number, line in enumerate(TABLE.read_text("utf-8").split("\n"), 1):
        if line and not line.startswith("#"):
            found = _LINE.match(line)
            assert found is not None, line
            outcome, head, data, body = found.groups()
            name = f"{number}:{line[:40]}"
            answers.append(Answer(name, outcome, "HEAD" if head else "GET", unescape(data), unescape(body or "")))
    return answers


ANSWERS = load()


async def outcome(answer: Answer, *pieces: bytes) -> tuple[str, bytes]:
    """What the client got of these bytes: the outcome as the table writes it, and the body."""
    rig = Rig(OTHER, LIMITS)
    await rig.send(b"%b /a HTTP/1.1\r\nHost: h\r\n\r\n" % answer.method.encode())
    for piece in pieces:
        if not rig.up.closed:
            await rig.answer(piece)
    reusable = not rig.up.closed
    rig.pool.close()
    head, _, body = rig.wire.sent.partition(b"\r\n\r\n")
    if not head:
        return "wait", b""
    whole = True
    if b"transfer-encoding: chunked" in head:
        whole = body.endswith(b"0\r\n\r\n")
        body = b"".join(re.findall(rb"[0-9a-f]+\r\n([a-z]+)\r\n", body))
    status = head[9:12].decode()
    if status == "502":
        return status, b""
    return (f"{status}+" if reusable else status) if whole else "cut", body


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.name)
async def test_whole(answer: Answer) -> None:
    required = ("502", b"") if answer.outcome == "cut" else (answer.outcome, answer.body)
    assert await outcome(answer, answer.data) == required


@pytest.mark.parametrize("answer", [a for a in ANSWERS if len(a.data) < 600], ids=lambda answer: answer.name)
async def test_byte_by_byte(answer: Answer) -> None:
    pieces = [answer.data[at : at + 1] for at in range(len(answer.data))]
    assert await outcome(answer, *pieces) == (answer.outcome, answer.body)
