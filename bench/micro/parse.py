"""Request heads: ``scan_request`` beside httptools, on httptools' ground: whole requests, one process, interleaved.

httptools feeds a callback object that keeps what a server keeps: the target, the fields as pairs, the method, and
whether the connection stays. Run: ``python -m bench.micro.parse [rounds]``. Figures are nanoseconds of processor time
per request.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from time import thread_time_ns

import httptools

from bench.report import columns
from cube_mesh._fastpath import scan_request

_DOMAIN = "6b1e1b2c-9a1c-4d57-9d53-0d6a3c1f2e11"
_REPEAT = 2_000


def _request(line: str, *fields: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, *fields, "", ""]).encode() + body


CORPUS = {
    "probe": _request("GET /healthz HTTP/1.1", "Host: 127.0.0.1:8900"),
    "curl": _request(
        f"POST /{_DOMAIN}/v1/chat/completions HTTP/1.1",
        "Host: localhost:8900",
        "User-Agent: curl/8.5.0",
        "Accept: */*",
        "Content-Type: application/json",
        "Authorization: Bearer ck_key-a.YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE",
        "Content-Length: 2",
        body=b"{}",
    ),
    "openai-python": _request(
        f"POST /{_DOMAIN}/v1/chat/completions HTTP/1.1",
        "Host: mesh.example.org",
        "Accept-Encoding: gzip, deflate",
        "Connection: keep-alive",
        "Accept: application/json",
        "Content-Type: application/json",
        "User-Agent: OpenAI/Python 1.60.0",
        "X-Stainless-Lang: python",
        "X-Stainless-Package-Version: 1.60.0",
        "X-Stainless-OS: Linux",
        "X-Stainless-Arch: x64",
        "X-Stainless-Runtime: CPython",
        "X-Stainless-Runtime-Version: 3.11.7",
        "Authorization: Bearer ck_key-a.YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE",
        "X-Stainless-Async: false",
        "x-stainless-retry-count: 0",
        "x-stainless-read-timeout: 600",
        "Content-Length: 2",
        body=b"{}",
    ),
    "browser": _request(
        f"GET /{_DOMAIN}/v1/models?limit=20&order=desc HTTP/1.1",
        "Host: mesh.example.org",
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
        "Accept-Language: en-US,en;q=0.5",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "DNT: 1",
        "Connection: keep-alive",
        "Cookie: session=" + "0123456789abcdef" * 8,
        "Sec-Fetch-Dest: document",
        "Sec-Fetch-Mode: navigate",
        "Sec-Fetch-Site: none",
        'If-None-Match: "33a64df551425fcc55e4d42a148795d9f25f89d4"',
        "Cache-Control: max-age=0",
    ),
}


class Server:
    """What an httptools server collects of one request."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = 0

    def on_message_begin(self) -> None:
        self.url = b""
        self.fields = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.method = self.parser.get_method()
        self.keep_alive = self.parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self.complete += 1


def httptools_ns(data: bytes) -> float:
    server = Server()
    feed = server.parser.feed_data
    start = thread_time_ns()
    for _ in range(_REPEAT):
        feed(data)
    spent = thread_time_ns() - start
    assert server.complete == _REPEAT
    return spent / _REPEAT


def scan_ns(data: bytes) -> float:
    start = thread_time_ns()
    for _ in range(_REPEAT):
        head = scan_request(data, 0, 32_768, 100)
    spent = thread_time_ns() - start
    assert head is not None and head.method
    return spent / _REPEAT


def scan_and_read_ns(data: bytes) -> float:
    """With the fields that the chain asks for: some there, some not."""
    names = (b"authorization", b"x-request-id", b"traceparent", b"content-encoding", b"user-agent")
    start = thread_time_ns()
    for _ in range(_REPEAT):
        head = scan_request(data, 0, 32_768, 100)
        assert head is not None
        get = head.get
        for name in names:
            get(name)
    return (thread_time_ns() - start) / _REPEAT


WAYS: dict[str, Callable[[bytes], float]] = {
    "httptools": httptools_ns,
    "scan_request": scan_ns,
    "with 5 get()": scan_and_read_ns,
}


def run(rounds: int = 15) -> dict[str, dict[str, float]]:
    """Median ns per request, by corpus entry and way. The ways take turns within a round."""
    samples: dict[str, dict[str, list[float]]] = {name: {way: [] for way in WAYS} for name in CORPUS}
    for _ in range(rounds):
        for name, data in CORPUS.items():
            for way, measure in WAYS.items():
                samples[name][way].append(measure(data))
    return {name: {way: median(taken) for way, taken in ways.items()} for name, ways in samples.items()}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    rows = [["request", "bytes", *WAYS]]
    for name, ways in run(rounds).items():
        rows.append([name, str(len(CORPUS[name])), *(f"{ns:.0f}" for ns in ways.values())])
    print("\n".join(columns(rows)))


if __name__ == "__main__":
    main()
