"""The chain, in one visible list: what every request passes, in this order, and what sees it end.

Gates (they may refuse): request_id, tenant, cors (if configured), load, authn, authz, route, forward. Observers (they
see every exchange end, in this order): audit, logging, tracing, metrics. So a request that authn refuses has its audit
event, log line, span and metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from cube_mesh.admission import Admission
from cube_mesh.audit.event import EventWriter
from cube_mesh.endpoints import EndpointTable
from cube_mesh.exchange import Exchange
from cube_mesh.middleware.audit import Audit
from cube_mesh.middleware.authn import Authn
from cube_mesh.middleware.authz import Authz
from cube_mesh.middleware.chain import Chain
from cube_mesh.middleware.cors import Cors
from cube_mesh.middleware.forward import Forward, TenantForward
from cube_mesh.middleware.load import Load
from cube_mesh.middleware.logging import Logging
from cube_mesh.middleware.metrics import Metrics
from cube_mesh.middleware.own import with_own_stages
from cube_mesh.middleware.peer import Peer
from cube_mesh.middleware.request_id import RequestId
from cube_mesh.middleware.route import Route
from cube_mesh.middleware.tenant import Tenant
from cube_mesh.middleware.tracing import Tracing
from cube_mesh.ports import AuditSink, Authenticator, Authorizer, RouteSource, Target
from cube_mesh.settings import Limits, Settings
from cube_mesh.telemetry.metrics import Metrics as Numbers

CHAIN = (
    "request_id", "tenant", "cors", "load", "authn", "audit", "authz", "logging", "tracing", "metrics", "route",
    "forward",
)  # fmt: skip
AGENT_CHAIN = ("request_id", "peer", "load", "logging", "tracing", "metrics", "route", "forward")

__all__ = ["AGENT_CHAIN", "CHAIN", "Chain", "Common", "agent_chain", "proxy_chain"]


class Common(msgspec.Struct, frozen=True):
    """What the stages of both roles need from the node. ``node_id`` is how records name it.

    ``tenant_targets``: by domain, the targets of those that have their own (an evidence policy of theirs is asked).
    ``build_spans`` and ``emit_span`` are None when no trace endpoint is configured.
    """

    settings: Settings
    node_id: str
    endpoints: EndpointTable
    routes: RouteSource
    targets: Mapping[str, Target]
    numbers: Numbers
    write_line: Callable[[bytes], None]
    json_lines: bool
    build_spans: Callable[[Exchange], list[Any]] | None = None
    emit_span: Callable[[Any], None] | None = None
    tenant_targets: Mapping[str, Mapping[str, Target]] = {}
    admission: Admission = msgspec.field(default_factory=lambda: Admission(Limits()))


def proxy_chain(common: Common, authenticator: Authenticator, authorizer: Authorizer, sink: AuditSink) -> Chain:
    """The chain of a proxy, in the order of ``CHAIN``."""
    settings = common.settings
    writer = EventWriter(common.node_id, unsafe=settings.unsafe_allow_simulated)
    cors = {"cors": Cors(settings.cors)} if settings.cors.allowed_origins else {}
    return _chain(common, CHAIN, {
        **cors,
        "tenant": Tenant(common.endpoints, settings.listen.path_prefix),
        "authn": Authn(authenticator),
        "audit": Audit(writer, sink),
        "authz": Authz(authorizer),
    })  # fmt: skip


def agent_chain(common: Common) -> Chain:
    """The chain of an agent, in the order of ``AGENT_CHAIN``: its caller is a proxy that has authorized the request."""
    return _chain(common, AGENT_CHAIN, {"peer": Peer(common.endpoints)})


def _forward(common: Common) -> Forward:
    limits = common.settings.limits
    if not common.tenant_targets:
        return Forward(common.targets, limits)
    return TenantForward(common.targets, limits, common.tenant_targets)


def _chain(common: Common, order: tuple[str, ...], own_of_role: dict[str, Any]) -> Chain:
    settings = common.settings
    recording = common.emit_span is not None
    stages: dict[str, Any] = {
        "request_id": RequestId(settings.tracing.sample_ratio, recording=recording),
        "load": Load(common.admission),
        "metrics": Metrics(common.numbers),
        "route": Route(common.routes),
        "forward": _forward(common),
        **own_of_role,
    }
    if settings.log.requests:
        stages["logging"] = Logging(
            common.write_line,
            common.node_id,
            json=common.json_lines,
            level=settings.log.level,
            unsafe=settings.unsafe_allow_simulated,
        )
    if common.build_spans is not None and common.emit_span is not None:
        stages["tracing"] = Tracing(common.build_spans, common.emit_span)
    return Chain(with_own_stages({name: stages[name] for name in order if name in stages}, settings))
