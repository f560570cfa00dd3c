"""Whose word about the client's address ends up in the audit trail, through a real proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from cube_mesh.demo.backend import ScriptedBackend
from tests.edge.door import ask, metric, open_door, request, status, until
from tests.support.mesh import read_events

TRUSTED, STRANGER = "127.0.0.1", "127.0.0.2"
V1 = b"PROXY TCP4 9.9.9.9 10.0.0.1 4711 443\r\n"


async def test_forwarding_fields_count_only_from_trusted_peers(tmp_path: Path, backend: ScriptedBackend) -> None:
    listen = {"trusted_peers": [f"{TRUSTED}/32"]}
    with open_door(tmp_path, backend.url, listen=listen) as proxy:
        cases = [
            (TRUSTED, "6.6.6.6, 9.9.9.9", "9.9.9.9"),
            (STRANGER, "6.6.6.6", STRANGER),
            (STRANGER, "nonsense", STRANGER),
        ]
        for source, value, expected in cases:
            reply = await ask(proxy.port, request(x_forwarded_for=value), source=source)
            assert status(reply) == 200
            assert read_events(tmp_path)[-1]["client_ip"] == expected
        for value in ("nonsense", "9.9.9.9,", "9.9.9.9\t8.8.8.8"):
            reply = await ask(proxy.port, request(x_forwarded_for=value), source=TRUSTED)
            assert status(reply) == 400 and b"bad_forwarded" in reply and b"connection: close" in reply
        assert len(read_events(tmp_path)) == len(cases)
        assert metric(proxy, 'cube_protocol_errors_total{code="bad_forwarded"}') == 3
    assert all(seen.header(b"x-forwarded-for") is None for seen in backend.requests)


@pytest.mark.parametrize("before", [V1, b""], ids=["with a header", "without"])
@pytest.mark.parametrize("source", [TRUSTED, STRANGER])
async def test_the_proxy_protocol(tmp_path: Path, backend: ScriptedBackend, before: bytes, source: str) -> None:
    """With the setting on, a trusted peer with a header is served, and nobody else."""
    listen = {"trusted_peers": [TRUSTED], "proxy_protocol": True}
    with open_door(tmp_path, backend.url, listen=listen) as proxy:
        reply = await ask(proxy.port, before + request(x_forwarded_for="6.6.6.6"), source=source)
        if before and source == TRUSTED:
            assert status(reply) == 200
            assert read_events(tmp_path)[-1]["client_ip"] == "9.9.9.9", (
                "the client behind the peer is not a peer itself"
            )
        else:
            assert reply == b""
            code = "bad_proxy_header" if source == TRUSTED else "untrusted_proxy"
            assert metric(proxy, f'cube_protocol_errors_total{{code="{code}"}}') == 1
        await until(lambda: metric(proxy, "cube_connections") == 0)


async def test_off_a_header_is_no_request(tmp_path: Path, backend: ScriptedBackend) -> None:
    with open_door(tmp_path, backend.url, listen={"trusted_peers": [TRUSTED]}) as proxy:
        assert status(await ask(proxy.port, V1 + request())) == 501
