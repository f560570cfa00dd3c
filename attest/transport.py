"""What a collector needs of the network, as values: it asks, a host's transport answers. Nothing is sent here.

A transport is a callable: it may try again where an endpoint is busy, and blocks meanwhile. Where endpoints are, and
which of them may be asked, is the host's configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from attest.errors import AttestError, CollectionFailed
from attest.evidence import TOKEN_TYPE, Part
from attest.jws import parse_token

__all__ = ["Answer", "Ask", "Transport", "answered", "json_member", "token_part"]

BUSY = frozenset({408, 410, 429, 500, 502, 503, 504})  # 410: a metadata service that is being updated
_MAX_SAID = 200


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request. ``unix_socket``: the path of the socket that answers, empty for the URL's host.
    ``max_bytes``: of the answer's body.
    """

    url: str
    method: str = "GET"
    fields: dict[str, str] = {}
    body: bytes = b""
    unix_socket: str = ""
    max_bytes: int = 65_536


class Answer(msgspec.Struct, frozen=True):
    """The last answer that the transport got."""

    status: int
    body: bytes


Transport: TypeAlias = Callable[[Ask], Answer]
"""Raises CollectionFailed ``endpoint_unreachable`` when there was no answer, or one that was too large."""


def answered(transport: Transport, ask: Ask, what: str) -> bytes:
    """The body of a 200 answer. CollectionFailed ``endpoint_busy`` or ``endpoint_refused`` for any other, with what the
    endpoint says of it; ``what`` names the endpoint for people.
    """
    answer = transport(ask)
    if answer.status == 200:
        return answer.body
    code = "endpoint_busy" if answer.status in BUSY else "endpoint_refused"
    said = re.sub(r"[^\x20-\x7e]+", " ", answer.body.decode("latin-1")).strip()[:_MAX_SAID]
    raise CollectionFailed(f"{what}: status {answer.status}: {said}", code=code)


def json_member(body: bytes, name: str, what: str) -> str:
    """A text of the JSON object in ``body``; CollectionFailed ``endpoint_answer`` when there is none."""
    try:
        members: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        members = None
    text = members.get(name) if isinstance(members, dict) else None
    if not isinstance(text, str) or not text:
        raise CollectionFailed(f"{what}: no {name} in the answer", code="endpoint_answer")
    return text


def token_part(token: bytes, what: str) -> Part:
    """The evidence part of a token, when it has the form of one; else CollectionFailed ``endpoint_answer``."""
    try:
        parse_token(token)
    except AttestError as error:
        raise CollectionFailed(f"{what}: the answer is no token: {error}", code="endpoint_answer") from None
    return Part(TOKEN_TYPE, token)
