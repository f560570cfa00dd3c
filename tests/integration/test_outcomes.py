"""Every way in which a request can end, through real nodes: its status, its audit event (exactly one), and whether the
backend saw it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cube_mesh.demo.backend import Script
from tests.support.client import Client, Reply, bearer, chat, once
from tests.support.way import Way

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
STREAM = chat(stream=True)


@dataclass(frozen=True)
class Case:
    """A request by the red tenant's member unless said otherwise, and what must be on record about it."""

    name: str
    status: int
    outcome: str
    code: str | None = None
    method: str = "POST"
    path: str = CHAT
    body: bytes = chat()
    role: str = "member"
    script: Script = field(default_factory=Script)
    headers: Callable[[Way], dict[str, str]] = lambda way: {}
    reaches_backend: bool = True
    whole: bool = True


def refused(name: str, status: int, code: str, **more: object) -> Case:
    return Case(name, status, "refused", code, reaches_backend=False, **more)  # type: ignore[arg-type]


CASES = [
    Case("whole answer", 200, "completed"),
    Case("stream", 200, "completed", body=STREAM),
    Case("models", 200, "completed", method="GET", path="/v1/models", body=b""),
    Case("embeddings", 200, "completed", path="/v1/embeddings", body=b'{"model":"m","input":"a"}'),
    Case("backend says 404", 404, "completed", method="GET", path="/v1/models/none", body=b""),
    Case("backend says 429", 429, "completed", script=Script(status=429)),
    Case("backend says 500", 500, "completed", script=Script(status=500)),
    refused("no credential", 401, "missing_credentials", headers=lambda way: {"authorization": ""}),
    refused("unknown key", 401, "invalid_api_key", headers=lambda way: {"authorization": "Bearer cm_x_y"}),
    refused("other tenant's key", 403, "domain_forbidden", headers=lambda way: bearer(way.blue.key)),
    refused("role without the permission", 403, "permission_denied", role="viewer"),
    refused("unlisted endpoint", 403, "endpoint_not_allowed", path="/v1/files"),
    refused("unlisted method", 403, "endpoint_not_allowed", method="PUT"),
    refused("not JSON", 400, "invalid_json", body=b"{"),
    refused("key twice", 400, "ambiguous_member", body=b'{"model":"a","model":"b","messages":[]}'),
    refused("coded body", 415, "content_encoding", headers=lambda way: {"content-encoding": "gzip"}),
    Case("backend resets, and the agent answers", 502, "failed", "upstream_closed", script=Script(status=0)),
    Case("no answer in time", 504, "failed", "upstream_timeout", script=Script(first_byte_s=2.0)),
    Case("cut stream", 200, "failed", "upstream_closed", body=STREAM, script=Script(cut_after=3), whole=False),
    Case("stall", 200, "failed", "upstream_stream_timeout", body=STREAM, script=Script(stall_after=3), whole=False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_one_event_that_tells_the_truth(way: Way, case: Case) -> None:
    way.backend.script = case.script
    request_id = uuid.uuid4().hex
    headers = {**bearer(way.red.keys[case.role]), **case.headers(way), "x-request-id": request_id}
    headers = {name: value for name, value in headers.items() if value}
    reply = await once(way.proxy.port, case.method, f"/{way.red.domain}{case.path}", headers, case.body)
    (event,) = way.events(request_id)
    assert (reply.status, reply.whole) == (case.status, case.whole)
    assert (event["status_code"], event["outcome"], event["error_code"]) == (case.status, case.outcome, case.code)
    assert bool(way.backend.requests) == case.reaches_backend
    assert reply.headers["x-request-id"] == request_id
    _check_error_shape(case, reply)


def _check_error_shape(case: Case, reply: Reply) -> None:
    """OpenAI's envelope with all four keys; in a broken stream it is the last frame, and there is no [DONE]."""
    if case.code is None:
        return
    if case.whole:
        error = reply.json["error"]
    else:
        assert b"[DONE]" not in reply.body
        assert reply.body.count(b'data: {"error"') == 1
        error = Reply(body=reply.body.rpartition(b"data: ")[2]).json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == case.code


@pytest.mark.parametrize("after", [0, 3])
async def test_a_client_that_leaves_is_cancelled_at_the_backend(way: Way, after: int) -> None:
    """Before the first byte, and in the middle of a stream: within 100 ms, and on record."""
    way.backend.script = Script(first_byte_s=0.0 if after else 0.9, stall_after=after or -1)
    request_id = uuid.uuid4().hex
    client = await Client.connect(way.proxy.port)
    client.send("POST", f"/{way.red.domain}{CHAT}", bearer(way.red.key, x_request_id=request_id), STREAM)
    await until(lambda: bool(way.backend.requests) and len(way.backend.requests[0].sent_at) == after)
    await asyncio.sleep(0.05)
    left = asyncio.get_running_loop().time()
    client.abort()
    await until(lambda: bool(way.backend.cancelled_at))
    assert way.backend.cancelled_at[0] - left <= 0.1
    await until(lambda: bool(way.events(request_id)))
    await asyncio.sleep(0.05)
    (event,) = way.events(request_id)
    assert (event["outcome"], event["error_code"]) == ("cancelled", "client_disconnected")
    assert event["status_code"] == (200 if after else 499)


async def test_bytes_that_are_no_request_have_no_event(way: Way) -> None:
    before = len(way.events())
    reader, writer = await asyncio.open_connection("127.0.0.1", way.proxy.port)
    writer.write(b"\x16\x03\x01\x02\x00 not http\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    assert len(way.events()) == before
    assert way.backend.requests == []


async def test_without_a_tenant_nothing_is_forwarded(way: Way) -> None:
    for target in (CHAT, f"/{way.red.domain.upper()}{CHAT}", f"/not-a-uuid{CHAT}", "/"):
        request_id = uuid.uuid4().hex
        reply = await once(way.proxy.port, "POST", target, bearer(way.red.key, x_request_id=request_id), chat())
        (event,) = way.events(request_id)
        assert (reply.status, event["status_code"], event["error_code"]) == (400, 400, "invalid_domain"), target
    assert way.backend.requests == []


async def test_credentials_stay_and_the_rest_arrives(way: Way) -> None:
    body = chat("seen by the backend", user="u")
    await once(way.proxy.port, "POST", f"/{way.red.domain}{CHAT}?a=b", bearer(way.red.key, x_custom="kept"), body)
    (seen,) = way.backend.requests
    assert (seen.method, seen.target, bytes(seen.body)) == ("POST", f"{CHAT}?a=b", body)
    assert seen.header(b"x-custom") == b"kept"
    assert seen.header(b"content-type") == b"application/json"
    assert way.red.key.encode() not in b"".join(value for _, value in seen.headers)
    assert seen.header(b"authorization") is None


async def until(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, "waited in vain"
        await asyncio.sleep(0.005)
