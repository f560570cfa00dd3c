"""TLS at the tenants' side: the listener's context from files, replaced as a whole when they change.

A new context serves new connections; open ones keep theirs. Files that cannot be used change nothing: the old context
stays, the log and a metric say so. TLS 1.3 suites are OpenSSL's own. No OCSP stapling (the standard library has none).
"""

from __future__ import annotations

import ssl
from logging import getLogger
from pathlib import Path
from time import perf_counter, time

from cryptography import x509

from cube_mesh.errors import ConfigError
from cube_mesh.settings import EdgeTls

_DAY_S = 86_400.0
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_log = getLogger("cube_mesh.tls.edge")


def edge_context(tls: EdgeTls) -> ssl.SSLContext:
    """A server's context. Raises ConfigError for files or suites that OpenSSL does not take."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    with _Named("listen.tls.ciphers"):
        context.set_ciphers(tls.ciphers)
    with _Named("listen.tls.cert_file", tls.cert_file):
        context.load_cert_chain(tls.cert_file, tls.key_file, password=_no_password)
    if tls.client_ca_file:
        with _Named("listen.tls.client_ca_file", tls.client_ca_file):
            context.load_verify_locations(tls.client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED if tls.require_client_certificate else ssl.CERT_OPTIONAL
    return context


def certificate_times(tls: EdgeTls) -> tuple[float, float]:
    """Unix times from and until which the leaf, the first certificate of the file, is valid."""
    with _Named("listen.tls.cert_file", tls.cert_file):
        leaf = x509.load_pem_x509_certificate(Path(tls.cert_file).read_bytes())
        return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()


class EdgeCertificate:
    """The context of the moment. Made from files that are good now, else ConfigError; ``reload`` keeps it so.

    A member of the Sweeper: once a day it warns while the certificate is about to expire.
    """

    def __init__(self, tls: EdgeTls) -> None:
        self._tls = tls
        self.reloads = {"ok": 0, "failed": 0}
        self._context, self._not_after = self._load()
        self.deadline = 0.0  # the first sweep looks

    def context(self) -> ssl.SSLContext:
        return self._context

    def expiry_s(self) -> float:
        """Seconds until the certificate expires; negative afterwards."""
        return self._not_after - time()

    def reload(self) -> None:
        """Read the files again. What is wrong with them is logged and counted, and the old ones stay."""
        try:
            self._context, self._not_after = self._load()
        except ConfigError as error:
            self.reloads["failed"] += 1
            _log.error("the edge certificate was not replaced: %s", error)
        else:
            self.reloads["ok"] += 1
            self.deadline = 0.0
            _log.info("the edge certificate was read again; it is valid for %.1f days", self.expiry_s() / _DAY_S)

    def on_deadline(self, now: float) -> None:
        self.deadline = perf_counter() + _DAY_S
        left = self.expiry_s()
        if left < self._tls.warn_before_expiry_s:
            _log.warning("the edge certificate expires in %.1f days", left / _DAY_S)

    def _load(self) -> tuple[ssl.SSLContext, float]:
        not_before, not_after = certificate_times(self._tls)
        if not not_before <= time() < not_after:
            reason = f"{self._tls.cert_file} has expired" if time() >= not_after else "is not valid yet"
            raise ConfigError(reason, key="listen.tls.cert_file")
        return edge_context(self._tls), not_after


class _Named:
    """Turns what OpenSSL or the file system says into a ConfigError of the key."""

    def __init__(self, key: str, file: str = "") -> None:
        self._key, self._file = key, file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, ValueError)):  # ssl.SSLError is an OSError
            what = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"{self._file}: {what}" if self._file else str(what), key=self._key) from None


def _no_password() -> str:
    raise ValueError("the key is encrypted; a node cannot be asked for its password")
