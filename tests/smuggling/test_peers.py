"""What we send on is framed by other programs as we framed it: the same count, the same targets, the same bodies.

For every accepted case, the bytes of its upstream connection, exactly as they were written, and one more request behind
them. The llama.cpp server does not tell what it read of any request; ``for_llama`` says what it is given instead.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.smuggling import edge
from tests.smuggling.cases import ACCEPTED, Case, Message
from tests.smuggling.peers import (
    LAST,
    LAST_MESSAGE,
    Nginx,
    exchange,
    for_llama,
    h11_messages,
    httptools_messages,
    llama_texts,
    nginx,
)
from tests.support.require import require

FORWARDED = [case for case in ACCEPTED if case.chain == "stream"]
ODD = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"_", b"\xff", b"0", b"5", b"%2f", b"/", b".", b"X"),
    *(b"chunked", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: x\r\n", b"x: y\r\n"),
    *(b"\r\n\r\n", b"0\r\n\r\n", b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n", b"Connection: close\r\n"),
]


def emitted(case: Case) -> bytes:
    """What an accepted case puts on its one upstream connection, without a message that was cut."""
    outcome = asyncio.run(edge.run(case))
    assert len(outcome.emitted) == 1
    return outcome.emitted[0]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
@pytest.mark.parametrize("peer", [h11_messages, httptools_messages])
def test_parsers(case: Case, peer: Callable[[bytes], list[Message]]) -> None:
    assert peer(emitted(case) + LAST) == [*case.messages, LAST_MESSAGE]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    require("nginx")
    with nginx(tmp_path_factory.mktemp("nginx")) as running:
        yield running


def test_nginx(server: Nginx) -> None:
    for case in ACCEPTED:
        exchange(server.port, emitted(case) + LAST)
    seen = server.messages(len(ACCEPTED))
    assert len(seen) == len(ACCEPTED)
    for case, messages in zip(ACCEPTED, seen, strict=True):
        assert messages == [*case.messages, LAST_MESSAGE], case.name


def test_nginx_is_a_judge(server: Nginx) -> None:
    """It tells two requests from one: the same bytes, once behind the body, once inside of it."""
    post = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b"
    exchange(server.port, post % (0, LAST))
    exchange(server.port, post % (len(LAST), LAST) + LAST)
    assert server.messages(2) == [
        [("POST", "/a", b""), LAST_MESSAGE],
        [("POST", "/a", LAST), LAST_MESSAGE],
    ]


def heads(stream: bytes, messages: tuple[Message, ...]) -> list[tuple[bytes, Message]]:
    """Each message's head as we emitted it."""
    found, at = [], 0
    for message in messages:
        start = stream.index(f"{message[0]} {message[1]} HTTP/1.1\r\n".encode(), at)
        at = stream.index(b"\r\n\r\n", start) + 4
        found.append((stream[start : at - 4], message))
        length = re.search(rb"\r\ncontent-length: (\d+)", stream[start:at])
        at += int(length[1]) if length else 0
    return found


@pytest.mark.slow
def test_llama_cpp(llama: str, tmp_path: Path) -> None:
    port = int(llama.rsplit(":", 1)[1])
    for case in ACCEPTED:
        stream, texts = for_llama(heads(emitted(case), case.messages))
        answer = exchange(port, stream + LAST.replace(b"/last", b"/health"))
        assert llama_texts(answer) == [*texts, ""], case.name


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(FORWARDED), st.lists(st.tuples(st.integers(0), st.sampled_from(ODD), st.booleans()), max_size=2))
def test_whatever_gets_through_is_read_alike(case: Case, changes: list[tuple[int, bytes, bool]]) -> None:
    """Cases with a few places changed or filled in: if a request gets through, h11 and httptools read what we sent."""
    data = case.data
    for at, odd, replace in changes:
        at %= len(data) + 1
        data = data[:at] + odd + data[at + (len(odd) if replace else 0) :]
    outcome = asyncio.run(edge.run(case, data))
    assume(outcome.messages and not outcome.unfinished)
    (stream,) = outcome.emitted
    expected = [*outcome.messages, LAST_MESSAGE]
    assert httptools_messages(stream + LAST) == expected == h11_messages(stream + LAST)
