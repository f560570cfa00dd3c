"""The proxy role: tenants in front, attested agents behind. Which listener, which chain, which upstreams."""

from __future__ import annotations

from functools import partial
from socket import socket as Socket

from cube_mesh.audit import Ageing, open_sink
from cube_mesh.authz import DomainAuthorizer, load_roles
from cube_mesh.connection import Downstream
from cube_mesh.forwarded import Trust
from cube_mesh.identity import build_authenticator
from cube_mesh.keeper import Keeper, count_attaches, count_sessions, keeper_from_settings
from cube_mesh.listener import Accepting, Acceptor, PlainAcceptor, bind_edge
from cube_mesh.middleware import proxy_chain
from cube_mesh.parts import Parts, route_table
from cube_mesh.ports import Connector
from cube_mesh.remote_keeper import RemoteKeeper, remote_keeper_from_settings
from cube_mesh.service import Service
from cube_mesh.settings import Upstream
from cube_mesh.targets import build_targets, split_url
from cube_mesh.tls.connector import AttestedConnector
from cube_mesh.tls.control import ControlLink
from cube_mesh.tls.edge import EdgeCertificate
from cube_mesh.tls.tenant import tenant_targets


class ProxyRole:
    """``cube-mesh proxy``. Made with everything checked; ``start`` opens the door last."""

    def __init__(self, parts: Parts) -> None:
        settings = parts.settings
        self._parts = parts
        self._links: dict[str, ControlLink] = {}  # by agent
        self._agents: dict[str, str] = {}  # by upstream
        self._server: Accepting | None = None
        self._keeper: Keeper | RemoteKeeper | None = None
        if any(split_url(upstream)[0] == "atls" for upstream in settings.upstreams):
            self._keeper = (
                remote_keeper_from_settings(settings, "proxy", parts.place.keeper)
                if parts.place.keeper is not None
                else keeper_from_settings(settings, "proxy")
            )
            count_attaches(self._keeper.sessions, parts.collector)
            if isinstance(self._keeper, Keeper):
                count_sessions(self._keeper, parts.collector)
        self._authenticator = build_authenticator(settings.identity)
        authorizer = DomainAuthorizer(settings.identity.domains, load_roles(settings.authz.roles_file))
        self._targets = build_targets(
            settings.upstreams, settings.timeouts, settings.limits, parts.sweeper, self._attested
        )
        self._export = parts.export()
        routes = route_table(settings.routes, settings.upstreams)
        node_id = str(self._keeper.node_id) if self._keeper is not None else settings.mesh.node_id
        self._sink = open_sink(settings.audit, parts.place.worker or 0)
        parts.sweeper.add(Ageing(self._sink, settings.audit.rotate_s))
        self._trust = Trust(settings.listen.trusted_peers, settings.listen.forwarded)
        self._certificate = self._edge_certificate()
        own = tenant_targets(settings.identity.domains, self._targets, self._keeper)
        common = parts.common(node_id, routes, dict(self._targets), self._export, own)
        chain = proxy_chain(common, self._authenticator, authorizer, self._sink)
        self._count_audit()
        parts.collector.counter("cube_observer_failures", "Observers that broke.", "stage", lambda: chain.failures)
        self.service = Service(
            chain,
            settings.limits,
            settings.timeouts,
            parts.sweeper,
            parts.health.paths(),
            parts.numbers.protocol_error,
            admission=parts.admission,
            trust=self._trust if settings.listen.trusted_peers else None,
            pipelining=settings.listen.pipelining,
        )

    def _count_audit(self) -> None:
        collector, trail, outcome = self._parts.collector, self._sink.trail, self._sink.outcome
        trail.on_sync = self._parts.numbers.audit_sync
        collector.counter("cube_audit_events", "Events of the trail.", "result", outcome.counts)
        collector.counter("cube_audit_files", "Files of the trail, by what befell them.", "what", trail.counts)
        collector.gauge("cube_audit_spool_bytes", "All files of the trail.", lambda: trail.bytes)

    def _edge_certificate(self) -> EdgeCertificate | None:
        parts = self._parts
        if not parts.settings.listen.tls.cert_file:
            return None
        certificate = EdgeCertificate(parts.settings.listen.tls)
        parts.sweeper.add(certificate)
        parts.collector.gauge(
            "cube_edge_certificate_expiry_seconds", "Until the edge certificate expires.", certificate.expiry_s, "min"
        )
        parts.collector.counter(
            "cube_edge_certificate_reloads", "Times its files were read again.", "result", lambda: certificate.reloads
        )
        return certificate

    def _attested(self, upstream: Upstream, host: str, port: int) -> Connector:
        assert self._keeper is not None
        attestation = self._parts.settings.attestation
        connector = AttestedConnector(upstream, self._keeper, attestation, on_gate=self._parts.on_gate)
        target = str(connector.target)
        if target not in self._links and isinstance(self._keeper, Keeper):
            link = self._links[target] = ControlLink(connector, self._keeper.sessions)
            self._keeper.sessions.add_link(link)
        self._agents[upstream.name] = target
        return connector

    async def start(self) -> None:
        parts, listen = self._parts, self._parts.settings.listen
        socket = parts.place.listener or bind_edge(listen)
        parts.health.checks["identity"] = self._authenticator.not_ready
        if self._keeper is not None:
            if isinstance(self._keeper, Keeper) and self._keeper.feed is not None:
                self._keeper.feed.register(parts.collector)
            await self._keeper.start()
        self._authenticator.start()
        for name, agent in self._agents.items():
            parts.health.checks[f"upstream {name}"] = partial(self._not_ready, agent)
        for link in self._links.values():
            link.start()
        self._server = self._acceptor(socket)
        self._server.start()

    def _acceptor(self, socket: Socket) -> Accepting:
        parts, listen = self._parts, self._parts.settings.listen
        make, turns = partial(Downstream, self.service), parts.place.turns(lambda: parts.admission.connections)
        if self._certificate is None and not listen.proxy_protocol:
            return PlainAcceptor(socket, make, turns)
        context = self._certificate.context if self._certificate is not None else None
        errors = parts.numbers.protocol_error
        return Acceptor(socket, make, parts.admission, self._trust, listen, context, errors, turns)

    def _not_ready(self, agent: str) -> str:
        return self._keeper.sessions.not_ready(agent) if self._keeper is not None else ""

    def reload(self) -> None:
        """Read the edge certificate again, and open the trail again, which may have been moved away."""
        self._sink.reopen()
        if self._certificate is not None:
            self._certificate.reload()

    @property
    def opening(self) -> int:
        return self._server.opening if self._server is not None else 0

    def stop_listening(self) -> None:
        if self._server is not None:
            self._server.stop()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in self._links.values():
            await link.close()
        for target in self._targets.values():
            target.pool.close()
        await self._authenticator.close()
        if self._keeper is not None:
            await self._keeper.close()
        self._sink.close()
        if self._export is not None:
            self._export.close()
