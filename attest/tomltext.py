"""Policies as TOML text: the little of the language that they use, in the order in which the tables are given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["toml_text"]


def toml_text(document: Mapping[str, Any], comments: tuple[str, ...] = ()) -> str:
    """The document. Values: text, whole numbers, truth, lists of them, tables; None and empty ones are left out."""
    lines = [f"# {comment}" for comment in comments]
    _table(document, "", lines)
    return "\n".join([*lines, ""])


def _table(table: Mapping[str, Any], path: str, lines: list[str]) -> None:
    kept = {key: value for key, value in table.items() if value is not None and value not in ({}, [], ())}
    plain = {key: value for key, value in kept.items() if not isinstance(value, Mapping)}
    if path and plain:
        lines += ["", f"[{path}]"]
    lines += [f"{key} = {_value(value)}" for key, value in plain.items()]
    for key, value in kept.items():
        if isinstance(value, Mapping):
            _table(value, f"{path}.{key}" if path else key, lines)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    # true, 7, "text": JSON's forms of these are TOML's, but for surrogate pairs and DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
