"""What we read of bodies: a request's framing, size and pace, a few members of a JSON request, and the token usage at
the end of a response. Nothing else is looked at, and nothing here is kept or logged.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from cube_mesh._fastpath import FRAMING_CHUNKED, ChunkedReader, RequestHead, note_members, scan_members, value_end
from cube_mesh.errors import FramingError, PeerError
from cube_mesh.exchange import Exchange

T = TypeVar("T")

_WANTED = {
    b"model": "model",
    b"stream": "stream",
    b"max_tokens": "max_tokens",
    b"max_completion_tokens": "max_completion_tokens",
    b"temperature": "temperature",
}
_MAX_MODEL = 256
_KEEP = 8_192  # bytes of a response's end in which usage is looked for
_INVALID = "The request body is invalid."


class IncomingBody:
    """A request body that arrives in pieces: where it ends, and how much of it has come. ``size`` is in bytes."""

    __slots__ = ("_chunks", "_left", "_limit", "_seen", "size")

    def __init__(self, head: RequestHead, limit: int) -> None:
        self._chunks = ChunkedReader() if head.framing == FRAMING_CHUNKED else None
        self._left = head.content_length
        self._limit = limit
        self._seen = 0
        self.size = 0

    def take(self, data: bytes, pos: int) -> tuple[bytes, bytes, bool]:
        """The body bytes in ``data[pos:]``, what lies behind the body, and whether the body ended.

        Raises FramingError: bad chunks, or 413 beyond ``limit`` bytes.
        """
        if self._chunks is not None:
            payload = self._chunks.feed(data, pos)
            rest, last = data[self._chunks.pos :], self._chunks.done
        else:
            end = min(len(data), pos + self._left)
            self._left -= end - pos
            payload, rest, last = data[pos:end], data[end:], self._left == 0
        self.size += len(payload)
        if self.size > self._limit:
            raise FramingError("body_too_large", "The request body is too large.", 413)
        return payload, rest, last

    def progress(self) -> int:
        """Bytes since it was last asked."""
        came, self._seen = self.size - self._seen, self.size
        return came


def read_members(exchange: Exchange, data: bytes, pos: int, end: int) -> None:
    """Scan the request body once and note on the exchange what routing, limits and audit need.

    Raises FramingError for bytes that parsers could read differently, PeerError for a member of the wrong type.
    """
    if not note_members(exchange, data, pos, end):
        decode_members(exchange, data, pos, end)


def decode_members(exchange: Exchange, data: bytes, pos: int, end: int) -> None:
    """The same for a body in which one of these members is written in an unusual way."""
    for name, raw in scan_members(data, pos, end, _WANTED).items():
        if name == "model":
            exchange.model = _model(raw)
        elif raw == b"null":
            continue
        elif name == "stream":
            exchange.stream = _decode(raw, bool, name)
        elif name == "temperature":
            exchange.temperature = _decode(raw, float, name)
        else:
            exchange.max_tokens = _decode(raw, int, name)


def _model(raw: bytes) -> str:
    model = _decode(raw, str, "model")
    if len(model) > _MAX_MODEL:
        raise PeerError("invalid_member", _INVALID, param="model")
    return model


def _decode(raw: bytes, kind: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError:
        raise PeerError("invalid_member", _INVALID, param=name) from None


class _Usage(msgspec.Struct):
    """OpenAI's chat and completions names, and those of its Responses API."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


_decode_usage = msgspec.json.Decoder(_Usage).decode


def read_usage(data: bytes) -> tuple[int | None, int | None]:
    """(input, output) tokens that the backend reported in the end of a response; None where it did not say.

    Inside a JSON string every quote is escaped, so ``"usage"`` is a member name wherever it stands in the raw bytes;
    the last one counts, which is where OpenAI's responses and the last event of its streams carry it.
    """
    at = data.rfind(b'"usage"')
    at = data.find(b"{", at, at + 16) if at >= 0 else -1
    end = value_end(data, at) if at >= 0 else -1
    if end < 0:
        return None, None
    try:
        usage = _decode_usage(data[at:end])
    except msgspec.DecodeError:
        return None, None
    given = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens
    made = usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens
    return given, made


_DONE = (b"[DONE]\n\n", b"[DONE]\r\n\r\n", b"[DONE]\n", b"[DONE]\r\n")  # text of a model has no raw line feed


def ends_stream(last: bytes, piece: bytes) -> bool:
    """Whether readers of an event stream take the end of ``piece``, which follows ``last``, for the stream's end."""
    return piece.endswith(_DONE) or (len(piece) < 10 and (last + piece).endswith(_DONE))


def ends_in_error(piece: bytes) -> bool:
    """Whether the last piece of an event stream ended with a whole error frame, so that its reader knows already."""
    if not piece.endswith(b"\n\n"):
        return False
    event = piece[:-2].rpartition(b"\n\n")[2]
    return event.startswith((b'data: {"error"', b'data:{"error"'))


class UsageTail:
    """The last kilobytes of a response that comes in pieces, for ``read_usage``."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = bytearray()

    def add(self, payload: bytes) -> None:
        kept = self._kept
        kept += payload if len(payload) <= _KEEP else payload[-_KEEP:]
        if len(kept) > 2 * _KEEP:
            del kept[:-_KEEP]

    def tokens(self) -> tuple[int | None, int | None]:
        return read_usage(bytes(self._kept))
