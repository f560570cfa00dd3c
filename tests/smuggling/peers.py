"""How other programs frame a stream of requests: each gives the messages that it saw, in order."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h11
import httptools

from tests.smuggling.cases import Message
from tests.support.process import Child, accepts, free_port

# Sent behind every stream: a peer that is out of step does not see it, or sees something else.
LAST = b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
LAST_MESSAGE: Message = ("GET", "/last", b"")


class Refused(Exception):
    """The peer takes the bytes for no request."""


def h11_messages(data: bytes) -> list[Message]:
    """The complete messages that an h11 server finds; Refused when it finds fault before the end."""
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    http.receive_data(data)
    found: list[Message] = []
    try:
        while (event := http.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                found.append((head.method.decode("latin-1"), head.target.decode("latin-1"), body))
                http.send(h11.Response(status_code=204, headers=[]))
                http.send(h11.EndOfMessage())
                if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                    break
                http.start_next_cycle()
            elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                break
    except h11.ProtocolError as error:
        raise Refused(str(error)) from None
    return found


class _Collector:
    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.found: list[Message] = []

    def on_message_begin(self) -> None:
        self._target, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self.parser.get_method().decode()
        self.found.append((method, self._target.decode("latin-1"), self._body))


def httptools_messages(data: bytes) -> list[Message]:
    """The same for httptools (llhttp)."""
    collector = _Collector()
    try:
        collector.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        raise Refused("upgrade") from None
    except httptools.HttpParserError as error:
        raise Refused(str(error)) from None
    return collector.found


def exchange(port: int, data: bytes) -> bytes:
    """Everything that a server answers to these bytes until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(data)
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
    return answer


# The outer server reads and logs each request with its body; the inner one only answers.
_NGINX = """
daemon off; master_process off; pid {0}/pid; error_log {0}/error.log; events {{}}
http {{
  log_format seen "$connection $request_method $request_uri [$request_body]";
  client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u;
  scgi_temp_path {0}/s; client_body_buffer_size 64k; client_body_in_single_buffer on; merge_slashes off;
  server {{ listen 127.0.0.1:{1}; access_log {0}/seen.log seen; keepalive_requests 100000;
    location / {{ proxy_pass http://127.0.0.1:{2}; }} }}
  server {{ listen 127.0.0.1:{2}; access_log off; location / {{ return 204; }} }}
}}
"""


class Nginx:
    """Debian's nginx, which logs what it reads. ``messages`` empties the log."""

    def __init__(self, directory: Path, port: int) -> None:
        self.port = port
        self._log = directory / "seen.log"

    def messages(self, connections: int) -> list[list[Message]]:
        """The messages of each connection since the last call, in the order of connections, once that many are through.

        A line is written after the answer has left, so the last ones may be a moment late.
        """
        deadline = time.monotonic() + 5.0
        while (text := self._log.read_text("ascii")).count(
            " GET /last [-]\n"
        ) < connections and time.monotonic() < deadline:
            time.sleep(0.01)
        self._log.write_text("")
        seen: dict[int, list[Message]] = {}
        for line in text.splitlines():
            connection, method, target, body = line.split(" ", 3)
            raw = re.sub(r"\\x([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), body[1:-1]).encode("latin-1")
            seen.setdefault(int(connection), []).append((method, target, b"" if raw == b"-" else raw))
        return [seen[connection] for connection in sorted(seen)]


@contextmanager
def nginx(directory: Path) -> Iterator[Nginx]:
    """A running nginx; its program is found where Debian puts it."""
    outer, inner = free_port(), free_port()
    (directory / "nginx.conf").write_text(_NGINX.format(directory, outer, inner))
    subprocess.run(["mkdir", "-p", *(directory / name for name in ("body", "proxy", "f", "u", "s"))], check=True)
    argv = ("/usr/sbin/nginx", "-c", str(directory / "nginx.conf"), "-e", str(directory / "error.log"))
    with Child(argv, directory / "out") as child:
        child.wait_until("nginx", lambda: accepts(inner) and accepts(outer))
        yield Nginx(directory, outer)


def for_llama(messages: Sequence[tuple[bytes, Message]]) -> tuple[bytes, list[str]]:
    """Requests that the llama.cpp server answers with what it read, and the texts that it must give back.

    It tells nothing of requests that it has no use for, and closes after them. So the field lines and the kind of
    framing are those that we emitted, the target is one of its own, and the body is the emitted body as the text of a
    tokenization.
    """
    stream, texts = b"", []
    for head, (method, _, body) in messages:
        lines = [
            line for line in head.split(b"\r\n")[1:] if not line.startswith((b"content-length:", b"content-type:"))
        ]
        if method in ("GET", "HEAD", "OPTIONS"):
            stream += b"\r\n".join([b"GET /health HTTP/1.1", *lines, b"", b""])
            texts.append("")
            continue
        text = body.decode("latin-1")
        sent = json.dumps({"content": text, "with_pieces": True}).encode()
        if b"transfer-encoding: chunked" in lines:
            half = len(sent) // 2
            sent = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (half, sent[:half], len(sent) - half, sent[half:])
        else:
            lines.append(b"content-length: %d" % len(sent))
        stream += b"\r\n".join([b"POST /tokenize HTTP/1.1", *lines, b"", b""]) + sent
        texts.append(text)
    return stream, texts


def llama_texts(answer: bytes) -> list[str]:
    """The texts that a llama.cpp server says it tokenized, empty for its other answers; Refused when one is no 200."""
    texts = []
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        size = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        if not head.startswith(b"HTTP/1.1 200"):
            raise Refused(head.split(b"\r\n")[0].decode())
        tokens = json.loads(rest[:size]).get("tokens", [])
        pieces = [t["piece"] if isinstance(t["piece"], list) else t["piece"].encode() for t in tokens]
        texts.append(b"".join(bytes(piece) for piece in pieces).decode())
        answer = rest[size:]
    return texts
