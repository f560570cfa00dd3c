"""The HTTPS GET for key sets: the body of a 200, or an error of the node."""

from __future__ import annotations

import ssl

from cube_mesh import https
from cube_mesh.errors import DependencyError
from cube_mesh.https import check_url

__all__ = ["check_url", "fetch"]

_UNREADABLE = "A service that this server needs did not answer."


async def fetch(url: str, *, timeout_s: float, max_bytes: int, tls: ssl.SSLContext | None = None) -> bytes:
    """The body of a 200 answer. Raises DependencyError ``fetch_failed`` for everything else, time and size included."""
    check_url(url, "url")
    try:
        fields = {"accept": "application/json"}
        answer = await https.get(url, timeout_s=timeout_s, max_bytes=max_bytes, fields=fields, tls=tls)
    except https.FetchError as error:
        raise _failed(str(error)) from None
    if answer.status != 200:
        raise _failed(f"status {answer.status}")
    return answer.body


def _failed(detail: str) -> DependencyError:
    return DependencyError("fetch_failed", _UNREADABLE, detail=detail, status=503, retryable=True)
