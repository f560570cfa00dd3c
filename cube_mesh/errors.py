"""Errors of the node: who is at fault, which status the client gets, whether a retry can help.

One root with a branch per party. Each error carries a stable ``code`` (the metric and audit value), a fixed ``message``
that is safe to show to any client, and an optional ``detail`` for the log. ``detail`` never reaches a client. The wire
form is OpenAI's error envelope (openai-openapi, ``ErrorResponse``): all four keys, always.
"""

from __future__ import annotations


class CubeMeshError(Exception):
    """Root of the node's errors. Raise a branch, never the root itself."""

    status = 500
    error_type = "server_error"
    retryable = False

    def __init__(
        self,
        code: str,
        message: str,
        *,
        detail: str = "",
        status: int | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail or message}")
        self.code = code
        self.message = message
        self.detail = detail
        self.param = param
        if status is not None:
            self.status = status


class ConfigError(CubeMeshError):
    """The operator's configuration is wrong; the node does not start (exit code 78, ``EX_CONFIG``).

    ``where`` is the file, environment variable or flag, ``key`` the dotted setting.
    """

    def __init__(self, reason: str, *, key: str = "", where: str = "") -> None:
        super().__init__("config", reason)
        self.reason, self.key, self.where = reason, key, where

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.reason) if part)


class PeerError(CubeMeshError):
    """The client sent something we refuse: 4xx."""

    status = 400
    error_type = "invalid_request_error"


class PolicyError(CubeMeshError):
    """The client is known and may not do this: 401 (who are you) or 403 (not you)."""

    status = 403

    @property
    def error_type(self) -> str:  # type: ignore[override]
        return "authentication_error" if self.status == 401 else "permission_error"


class DependencyError(CubeMeshError):
    """Something that we depend on failed: 502 (bad answer), 503 (not available), 504 (too slow)."""

    status = 502
    error_type = "upstream_error"

    def __init__(
        self, code: str, message: str, *, detail: str = "", status: int = 502, retryable: bool = False
    ) -> None:
        super().__init__(code, message, detail=detail, status=status)
        self.retryable = retryable


class InternalError(CubeMeshError):
    """Our own fault: 500. The client learns nothing but the request id."""


class FramingError(Exception):
    """Bytes that are not strict HTTP/1.1 or strict JSON. Neutral about fault: the side that reads turns it into a
    PeerError (a client sent it, ``status`` is the answer) or a DependencyError (an upstream sent it, 502).
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code)
        self.code, self.message, self.status = code, message, status
