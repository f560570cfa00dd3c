"""W3C Trace Context, Level 1: reading it strictly, and the span ids of this node's two spans.

A node has a server span and, towards its upstream, a client span. Their ids differ in the last digit alone (0 and 1),
so that the second need not be kept: 60 random bits are left, and neither can be the forbidden all-zero id but by
chance 2^-60.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cube_mesh.exchange import Exchange

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL).fullmatch
_KEY = r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_MEMBER = re.compile(_KEY + r"=[ -+\--<>-~]{0,255}[!-+\--<>-~]").fullmatch
_MAX_STATE = 512  # characters that must be propagated (section 3.3.1.5); a longer list is dropped whole
_MAX_MEMBERS = 32


def parse_traceparent(value: bytes) -> tuple[str, str, bool] | None:
    """``(trace id, parent span id, sampled)``, or None for anything malformed (section 3.2): a new trace begins then.

    Versions above 00 are read by the rules of 00, as section 3.2.4 asks; version ff and all-zero ids are invalid.
    """
    found = _PARENT(value)
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if trace_id.count(b"0") == 32 or parent_id.count(b"0") == 16:
        return None
    return trace_id.decode("ascii"), parent_id.decode("ascii"), bool(int(flags, 16) & 1)


def parse_tracestate(values: list[bytes]) -> str:
    """The field lines as one list to hand on, or "" when any member is malformed, doubled, or there are too many."""
    members: dict[str, str] = {}
    for part in b",".join(values).decode("latin-1").split(","):
        member = part.strip(" \t")
        if not member:
            continue
        key = member.partition("=")[0]
        if _MEMBER(member) is None or key in members:
            return ""
        members[key] = member
    state = ",".join(members.values())
    return state if len(members) <= _MAX_MEMBERS and len(state) <= _MAX_STATE else ""


def client_span_id(span_id: str) -> str:
    """The id of the client span that belongs to this node's server span."""
    return span_id[:15] + "1"


def traceparent_for_upstream(exchange: Exchange) -> str:
    """The ``traceparent`` value for the next hop: same trace, our client span as the parent, the decision handed on."""
    return f"00-{exchange.trace_id}-{exchange.span_id[:15]}1-{'01' if exchange.sampled else '00'}"


def sampled_by_ratio(trace_id: str, ratio: float) -> bool:
    """Whether a trace without a decision is recorded. Decided by the id, so that every node would decide the same."""
    return ratio >= 1.0 or int(trace_id[-14:], 16) < ratio * 2**56
