"""The effective configuration as TOML text that can be loaded again, each value with the place it came from.

Secrets are masked: their line is a comment, because a configuration file may not hold them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from cube_mesh.config import SECRETS, Loaded, generic

_BARE = re.compile(r"[A-Za-z0-9_-]+").fullmatch
MASK = "********"


def to_toml(loaded: Loaded) -> str:
    """All keys, defaults included, in the order of settings.py."""
    return "\n".join(_section(loaded.settings, "", "", loaded.origins)) + "\n"


def _section(section: msgspec.Struct, path: str, header: str, origins: Mapping[str, str]) -> Iterator[str]:
    """``path`` has list indexes (for origins), ``header`` has none (TOML's own way of naming the current element)."""
    inner: list[tuple[str, Any]] = []
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, msgspec.Struct) or (isinstance(value, tuple) and value and _is_table(value[0])):
            inner.append((name, value))
        else:
            yield _line(path + name, name, value, origins)
    for name, value in inner:
        if isinstance(value, tuple):
            for index, item in enumerate(value):
                yield f"\n[[{header}{name}]]"
                yield from _section(item, f"{path}{name}.{index}.", f"{header}{name}.", origins)
        else:
            yield f"\n[{header}{name}]"
            yield from _section(value, f"{path}{name}.", f"{header}{name}.", origins)


def _is_table(value: object) -> bool:
    return isinstance(value, msgspec.Struct)


def _line(key: str, name: str, value: Any, origins: Mapping[str, str]) -> str:
    origin = origins.get(key) or ("members set by name" if any(k.startswith(key + ".") for k in origins) else "default")
    origin = " ".join(origin.split())
    if generic(key) in SECRETS and value:
        return f'# {name} = "{MASK}"  # {origin}'
    return f"{name} = {_value(value)}  # {origin}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace(
            "\x7f", "\\u007f"
        )  # TOML's basic strings are JSON's and more
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }" if value else "{}"
    return repr(value)


def _key(name: str) -> str:
    return name if _BARE(name) else _value(name)
