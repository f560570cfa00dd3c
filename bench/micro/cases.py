"""What is measured; evidence has a file of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial

import h11
import msgspec

from bench.micro.case import Case
from bench.micro.evidence import evidence_cases
from bench.micro.parse import CORPUS, Server
from cube_mesh._fastpath import scan_request
from cube_mesh.audit.event import EventWriter
from cube_mesh.bodies import read_members
from cube_mesh.endpoints import load_endpoints
from cube_mesh.exchange import Exchange
from cube_mesh.routes import RouteTable
from cube_mesh.settings import RouteMatch, RouteRule
from tests.middleware import fakes


def all_cases() -> Iterator[Case]:
    yield from _parse()
    yield from _bodies()
    yield from _match()
    yield from _chain()
    yield from evidence_cases()


# -- HTTP --


def _h11(data: bytes) -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    connection.next_event()


def _parse() -> Iterator[Case]:
    """Each request of the corpus once; httptools in its best use, one parser for all requests of a connection."""
    requests = list(CORPUS.values())
    scan = partial(scan_request, pos=0, max_head=32_768, max_fields=100)
    for name, parse in (("", scan), (": httptools", Server().parser.feed_data), (": h11", _h11)):
        against = "" if name else "parse a request: httptools"
        yield Case(f"parse a request{name}", partial(_each, parse, requests), against, len(requests))


def _each(call: Callable[[bytes], object], items: list[bytes]) -> None:
    for item in items:
        call(item)


def _bodies() -> Iterator[Case]:
    for size in (700, 64_000):
        body = chat_body(size)
        name = f"scan a JSON body of {size / 1000:g} kB"
        yield Case(name, partial(read_members, fakes.exchange(), body, 0, len(body)), f"{name}: msgspec")
        yield Case(f"{name}: msgspec", partial(msgspec.json.decode, body))


def chat_body(size: int) -> bytes:
    """A chat request of about ``size`` bytes: one long message, and the members that a gateway acts on after it."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why is the sky? " * (size // 16)},
    ]
    request = {"model": "smollm2", "messages": messages, "stream": True, "max_tokens": 128, "temperature": 0.2}
    return json.dumps(request).encode()


# -- the chain --


def _match() -> Iterator[Case]:
    rules = [
        RouteRule(name=f"r{n:03}", upstream="u", match=RouteMatch(path_prefix=f"/v1/tenant{n}", methods=("POST",)))
        for n in range(100)
    ]
    last = RouteRule(name="z", upstream="u", match=RouteMatch(path_prefix="/v1"))
    exchange = fakes.exchange()
    exchange.upstream_target = fakes.CHAT.encode()
    one, hundred, table = RouteTable([last]), RouteTable([*rules, last]), load_endpoints()
    assert hundred.match(exchange) is not None
    yield Case("match a route, first of 1", lambda: one.match(exchange))
    yield Case("match a route, last of 101", lambda: hundred.match(exchange))
    yield Case("find an endpoint", lambda: table.find("POST", fakes.CHAT))


def _nothing(value: object) -> None:
    return None


def _chain() -> Iterator[Case]:
    mesh = fakes.Mesh()
    mesh.sink.append = _nothing  # type: ignore[method-assign, assignment]
    head = fakes.exchange(f"/{fakes.A}{fakes.CHAT}", "POST", fakes.bearer(fakes.KEY_A)).head

    def run() -> None:
        exchange = Exchange(head, "127.0.0.1")
        assert mesh.chain.enter(exchange) is None
        mesh.chain.leave(fakes.end(exchange), _nothing)
        mesh.log.clear()

    done = Exchange(head, "127.0.0.1")
    mesh.chain.enter(done)
    done.attestation = fakes.channel()
    writer = EventWriter("spiffe://cube/proxy/p1", unsafe=False)
    fakes.end(done)
    yield Case("the whole chain, without I/O", run)
    yield Case("encode an audit event", lambda: writer.line(done))
    yield Case("count an exchange in the metrics", partial(mesh.numbers.observe, done))


def clock_ns(case: Case, calls: int) -> float:
    """Nanoseconds per operation over ``calls`` calls: CPU time of this thread, so that other programs do not count. One
    call more goes before them: what another case made cold, in caches or on purpose, is warm again.
    """
    call, before, now = case.call, case.before, time.thread_time_ns
    call()
    if before is None:
        start = now()
        for _ in range(calls):
            call()
        return (now() - start) / calls / case.per
    taken = 0
    for _ in range(calls):
        before()
        start = now()
        call()
        taken += now() - start
    return taken / calls / case.per
