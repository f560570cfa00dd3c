"""The yardstick: mutual TLS 1.3 by pyOpenSSL over memory BIOs on the event loop, both certificates verified.

It does what an attested connection does without attesting: same library, same keys (P-256), same options, and the
client has proven itself when the server's first byte comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto

from cube_mesh.tls.contexts import SUITES, forbid_resumption, require_tls13
from cube_mesh.tls.identity import Leaf

_READ = 65_536


def context(leaf: Leaf, roots: tuple[bytes, ...], *, server: bool) -> SSL.Context:
    """OpenSSL verifies the peer's chain up to ``roots``, as every other TLS library does by itself."""
    made = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
    require_tls13(made)
    made.set_tls13_ciphersuites(SUITES)
    forbid_resumption(made)
    store = made.get_cert_store()
    assert store is not None
    for der in roots:
        store.add_cert(crypto.X509.from_cryptography(x509.load_der_x509_certificate(der)))
    made.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    made.use_certificate(x509.load_der_x509_certificate(leaf.cert_der))
    made.use_privatekey(leaf.key)
    return made


class End(asyncio.Protocol):
    """One end. The server writes a byte when its handshake is done; ``on_done`` is called, with "" or what failed, when
    that byte has come, or at the server when it has gone."""

    def __init__(self, context: SSL.Context, *, server: bool, on_done: Callable[[str], None] = lambda _: None) -> None:
        self._tls = SSL.Connection(context, None)
        (self._tls.set_accept_state if server else self._tls.set_connect_state)()
        self._server, self._on_done, self._open = server, on_done, False

    def connection_made(self, transport: Any) -> None:
        self._tcp = transport
        if not self._server:
            self._shake()

    def data_received(self, data: bytes) -> None:
        self._tls.bio_write(data)
        if not self._open:
            self._shake()
        if self._open and not self._server:
            with suppress(SSL.WantReadError):
                self._done(self._first_byte())

    def _first_byte(self) -> str:
        try:
            return "" if self._tls.recv(1) == b"!" else "another byte"
        except SSL.WantReadError:
            raise
        except SSL.Error as error:  # the server has refused our certificate, after our end of the handshake
            self._tcp.close()
            return repr(error)

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
        except SSL.Error as error:
            self._flush()  # the alert
            self._tcp.close()
            self._done(repr(error))
        else:
            self._open = True
            if self._server:
                self._tls.send(b"!")
            self._flush()
            if self._server:
                self._done("")

    def _flush(self) -> None:
        with suppress(SSL.WantReadError):
            self._tcp.write(self._tls.bio_read(_READ))

    def connection_lost(self, exc: Exception | None) -> None:
        self._done("closed")

    def _done(self, fault: str) -> None:
        on_done, self._on_done = self._on_done, lambda _: None
        on_done(fault)

    def abort(self) -> None:
        self._tcp.abort()


async def connect(context: SSL.Context, port: int) -> End:
    """A client's end, proven to the server. Raises OSError."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()
    _, end = await loop.create_connection(
        lambda: End(context, server=False, on_done=done.set_result), "127.0.0.1", port
    )
    if fault := await done:
        end.abort()
        raise OSError(fault)
    return end
