"""Requests and responses as values, and the one place that writes OpenAI's error envelope."""

from __future__ import annotations

import msgspec

from cube_mesh.errors import CubeMeshError

REASONS = {
    200: b"OK", 204: b"No Content", 400: b"Bad Request", 401: b"Unauthorized", 403: b"Forbidden", 404: b"Not Found",
    405: b"Method Not Allowed", 408: b"Request Timeout", 411: b"Length Required", 413: b"Content Too Large",
    414: b"URI Too Long", 415: b"Unsupported Media Type", 417: b"Expectation Failed", 429: b"Too Many Requests",
    431: b"Request Header Fields Too Large", 500: b"Internal Server Error", 501: b"Not Implemented",
    502: b"Bad Gateway", 503: b"Service Unavailable", 504: b"Gateway Timeout", 505: b"HTTP Version Not Supported",
}  # fmt: skip


class Response(msgspec.Struct, frozen=True):
    """A response that the node itself makes. Field names are lower case; Content-Length is added when written."""

    status: int
    body: bytes = b""
    content_type: bytes = b"application/json"
    fields: tuple[tuple[bytes, bytes], ...] = ()


class _Error(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _Envelope(msgspec.Struct):
    error: _Error


_encode = msgspec.json.Encoder().encode


def error_body(error: CubeMeshError) -> bytes:
    """OpenAI's ``{"error": {message, type, param, code}}`` (openai-openapi ``ErrorResponse``); no detail in it."""
    return _encode(_Envelope(_Error(error.message, error.error_type, error.param, error.code)))


def error_response(error: CubeMeshError) -> Response:
    fields: tuple[tuple[bytes, bytes], ...] = ()
    if error.status == 401:
        fields = ((b"www-authenticate", b"Bearer"),)
    if error.status in (429, 503):
        fields = ((b"retry-after", b"1"), (b"x-should-retry", b"true" if error.retryable else b"false"))
    return Response(error.status, error_body(error), fields=fields)


def error_frame(error: CubeMeshError) -> bytes:
    """The terminal frame of a broken event stream: one ``data:`` line, and no [DONE] behind it."""
    return b"data: " + error_body(error) + b"\n\n"


def render(response: Response, request_id: str, *, close: bool, head_only: bool = False, extra: bytes = b"") -> bytes:
    """A response of our own as bytes. ``extra``: whole field lines that go with it."""
    reason = REASONS.get(response.status, b"")
    lines = [b"HTTP/1.1 %d %b\r\n" % (response.status, reason)]
    if response.body or response.status not in (204, 304):
        lines.append(b"content-type: %b\r\ncontent-length: %d\r\n" % (response.content_type, len(response.body)))
    if request_id:
        lines.append(b"x-request-id: %b\r\n" % request_id.encode())
    lines.extend(b"%b: %b\r\n" % field for field in response.fields)
    lines.append(extra)
    lines.append(b"connection: close\r\n\r\n" if close else b"\r\n")
    if not head_only:
        lines.append(response.body)
    return b"".join(lines)
