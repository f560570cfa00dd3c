"""A model server that costs next to nothing: canned answers, so that the gateway in front of it is what is measured.

``python -m bench.load.upstream PORT``. Any request is answered at once: with a 470-byte chat completion, or, when its
body asks for a stream, with 64 events and ``[DONE]`` in one write; a body with ``"endless": true`` gets a stream that
begins and never goes on. It trusts its callers: nothing is validated.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

import uvloop

EVENTS = 64


def _whole() -> bytes:
    message = {"role": "assistant", "content": "A gateway reads a request, asks who sent it, and passes it on. " * 2}
    body = json.dumps(
        {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "canned-model",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 120, "completion_tokens": 26, "total_tokens": 146},
            "system_fingerprint": "fp_0123456789",
        }
    ).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _stream() -> bytes:
    parts = [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"]
    for number in range(EVENTS):
        choice = {"index": 0, "delta": {"content": f" word{number}"}, "finish_reason": None}
        payload = {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": "canned-model",
            "choices": [choice],
        }
        parts.append(_chunk(b"data: " + json.dumps(payload).encode() + b"\n\n"))
    parts += [_chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"]
    return b"".join(parts)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE, STREAM = _whole(), _stream()
BEGUN = STREAM[: STREAM.index(b"word8")]  # ends inside an event


class Canned(asyncio.Protocol):
    """Requests with Content-Length or without a body; they may come in pieces, and several at once."""

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        self._write = transport.write

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        while data:
            head = data.find(b"\r\n\r\n")
            if head < 0:
                break
            end = head + 4 + _length(data, head)
            if len(data) < end:
                break
            if data.find(b'"stream": true', head, end) < 0:
                self._write(WHOLE)
            else:
                self._write(STREAM if data.find(b'"endless": true', head, end) < 0 else BEGUN)
            data = data[end:]
        self._rest = data


def _length(data: bytes, head: int) -> int:
    at = data.find(b"ength: ", 0, head)  # Content-Length, in either spelling
    return int(data[at + 7 : data.find(b"\r", at)]) if at >= 0 else 0


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await loop.create_server(Canned, "127.0.0.1", port, backlog=1024)
    await stopped.wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
