"""Frames of the attestation exchange inside TLS: ``type(1) ‖ length(4, big endian) ‖ body`` (attested-TLS protocol §4).

A codec without I/O. It bounds sizes and knows the types; the order of frames is the gate's business.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

MAX_BODY_BYTES = 1 << 20
MAX_TOTAL_BYTES = 4 << 20  # of attestation bytes per connection and direction
HEADER_BYTES = 5


class FrameType(IntEnum):
    REQUEST = 1
    AUTHENTICATOR = 2
    RESULT = 3
    AUX = 4
    ATTACH = 6
    ATTACHED = 7


class Frame(NamedTuple):
    type: FrameType
    body: bytes


class FrameError(ValueError):
    """Bytes that are no frame. ``code`` is the gate's reason: ``frame_type``, ``frame_size`` or ``frame_total``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


ATTACH_BYTES, ATTACHED_BYTES = 48, 32  # session id and the client's proof; the server's proof


def encode_attach(session_id: bytes, proof: bytes) -> bytes:
    """ATTACH as a frame: id (16 bytes) ‖ HMAC (32 bytes)."""
    return encode_frame(FrameType.ATTACH, session_id + proof)


def decode_attach(body: bytes) -> tuple[bytes, bytes]:
    """Session id and proof; FrameError ``frame_size`` for any other length."""
    if len(body) != ATTACH_BYTES:
        raise FrameError("frame_size", f"ATTACH of {len(body)} bytes")
    return body[:16], body[16:]


def decode_attached(body: bytes) -> bytes:
    """The server's proof; FrameError ``frame_size`` for any other length."""
    if len(body) != ATTACHED_BYTES:
        raise FrameError("frame_size", f"ATTACHED of {len(body)} bytes")
    return body


def encode_frame(kind: FrameType, body: bytes) -> bytes:
    """One frame as bytes; FrameError when the body is above 1 MiB."""
    if len(body) > MAX_BODY_BYTES:
        raise FrameError("frame_size", f"{kind.name} body of {len(body)} bytes")
    return bytes((kind,)) + len(body).to_bytes(4, "big") + body


class FrameDecoder:
    """Collects received bytes and gives frames one by one.

    The header is judged as soon as it is there, so an illegal type or length is refused before its body is buffered.
    ``buffered`` counts the bytes that no frame has taken yet: after the last frame they are application data.
    """

    def __init__(self, max_total_bytes: int = MAX_TOTAL_BYTES) -> None:
        self._buffer = bytearray()
        self._left = max_total_bytes

    @property
    def buffered(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take bytes in; FrameError ``frame_total`` when the connection has used up its allowance."""
        self._left -= len(data)
        if self._left < 0:
            raise FrameError("frame_total", "more attestation bytes than one connection may send")
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more bytes arrive."""
        buffer = self._buffer
        if not buffer:
            return None
        kind = _known_type(buffer[0])
        if len(buffer) < HEADER_BYTES:
            return None
        size = int.from_bytes(buffer[1:HEADER_BYTES], "big")
        if size > MAX_BODY_BYTES:
            raise FrameError("frame_size", f"{kind.name} frame announces {size} bytes")
        end = HEADER_BYTES + size
        if len(buffer) < end:
            return None
        body = bytes(buffer[HEADER_BYTES:end])
        del buffer[:end]
        return Frame(kind, body)

    def take_rest(self) -> bytes:
        """Everything not yet taken, and leave the decoder empty."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


def _known_type(value: int) -> FrameType:
    try:
        return FrameType(value)
    except ValueError:
        raise FrameError("frame_type", f"unknown frame type {value}") from None
