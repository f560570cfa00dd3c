"""What the rule tables of every scheme share: strict structs, the texts that values are compared as, one comparison."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, TypeAlias

import msgspec

from attest.errors import Mismatch

__all__ = [
    "Hex16",
    "Hex32",
    "Hex48",
    "Hex64",
    "Id",
    "NoneRules",
    "Table",
    "require",
    "require_if_listed",
    "require_one_of",
]

Hex16: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
Hex32: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Hex48: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{96}\Z")]
Hex64: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{128}\Z")]
Id: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every table of a policy: an unknown key is an error."""


class NoneRules(Table, frozen=True):
    """``[none]``: accept TLS clients that send claims only (attester "none"). Servers are never accepted so."""

    accept_unattested_clients: Literal[True]


def require(holds: bool, code: str, claim: str, expected: str, actual: str, hint: str = "") -> tuple[Mismatch, ...]:
    """No mismatch when the rule holds, else the one that says so."""
    return () if holds else (Mismatch(code, claim, expected, actual, hint=hint),)


def require_one_of(values: Collection[str], code: str, claim: str, actual: str) -> tuple[Mismatch, ...]:
    """The actual value is one of the given ones; none given accepts none."""
    return require(actual in values, code, claim, " or ".join(values) or "none", actual)


def require_if_listed(values: Collection[str], code: str, claim: str, actual: str) -> tuple[Mismatch, ...]:
    """For reference values that a policy may leave out as a whole (an empty list is an error of the policy)."""
    return require_one_of(values, code, claim, actual) if values else ()
