"""The agent role: allow-listed proxies in front, over attested TLS; the model server behind."""

from __future__ import annotations

from functools import partial

from cube_mesh.connection import Downstream
from cube_mesh.errors import ConfigError
from cube_mesh.keeper import Keeper, count_attaches, count_sessions, keeper_from_settings
from cube_mesh.listener import Accepting, PlainAcceptor, bind, is_loopback
from cube_mesh.middleware import agent_chain
from cube_mesh.parts import Parts, route_table
from cube_mesh.remote_keeper import RemoteKeeper, remote_keeper_from_settings
from cube_mesh.service import Service
from cube_mesh.targets import build_targets
from cube_mesh.tls.connector import AttestedServer


class AgentRole:
    """``cube-mesh agent``. Serves nothing until it has evidence: the first leaf is made before it listens."""

    def __init__(self, parts: Parts) -> None:
        settings = parts.settings
        if settings.unsafe_allow_simulated and not is_loopback(settings.listen.host):
            raise ConfigError("simulated evidence is served on loopback only", key="listen.host")
        self._parts = parts
        self._server: Accepting | None = None
        self._keeper: Keeper | RemoteKeeper = (
            remote_keeper_from_settings(settings, "agent", parts.place.keeper)
            if parts.place.keeper is not None
            else keeper_from_settings(settings, "agent")
        )
        count_attaches(self._keeper.sessions, parts.collector)
        if isinstance(self._keeper, Keeper):
            count_sessions(self._keeper, parts.collector)
        self._targets = build_targets(settings.upstreams, settings.timeouts, settings.limits, parts.sweeper, None)
        self._export = parts.export()
        routes = route_table(settings.routes, settings.upstreams)
        common = parts.common(str(self._keeper.node_id), routes, dict(self._targets), self._export)
        self.service = Service(
            agent_chain(common),
            settings.limits,
            settings.timeouts,
            parts.sweeper,
            {},
            parts.numbers.protocol_error,
            admission=parts.admission,
            pipelining=settings.listen.pipelining,
        )
        self._front = AttestedServer(
            self._keeper,
            partial(Downstream, self.service),
            settings.attestation,
            settings.mesh.allowed_proxies,
            on_gate=parts.on_gate,
        )

    async def start(self) -> None:
        listen = self._parts.settings.listen
        socket = self._parts.place.listener or bind(listen.host, listen.port, listen.backlog)
        await self._keeper.start()
        self._parts.health.checks["keeper"] = lambda: self._keeper.not_ready
        admission = self._parts.admission
        self._server = PlainAcceptor(socket, self._front, self._parts.place.turns(lambda: admission.connections))
        self._server.start()

    def reload(self) -> None:
        """An agent makes its leaf itself: there is nothing to read again."""

    @property
    def opening(self) -> int:
        return self._server.opening if self._server is not None else 0

    def stop_listening(self) -> None:
        if self._server is not None:
            self._server.stop()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for target in self._targets.values():
            target.pool.close()
        await self._keeper.close()
        if self._export is not None:
            self._export.close()
