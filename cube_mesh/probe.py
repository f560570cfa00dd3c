"""The client of ``/readyz``, for container health checks: no event loop, one blocking request over plain HTTP."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit


def readyz(url: str, timeout_s: float) -> tuple[bool, str]:
    """(ready, what the node says). Anything but a 200 is not ready; nothing is raised for a node that is down."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return False, f"not an http URL: {url}"
    connection = HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_s)
    try:
        connection.request("GET", parts.path.rstrip("/") + "/readyz")
        response = connection.getresponse()
        body = response.read(65_536).decode("utf-8", "replace").strip()
    except (OSError, HTTPException) as error:
        return False, f"{url}: {error or type(error).__name__}"
    finally:
        connection.close()
    return response.status == 200, f"{response.status} {body}"
