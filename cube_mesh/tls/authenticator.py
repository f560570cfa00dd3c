"""Exported authenticators (RFC 9261): a certificate proven over an existing TLS connection, without I/O.

Three messages in TLS handshake framing. The *request* carries a 32-byte context, which is the nonce, and asks for the
evidence extension; the *authenticator* is Certificate, CertificateVerify and Finished, computed over values that both
ends export from the connection, so that it is worth nothing on any other one. The profile is narrow: one
certificate, ecdsa_secp256r1_sha256, one extension (0xFF00, the CMW) and nothing optional; all else is refused.

NOT checked here: what the evidence says. That the certificate is the one of the TLS handshake is checked first, so no
certificate is ever parsed that the handshake has not already proven.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from attest.binding import Role

Exporter: TypeAlias = Callable[[bytes, bytes, int], bytes]  # label, context, length: RFC 8446 §7.5
Signer: TypeAlias = Callable[[bytes], bytes]  # message to DER ECDSA P-256 SHA-256 signature

NONCE_BYTES = 32
EVIDENCE_EXTENSION = 0xFF00  # private use
_SIGNATURE_ALGORITHMS = 13
_ECDSA_P256_SHA256 = b"\x04\x03"
_CERTIFICATE, _CERTIFICATE_VERIFY, _FINISHED = 11, 15, 20
_REQUEST_TYPE = {Role.CLIENT: 17, Role.SERVER: 13}  # by the role of the sender: RFC 9261 §4
_SIGNATURE_CONTEXT = b" " * 64 + b"Exported Authenticator" + b"\x00"  # RFC 9261 §5.2.2
_SUITE_HASH = {
    "TLS_AES_128_GCM_SHA256": "sha256",
    "TLS_CHACHA20_POLY1305_SHA256": "sha256",
    "TLS_AES_256_GCM_SHA384": "sha384",
}
_MAX_VECTOR_16 = 0xFFFF


class AuthenticatorError(ValueError):
    """``code`` is one of ``reasons``: ``authenticator_*`` or ``evidence_too_large``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Authenticator(NamedTuple):
    """A validated authenticator: the sender holds the certificate's key and ends this very connection."""

    certificate: bytes  # DER
    evidence: bytes  # CMW, unverified


class ExportedKeys(NamedTuple):
    """The two exported values of one direction, and the hash that all of it uses (RFC 9261 §5.1)."""

    hash_name: str
    handshake_context: bytes
    finished_key: bytes


def exported_keys(exporter: Exporter, cipher_suite: str, sender: Role) -> ExportedKeys:
    """Derive the values of the authenticators that ``sender`` sends; the hash is the one of the negotiated suite."""
    hash_name = _SUITE_HASH.get(cipher_suite)
    if hash_name is None:
        raise AuthenticatorError("authenticator_malformed", f"no hash known for suite {cipher_suite}")
    size = hashlib.new(hash_name).digest_size
    side = b"client" if sender is Role.CLIENT else b"server"
    label = b"EXPORTER-" + side + b" authenticator "
    return ExportedKeys(
        hash_name, exporter(label + b"handshake context", b"", size), exporter(label + b"finished key", b"", size)
    )


# --- requests (RFC 9261 §4) ---


def build_request(sender: Role, nonce: bytes) -> bytes:
    """An authenticator request of ``sender`` with ``nonce`` as its context."""
    if len(nonce) != NONCE_BYTES:
        raise ValueError("the nonce has 32 bytes")
    return _handshake(_REQUEST_TYPE[sender], _vector8(nonce) + _vector16(_REQUEST_EXTENSIONS))


def parse_request(sender: Role, raw: bytes) -> bytes:
    """The nonce of a request that ``sender`` sent. The profile is exact: any other extension or order is refused."""
    body = _Reader(_Reader(raw).message(_REQUEST_TYPE[sender], last=True))
    nonce = body.vector(1)
    extensions = body.vector(2)
    body.end()
    if len(nonce) != NONCE_BYTES or extensions != _REQUEST_EXTENSIONS:
        raise _malformed("request outside the profile")
    return nonce


# --- authenticators (RFC 9261 §5) ---


def build_authenticator(keys: ExportedKeys, request: bytes, certificate: bytes, evidence: bytes, sign: Signer) -> bytes:
    """The answer to ``request``: ``certificate`` (DER) with ``evidence`` (CMW), signed by the certificate's key."""
    nonce = _context_of(request)
    if len(evidence) > _MAX_VECTOR_16 - 4:
        raise AuthenticatorError("evidence_too_large", f"{len(evidence)} bytes of evidence in one extension")
    extensions = EVIDENCE_EXTENSION.to_bytes(2, "big") + _vector16(evidence)
    entries = _vector24(certificate) + _vector16(extensions)
    cert_message = _handshake(_CERTIFICATE, _vector8(nonce) + _vector24(entries))
    signature = sign(_signed_content(keys, request, cert_message))
    verify_message = _handshake(_CERTIFICATE_VERIFY, _ECDSA_P256_SHA256 + _vector16(signature))
    finished = _handshake(_FINISHED, _finished_mac(keys, request, cert_message + verify_message))
    return cert_message + verify_message + finished


def validate_authenticator(keys: ExportedKeys, request: bytes, leaf: bytes, raw: bytes) -> Authenticator:
    """Parse and validate the answer to our ``request``: context, leaf, signature, then Finished (RFC 9261 §6.3).

    ``keys`` are the *sender's*, ``leaf`` (DER) is its certificate of the handshake. Raises AuthenticatorError;
    also for an empty authenticator (a bare Finished).
    """
    reader = _Reader(raw)
    start = reader.position
    certificate_body = reader.message(_CERTIFICATE)
    cert_message = raw[start : reader.position]
    verify_body = reader.message(_CERTIFICATE_VERIFY)
    signed_messages = raw[start : reader.position]
    finished = reader.message(_FINISHED, last=True)
    context, certificate, evidence = _parse_certificate(certificate_body)
    check_context(context, _context_of(request))
    check_same_leaf(certificate, leaf)
    check_signature(certificate, _parse_verify(verify_body), _signed_content(keys, request, cert_message))
    check_finished(finished, _finished_mac(keys, request, signed_messages))
    return Authenticator(certificate, evidence)


def check_context(context: bytes, nonce: bytes) -> None:
    """The authenticator answers this request and no other."""
    if not hmac.compare_digest(context, nonce):
        raise AuthenticatorError("authenticator_context", "answers another request")


def check_same_leaf(certificate: bytes, leaf: bytes) -> None:
    """The key that answers is the key that terminates TLS."""
    if certificate != leaf:
        raise AuthenticatorError("authenticator_leaf", "the certificate is not the one of the handshake")


def check_signature(certificate: bytes, signature: bytes, content: bytes) -> None:
    """The sender holds the private key of the certificate; P-256 only."""
    key = x509.load_der_x509_certificate(certificate).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AuthenticatorError("authenticator_signature", "the key is not P-256")
    try:
        key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise AuthenticatorError("authenticator_signature", "CertificateVerify does not verify") from None


def check_finished(received: bytes, expected: bytes) -> None:
    """The sender is an end of this connection: it knows the exported Finished key."""
    if not hmac.compare_digest(received, expected):
        raise AuthenticatorError("authenticator_finished", "made for another connection")


def _signed_content(keys: ExportedKeys, request: bytes, certificate_message: bytes) -> bytes:
    return _SIGNATURE_CONTEXT + _transcript(keys, request, certificate_message)


def _finished_mac(keys: ExportedKeys, request: bytes, messages: bytes) -> bytes:
    return hmac.digest(keys.finished_key, _transcript(keys, request, messages), keys.hash_name)


def _transcript(keys: ExportedKeys, request: bytes, messages: bytes) -> bytes:
    return hashlib.new(keys.hash_name, keys.handshake_context + request + messages).digest()


def _context_of(request: bytes) -> bytes:
    reader = _Reader(request)
    reader.skip(4)
    return reader.vector(1)


def _parse_certificate(body: bytes) -> tuple[bytes, bytes, bytes]:
    reader = _Reader(body)
    context = reader.vector(1)
    entries = _Reader(reader.vector(3))
    reader.end()
    certificate = entries.vector(3)
    extensions = _Reader(entries.vector(2))
    entries.end()  # exactly one certificate: the leaf; a chain proves nothing here
    if not certificate or extensions.uint(2) != EVIDENCE_EXTENSION:
        raise _malformed("Certificate outside the profile")
    evidence = extensions.vector(2)
    extensions.end()  # exactly one extension
    if not evidence:
        raise _malformed("empty evidence")
    return context, certificate, evidence


def _parse_verify(body: bytes) -> bytes:
    reader = _Reader(body)
    if reader.take(2) != _ECDSA_P256_SHA256:
        raise _malformed("signature algorithm outside the profile")
    signature = reader.vector(2)
    reader.end()
    return signature


# --- TLS presentation language (RFC 8446 §3) ---


def _vector8(data: bytes) -> bytes:
    return len(data).to_bytes(1, "big") + data


def _vector16(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _vector24(data: bytes) -> bytes:
    return len(data).to_bytes(3, "big") + data


def _handshake(kind: int, body: bytes) -> bytes:
    return bytes((kind,)) + _vector24(body)


_REQUEST_EXTENSIONS = (
    _SIGNATURE_ALGORITHMS.to_bytes(2, "big")
    + _vector16(_vector16(_ECDSA_P256_SHA256))
    + EVIDENCE_EXTENSION.to_bytes(2, "big")
    + _vector16(b"")
)


def _malformed(message: str) -> AuthenticatorError:
    return AuthenticatorError("authenticator_malformed", message)


class _Reader:
    """Reads length-prefixed fields; anything short or left over is an error."""

    __slots__ = ("_data", "position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise _malformed("truncated")
        part = self._data[self.position : end]
        self.position = end
        return part

    def skip(self, size: int) -> None:
        self.take(size)

    def uint(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_bytes: int) -> bytes:
        return self.take(self.uint(length_bytes))

    def message(self, kind: int, *, last: bool = False) -> bytes:
        if self.uint(1) != kind:
            raise _malformed(f"expected handshake message {kind}")
        body = self.vector(3)
        if last:
            self.end()
        return body

    def end(self) -> None:
        if self.position != len(self._data):
            raise _malformed("trailing bytes")
