"""The endpoint table: what a method and a path mean. Exact or by whole segments; what is not listed does not exist.

Read from TOML, ``policies/authz/endpoints.toml`` unless the operator names another file. No prefix, no pattern, no
default: a path that looks like an endpoint and is not one cannot pick up that endpoint's permission.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from cube_mesh.data import policies
from cube_mesh.errors import ConfigError
from cube_mesh.ports import Endpoint

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+|\{[a-z_]+\}").fullmatch
_PERMISSION = re.compile(r"[a-z][a-z0-9_]{0,63}").fullmatch
_MAX_ROWS = 500  # endpoint names are metric labels: the table is the bound


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    method: str
    path: str
    permission: str
    operation: str = ""
    body: Literal["json", "stream"] = "stream"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    endpoint: tuple[_Row, ...]


class EndpointTable:
    """``find(method, path)`` gives the row, or None. ``path`` is as received, after the domain; it is not decoded.

    HEAD is answered wherever GET is (RFC 9110 section 9.3.2), by the row of the GET.
    """

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)
        self.exact: dict[str, dict[str, Endpoint]] = {}  # method, path: rows without a template
        self._templates: dict[tuple[str, int], list[tuple[tuple[str, ...], Endpoint]]] = {}
        for endpoint in self.endpoints:
            segments = tuple(endpoint.path.split("/"))
            if "{" not in endpoint.path:
                self.exact.setdefault(endpoint.method, {})[endpoint.path] = endpoint
            else:
                self._templates.setdefault((endpoint.method, len(segments)), []).append((segments, endpoint))

    def find(self, method: str, path: str) -> Endpoint | None:
        found = self._find(method, path)
        return found if found is not None or method != "HEAD" else self._find("GET", path)

    def _find(self, method: str, path: str) -> Endpoint | None:
        exact = self.exact.get(method)
        found = exact.get(path) if exact is not None else None
        return found if found is not None else self._by_template(method, path)

    def _by_template(self, method: str, path: str) -> Endpoint | None:
        segments = path.split("/")
        for template, endpoint in self._templates.get((method, len(segments)), ()):
            if all(t == s or (t[:1] == "{" and s != "") for t, s in zip(template, segments, strict=True)):
                return endpoint
        return None


def parse_endpoints(text: str, where: str = "endpoints") -> EndpointTable:
    """The table in a TOML text. Raises ConfigError for unknown keys, doubled rows and anything empty."""
    try:
        rows = msgspec.toml.decode(text, type=_File).endpoint
    except msgspec.DecodeError as error:
        raise ConfigError(str(error), where=where) from None
    if not 0 < len(rows) <= _MAX_ROWS:
        raise ConfigError(f"the table must have 1 to {_MAX_ROWS} rows", key="endpoint", where=where)
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = f"{row.method} {row.path}"
        if row.method not in _METHODS:
            raise ConfigError(f"unknown method in {key!r}", key="endpoint.method", where=where)
        segments = row.path[1:].split("/")
        if row.path[:1] != "/" or not all(map(_SEGMENT, segments)) or {".", ".."} & set(segments):
            raise ConfigError(f"not an absolute path or template: {row.path!r}", key="endpoint.path", where=where)
        if not _PERMISSION(row.permission):
            raise ConfigError(f"not a permission name: {row.permission!r}", key="endpoint.permission", where=where)
        shape = (row.method, re.sub(r"\{[a-z_]+\}", "{}", row.path))
        if shape in seen:
            raise ConfigError(f"{key!r} is listed twice", key="endpoint", where=where)
        seen.add(shape)
    return EndpointTable(Endpoint(r.path, r.method, r.path, r.permission, r.operation, r.body) for r in rows)


def load_endpoints(path: str = "") -> EndpointTable:
    """The operator's table, or the built-in one for an empty path. Raises ConfigError."""
    file = Path(path) if path else policies() / "authz" / "endpoints.toml"
    try:
        return parse_endpoints(file.read_text("utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", key="authz.endpoints_file", where=str(file)) from None
