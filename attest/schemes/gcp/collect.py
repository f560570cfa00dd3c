"""Evidence of Google Cloud: a token of Confidential Space's launcher; the vTPM of any GCE instance, with the AK that
Google has certified.

The launcher ("Custom token request", Confidential Space documentation) listens on a unix socket in the workload's
container. GCE keeps certificate and template of each AK in NV: RSA at 0x01c10000, ECC at 0x01c10002, template next.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal

import msgspec

from attest.evidence import TOKEN, Part
from attest.schemes.vtpm.collect import TpmCollector
from attest.transport import Ask, Transport, answered, token_part

__all__ = ["AK_INDEXES", "LAUNCHER_SOCKET", "SpaceCollector", "gce_collector"]

LAUNCHER_SOCKET = "/run/container_launcher/teeserver.sock"
AK_INDEXES: dict[str, tuple[int, int]] = {"rsa": (0x01C10000, 0x01C10001), "ecc": (0x01C10002, 0x01C10003)}
"""NV indexes of certificate and template by the AK's algorithm."""

_WHAT = "the Confidential Space launcher"


class SpaceCollector:
    """Collector of scheme "gcp": a token for ``audience`` whose one nonce is the data hash. Raises CollectionFailed.

    ``token_type``: "OIDC", which Google's key set verifies, or "PKI", which carries its chain.
    """

    scheme = "gcp"

    def __init__(
        self,
        audience: str,
        transport: Transport,
        *,
        token_type: Literal["OIDC", "PKI"] = "OIDC",
        unix_socket: str = LAUNCHER_SOCKET,
    ) -> None:
        if not audience:
            raise ValueError("a token needs an audience")
        self._audience, self._type = audience, token_type
        self._transport, self._socket = transport, unix_socket

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        """A token over ``data_hash`` (32 bytes, as base64url: nonces have 10 to 74 bytes of text)."""
        nonce = base64.urlsafe_b64encode(data_hash).rstrip(b"=").decode()
        body = msgspec.json.encode({"audience": self._audience, "nonces": [nonce], "token_type": self._type})
        fields = {"content-type": "application/json"}
        ask = Ask(url="http://localhost/v1/token", method="POST", fields=fields, body=body, unix_socket=self._socket)
        return {TOKEN: token_part(answered(self._transport, ask, _WHAT).strip(), _WHAT)}


def gce_collector(
    tcti: str,
    pcrs: Sequence[int],
    *,
    algorithm: Literal["rsa", "ecc"] = "ecc",
    ak_certificates: Sequence[bytes] = (),
    timeout_s: float = 10.0,
) -> TpmCollector:
    """Quotes by Google's AK of this instance, its certificate sent with them. ``ak_certificates``: intermediates."""
    certificate, template = AK_INDEXES[algorithm]
    return TpmCollector(
        tcti,
        pcrs,
        ak_template=template,
        ak_certificate=certificate,
        ak_certificates=ak_certificates,
        timeout_s=timeout_s,
    )
