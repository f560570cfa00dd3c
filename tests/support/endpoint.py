"""A metadata, launcher or attestation service on loopback or a unix socket, on a thread of its own: answers as told."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import msgspec

Responder = Callable[["Seen"], "Reply"]


class Seen(msgspec.Struct):
    """A request as it came; ``fields`` by lower-case name."""

    method: str
    target: str
    fields: dict[str, str]
    body: bytes


class Reply(msgspec.Struct):
    """``drop``: close without an answer."""

    body: bytes = b""
    status: int = 200
    fields: dict[str, str] = {}
    drop: bool = False


class Endpoint:
    """``at`` says what a method and target get: replies one after the other, the last one for ever; ``on``: what a
    function makes of the request. ``seen`` has all requests.
    """

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[Seen] = []
        self._responders: dict[tuple[str, str], Responder] = {}

    def at(self, method: str, target: str, *replies: Reply) -> None:
        ready = list(replies)
        self.on(method, target, lambda _: ready.pop(0) if len(ready) > 1 else ready[0])

    def on(self, method: str, target: str, respond: Responder) -> None:
        self._responders[method, target] = respond

    def responder(self, method: str, target: str) -> Responder:
        return self._responders[method, target]

    def answer(self, seen: Seen) -> Reply:
        self.seen.append(seen)
        respond = self._responders.get((seen.method, seen.target))
        return Reply(b'{"error":"not found"}', 404) if respond is None else respond(seen)


@contextmanager
def endpoint(unix_socket: Path | None = None) -> Iterator[Endpoint]:
    """One that runs until the block ends; ``url`` has no slash at its end."""
    made = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            fields = {name.lower(): value for name, value in self.headers.items()}
            reply = made.answer(Seen(self.command, self.path, fields, body))
            if reply.drop:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in ({"content-length": str(len(reply.body))} | reply.fields).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST = _any

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return "client"

    with (
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        if unix_socket is None
        else socketserver.ThreadingUnixStreamServer(str(unix_socket), Handler)
    ) as server:
        server.daemon_threads = True
        if server.socket.family == socket.AF_INET:
            made.url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()
