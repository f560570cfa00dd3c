"""What the node builds once and hands to its role."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

import msgspec

from cube_mesh._fastpath import Slab
from cube_mesh.admission import Admission
from cube_mesh.deadlines import Sweeper
from cube_mesh.endpoints import EndpointTable
from cube_mesh.health import Health
from cube_mesh.hops import Hop
from cube_mesh.middleware import Common
from cube_mesh.ports import Target
from cube_mesh.routes import RouteTable
from cube_mesh.settings import RouteRule, Settings, Upstream
from cube_mesh.telemetry.metrics import Metrics, NodeCollector
from cube_mesh.telemetry.spans import SpanBuilder, SpanPipe, SpanSink
from cube_mesh.tls.connector import log_gate
from cube_mesh.tls.port import GateEvent
from cube_mesh.turns import Turns


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where in a node of several processes this one stands. The defaults: it is all of the node.

    ``listener``: the socket that all workers accept on, listening already. ``instance``: /health's, one for the node.
    ``slab``: the region that this process counts in. ``spans_fd``: the socket that takes its spans; -1: none.
    ``turns_fd``: see ``turns``. ``keeper``: the workers' end of the rendezvous with the keeper's process; None: the
    keeper is in this one.
    """

    worker: int | None = None
    listener: socket.socket | None = None
    instance: str = ""
    slab: Slab | None = None
    spans_fd: int = -1
    keeper: socket.socket | None = None
    turns_fd: int = -1

    def turns(self, count: Callable[[], int]) -> Turns | None:
        """This worker's, ``count()`` being the connections that it has; None: there are no others."""
        return Turns(self.turns_fd, self.worker, count) if self.worker is not None and self.turns_fd >= 0 else None


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Shared parts of a node; no role in them."""

    settings: Settings
    place: Place = Place()
    sweeper: Sweeper
    health: Health
    numbers: Metrics
    admission: Admission
    collector: NodeCollector
    endpoints: EndpointTable
    write_line: Callable[[bytes], None]
    json_lines: bool

    def common(
        self,
        node_id: str,
        routes: RouteTable,
        targets: dict[str, Hop],
        export: SpanSink | None,
        tenant_targets: Mapping[str, Mapping[str, Target]] | None = None,
    ) -> Common:
        """What the stages need."""
        settings = self.settings
        builder = None
        if export is not None:
            service = settings.tracing.service_name or "cube-mesh"
            builder = SpanBuilder(service, node_id, unsafe=settings.unsafe_allow_simulated)
        return Common(
            settings=settings,
            node_id=node_id,
            endpoints=self.endpoints,
            routes=routes,
            targets=targets,
            tenant_targets=tenant_targets or {},
            admission=self.admission,
            numbers=self.numbers,
            write_line=self.write_line,
            json_lines=self.json_lines,
            build_spans=builder.spans if builder is not None else None,
            emit_span=export.emit if export is not None else None,
        )

    def export(self) -> SpanSink | None:
        """Where spans go: to the exporter, or by a thread of this process when it is all of the node."""
        endpoint = self.settings.tracing.otlp_endpoint
        if not endpoint:
            return None
        sink: SpanSink
        if self.place.spans_fd >= 0:
            sink = SpanPipe(self.place.spans_fd)
        else:
            from cube_mesh.telemetry.otlp import Export

            sink = Export(endpoint)
        text = "Spans that nobody took in time."
        self.collector.counter("cube_spans_lost", text, "at", lambda: {"worker": sink.lost})
        return sink

    def on_gate(self, event: GateEvent) -> None:
        """One decision of an attestation gate, for the log and the metrics."""
        log_gate(event)
        verdict = "accept" if event.reason == "ok" else "refuse"
        self.numbers.attestation(event.side, verdict, event.reason, event.platform, event.duration_ms / 1e3)


def route_table(rules: tuple[RouteRule, ...], upstreams: tuple[Upstream, ...]) -> RouteTable:
    """The configured rules; a node with one upstream and no rules sends everything there."""
    if not rules and len(upstreams) == 1:
        rules = (RouteRule(name=upstreams[0].name, upstream=upstreams[0].name),)
    return RouteTable(rules)
