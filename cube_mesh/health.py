"""Health: is the process alive, may it serve, and the original's ``/health``. Answers from state, does no work of its
own.

``/livez`` is 200 while the loop runs. ``/readyz`` is 200 only when every check holds, 503 otherwise, and its body names
each check and what it waits for; no secret and no address of a tenant is in it. ``/healthz`` is an alias of
``/readyz``.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import msgspec

from cube_mesh.message import Response

Check = Callable[[], str]
"""Returns an empty string when ready, else what is missing."""

_encode = msgspec.json.Encoder().encode


class Health:
    """The node's checks by name, and the local paths that show them. ``instance``: made up when empty."""

    def __init__(self, service: str, version: str, *, unsafe: bool = False, instance: str = "") -> None:
        self._service = service
        self._version = version
        self._unsafe = unsafe
        self._instance = instance or str(uuid.uuid4())
        self.checks: dict[str, Check] = {}

    def missing(self) -> dict[str, str]:
        """Name of each check that does not hold, with its reason."""
        return {name: reason for name, check in self.checks.items() if (reason := check())}

    def paths(self) -> dict[str, Callable[[bytes], Response]]:
        return {"/livez": self.livez, "/readyz": self.readyz, "/healthz": self.readyz, "/health": self.health}

    def livez(self, query: bytes) -> Response:
        return Response(200, b"ok\n", b"text/plain")

    def readyz(self, query: bytes) -> Response:
        missing = self.missing()
        checks = {name: missing.get(name, "ok") for name in self.checks}
        body: dict[str, object] = {"status": "fail" if missing else "pass", "checks": checks}
        if self._unsafe:
            body["unsafe_allow_simulated"] = True
        return Response(503 if missing else 200, _encode(body) + b"\n")

    def health(self, query: bytes) -> Response:
        """Cube AI's shape: always 200 while the process runs."""
        body = {
            "status": "pass",
            "version": self._version,
            "description": f"{self._service} service",
            "service": self._service,
            "instance_id": self._instance,
        }
        return Response(200, _encode(body) + b"\n", b"application/health+json")
