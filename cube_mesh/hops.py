"""Which fields cross which hop, and the fields of ours that are added. One list per direction, so that it can be
audited.

Hop-by-hop fields (RFC 9110 7.6.1) never cross. Names that we or Cube AI give a meaning to never cross a trust border
from the less trusted side: a client cannot claim an attestation, an upstream cannot fake one.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from cube_mesh._fastpath import FieldSet, HopHead, ResponseHead
from cube_mesh.errors import DependencyError
from cube_mesh.upstream import Pool, UpstreamConnection

_HOP_BY_HOP = (
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    b"proxy-authenticate", b"proxy-authorization", b"content-length", b"expect",
)  # fmt: skip
_INTERNAL_PREFIXES = (b"x-cube-", b"x-attestation-", b"x-atls-", b"x-tls-", b"x-guardrails-")
_INTERNAL = (b"x-event-type", b"x-domain-id")
_CREDENTIALS = (b"authorization", b"cookie", b"x-api-key", b"api-key")
_FORWARDED = (b"forwarded", b"via", b"x-real-ip", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
              b"x-forwarded-port", b"x-forwarded-prefix")  # fmt: skip
_OURS = (b"host", b"x-request-id", b"traceparent", b"tracestate")

FROM_CLIENT = FieldSet(names=_HOP_BY_HOP + _INTERNAL + _CREDENTIALS + _FORWARDED + _OURS, prefixes=_INTERNAL_PREFIXES)
TO_CLIENT = FieldSet(
    names=(*_HOP_BY_HOP, *_INTERNAL, b"x-request-id", b"x-accel-buffering", b"set-cookie", b"alt-svc"),
    prefixes=(*_INTERNAL_PREFIXES, b"access-control-"),  # who may read answers in a browser is the edge's to say
)

AGENT_ERROR = b"x-cube-error"  # an agent's own answer, not its backend's: the error code, for its proxy alone
_CODE = re.compile(rb"[a-z][a-z0-9_]{0,63}").fullmatch


def agent_error(head: ResponseHead) -> DependencyError | None:
    """What an agent says it was that kept it from an answer of its backend; None for the backend's answer."""
    code = head.get(AGENT_ERROR)
    if code is None:
        return None
    name = code.decode("ascii") if _CODE(code) else "unknown"
    return DependencyError(name, "The upstream server did not give a valid answer.", detail="said by the agent")


class Hop(HopHead):
    """One upstream: its pool, and how a request's head is written for it.

    ``mesh`` marks an attested agent, which is told the domain; any other upstream is a backend and gets
    ``authorization``, the backend's own credential, if there is one. The tenant's credential is in neither. Every one
    gets the request id and the trace, with this node's client span as the parent.
    """

    def __init__(self, name: str, host: str, pool: Pool, *, mesh: bool, api_key: str = "") -> None:
        fixed = f"host: {host}\r\n"
        if api_key:
            fixed += f"authorization: Bearer {api_key}\r\n"
        super().__init__(fixed.encode("ascii"), FROM_CLIENT, mesh, pool)
        self.name = name
        self.pool = pool
        self.acquire: Callable[[], UpstreamConnection | Awaitable[UpstreamConnection]] = pool.acquire
