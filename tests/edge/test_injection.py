"""Everything that a client controls, filled with what could end a line, open a field or break a record, through a real
proxy and a real agent; then a look into answers, upstream requests, logs, metrics and the audit trail.

Bytes that no head may carry (CR, LF, NUL, C0) are refused by the parser: tests/smuggling. Here is what it lets through.
"""

from __future__ import annotations

import asyncio
import json
import string
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
from prometheus_client.parser import text_string_to_metric_families

from tests.edge.door import RED, answer, open_door
from tests.support.client import bearer, chat
from tests.support.mesh import Mesh, Tenant
from tests.support.node import Node

MARK = "zq7injected"
PAYLOADS = {
    "percent CRLF": f"%0d%0ax-{MARK}: 1",
    "double percent": f"%250d%250ax-{MARK}: 1",
    "NEL": f"\u0085x-{MARK}: 1",
    "line separator": f"\u2028x-{MARK}: 1",
    "overlong": f"\u560d\u560ax-{MARK}: 1",  # truncates to CR LF where a program keeps low bytes
    "terminal": f"\u009b31m{MARK}",
    "direction": f"\u202e{MARK}",
    "JSON": f'","x_{MARK}":"1',
    "JSON object": f'"}}\\n{{"x_{MARK}":"1"}}',
    "backslashes": f"\\r\\n\\u000d\\u000ax-{MARK}: 1",
    "label": f'"}} 1\\ncube_{MARK} 1',
    "comma": f"a, x-{MARK}=1; x-{MARK}: 1",
    "template": f"${{jndi:ldap://{MARK}}}{{{{7*7}}}}",
    "format": f"%s%n{{0}}{MARK}",
    "long": MARK * 200,
}
BODY_ONLY = {"CRLF": f"\r\nx-{MARK}: 1", "NUL": f"\x00{MARK}", "escape": f"\x1b[2J{MARK}", "lone": f"\ud800{MARK}"}
FIELDS = (
    "x-request-id", "user-agent", "traceparent", "tracestate", "accept", "content-type", "origin", "x-forwarded-for",
    "forwarded", "x-cube-domain", "x-event-type", "x-stainless-lang", "openai-organization", "cookie",
)  # fmt: skip
RESPONSE_FIELDS = {
    "content-type", "content-length", "x-request-id", "connection", "www-authenticate", "retry-after", "x-should-retry",
}  # fmt: skip


class Recorder:
    """A backend that keeps each request as h11 reads it, and the raw head."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, h11.Request, bytes]] = []

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            body = await reader.readexactly(int(length or b"0"))
            parser = h11.Connection(h11.SERVER)
            parser.receive_data(head)
            event = parser.next_event()
            assert isinstance(event, h11.Request)
            self.requests.append((head, event, body))
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
            )
        except asyncio.IncompleteReadError:
            pass
        writer.close()


def attempts(tenant: Tenant) -> list[bytes]:
    """One request for each place and payload."""
    made = []
    chat_path = f"/{tenant.domain}/v1/chat/completions"
    for number, payload in enumerate(PAYLOADS.values()):
        made += [_request(chat_path, tenant, **{name: payload}) for name in FIELDS]
        made.append(_request(chat_path, tenant, authorization=f"Bearer {payload}"))
        made.append(_request(f"{chat_path}?a={_in_path(payload)}", tenant))
        made.append(_request(f"/{tenant.domain}/v1/models/{_in_path(payload)}", tenant, method="GET", body=b""))
        made.append(_request(f"/{_in_path(payload)}/v1/chat/completions", tenant))
        made.append(_request(chat_path, tenant, **{f"x-{MARK}-{number}": payload}))
    for payload in (PAYLOADS | BODY_ONLY).values():
        made.append(_request(chat_path, tenant, body=json.dumps({"model": payload, "messages": []}).encode()))
        made.append(_request(chat_path, tenant, body=json.dumps({"model": "m", payload: payload}).encode()))
    return made


def _in_path(payload: str) -> str:
    """Percent-encoded where a target must be."""
    plain = set(string.ascii_letters + string.digits + "-._~%")
    return "".join(c if c in plain else "".join(f"%{b:02X}" for b in c.encode()) for c in payload)


def _request(path: str, tenant: Tenant, method: str = "POST", body: bytes = chat(), **fields: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: test", "connection: close"]
    lines += [f"{name}: {value}" for name, value in (bearer(tenant.key) | fields).items()]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body


async def test_nothing_that_a_client_writes_becomes_structure(mesh: Mesh, tmp_path: Path) -> None:
    backend = Recorder()
    sent = attempts(mesh.tenants[0])
    async with backend.serve() as url:
        with mesh.agent(tmp_path / "agent", url) as agent, mesh.proxy(tmp_path / "proxy", agent.port) as proxy:
            replies = [await _exchange(proxy.port, data) for data in sent]
            await asyncio.sleep(0.3)
            scrapes = [proxy.local("/metrics")[1], agent.local("/metrics")[1]]
    assert len(sent) > 300 and len(backend.requests) > 150, "most of it is let through, so this is a test"
    for reply in replies:
        _check_reply(reply)
    for head, event, _ in backend.requests:
        _check_upstream(head, event)
    for scrape in scrapes:
        _check_metrics(scrape)
    for node in (agent, proxy):
        _check_log(node)
    _check_audit((tmp_path / "proxy" / "audit.jsonl").read_bytes(), replies)


async def _exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(10):
            whole = await answer(reader)
            assert await reader.read() == b"", "one answer, and nothing behind it"
            return whole
    finally:
        writer.close()


def _check_reply(reply: bytes) -> None:
    head, _, body = reply.partition(b"\r\n\r\n")
    names = [line.partition(b":")[0].decode() for line in head.split(b"\r\n")[1:]]
    assert set(names) <= RESPONSE_FIELDS and len(names) == len(set(names)), head
    request_id = [line.partition(b": ")[2] for line in head.split(b"\r\n") if line.startswith(b"x-request-id")]
    allowed = set(string.ascii_letters + string.digits + "._:-")
    assert all(set(value.decode()) <= allowed and len(value) <= 128 for value in request_id)
    assert MARK.encode() not in body, "no answer of ours quotes the client"
    json.loads(body)


def _check_upstream(head: bytes, event: h11.Request) -> None:
    lines = head.split(b"\r\n")[1:-2]
    assert len(lines) == len(event.headers) and b"\n" not in head.replace(b"\r\n", b"") and b"\r" not in b"".join(lines)
    for name, value in event.headers:
        if MARK.encode() in name:
            assert name.startswith(f"x-{MARK}-".encode()), "a field that the client really sent"
        assert not any(byte < 0x20 and byte != 0x09 for byte in value)
    names = [name for name, _ in event.headers]
    for ours in (b"host", b"x-request-id", b"traceparent", b"content-length"):
        assert names.count(ours) <= 1
    for never in (b"authorization", b"cookie", b"x-forwarded-for", b"forwarded", b"x-cube-domain", b"x-event-type"):
        assert never not in names


def _check_metrics(scrape: str) -> None:
    assert MARK not in scrape
    assert all(family.name.startswith(("cube_", "process_")) for family in text_string_to_metric_families(scrape))


def _check_log(node: Node) -> None:
    for line in node.output.split("\n")[:-1]:
        record: dict[str, Any] = json.loads(line)
        assert not any(MARK in key for key in record)
        _check_text(line, record)


def _check_audit(trail: bytes, replies: list[bytes]) -> None:
    lines = trail.decode().split("\n")[:-1]
    requests = sum(b"x-request-id: " in reply for reply in replies)  # what had no id was no request
    assert len(lines) == requests
    keys = {tuple(json.loads(line)) for line in lines}
    assert len(keys) == 1, "every event has the same fields"
    for line in lines:
        _check_text(line, json.loads(line))


def _check_text(line: str, record: dict[str, Any]) -> None:
    """Harmless as bytes, for a terminal, and harmless as values, for whatever indexes them."""
    assert line.isprintable()
    assert all(value.isprintable() for value in record.values() if isinstance(value, str))


async def test_lines_of_the_text_log_cannot_be_forged_either(tmp_path: Path) -> None:
    backend = Recorder()
    async with backend.serve() as url:
        with open_door(tmp_path, url, log={"format": "text"}) as proxy:
            replies = [await _exchange(proxy.port, data) for data in attempts(RED)]
            await asyncio.sleep(0.3)
            lines = proxy.output.split("\n")[:-1]
    assert sum(" request=" in line for line in lines) == sum(b"x-request-id: " in reply for reply in replies)
    assert all(line.isprintable() and line[:4].isdigit() for line in lines)
