"""Targets: what may be dialled and how, and which fields cross which hop."""

from __future__ import annotations

import pytest

from cube_mesh._fastpath import scan_request
from cube_mesh.connectors import PlainConnector, TlsConnector
from cube_mesh.deadlines import Sweeper
from cube_mesh.errors import ConfigError
from cube_mesh.exchange import Exchange
from cube_mesh.hops import FROM_CLIENT, TO_CLIENT, Hop
from cube_mesh.ports import Connector
from cube_mesh.settings import Limits, Timeouts, Upstream
from cube_mesh.targets import build_targets, split_url


def build(attested: bool = True, **fields: object) -> Hop:
    def connector(upstream: Upstream, host: str, port: int) -> Connector:
        return PlainConnector(host, port)

    upstream = Upstream(name="u", **fields)  # type: ignore[arg-type]
    made = build_targets([upstream], Timeouts(), Limits(), Sweeper(), connector if attested else None)
    return made["u"]


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://127.0.0.1:80", ("http", "127.0.0.1", 80)),
        ("https://model.example", ("https", "model.example", 443)),
        ("atls://[::1]:9/", ("atls", "::1", 9)),
        ("atls://a", ("atls", "a", 8901)),
    ],
)
def test_urls(url: str, parts: tuple[str, str, int]) -> None:
    assert split_url(Upstream(name="u", url=url)) == parts


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:80", "ftp://h", "http://", "http://h:x", "http://h:99999", "http://u:p@h", "http://h/x",
    "http://h?x",
     "http://h#f", "unix:///x"],
)  # fmt: skip
def test_bad_urls(url: str) -> None:
    with pytest.raises(ConfigError, match="upstreams.u.url"):
        split_url(Upstream(name="u", url=url))


@pytest.mark.parametrize("url", ["http://10.0.0.1:80", "http://model.example", "http://0.0.0.0:80"])
def test_plain_targets_stay_on_the_machine(url: str) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        build(url=url)
    build(url=url, unsafe_plain_non_loopback=True)


def test_an_agent_has_no_attested_upstream() -> None:
    with pytest.raises(ConfigError, match="cannot be attested"):
        build(attested=False, url="atls://127.0.0.1:1")


def test_the_connector_follows_the_scheme() -> None:
    assert isinstance(build(url="http://127.0.0.1:1").pool._connector, PlainConnector)
    assert isinstance(build(url="https://127.0.0.1:1").pool._connector, TlsConnector)


@pytest.mark.parametrize("key", ["a b", "a\r\nx: y", "ä"])
def test_a_backend_key_cannot_bring_fields_of_its_own(key: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII"):
        build(url="http://127.0.0.1:1", api_key=key)


def test_a_backend_key_does_not_go_to_an_agent() -> None:
    with pytest.raises(ConfigError, match="belongs to the agent"):
        build(url="atls://127.0.0.1:1", api_key="k")


def request() -> Exchange:
    head = scan_request(
        b"GET /d/v1/models HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer tenant\r\nAccept: */*\r\n\r\n", 0, 8192, 100
    )
    assert head is not None
    exchange = Exchange(head, "127.0.0.1")
    exchange.request_id, exchange.trace_id, exchange.span_id = "r", "a" * 32, "b" * 15 + "0"
    exchange.domain_id, exchange.upstream_target = "d", b"/v1/models"
    return exchange


def test_a_backend_gets_its_own_key_and_an_agent_the_domain() -> None:
    backend = build(url="http://127.0.0.1:1", api_key="backend-key").head(request(), -1)
    agent = build(url="atls://127.0.0.1:1").head(request(), -1)
    trace = b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 15 + b"1-00\r\n"
    assert backend == (
        b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1:1\r\nauthorization: Bearer backend-key\r\nx-request-id: r\r\n"
        + trace + b"Accept: */*\r\n\r\n"
    )  # fmt: skip
    assert agent == (
        b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1:1\r\nx-request-id: r\r\n"
        + trace + b"x-cube-domain: d\r\nAccept: */*\r\n\r\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [b"authorization", b"proxy-authorization", b"cookie", b"connection", b"transfer-encoding", b"x-cube-domain",
     b"x-attestation-ok", b"x-tls-version", b"x-guardrails-request", b"x-forwarded-for", b"x-request-id",
     b"traceparent"],
)  # fmt: skip
def test_what_a_client_sends_stops_here(name: bytes) -> None:
    assert name in FROM_CLIENT and name.upper() in FROM_CLIENT


@pytest.mark.parametrize("name", [b"x-attestation-ok", b"x-event-type", b"x-guardrails-decision", b"keep-alive"])
def test_what_an_upstream_claims_stops_here(name: bytes) -> None:
    assert name in TO_CLIENT
    assert b"content-type" not in TO_CLIENT and b"content-type" not in FROM_CLIENT
