"""What the upstream of the benchmarks answers: a 470-byte chat completion, or a stream of 64 events and ``[DONE]``."""

from __future__ import annotations

import json

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
