"""pyOpenSSL contexts of attested connections: TLS 1.3 only, mutual, never resumed, one ALPN protocol per connection.

The verify callback accepts every certificate and notes that it ran: an agent's leaf is self-signed, so what a peer is
gets decided after the handshake, by the gate, from the certificate itself. No channel carries a byte before that.
"""

from __future__ import annotations

from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto

from cube_mesh.tls.gate import CONTROL
from cube_mesh.tls.identity import Leaf

ALPN_CONTROL = CONTROL  # attests, carries no application data
ALPN_QUOTE = b"cube-mesh/1-quote"  # data with a quote of its own
ALPN_CERT = b"cube-mesh/1-cert"  # phase 1 only; known by name and selected by nobody yet
ALPN_ATTACH = b"cube-mesh/1-attach"  # data under a session
SERVED = (ALPN_CONTROL, ALPN_QUOTE, ALPN_ATTACH)
MODE = {ALPN_CONTROL: "control", ALPN_QUOTE: "quote", ALPN_ATTACH: "attach"}
SUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
MAX_SNI_BYTES = 255


class HandshakeNotes:
    """Set as the connection's app data; the verify callback writes to it."""

    __slots__ = ("certificate_seen",)

    def __init__(self) -> None:
        self.certificate_seen = False


def make_context(leaf: Leaf, *, server: bool) -> SSL.Context:
    """A context for ``leaf``; make a new one when the leaf rotates. The ALPN choice of a client is per connection."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
    require_tls13(context)
    context.set_tls13_ciphersuites(SUITES)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # an idle connection gives its 34 KiB back
    forbid_resumption(context)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _note_certificate)
    context.use_certificate(x509.load_der_x509_certificate(leaf.cert_der))
    context.use_privatekey(leaf.key)
    for der in leaf.chain_der:
        context.add_extra_chain_cert(x509.load_der_x509_certificate(der))
    if server:
        context.set_alpn_select_callback(_select_protocol)
    return context


def require_tls13(context: SSL.Context) -> None:
    """TLS 1.3 and no other version, as minimum and as maximum."""
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)


def forbid_resumption(context: SSL.Context) -> None:
    """No tickets and no cache: SESS_CACHE_OFF alone still resumes in TLS 1.3."""
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)


def client_connection(context: SSL.Context, protocol: bytes, server_name: str) -> SSL.Connection:
    """A client's end over memory BIOs that offers exactly ``protocol``; ``server_name`` "" sends no SNI."""
    connection = SSL.Connection(context, None)
    connection.set_app_data(HandshakeNotes())
    connection.set_alpn_protos([protocol])
    if server_name:
        connection.set_tlsext_host_name(check_server_name(server_name))
    connection.set_connect_state()
    return connection


def server_connection(context: SSL.Context) -> SSL.Connection:
    """A server's end over memory BIOs."""
    connection = SSL.Connection(context, None)
    connection.set_app_data(HandshakeNotes())
    connection.set_accept_state()
    return connection


def check_server_name(name: str) -> bytes:
    """The SNI as bytes; ValueError when it is not ASCII, or OpenSSL would silently leave it out (above 255 bytes)."""
    raw = name.encode("ascii")
    if not 1 <= len(raw) <= MAX_SNI_BYTES or b"\x00" in raw:
        raise ValueError(f"a server name has 1 to {MAX_SNI_BYTES} bytes, not {len(raw)}")
    return raw


def _note_certificate(connection: SSL.Connection, _cert: crypto.X509, _errno: int, _depth: int, _ok: int) -> bool:
    connection.get_app_data().certificate_seen = True
    return True


def _select_protocol(_connection: SSL.Connection, offered: list[bytes]) -> Any:
    """The one protocol that is offered, when it is served. Otherwise none is negotiated and the gate refuses."""
    if len(offered) == 1 and offered[0] in SERVED:
        return offered[0]
    return SSL.NO_OVERLAPPING_PROTOCOLS


class Contexts:
    """The context for the keeper's leaf of the moment, kept until the leaf rotates."""

    def __init__(self, *, server: bool) -> None:
        self._server = server
        self._leaf: Leaf | None = None
        self._context: SSL.Context | None = None

    def of(self, leaf: Leaf) -> SSL.Context:
        if self._context is None or self._leaf is not leaf:
            self._context = make_context(leaf, server=self._server)
            self._leaf = leaf
        return self._context
