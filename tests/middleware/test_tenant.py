"""The path contract: a canonical UUID first, or nothing goes on."""

from __future__ import annotations

import pytest

from cube_mesh.endpoints import load_endpoints
from cube_mesh.errors import ConfigError, PeerError
from cube_mesh.middleware.tenant import Tenant
from tests.middleware.fakes import CHAT, A, exchange

TENANT = Tenant(load_endpoints())
PREFIXED = Tenant(load_endpoints(), "/proxy")


@pytest.mark.parametrize(
    ("path", "query", "target", "endpoint"),
    [
        (f"/{A}{CHAT}", "", CHAT.encode(), CHAT),
        (f"/{A}{CHAT}", "?a=1&b=/x", CHAT.encode() + b"?a=1&b=/x", CHAT),
        (f"/{A}", "", b"/", None),
        (f"/{A}", "?x", b"/?x", None),
        (f"/{A}/", "", b"/", None),
        (f"/{A}/v1/nothing", "", b"/v1/nothing", None),
        (f"/{A}/{A}{CHAT}", "", f"/{A}{CHAT}".encode(), None),
    ],
)
def test_the_domain_is_stripped_and_the_query_kept(path: str, query: str, target: bytes, endpoint: str | None) -> None:
    for stage, prefix in ((TENANT, ""), (PREFIXED, "/proxy")):
        for _ in range(2):  # the second time from the cache
            passing = exchange(prefix + path, query=query)
            stage.enter(passing)
            assert (passing.domain_id, passing.upstream_target) == (A, target)
            assert (passing.endpoint and passing.endpoint.name) == endpoint


@pytest.mark.parametrize(
    "path",
    [
        "/", CHAT, "/v1", f"/{A.upper()}{CHAT}", f"/{A.title()}{CHAT}", f"/{A.replace('-', '')}{CHAT}",
        f"/urn:uuid:{A}{CHAT}", f"/{A}x{CHAT}", f"/x{A}{CHAT}", f"/{A[:-1]}{CHAT}", f"/{A[:-1]}g{CHAT}",
        f"/{A}%20{CHAT}", f"/v1/{A}{CHAT}", f"/{A[:8]}_{A[9:]}{CHAT}", f"/proxy/{A}{CHAT}",
    ],
)  # fmt: skip
def test_everything_else_is_400(path: str) -> None:
    for _ in range(2):
        with pytest.raises(PeerError) as caught:
            TENANT.enter(passing := exchange(path))
        assert (caught.value.code, caught.value.status) == ("invalid_domain", 400)
    passing = exchange(path)
    with pytest.raises(PeerError):
        TENANT.enter(passing)
    assert (passing.domain_id, passing.upstream_target, passing.endpoint) == ("", b"", None)


@pytest.mark.parametrize("path", [f"/{A}{CHAT}", f"/proxyx/{A}{CHAT}", f"/proxy{A}{CHAT}", f"/PROXY/{A}{CHAT}"])
def test_a_configured_prefix_must_be_there(path: str) -> None:
    with pytest.raises(PeerError):
        PREFIXED.enter(exchange(path))


@pytest.mark.parametrize("prefix", ["proxy", "/proxy/", "/", "/é"])
def test_a_prefix_that_could_not_match_is_a_configuration_error(prefix: str) -> None:
    with pytest.raises(ConfigError):
        Tenant(load_endpoints(), prefix)
