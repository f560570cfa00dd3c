"""The route table: immutable, ordered, compiled once; says which rule takes a request, and can say why the others did
not.

Order is priority, highest first, then name: a total order, so that equal priorities never depend on luck. Path patterns
see the path after the domain is stripped. Regular expressions are RE2 (linear time), anchored at both ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
import re2

from cube_mesh._fastpath import KnownRoutes
from cube_mesh.errors import ConfigError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import Route
from cube_mesh.settings import RouteMatch, RouteRule

_MAX_KNOWN = 1024  # answers kept, for targets of at most so many bytes
_MAX_TARGET = 256
Test = Callable[[Exchange, str], bool]


class Compiled(msgspec.Struct, frozen=True):
    """One rule: named tests that must all hold, cheapest first."""

    route: Route
    tests: tuple[tuple[str, Test], ...]


class RouteTable(KnownRoutes):
    """``match`` gives the first rule whose every test holds, or None. Never a default that was not written down."""

    def __init__(self, rules: Iterable[RouteRule]) -> None:
        ordered = sorted(rules, key=lambda rule: (-rule.priority, rule.name))
        self._compiled = tuple(Compiled(Route(r.name, r.upstream), _tests(r.name, r.match)) for r in ordered)
        super().__init__(not any(r.match.headers for r in ordered), _MAX_KNOWN, _MAX_TARGET)

    def _search(self, exchange: Exchange) -> Route | None:
        path = _path(exchange)
        for rule in self._compiled:
            for _, test in rule.tests:
                if not test(exchange, path):
                    break
            else:
                return rule.route
        return None

    def explain(self, exchange: Exchange) -> list[tuple[str, str]]:
        """For each rule in order: its name and "matched" or the first test that failed."""
        path = _path(exchange)
        lines = []
        for rule in self._compiled:
            failed = next((name for name, test in rule.tests if not test(exchange, path)), "")
            lines.append((rule.route.name, f"no: {failed}" if failed else "matched"))
        return lines


def _path(exchange: Exchange) -> str:
    return exchange.upstream_target.partition(b"?")[0].decode("ascii")


def _tests(rule: str, match: RouteMatch) -> tuple[tuple[str, Test], ...]:
    tests: list[tuple[str, Test]] = []
    if match.methods:
        methods = frozenset(match.methods)
        tests.append(("method", lambda exchange, path: exchange.method in methods))
    if match.domains:
        domains = frozenset(match.domains)
        tests.append(("domain", lambda exchange, path: exchange.domain_id in domains))
    if match.path:
        exact = match.path
        tests.append(("path", lambda exchange, path: path == exact))
    if match.path_prefix:
        tests.append(("path_prefix", _prefix_test(match.path_prefix)))
    if match.path_regex:
        tests.append(("path_regex", _regex_test(rule, match.path_regex)))
    for name, value in match.headers.items():
        tests.append((f"header {name}", _header_test(name.encode("ascii"), value.encode("utf-8"))))
    return tuple(tests)


def _prefix_test(prefix: str) -> Test:
    """By whole segments: ``/audit`` takes ``/audit`` and ``/audit/x``, not ``/auditx``."""
    bare = prefix.rstrip("/")
    below = bare + "/"
    return lambda exchange, path: path == bare or path.startswith(below)


def _regex_test(rule: str, pattern: str) -> Test:
    try:
        full = re2.compile(pattern).fullmatch
    except re2.error as error:
        raise ConfigError(f"not an RE2 pattern: {error}", key=f"routes.{rule}.match.path_regex") from None
    return lambda exchange, path: full(path) is not None


def _header_test(name: bytes, value: bytes) -> Test:
    return lambda exchange, path: exchange.head.get(name) == value
