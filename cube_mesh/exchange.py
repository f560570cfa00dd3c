"""What one request accumulates on its way: the only object that stages share.

Written by the connection and the gates, read by the observers. Slots, no dictionary: one is made per request.
Times: ``*_at`` are ``time.perf_counter()`` seconds (0.0 = did not happen), ``started_wall`` is Unix time.
Sizes are body bytes. Text that a client chose (path, user agent, model) is here raw; whoever prints it escapes it.
"""

from __future__ import annotations

from time import perf_counter, time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cube_mesh._fastpath import RequestHead
    from cube_mesh.errors import CubeMeshError
    from cube_mesh.ports import ChannelAttestation, Endpoint, Grant, Principal, Route, Target


class Exchange:
    __slots__ = (
        "head", "method", "path", "domain_id", "upstream_target", "client_ip", "client_tls_version", "client_subject",
        "peer_id",
        "request_id", "trace_id", "span_id", "parent_span_id", "sampled", "tracestate",
        "principal", "grant", "endpoint", "route", "target", "upstream",
        "model", "stream", "max_tokens", "temperature",
        "request_size", "response_size", "status", "upstream_status", "error", "outcome", "streamed",
        "answer_fields",
        "input_tokens", "output_tokens", "attestation",
        "started_wall", "started_at", "body_at", "forwarded_at", "first_byte_at", "ended_at", "left",
    )  # fmt: skip

    def __init__(self, head: RequestHead, client_ip: str) -> None:
        self.head = head
        self.method: str = head.method
        self.path: str = head.path  # request-target up to "?", as received, percent-encoding kept
        self.client_ip = client_ip
        self.client_tls_version = ""
        self.client_subject = ""  # of the client's verified certificate, RFC 4514
        self.peer_id = ""  # SPIFFE id of the other end of a mutual TLS channel
        self.domain_id = ""  # canonical UUID, set by the tenant stage
        self.upstream_target = b""  # request-target to send on: domain stripped, query kept
        self.request_id = ""
        self.trace_id = ""  # 32 hex
        self.span_id = ""  # 16 hex: this node's server span
        self.parent_span_id = ""
        self.sampled = False
        self.tracestate = ""
        self.principal: Principal | None = None
        self.grant: Grant | None = None
        self.endpoint: Endpoint | None = None
        self.route: Route | None = None
        self.target: Target | None = None  # set by the forward stage: where and how to send
        self.upstream = ""  # host:port that was used
        self.model: str | None = None
        self.stream = False  # asked for by the client ("stream": true)
        self.max_tokens: int | None = None
        self.temperature: float | None = None
        self.request_size = 0
        self.response_size = 0
        self.status = 0  # status sent, or that would have been sent (499: client left before a response)
        self.upstream_status = 0
        self.error: CubeMeshError | None = None
        self.outcome = ""  # completed | refused | failed | cancelled
        self.answer_fields = b""  # field lines, each with its end, that a stage adds to the answer, whoever makes it
        self.streamed = False  # the response was an event stream
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.attestation: ChannelAttestation | None = None
        self.started_wall = time()
        self.started_at = perf_counter()
        self.body_at = 0.0  # request body complete
        self.forwarded_at = 0.0  # first byte written upstream
        self.first_byte_at = 0.0  # first response body byte
        self.ended_at = 0.0
        self.left = False  # the observers have run; set by the chain
