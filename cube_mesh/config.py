"""From flags, environment and a TOML file to one frozen ``Settings``, and the memory of where each value came from.

Precedence: flag > environment > file > default. Flags and environment name a key by its path (``--set listen.port=1``,
``CUBE_MESH_LISTEN__PORT=1``, ``upstreams.0.api_key``); what is not text is written as in TOML. An unknown key is an
error that names the nearest known one. Relative paths in a file are relative to that file. This module reads one file
and nothing else; whether the values make sense together is ``config_rules``' question.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args, get_origin

import msgspec

from cube_mesh.errors import ConfigError
from cube_mesh.settings import Settings

Role: TypeAlias = Literal["proxy", "agent"]

PREFIX = "CUBE_MESH_"
FILE_VARIABLE = "CUBE_MESH_CONFIG"
# Not settings: the file itself, and two that the test suite reads.
_OTHER_VARIABLES = frozenset({FILE_VARIABLE, "CUBE_MESH_REQUIRE", "CUBE_MESH_VECTORS"})
SECRETS = frozenset({"upstreams.*.api_key"})
# and every key that ends in _file
_PATHS = frozenset({"audit.path", "upstreams.*.policy", "identity.domains.*.evidence_policy"})
_PORTS: dict[Role, dict[str, int]] = {
    "proxy": {"listen.port": 8900, "metrics.port": 8910},
    "agent": {"listen.port": 8901, "metrics.port": 8911},
}


class Loaded(msgspec.Struct, frozen=True):
    """Well-typed settings. ``origins``: dotted key to the file, variable or flag that set it; not there = default."""

    settings: Settings
    origins: dict[str, str]


def load(
    role: Role, file: Path | None, environ: Mapping[str, str], flags: Iterable[tuple[str, str, str]] = ()
) -> Loaded:
    """Merge the sources for ``role``. ``flags`` are (dotted key, text, how the user wrote it), later ones win.

    Raises ConfigError with source, key and reason. Types and names are checked here, nothing else is.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if file is not None:
        tree = _read(file)
        _adopt(tree, Settings, (), file, origins)
    for name, text in sorted(environ.items(), key=_numbers_last):
        if name.startswith(PREFIX) and name not in _OTHER_VARIABLES:
            _set(tree, name[len(PREFIX) :].lower().split("__"), text, name, origins)
    for key, text, where in flags:
        if generic(key) in SECRETS:
            raise ConfigError("every user of the machine can read a secret in a command line", key=key, where=where)
        _set(tree, key.split("."), text, where, origins)
    for key, port in _PORTS[role].items():
        section, name = key.split(".")
        if tree.setdefault(section, {}).get(name, 0) == 0:
            tree[section][name] = port
    return Loaded(_convert(tree, origins), origins)


def generic(key: str) -> str:
    """``upstreams.0.url`` → ``upstreams.*.url``"""
    return re.sub(r"\.\d+(?=\.|$)", ".*", key)


def source_of(key: str, origins: Mapping[str, str]) -> str:
    """The file, variable or flag that ``key``, the nearest part of it or above it came from; "" for a default."""
    while key:
        if key in origins:
            return origins[key]
        below = next((origin for known, origin in origins.items() if known.startswith(key + ".")), "")
        if below:
            return below
        key = key.rpartition(".")[0]
    return ""


# -- the file ----------------------------------------------------------------------------------------------------------


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}", where=str(file)) from None


def _adopt(value: Any, kind: Any, path: tuple[str, ...], file: Path, origins: dict[str, str]) -> Any:
    """Walk one value of the file beside its type: refuse unknown keys and secrets, anchor paths, note origins."""
    key = ".".join(path)
    if _is_section(kind):
        if not isinstance(value, dict):
            raise ConfigError("expected a table", key=key, where=str(file))
        for name in value:
            inner = _field(kind, name, path, str(file))
            value[name] = _adopt(value[name], inner, (*path, name), file, origins)
        return value
    if _is_section(_element(kind)):
        if not isinstance(value, list):
            raise ConfigError(f"expected an array of tables: [[{key}]]", key=key, where=str(file))
        return [_adopt(item, _element(kind), (*path, str(i)), file, origins) for i, item in enumerate(value)]
    origins[key] = str(file)
    if generic(key) in SECRETS:
        variable = PREFIX + "__".join(path).upper()
        reason = f"a secret does not stand in the file: use {path[-1]}_file or {variable}"
        raise ConfigError(reason, key=key, where=str(file))
    if isinstance(value, str) and value and is_path(key):
        return str((file.parent / value).absolute())
    return value


def is_path(key: str) -> bool:
    return key.endswith("_file") or generic(key) in _PATHS


# -- environment and flags ---------------------------------------------------------------------------------------------


def _set(tree: dict[str, Any], path: list[str], text: str, where: str, origins: dict[str, str]) -> None:
    """Put ``text`` at ``path``, parsed by the type that is expected there."""
    node: Any = tree
    kind: Any = Settings
    for depth, name in enumerate(path):
        kind = _inner(kind, node, name, tuple(path[:depth]), where)
        if depth == len(path) - 1:
            break
        if isinstance(node, list):
            if int(name) == len(node):
                node.append({})
            node = node[int(name)]
        else:
            node = node.setdefault(name, [] if _element(kind) else {})
    key = ".".join(path)
    if _is_section(kind) or _is_section(_element(kind)):
        raise ConfigError("is a section: set its members one by one", key=key, where=where)
    value = _parse(text, kind, key, where)
    if isinstance(value, str) and value and is_path(key):
        value = str(Path(value).absolute())
    node[path[-1]] = value
    origins[key] = where


def _numbers_last(item: tuple[str, str]) -> list[tuple[int, str]]:
    """Sort key under which element 2 of a list comes before element 10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in item[0].split("__")]


def _inner(kind: Any, node: Any, name: str, path: tuple[str, ...], where: str) -> Any:
    """The type of member ``name`` of ``kind``. A list of sections is indexed; the next free index appends."""
    if _is_section(kind):
        return _field(kind, name, path, where)
    if _is_section(_element(kind)):
        if not (name.isascii() and name.isdecimal()) or int(name) > len(node):
            raise ConfigError(f"no element {name!r}; the next one is {len(node)}", key=".".join(path), where=where)
        return _element(kind)
    if get_origin(kind) is dict:
        return get_args(kind)[1]
    raise ConfigError("is a single value and has no members", key=".".join(path), where=where)


def _parse(text: str, kind: Any, key: str, where: str) -> Any:
    if kind is str or (get_origin(kind) is Literal and all(isinstance(choice, str) for choice in get_args(kind))):
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    if list(parsed) != ["value"]:
        raise ConfigError(f"not a TOML value: {text!r}", key=key, where=where)
    return parsed["value"]


# -- the types of settings.py ------------------------------------------------------------------------------------------


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _element(kind: Any) -> Any:
    """The element type of ``tuple[X, ...]``, else None."""
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def _field(kind: type[msgspec.Struct], name: str, path: tuple[str, ...], where: str) -> Any:
    for field in msgspec.structs.fields(kind):
        if field.name == name:
            return field.type
    key = ".".join((*path, name))
    siblings = [field.name for field in msgspec.structs.fields(kind)]
    raise ConfigError(f"unknown key{_nearest(name, siblings, path)}", key=key, where=where)


def _nearest(name: str, siblings: list[str], path: tuple[str, ...]) -> str:
    """A sibling that is spelled nearly so, else the same name in another section, else the nearest sibling."""
    close = get_close_matches(name, siblings, 1, 0.6)
    elsewhere = [known for known in keys() if known.rpartition(".")[2] == name]
    if not close and elsewhere:
        return f"; did you mean {elsewhere[0]!r}?"
    nearest = ".".join((*path, *(close or get_close_matches(name, siblings, 1, 0.0))))
    return f"; did you mean {nearest!r}?" if close else f"; the nearest known one is {nearest!r}"


def keys(kind: Any = Settings, prefix: str = "") -> Iterator[str]:
    """Every dotted key that can be set, ``*`` for a list's index."""
    for field in msgspec.structs.fields(kind):
        key = prefix + field.name
        element = _element(field.type)
        if _is_section(field.type):
            yield from keys(field.type, key + ".")
        elif _is_section(element):
            yield from keys(element, key + ".*.")
        else:
            yield key


def _convert(tree: dict[str, Any], origins: dict[str, str]) -> Settings:
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        reason = reason.replace("Object missing required field", "missing required key")
        key = re.sub(r"\[(\d+)\]", r".\1", place.rstrip("`")).strip(".")
        if reason.startswith("Invalid enum value"):
            reason += f"; one of {', '.join(repr(choice) for choice in get_args(_kind_of(key)))}"
        raise ConfigError(reason.replace("`", ""), key=key, where=source_of(key, origins)) from None


def _kind_of(key: str) -> Any:
    kind: Any = Settings
    for name in key.split("."):
        kind = _element(kind) if name.isdecimal() else _field(kind, name, (), "")
    return kind
