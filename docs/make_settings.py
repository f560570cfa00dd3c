"""``python docs/make_settings.py`` makes settings.md from the types, defaults and comments of cube_mesh/settings.py."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from cube_mesh import settings
from cube_mesh.config import PREFIX, SECRETS, generic

PAGE = Path(__file__).with_name("settings.md")
HEAD = f"""# Settings

<!-- made by docs/make_settings.py from cube_mesh/settings.py; a test compares them -->

A setting comes from, in this order: a flag (`--set listen.port=9000`, or `--port 9000`), the environment
(`{PREFIX}LISTEN__PORT=9000`), the TOML file (`--config FILE` or `{PREFIX}CONFIG`), the default. An unknown key is
an error that names the nearest known one. `*` in a key stands for the index in a list: `[[upstreams]]` in the file,
`{PREFIX}UPSTREAMS__0__URL` in the environment, `--set upstreams.0.url=...` as a flag. Flags and variables write text as
it is, and everything else as TOML does.

* Paths in a file are relative to that file; others to the working directory.
* A secret stands in no file and no flag: name a file that holds it, or set its variable.
* Names that begin with `unsafe_` weaken the node on purpose. None is needed in production.
* `cube-mesh validate proxy` (or `agent`) tells every problem with file, key and reason; `--print-config` shows each
  value and its source.
* In Kubernetes set `enableServiceLinks: false` when a Service is called `cube-mesh`: it would inject variables of that
  prefix that are no settings.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_section(settings.Settings, "", _comments())])


def _comments() -> dict[tuple[str, str], str]:
    """The trailing comment of each field, by class and name; also where a formatter has wrapped the default."""
    found: dict[tuple[str, str], str] = {}
    owner = field = ""
    source = Path(settings.__file__).read_text("utf-8")
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for token, following in pairwise(tokens):
        if token.type == tokenize.NAME and token.string == "class":
            owner, field = following.string, ""
        elif token.type == tokenize.NAME and token.start[1] == 4 and following.string == ":":
            field = token.string
        elif token.type == tokenize.COMMENT and owner and field:
            found[owner, field] = token.string.lstrip("# ")
    return found


def _section(kind: Any, prefix: str, comments: dict[tuple[str, str], str]) -> Iterator[str]:
    inner: list[tuple[str, Any]] = []
    rows = []
    for field in msgspec.structs.fields(kind):
        section, many = _struct(field.type)
        if section is not None:
            inner.append((f"{prefix}{field.name}{'.*' if many else ''}.", section))
        else:
            rows.append(_row(prefix + field.name, field, comments.get((kind.__name__, field.name), "")))
    if rows:
        title = prefix.rstrip(".")
        table = f"[[{title.removesuffix('.*')}]]" if title.endswith(".*") else f"[{title}]"
        yield f"## `{table.replace('.*', '')}`\n" if title else "## Top level\n"
        if kind.__doc__ and kind.__doc__ != settings.Section.__doc__:
            yield " ".join(kind.__doc__.split()).replace("``", "`") + "\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        yield "\n".join(rows) + "\n"
    for path, section in inner:
        yield from _section(section, path, comments)


def _struct(kind: Any) -> tuple[Any, bool]:
    many = get_origin(kind) is tuple
    element = get_args(kind)[0] if many else kind
    return (element, many) if isinstance(element, type) and issubclass(element, msgspec.Struct) else (None, False)


def _row(key: str, field: msgspec.structs.FieldInfo, comment: str) -> str:
    default = "required" if field.required else f"`{_toml(_default(field))}`"
    note = " Only from the environment." if generic(key.replace("*", "0")) in SECRETS else ""
    meaning = (comment + ("." if note and not comment.endswith(".") else "") + note).replace("|", "\\|")
    return f"| `{key}` | {_type(field.type)} | {default} | {meaning} |"


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value)


def _type(kind: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    if kind in names:
        return names[kind]
    if get_origin(kind) is tuple:
        return "list of " + {str: "texts", int: "integers"}[get_args(kind)[0]]
    if get_origin(kind) is dict:
        return "table of texts"
    return ", ".join(f'"{choice}"' for choice in get_args(kind))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
