"""An open attested channel: a BufferedProtocol towards TCP, a Transport (by its methods) towards the application's end.

It exists only after the gate has opened (``opening`` makes it), so no application byte can pass before. Records are
moved in C (``_fastpath/records.pxi``): reading and writing are there, what ends a channel is here. Plaintext is never
buffered, ciphertext only in the TCP transport, whose water marks reach the inner protocol as ``pause_writing`` and
``resume_writing``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

from cryptography.hazmat.bindings._rust import _openssl
from OpenSSL import SSL

from cube_mesh._fastpath import ChannelCore
from cube_mesh.ports import ChannelAttestation

_HEADER = 5


def _address(of: Any) -> int:
    return int(_openssl.ffi.cast("uintptr_t", of))


# pyOpenSSL's own way to a record goes through several Python frames and an exception for "no more": more work than the
# record itself. It stays the owner of the session, and says what a failure was.
_FUNCTIONS = tuple(
    _address(_openssl.ffi.addressof(_openssl.lib, name)) for name in ("SSL_read", "SSL_write", "BIO_read", "BIO_write")
)


class TruncatedStream(ConnectionError):
    """The peer's stream ended without close_notify: nobody can tell whether it was whole."""


class ChannelExpired(ConnectionError):
    """What was accepted about the peer has ended, and the channel with it."""


class ChannelRevoked(ConnectionError):
    """What was accepted about the peer no longer holds: it has booted again, or no longer passes its policy."""


class Channel(ChannelCore, asyncio.BufferedProtocol):
    """See the module. ``position`` has followed what ``tls`` was fed so far; ``info`` answers ``get_extra_info`` before
    the TCP transport is asked."""

    def __init__(
        self,
        tls: SSL.Connection,
        tcp: asyncio.Transport,
        position: RecordPosition,
        inner: asyncio.BaseProtocol,
        info: Mapping[str, Any],
    ) -> None:
        self._tls = tls
        self._bind(tls, _FUNCTIONS, (_address(tls._ssl), _address(tls._into_ssl), _address(tls._from_ssl)))
        self._tcp = tcp
        self._tcp_write = tcp.write
        self._info = info
        self._error: Exception | None = None
        self._position = position
        self._aligned = position.aligned
        self._peer_closed = False
        self._expiry: asyncio.TimerHandle | None = None
        self.on_lost: Callable[[], None] | None = None
        self.set_protocol(inner)

    def start(self, rest: bytes, expires_in_s: float) -> None:
        """Hand over: connection_made, then what the peer has already sent; the expiry timer runs from here."""
        self._expiry = asyncio.get_running_loop().call_later(max(0.0, expires_in_s), self._expire)
        self._inner.connection_made(cast(asyncio.Transport, self))  # it is one, by its methods
        if rest and not self._closing:
            self._deliver(rest)
        self._drain()

    # --- from TCP ---

    def _followed(self, data: bytes) -> None:
        self._position.advance(data)
        self._aligned = self._position.aligned

    def _no_more(self, result: int) -> None:
        """SSL_read gave nothing: it has no whole record, or the peer has closed, or the stream is broken."""
        try:
            self._raise(result)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            if not self._peer_closed:
                self._peer_closed = True
                if not self._inner.eof_received():
                    self.close()
        except SSL.Error as error:
            self._break(error)

    def _unwritten(self, result: int) -> None:
        try:
            self._raise(result)
        except SSL.Error as error:
            self._break(error)

    def _raise(self, result: int) -> None:
        self._tls._raise_ssl_error(self._tls._ssl, result)
        raise SSL.Error("a record that came to nothing")

    def _broken(self) -> None:
        self._break(MemoryError("no room for ciphertext"))

    def eof_received(self) -> bool:
        """TCP ended. After close_notify the inner protocol may go on writing; without one the stream is broken."""
        if self._peer_closed:
            return not self._closing
        if not self._closing:
            self._error = TruncatedStream("the peer closed TCP without close_notify")
        return False

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if self._expiry is not None:
            self._expiry.cancel()
        if self.on_lost is not None:
            self.on_lost()
        self._inner.connection_lost(self._error or exc)

    # --- from the session that it stands on ---

    def extend(self, attestation: ChannelAttestation, expires_at: float) -> None:
        """A renewal: the channel may live until ``expires_at`` (Unix seconds). The inner protocol is told by
        ``attestation_renewed``, if it has that.
        """
        if self._closing or self._expiry is None:
            return
        self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(max(0.0, expires_at - time.time()), self._expire)
        self._info = {**self._info, "attestation": attestation, "expires_at": expires_at}
        renewed = getattr(self._inner, "attestation_renewed", None)
        if renewed is not None:
            renewed(attestation)

    def revoke(self) -> None:
        """End now, and without close_notify: whatever is under way is not whole."""
        self._error = ChannelRevoked("what was accepted about the peer no longer holds")
        self.abort()

    # --- to TCP, for the inner protocol ---

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        """As one ``write``: small parts share a record."""
        self.write(b"".join(parts))

    def close(self) -> None:
        """close_notify, then TCP's close when everything is sent. connection_lost follows."""
        if self._closing:
            return
        self._closing = True
        with suppress(SSL.Error):  # a session that is broken cannot say goodbye: the peer sees a truncated stream
            self._tls.shutdown()
            self._flush()
        self._tcp.close()

    def abort(self) -> None:
        """End at once and without close_notify: the peer sees a broken stream."""
        self._closing = True
        self._tcp.abort()

    def is_closing(self) -> bool:
        return self._closing or self._tcp.is_closing()

    def pause_reading(self) -> None:
        self._paused = True
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and not self._closing:
            self._paused = False
            self._tcp.resume_reading()
            asyncio.get_running_loop().call_soon(self._drain)  # records that arrived before the pause

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._tcp.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Bytes of ciphertext not yet given to the kernel."""
        return self._tcp.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._tcp.get_write_buffer_limits()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """ "attestation", "peer_id", "expires_at" (Unix seconds) and "mode"; the TCP transport answers the rest."""
        found = self._info.get(name)
        return self._tcp.get_extra_info(name, default) if found is None else found

    def can_write_eof(self) -> bool:
        return False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if not callable(getattr(protocol, "data_received", None)):
            raise TypeError("an attested channel carries a streaming protocol")
        self._inner = cast(asyncio.Protocol, protocol)
        self._deliver = self._inner.data_received

    def get_protocol(self) -> asyncio.Protocol:
        return self._inner

    # --- inside ---

    def _break(self, error: Exception) -> None:
        self._error = error
        with suppress(SSL.Error):
            self._flush()  # the alert
        self.abort()

    def _expire(self) -> None:
        self._error = ChannelExpired("the accepted attestation of the peer has expired")
        self.abort()  # without close_notify: whatever was under way is not whole


class RecordPosition:
    """Follows record boundaries through all received ciphertext, from the connection's first byte, by the length fields
    of the headers. ``aligned``: what has been received ends where a record ends."""

    __slots__ = ("_head", "_missing", "aligned")

    def __init__(self) -> None:
        self.aligned = True
        self._head = b""  # of a record whose header is not complete
        self._missing = 0  # bytes that the current record still lacks

    def advance(self, data: bytes) -> None:
        """Take the next received bytes."""
        data = self._head + data
        self._head = b""
        position, size = self._missing, len(data)
        while position + _HEADER <= size:
            position += _HEADER + (data[position + 3] << 8 | data[position + 4])
        if position < size:
            self._head = data[position:]
            self._missing = 0
        else:
            self._missing = position - size
        self.aligned = position == size
