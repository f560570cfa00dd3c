"""The scripted backend: a small OpenAI-compatible server that behaves as told and remembers what it saw.

For the demo and for tests: its answers are deterministic, and a ``Script`` makes it slow, cut a stream, stall, or fail.
It is no example of a strict server: h11 parses, and one connection answers one request at a time.
``python -m cube_mesh.demo.backend --port 8080`` runs it; every field of ``Script`` is a flag.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import h11
import uvloop

from cube_mesh.demo import answers

MAX_BODY = 64 * 1024 * 1024
_JSON = (b"content-type", b"application/json")
_EVENTS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]


@dataclass(frozen=True)
class Script:
    """How the backend behaves. Times are seconds; counts are events of a stream, the chat's role event included."""

    events: int = 0  # words of an answer, each an event of its own; 0 = a default
    gap_s: float = 0.0  # pause before each event but the first
    first_byte_s: float = 0.0  # pause before the response head
    status: int = 200  # of generation endpoints: another is an error envelope, 0 a reset connection without an answer
    cut_after: int = -1  # after this many events the connection is reset; -1 = never
    stall_after: int = -1  # after this many events nothing more comes until the client leaves; -1 = never
    piece_bytes: int = 0  # bodies are written in pieces of at most this many bytes; 0 = an event, or the whole, at once
    stamp: bool = False  # each event carries "sent_at": this machine's monotonic clock when it was written
    api_key: str = ""  # demanded as a bearer token when set
    models: str = "scripted"  # names for /v1/models, comma separated; generation accepts any name


@dataclass
class Seen:
    """One request as it arrived, and what became of it. Times are ``time.perf_counter()``, 0.0 = did not happen."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    arrived_at: float
    body: bytearray = field(default_factory=bytearray)
    sent_at: list[float] = field(default_factory=list)  # each event's write
    finished_at: float = 0.0
    cancelled_at: float = 0.0  # the client left before the answer was whole

    def header(self, name: bytes) -> bytes | None:
        """The first field with this lower-case name."""
        return next((value for key, value in self.headers if key == name), None)


class ScriptedBackend:
    """The server and its memory. ``script`` may be replaced at any time; it holds for requests that arrive later."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.requests: list[Seen] = []
        self.connections = 0  # ever accepted
        self.received_bytes = 0  # everything that peers sent, requests or not
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cancelled_at(self) -> list[float]:
        """When clients left before their answer was whole, in order of arrival of the requests."""
        return [seen.cancelled_at for seen in self.requests if seen.cancelled_at]

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and reset what is open."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)

    async def __aenter__(self) -> ScriptedBackend:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Connection(asyncio.Protocol):
    """One client connection: h11 in, one task for the answer that is being written."""

    def __init__(self, backend: ScriptedBackend) -> None:
        self._backend = backend
        self._http = h11.Connection(h11.SERVER)
        self._transport: asyncio.Transport | None = None
        self._seen: Seen | None = None
        self._answering: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._backend.connections += 1
        self._backend._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._backend._open.discard(self)
        if self._seen is not None and not self._seen.finished_at:
            self._seen.cancelled_at = time.perf_counter()
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        self._backend.received_bytes += len(data)
        self._http.receive_data(data)
        self._read()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- one request after the other --

    def _read(self) -> None:
        try:
            self._next_request()
        except h11.RemoteProtocolError as problem:
            self._refuse(problem)

    def _next_request(self) -> None:
        while self._answering is None:
            event = self._http.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                if self._http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
                return
            if isinstance(event, h11.Request):
                self._seen = Seen(
                    event.method.decode(), event.target.decode(), tuple(event.headers.raw_items()), time.perf_counter()
                )
                self._backend.requests.append(self._seen)
            elif isinstance(event, h11.Data) and self._seen is not None:
                self._seen.body += event.data
                if len(self._seen.body) > MAX_BODY:
                    raise h11.RemoteProtocolError("body too large", error_status_hint=413)
            elif isinstance(event, h11.EndOfMessage) and self._seen is not None:
                self._answering = asyncio.get_running_loop().create_task(self._answer(self._seen))

    async def _answer(self, seen: Seen) -> None:
        script = self._backend.script
        try:
            await asyncio.sleep(script.first_byte_s)
            if script.status == 0:
                await self._reset(seen)
            await self._route(seen, script)
        except answers.BadRequest as problem:
            await self._whole(400, answers.error(str(problem), "invalid_request_error", None))
        seen.finished_at = time.perf_counter()
        self._answering = None
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._read()  # the next request may be here already
        elif self._transport is not None:
            self._transport.close()

    async def _route(self, seen: Seen, script: Script) -> None:
        if script.api_key and seen.header(b"authorization") != b"Bearer " + script.api_key.encode():
            await self._whole(401, answers.error("wrong API key", "invalid_request_error", "invalid_api_key"))
            return
        path = seen.target.partition("?")[0]
        names = script.models.split(",")
        match seen.method, path:
            case "GET" | "HEAD", "/health":
                await self._whole(200, b'{"status":"ok"}')
            case "GET" | "HEAD", "/v1/models":
                listed = [answers.model_object(name) for name in names]
                await self._whole(200, answers.encode({"object": "list", "data": listed}))
            case "GET" | "HEAD", _ if path.startswith("/v1/models/") and path[11:] in names:
                await self._whole(200, answers.encode(answers.model_object(path[11:])))
            case "POST", "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings" if script.status != 200:
                await self._whole(script.status, answers.error("as scripted", "server_error", "scripted"))
            case "POST", "/v1/chat/completions" | "/v1/completions":
                await self._generate(seen, script, chat=path.endswith("/chat/completions"))
            case "POST", "/v1/embeddings":
                await self._whole(200, answers.embeddings(answers.parse(bytes(seen.body))))
            case _:
                await self._whole(404, answers.error("there is no such thing", "invalid_request_error", "not_found"))

    async def _generate(self, seen: Seen, script: Script, *, chat: bool) -> None:
        request = answers.parse(bytes(seen.body))
        number = len(self._backend.requests)
        answer = answers.make_answer(request, number, chat=chat, events=script.events)
        created = int(time.time())
        if not request.get("stream"):
            await self._whole(200, answers.whole(answer, created))
            return
        options = request.get("stream_options")
        wants_usage = isinstance(options, dict) and options.get("include_usage") is True
        await self._stream(seen, script, answers.stream(answer, created, include_usage=wants_usage))

    async def _stream(self, seen: Seen, script: Script, payloads: Iterator[answers.Json]) -> None:
        self._send(h11.Response(status_code=200, headers=_EVENTS))
        for count, payload in enumerate(payloads):
            if count and script.gap_s:
                await asyncio.sleep(script.gap_s)
            if count == script.cut_after:
                await self._reset(seen)
            if count == script.stall_after:
                await _forever()
            seen.sent_at.append(time.perf_counter())
            if script.stamp:
                payload = {**payload, "sent_at": seen.sent_at[-1]}
            await self._pieces(b"data: " + answers.encode(payload) + b"\n\n")
        await self._pieces(b"data: [DONE]\n\n")
        self._send(h11.EndOfMessage())

    async def _reset(self, seen: Seen) -> None:
        """End the connection in the middle; this was our doing, not the client's."""
        seen.finished_at = time.perf_counter()
        self.abort()
        await _forever()

    # -- writing --

    async def _whole(self, status: int, body: bytes) -> None:
        headers = [_JSON, (b"content-length", str(len(body)).encode())]
        self._send(h11.Response(status_code=status, headers=headers))
        if self._seen is not None and self._seen.method != "HEAD":
            await self._pieces(body)
        self._send(h11.EndOfMessage())

    async def _pieces(self, data: bytes) -> None:
        size = self._backend.script.piece_bytes or len(data)
        for start in range(0, len(data), size):
            await self._writable.wait()
            self._send(h11.Data(data=data[start : start + size]))
            if size < len(data):
                await asyncio.sleep(0)

    def _send(self, event: Any) -> None:
        data = self._http.send(event)
        if data and self._transport is not None:
            self._transport.write(data)

    def _refuse(self, problem: h11.RemoteProtocolError) -> None:
        with contextlib.suppress(h11.LocalProtocolError):
            body = answers.error(str(problem), "invalid_request_error", "bad_request")
            headers = [_JSON, (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
            self._send(h11.Response(status_code=problem.error_status_hint, headers=headers))
            self._send(h11.Data(data=body))
        if self._transport is not None:
            self._transport.close()


async def _forever() -> None:
    """Until the connection is lost, which cancels the task."""
    await asyncio.Event().wait()


def main(argv: list[str] | None = None) -> None:
    """Run one backend until SIGTERM or SIGINT. The address is printed when it listens."""
    parser = argparse.ArgumentParser(prog="python -m cube_mesh.demo.backend", description="Scripted OpenAI backend")
    parser.add_argument("--port", type=int, default=8080, help="on loopback; 0 = any free one")
    for knob in fields(Script):
        flag = "--" + knob.name.replace("_", "-")
        if isinstance(knob.default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(knob.default), default=knob.default)
    given = vars(parser.parse_args(argv))
    port = given.pop("port")
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(ScriptedBackend(replace(Script(), **given)), port))


async def _serve(backend: ScriptedBackend, port: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await backend.start(port)
    print(backend.url, flush=True)
    await stopped.wait()
    await backend.close()


if __name__ == "__main__":
    main()
