"""Between the keeper's process and a worker: calls one way, answers and news the other, over a socket pair.

A frame is a length of four bytes (big endian) and a MessagePack value. A worker makes the pair and hands one end to the
keeper through a rendezvous that both have inherited (``introduce``, ``accept``): nobody else can, there is no name to
connect to, and a keeper that is started again finds the ends that wait for it. docs/adr/0006-keeper-process.md.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from attest.binding import Expected, Phase, Role
from cube_mesh.tls.identity import Leaf
from cube_mesh.tls.sessions import Session

MAX_FRAME_BYTES = 8 << 20  # a piece of evidence has at most 4 MiB
MAX_QUEUED_BYTES = 32 << 20  # unsent, then the other side is taken for dead
MAX_CALLS = 1024  # of one worker at a time
_LENGTH = 4


class _Tagged(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Evidence(_Tagged, frozen=True):
    role: Role
    phase: Phase
    spki_hash: bytes
    nonce: bytes | None
    channel_binding: bytes | None
    peer_spki_hash: bytes | None


class Appraise(_Tagged, frozen=True):
    raw: bytes
    expected: Expected
    policy: str


class AppraiseSession(_Tagged, frozen=True):
    session: str
    policy: str


class Register(_Tagged, frozen=True):
    session: Session


class Find(_Tagged, frozen=True):
    session_id: bytes


class To(_Tagged, frozen=True):
    target: str
    refused: bytes


class Call(_Tagged, frozen=True):
    """A worker asks. ``number`` is of its own choice, and comes back."""

    number: int
    what: Evidence | Appraise | AppraiseSession | Register | Find | To


class Answer(_Tagged, frozen=True):
    """``value``: evidence, a result or a session, as MessagePack of the type that the call has."""

    number: int
    value: msgspec.Raw


class Failed(_Tagged, frozen=True):
    """``kind``: whose error ``code`` is: "attest", "refusal", "dependency" or "internal"."""

    number: int
    kind: str
    code: str
    detail: str
    status: int = 503
    retryable: bool = False


class WireLeaf(msgspec.Struct, frozen=True, array_like=True):
    """A leaf with its key: workers sign handshakes with it. ``repr`` shows no key."""

    certificate: bytes
    key: bytes
    chain: tuple[bytes, ...]
    spki_hash: bytes
    not_after: float
    key_id: str

    def __repr__(self) -> str:
        return f"WireLeaf({self.key_id})"


class State(_Tagged, frozen=True):
    """News: what the keeper has now. First of all frames, then at each change. ``not_ready``: by agent, "" = ready."""

    leaf: WireLeaf | None
    not_ready: dict[str, str]


class Renewed(_Tagged, frozen=True):
    session: Session


class Revoked(_Tagged, frozen=True):
    peer_id: str


FromKeeper = Answer | Failed | State | Renewed | Revoked
encode = msgspec.msgpack.Encoder().encode
decode_call = msgspec.msgpack.Decoder(Call).decode
decode_news: Callable[[bytes], FromKeeper] = msgspec.msgpack.Decoder(FromKeeper).decode


def pack_leaf(leaf: Leaf) -> WireLeaf:
    key = leaf.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return WireLeaf(leaf.cert_der, key, leaf.chain_der, leaf.spki_hash, leaf.not_after, leaf.key_id)


def unpack_leaf(wire: WireLeaf) -> Leaf:
    key = load_der_private_key(wire.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Leaf(wire.certificate, key, wire.chain, wire.spki_hash, wire.not_after, wire.key_id)


class FrameProtocol(asyncio.Protocol):
    """Either end: whole frames to ``on_frame``; the end of the link to ``on_lost``. What is no frame ends the link."""

    def __init__(self, on_frame: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self._on_frame, self._on_lost = on_frame, on_lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _LENGTH:
            size = int.from_bytes(buffer[:_LENGTH], "big")
            if size > MAX_FRAME_BYTES:
                self.abort()
                return
            if len(buffer) < _LENGTH + size:
                return
            frame = bytes(buffer[_LENGTH : _LENGTH + size])
            del buffer[: _LENGTH + size]
            try:
                self._on_frame(frame)
            except msgspec.MsgspecError:
                self.abort()
                return

    def send(self, value: Any) -> None:
        """Queue one value. A peer that does not read loses the link."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        data = encode(value)
        transport.write(len(data).to_bytes(_LENGTH, "big") + data)
        if transport.get_write_buffer_size() > MAX_QUEUED_BYTES:
            transport.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost()


# --- how the two find each other ---


def rendezvous() -> tuple[socket.socket, socket.socket]:
    """(the workers' end, the keeper's end): made once for a node, inherited by all its processes."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def introduce(workers_end: socket.socket) -> socket.socket:
    """A new pair: one end goes to the keeper, now or when there is one; the other is returned. BlockingIOError when
    too many wait already.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            socket.send_fds(workers_end, [b"K"], [theirs.fileno()], socket.MSG_DONTWAIT)
        except OSError:
            ours.close()
            raise
    return ours


def accept(keepers_end: socket.socket) -> socket.socket | None:
    """The next worker's end; None when none waits."""
    try:
        _, fds, _, _ = socket.recv_fds(keepers_end, 1, 1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    return socket.socket(fileno=fds[0]) if fds else None
