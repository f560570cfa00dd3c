"""Routes: order, matching, explanation; every kind of test alone."""

from __future__ import annotations

import random

import pytest

from cube_mesh._fastpath import scan_request
from cube_mesh.errors import ConfigError
from cube_mesh.exchange import Exchange
from cube_mesh.routes import RouteTable
from cube_mesh.settings import RouteMatch, RouteRule

DOMAIN = "0b0b0b0b-1111-4222-8333-444444444444"


def exchange(method: str = "POST", target: str = "/v1/chat/completions", fields: str = "") -> Exchange:
    head = scan_request(f"{method} {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n".encode(), 0, 8192, 100)
    assert head is not None
    made = Exchange(head, "127.0.0.1")
    made.upstream_target = head.target
    made.domain_id = DOMAIN
    return made


def rule(name: str, priority: int = 0, **match: object) -> RouteRule:
    return RouteRule(name=name, upstream=f"to-{name}", priority=priority, match=RouteMatch(**match))  # type: ignore[arg-type]


def matched(rules: list[RouteRule], request: Exchange) -> str | None:
    route = RouteTable(rules).match(request)
    return route.name if route is not None else None


@pytest.mark.parametrize(
    ("match", "yes", "no"),
    [
        ({"path": "/v1/models"}, exchange("GET", "/v1/models?x=1"), exchange("GET", "/v1/models/a")),
        ({"path_prefix": "/v1"}, exchange(target="/v1/x"), exchange(target="/v1x")),
        ({"path_prefix": "/v1/"}, exchange(target="/v1"), exchange(target="/v")),
        ({"path_regex": "/v1/(chat|audio)/.+"}, exchange(), exchange(target="/x/v1/chat/completions")),
        ({"methods": ("GET", "HEAD")}, exchange("HEAD"), exchange("POST")),
        ({"headers": {"x-team": "red"}}, exchange(fields="X-Team: red\r\n"), exchange(fields="X-Team: redder\r\n")),
        ({"headers": {"x-team": ""}}, exchange(fields="X-Team:\r\n"), exchange()),
        ({"domains": (DOMAIN,)}, exchange(), None),
    ],
)
def test_each_matcher_alone(match: dict[str, object], yes: Exchange, no: Exchange | None) -> None:
    assert matched([rule("r", **match)], yes) == "r"
    if no is None:
        no = exchange()
        no.domain_id = DOMAIN.replace("0", "1")
    assert matched([rule("r", **match)], no) is None


def test_every_condition_must_hold() -> None:
    both = rule("r", path="/v1/models", methods=("GET",))
    assert matched([both], exchange("POST", "/v1/models")) is None
    assert matched([both], exchange("GET", "/v1/models")) == "r"


def test_priority_then_name_whatever_the_order_of_the_file() -> None:
    rules = [rule("b", 5), rule("a", 5), rule("low", 1), rule("high", 9, path="/other")]
    for _ in range(20):
        random.Random(4).shuffle(rules)
        assert matched(rules, exchange()) == "a"


def test_nothing_is_a_default() -> None:
    assert matched([], exchange()) is None
    assert matched([rule("r", path="/x")], exchange()) is None


def test_explain_says_what_failed() -> None:
    table = RouteTable([rule("x", 2, methods=("GET",)), rule("y", 1, path="/no"), rule("z")])
    assert table.explain(exchange()) == [("x", "no: method"), ("y", "no: path"), ("z", "matched")]


def test_a_pattern_is_linear_or_refused() -> None:
    with pytest.raises(ConfigError, match="r.match.path_regex"):
        RouteTable([rule("r", path_regex="(a)\\1")])
    slow = rule("r", path_regex="/(a+)+b")
    assert matched([slow], exchange(target="/" + "a" * 5000)) is None


def test_answers_that_are_kept_are_those_that_were_found() -> None:
    """Rules that read no field: asked twice, for more requests than are kept, and for targets that are not kept."""
    rules = [rule("a", 2, path_prefix="/v1", methods=("POST",)), rule("b", 1, domains=(DOMAIN,), path="/x"), rule("c")]
    table = RouteTable(rules)
    requests = [
        exchange(method, target) for method in ("GET", "POST") for target in ("/v1", "/v1x", "/x?y=1", "/" + "z" * 400)
    ]
    requests += [exchange(target=f"/v1/{n}") for n in range(1100)]
    for request in requests * 2:
        found = table.match(request)
        lines = dict(table.explain(request))
        assert found is not None and lines[found.name] == "matched"
        assert found.name == next(name for name, why in lines.items() if why == "matched")
    assert len(table.known) <= 1024
