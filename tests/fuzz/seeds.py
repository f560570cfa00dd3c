"""Inputs to begin with, from the smuggling tables: what a client sends, and the parts of it that other targets read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.smuggling.cases import CASES

CORPUS = Path(__file__).with_name("corpus")
REQUEST, RESPONSE, TO_HEAD, CHUNKED, MEMBERS, NOTE, VALUE, LINE = (bytes([n, 128]) for n in (0, 2, 3, 4, 6, 30, 7, 31))
RESPONSES = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX_Cube: a\r\nConnection: close, X\r\nX: y\r\n\r\nhello",
    b"HTTP/1.0 404 \r\nConnection: keep-alive\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 100\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
)
BODIES = (
    b'{"model":"m","messages":[{"content":"a"}],"stream":true,"max_tokens":64,"temperature":0.25}',
    b'{"max_completion_tokens":9,"Model":"M","model":"m"}',
    b'{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46}}',
)
TEXTS = (
    b'curl/8 "quoted\\" \x7f\x00\r\n' + b"plain",
    b"\x00\x00\x00\x00\x00\x00\xf0\x3f\xe2\x80\xa8\xed\xa0\x80\xf0\x9f\x8e\x89",
)
VALUES = (
    b'{"model":"m","stream":true,"max_tokens":-1.5e+3}',
    b'[{},[],null,true,false,"\\u00e4\\"",0.1,[[[[[[1]]]]]]]',
    b'"\xc3\xa4\xe2\x82\xac\xf0\x9f\x8e\x89"',
)


def seeds() -> Iterator[bytes]:
    for case in CASES:
        if len(case.data) > 400:
            continue
        yield REQUEST + case.data
        head, end, body = case.data.partition(b"\r\n\r\n")
        if end and b"chunked" in head.lower():
            yield CHUNKED + body
        elif end and case.chain == "json":
            yield MEMBERS + body
    yield from (NOTE + body for body in BODIES)
    yield from (LINE + text for text in TEXTS)
    for response in RESPONSES:
        yield RESPONSE + response
        yield TO_HEAD + response
    for value in VALUES:
        yield VALUE + value
        yield MEMBERS + b'{"a":' + value + b"}"


def write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(dict.fromkeys(seeds())):
        (directory / f"seed-{number:04}").write_bytes(seed)
