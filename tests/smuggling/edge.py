"""One real downstream connection in memory, with the chain that a case asks for and an upstream that answers 204."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import h11

from cube_mesh.authz import DomainAuthorizer, load_roles
from cube_mesh.endpoints import load_endpoints
from cube_mesh.hops import Hop
from cube_mesh.identity import CredentialAuthenticator
from cube_mesh.identity.api_keys import key_table
from cube_mesh.middleware import Common, proxy_chain
from cube_mesh.middleware.chain import Chain
from cube_mesh.routes import RouteTable
from cube_mesh.settings import Limits, RouteMatch, RouteRule, Settings
from cube_mesh.telemetry.metrics import Metrics
from tests.connection.wire import CHAT, OTHER, Rig, settle
from tests.middleware import fakes
from tests.smuggling.cases import Case, Message

LIMITS = Limits(max_head_bytes=4096, max_fields=32, max_json_body=4096, max_body_bytes=8192)
ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass
class Outcome:
    """What the client saw (final statuses; whether the connection closed) and what arrived upstream, complete."""

    statuses: tuple[int, ...]
    closed: bool
    messages: tuple[Message, ...]
    emitted: list[bytes] = field(compare=False)  # every byte sent on, by upstream connection
    unfinished: bool = field(default=False, compare=False)  # something that was sent on is not a whole message


class Backend:
    """One upstream connection as h11 reads it."""

    def __init__(self) -> None:
        self.emitted = b""
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        self._body = b""

    @property
    def unfinished(self) -> bool:
        return self._http.their_state is not h11.IDLE or bool(self._http.trailing_data[0])

    def receive(self, data: bytes) -> Message | None:
        """The message that these bytes complete, if they do."""
        self.emitted += data
        self._http.receive_data(data)
        while (event := self._http.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Request):
                self._head, self._body = event, b""
            elif isinstance(event, h11.Data):
                self._body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._http.send(h11.Response(status_code=204, headers=[]))
                self._http.send(h11.EndOfMessage())
                self._http.start_next_cycle()
                return self._head.method.decode(), self._head.target.decode(), self._body
        return None


class Edge(Rig):
    """A Rig whose upstreams answer as soon as a request is complete."""

    def __init__(self, chain: str) -> None:
        super().__init__(CHAT if chain == "json" else OTHER, LIMITS)
        if chain == "proxy":
            self.service.chain = _proxy_chain(self.chain.hop)
        self.backends: list[Backend] = []
        self.messages: list[Message] = []
        self.received = b""

    async def feed(self, data: bytes) -> None:
        """Give the connection these bytes, unless it has closed, and let the upstreams answer."""
        if not self.closed:
            self.down.data_received(data)
        await settle()
        while self._answer():
            await settle()
        self.received += self.wire.take()

    def _answer(self) -> bool:
        """Whether an upstream had something to answer."""
        busy = False
        for index, wire in enumerate(self.upstreams.wires):
            if index == len(self.backends):
                self.backends.append(Backend())
            data = wire.take()
            message = self.backends[index].receive(data) if data else None
            if message is not None:
                busy = True
                self.messages.append(message)
                self.upstreams.connections[index].data_received(ANSWER)
        return busy

    @property
    def closed(self) -> bool:
        return self.wire.closed or self.wire.eof

    @property
    def outcome(self) -> Outcome:
        statuses = tuple(int(code) for code in STATUS.findall(self.received) if code != b"100")
        unfinished = any(backend.unfinished for backend in self.backends)
        emitted = [backend.emitted for backend in self.backends]
        return Outcome(statuses, self.closed, tuple(self.messages), emitted, unfinished)


async def run(case: Case, *pieces: bytes) -> Outcome:
    """The outcome of these bytes on one connection; they need not be the case's own."""
    edge = Edge(case.chain)
    for piece in pieces or (case.data,):
        await edge.feed(piece)
    edge.pool.close()
    return edge.outcome


def required(case: Case) -> Outcome:
    return Outcome(case.statuses, case.closes, case.messages, [])


def _proxy_chain(hop: Hop) -> Chain:
    authenticator = CredentialAuthenticator(key_table(fakes.KEYS, frozenset({fakes.A, fakes.B})))
    rules = (RouteRule(name="v1", upstream="agent", match=RouteMatch(path_prefix="/v1")),)
    common = Common(
        Settings(limits=LIMITS),
        "spiffe://cube/proxy/p1",
        load_endpoints(),
        RouteTable(rules),
        {"agent": hop},
        Metrics(domain.id for domain in fakes.DOMAINS),
        lambda line: None,
        True,
    )
    return proxy_chain(common, authenticator, DomainAuthorizer(fakes.DOMAINS, load_roles()), fakes.MemorySink())
