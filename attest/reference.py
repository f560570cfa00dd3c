"""Reference values: what the rules compare with, in the policy or in files of their own that a pipeline can write.

A policy names such a file by ``reference_values_file = "../reference_values/x.toml"``, or several by

    [[reference_values_files]]
    id = "image-2026-11"
    file = "../reference_values/image-2026-11.toml"
    sha256 = "<hex>"        # of the file's bytes, as sha256sum prints it; without it any content is taken

A file may say its own ``id``, which then must be the one that the policy gives; without any the file's name is its id.
Lists of several files are put together. Id and digest of each go into the attestation result.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any

import msgspec

from attest.errors import PolicyFormatError
from attest.rules import Hex32, Id, Table
from attest.schemes.azure import appraise as azure_scheme
from attest.schemes.azure import maa_appraise as maa_scheme
from attest.schemes.gcp import appraise as gcp_scheme
from attest.schemes.sev_snp import appraise as snp_scheme
from attest.schemes.tdx import appraise as tdx_scheme
from attest.schemes.vtpm import appraise as vtpm_scheme

__all__ = ["ReferenceFile", "ReferenceValues", "read_text", "read_toml", "with_values"]

MAX_POLICY_BYTES = 262_144
MAX_FILES = 16
_ONE, _SEVERAL, _VALUES = "reference_values_file", "reference_values_files", "reference_values"


class ReferenceValues(Table, frozen=True, rename={"sev_snp": "sev-snp"}):
    """Reference values by platform."""

    vtpm: vtpm_scheme.ReferenceValues = vtpm_scheme.ReferenceValues()
    sev_snp: snp_scheme.ReferenceValues = snp_scheme.ReferenceValues()
    tdx: tdx_scheme.ReferenceValues = tdx_scheme.ReferenceValues()
    azure: azure_scheme.ReferenceValues = azure_scheme.ReferenceValues()
    maa: maa_scheme.ReferenceValues = maa_scheme.ReferenceValues()
    gcp: gcp_scheme.ReferenceValues = gcp_scheme.ReferenceValues()


class ReferenceFile(msgspec.Struct, frozen=True):
    """A file that was used. ``digest``: SHA-256 (hex) of its bytes."""

    id: str
    digest: str


class _Entry(Table, frozen=True):
    id: Id
    file: Annotated[str, msgspec.Meta(min_length=1)]
    sha256: Hex32 | None = None


def read_text(path: Path) -> str:
    """A file's text; PolicyFormatError when it cannot be read, is too large, or not UTF-8."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise PolicyFormatError(f"{path}: {error.strerror}") from None
    if len(raw) > MAX_POLICY_BYTES:
        raise PolicyFormatError(f"{path}: above {MAX_POLICY_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise PolicyFormatError(f"{path}: not UTF-8") from None


def read_toml(text: str, where: str) -> dict[str, Any]:
    """The document, in which nothing is empty: that would read as "nothing to check"."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise PolicyFormatError(f"{where}: {error}") from None
    _refuse_empty(document, where)
    return document


def _refuse_empty(value: object, where: str) -> None:
    """An empty list, table or text would read as "nothing to check": whoever means that leaves the key out."""
    if value in ({}, [], ""):
        raise PolicyFormatError(f"{where}: is empty")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_empty(item, f"{where}: {key}")
    elif isinstance(value, list):
        for item in value:
            _refuse_empty(item, where)


def with_values(
    document: Mapping[str, Any], files: Mapping[str, str], where: str
) -> tuple[dict[str, Any], tuple[ReferenceFile, ...]]:
    """The document with the content of the files that it names in their place, also in members of compositions."""
    used: dict[str, ReferenceFile] = {}
    filled = _fill(document, files, used, where)
    if len(used) > MAX_FILES:
        raise PolicyFormatError(f"{where}: {len(used)} files of reference values, above {MAX_FILES}")
    return filled, tuple(used.values())


def _fill(
    document: Mapping[str, Any], files: Mapping[str, str], used: dict[str, ReferenceFile], where: str
) -> dict[str, Any]:
    filled = {key: value for key, value in document.items() if key not in (_ONE, _SEVERAL)}
    entries = _entries(document, where)
    if sum(key in document for key in (_ONE, _SEVERAL, _VALUES)) > 1:
        raise PolicyFormatError(f"{where}: reference values stand in the policy or in the file that it names")
    if entries:
        tables = [_table(entry, files, used, where) for entry in entries]
        filled[_VALUES] = merged(tables, where)
    for key in ("any_of", "all_of"):
        if isinstance(members := document.get(key), list):
            filled[key] = [_fill(m, files, used, where) if isinstance(m, dict) else m for m in members]
    return filled


def _entries(document: Mapping[str, Any], where: str) -> list[_Entry]:
    try:
        if _ONE in document:
            name = msgspec.convert(document[_ONE], str)
            return [_Entry(id="", file=name)]
        return msgspec.convert(document.get(_SEVERAL, []), list[_Entry])
    except msgspec.ValidationError as error:
        raise PolicyFormatError(f"{where}: {_ONE if _ONE in document else _SEVERAL}: {error}") from None


def _table(entry: _Entry, files: Mapping[str, str], used: dict[str, ReferenceFile], where: str) -> dict[str, Any]:
    text = files.get(entry.file)
    if text is None:
        raise PolicyFormatError(f"{where}: reference values: the file {entry.file} was not handed in")
    table = read_toml(text, f"{where}: reference values")
    own = table.pop("id", None)
    name = _id(own or entry.id or PurePath(entry.file).name.removesuffix(".toml"), where)
    if entry.id and name != entry.id:
        raise PolicyFormatError(f"{where}: {entry.file} has the id {name}, not {entry.id}")
    found = ReferenceFile(name, hashlib.sha256(text.encode()).hexdigest())
    if entry.sha256 is not None and found.digest != entry.sha256:
        raise PolicyFormatError(f"{where}: {entry.file} has SHA-256 {found.digest}, not {entry.sha256}")
    if used.setdefault(name, found) != found:
        raise PolicyFormatError(f"{where}: two files of reference values have the id {name}")
    return table


def _id(value: object, where: str) -> str:
    try:
        return msgspec.convert(value, Id)
    except msgspec.ValidationError as error:
        raise PolicyFormatError(f"{where}: reference values: id: {error}") from None


def merged(tables: list[dict[str, Any]], where: str) -> dict[str, Any]:
    """Tables put together: lists added up, each value once; anything else that two of them have is an error."""
    whole: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            known = whole.get(key)
            if known is None:
                whole[key] = value
            elif isinstance(known, dict) and isinstance(value, dict):
                whole[key] = merged([known, value], f"{where}: {key}")
            elif isinstance(known, list) and isinstance(value, list):
                whole[key] = known + [item for item in value if item not in known]
            else:
                raise PolicyFormatError(f"{where}: reference values: {key} stands in two files")
    return whole
