"""Browsers: preflights are answered, audited and go nowhere; answers can be read by allowed pages only."""

from __future__ import annotations

from pathlib import Path

import pytest

from cube_mesh.demo.backend import ScriptedBackend
from tests.edge.door import CHAT, ask, open_door, request, status
from tests.support.mesh import read_events

PAGE = "https://app.example"


def preflight(origin: str = PAGE, headers: str = "authorization,x-evil, X-Stainless-Lang") -> bytes:
    return (
        f"OPTIONS {CHAT} HTTP/1.1\r\nhost: test\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n"
        f"access-control-request-headers: {headers}\r\n\r\n"
    ).encode()


def fields(reply: bytes) -> dict[str, str]:
    lines = reply.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    names = [line.partition(":")[0].lower() for line in lines]
    assert len(names) == len(set(names)), "each field once"
    return {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}


def cors(reply: bytes) -> dict[str, str]:
    return {name: value for name, value in fields(reply).items() if name.startswith(("access-control", "vary"))}


async def test_a_preflight_is_answered_audited_and_not_forwarded(tmp_path: Path, backend: ScriptedBackend) -> None:
    with open_door(tmp_path, backend.url, cors={"allowed_origins": [PAGE]}) as proxy:
        reply = await ask(proxy.port, preflight())
        assert status(reply) == 204 and "content-length" not in fields(reply)
        assert cors(reply) == {
            "access-control-allow-origin": PAGE,
            "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
            "access-control-allow-headers": "authorization, x-stainless-lang",
            "access-control-max-age": "600",
            "vary": "origin",
        }
        (event,) = read_events(tmp_path)
        assert (event["method"], event["status_code"], event["outcome"]) == ("OPTIONS", 204, "completed")
        assert event["session"] is None and event["upstream"] is None and event["domain_id"]
    assert not backend.requests


@pytest.mark.parametrize("origin", ["https://evil.example", "https://app.example.evil", "null", "http://app.example"])
async def test_other_origins_are_refused(tmp_path: Path, backend: ScriptedBackend, origin: str) -> None:
    with open_door(tmp_path, backend.url, cors={"allowed_origins": [PAGE]}) as proxy:
        reply = await ask(proxy.port, preflight(origin))
        assert status(reply) == 403 and b"origin_not_allowed" in reply and cors(reply) == {}
        reply = await ask(proxy.port, request(origin=origin))
        assert status(reply) == 200 and cors(reply) == {}, "served, and no page of that origin can read it"


async def test_answers_of_every_kind_can_be_read(tmp_path: Path, backend: ScriptedBackend) -> None:
    expected = {
        "access-control-allow-origin": PAGE,
        "access-control-expose-headers": "x-request-id, retry-after",
        "vary": "origin",
    }
    with open_door(tmp_path, backend.url, cors={"allowed_origins": [PAGE]}) as proxy:
        for answered, data in {
            200: request(origin=PAGE),
            401: request(origin=PAGE).replace(b"Bearer", b"Basic"),
            400: request(origin=PAGE, body=b"{"),
            403: request("/" + CHAT.split("/")[1] + "/v1/files", origin=PAGE),
        }.items():
            reply = await ask(proxy.port, data)
            assert (status(reply), cors(reply)) == (answered, expected)


async def test_any_origin(tmp_path: Path, backend: ScriptedBackend) -> None:
    with open_door(tmp_path, backend.url, cors={"allowed_origins": ["*"]}) as proxy:
        reply = await ask(proxy.port, preflight("https://anybody.example"))
        assert cors(reply)["access-control-allow-origin"] == "*" and "vary" not in cors(reply)


async def test_off_by_default(tmp_path: Path, backend: ScriptedBackend) -> None:
    with open_door(tmp_path, backend.url) as proxy:
        reply = await ask(proxy.port, preflight())
        assert status(reply) == 401 and cors(reply) == {}
        assert cors(await ask(proxy.port, request(origin=PAGE))) == {}
