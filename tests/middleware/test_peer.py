"""The agent's door: an authenticated proxy that names its domain, or nothing."""

from __future__ import annotations

import pytest

from cube_mesh.endpoints import load_endpoints
from cube_mesh.errors import CubeMeshError
from cube_mesh.middleware.peer import Peer
from tests.middleware.fakes import CHAT, A, exchange

PEER = "spiffe://cube/proxy/p1"


def enter(*fields: tuple[str, str], peer: str = PEER, query: str = "") -> object:
    passing = exchange(CHAT, "POST", *fields, query=query)
    passing.peer_id = peer
    Peer(load_endpoints()).enter(passing)
    assert passing.principal is not None and passing.endpoint is not None
    return passing.domain_id, passing.principal.subject, passing.principal.method, passing.upstream_target


def test_a_proxy_speaks_for_its_domain() -> None:
    assert enter(("X-Cube-Domain", A), query="?q") == (A, PEER, "mtls", CHAT.encode() + b"?q")


@pytest.mark.parametrize(
    ("fields", "peer", "code", "status"),
    [
        ([("x-cube-domain", A)], "", "peer_required", 403),
        ([], PEER, "invalid_domain", 400),
        ([("x-cube-domain", A.upper())], PEER, "invalid_domain", 400),
        ([("x-cube-domain", A + "x")], PEER, "invalid_domain", 400),
        ([("x-cube-domain", "")], PEER, "invalid_domain", 400),
        ([("x-cube-domain", A), ("x-cube-domain", A)], PEER, "invalid_domain", 400),
    ],
)
def test_refusals(fields: list[tuple[str, str]], peer: str, code: str, status: int) -> None:
    with pytest.raises(CubeMeshError) as caught:
        enter(*fields, peer=peer)
    assert (caught.value.code, caught.value.status) == (code, status)
