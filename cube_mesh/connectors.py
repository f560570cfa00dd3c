"""Opening connections that need no attestation: TCP to loopback, or TLS to a backend with its own certificate."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from cube_mesh.settings import BackendTls


class PlainConnector:
    """TCP without TLS. Whether a target may be reached this way was decided before this is built."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    async def connect(self, protocol_factory: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(protocol_factory, self._host, self._port)
        return protocol


class TlsConnector:
    """TLS with the server's certificate verified (TLS 1.2 or later), and a client certificate if one is configured."""

    def __init__(self, host: str, port: int, tls: BackendTls) -> None:
        self._host, self._port = host, port
        self._server_name = tls.server_name or host
        self._context = ssl.create_default_context(cafile=tls.ca_file or None)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls.cert_file:
            self._context.load_cert_chain(tls.cert_file, tls.key_file or None)

    async def connect(self, protocol_factory: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(
            protocol_factory, self._host, self._port, ssl=self._context, server_hostname=self._server_name
        )
        return protocol
