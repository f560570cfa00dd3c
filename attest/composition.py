"""All of, any of: a tree of policies as the list of ways to satisfy it, and the trial of one piece of evidence on them.

``[[any_of]]``: one member must accept. ``[[all_of]]``: every member must, of the same evidence; a member with tables of
its own is then one part of what is asked for, as if its tables stood beside the others'. The tree is multiplied out
when the policy is read, within bounds, so that appraisal is a plain loop: way by way, until one accepts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from attest.errors import AppraisalFailed, AttestError, Mismatch, PolicyFormatError, UnsupportedEvidence
from attest.reference import ReferenceValues

if TYPE_CHECKING:
    from attest.policy import EvidencePolicy

__all__ = ["MAX_BRANCHES", "try_branches", "ways_of"]

MAX_BRANCHES, MAX_VIEWS, MAX_DEPTH = 16, 4, 4
_TABLES = ("vtpm", "sev_snp", "tdx", "azure", "maa", "gcp")

Tables = dict[str, Any]  # fields of an EvidencePolicy
T = TypeVar("T")


def ways_of(policy: Any, where: str) -> dict[str, list[Tables]]:
    """Branch id → views, each as the fields of an EvidencePolicy; one way named "" for a policy without composition.

    ``policy`` is the root of the tree, as the policy file's struct. Raises PolicyFormatError.
    """
    ways = _ways(policy, "", where, 0)
    return {name: _views(tables, where) for name, tables in ways}


def _ways(member: Any, name: str, where: str, depth: int) -> list[tuple[str, list[Tables]]]:
    """Each way's name, and the tables of the members on it."""
    composed = [key for key in ("any_of", "all_of") if getattr(member, key) is not None]
    if not composed:
        if depth and member.none is not None:
            raise PolicyFormatError(f"{where}: {name}: [none] accepts any client, so it cannot be one way of several")
        return [(name, [_tables(member)])]
    own = _tables(member)
    if len(composed) > 1 or own.pop("reference_values") is not None or any(own.values()):
        raise PolicyFormatError(f"{where}: {name or member.id}: tables, any_of or all_of: one of them")
    if depth == MAX_DEPTH:
        raise PolicyFormatError(f"{where}: {name}: nested deeper than {MAX_DEPTH}")
    members = getattr(member, composed[0])
    if len({m.id for m in members}) != len(members):
        raise PolicyFormatError(f"{where}: {name or member.id}: {composed[0]}: two members have the same id")
    ways = [_ways(m, f"{name}/{m.id}" if name else m.id, where, depth + 1) for m in members]
    joined = list(itertools.chain(*ways)) if composed[0] == "any_of" else _product(ways, where)
    return _bounded(joined, where)


def _product(ways: Iterable[list[tuple[str, list[Tables]]]], where: str) -> list[tuple[str, list[Tables]]]:
    """One way of each, in every combination; bounded while it grows."""
    joined: list[tuple[str, list[Tables]]] = [("", [])]
    for of_member in ways:
        pairs = itertools.product(joined, of_member)
        joined = _bounded([(f"{a}+{b}" if a else b, x + y) for (a, x), (b, y) in pairs], where)
    return joined


def _bounded(ways: list[tuple[str, list[Tables]]], where: str) -> list[tuple[str, list[Tables]]]:
    if len(ways) > MAX_BRANCHES:
        raise PolicyFormatError(f"{where}: the composition has over {MAX_BRANCHES} ways")
    return ways


def _tables(member: Any) -> Tables:
    names = (*_TABLES, "none", "schemes", "reference_values", "unsafe_accept_vtpm_only")
    return {name: getattr(member, name) for name in names}


def _views(members: list[Tables], where: str) -> list[Tables]:
    """Policies that look at all of the evidence. The n-th has the n-th table of each kind, or the last there is."""
    held = {name: [m for m in members if m[name] is not None] for name in (*_TABLES, "none")}
    schemes = [(name, rules) for m in members for name, rules in (m["schemes"] or {}).items()]
    if len(dict(schemes)) != len(schemes):
        raise PolicyFormatError(f"{where}: all_of: two members with [schemes] of the same name")
    number = max(1, *(len(found) for found in held.values()))
    if number > MAX_VIEWS:
        raise PolicyFormatError(f"{where}: all_of: over {MAX_VIEWS} members with the same table")
    return [_view(members, held, dict(schemes), index) for index in range(number)]


def _view(members: list[Tables], held: Mapping[str, list[Tables]], schemes: Tables, index: int) -> Tables:
    chosen = {name: found[min(index, len(found) - 1)] for name, found in held.items() if found}
    values = {
        name: getattr(member["reference_values"], name)
        for name, member in chosen.items()
        if name in _TABLES and member["reference_values"] is not None
    }
    stray = _stray(members)
    vtpm = [chosen["vtpm"]] if "vtpm" in chosen else members
    return {
        **{name: member[name] for name, member in chosen.items()},
        "schemes": schemes,
        "reference_values": ReferenceValues(**{**stray, **values}),
        "unsafe_accept_vtpm_only": any(member["unsafe_accept_vtpm_only"] for member in vtpm),
    }


def _stray(members: list[Tables]) -> Tables:
    """Reference values of a member that does not ask for that evidence: kept, for the policy's check to refuse."""
    return {
        name: getattr(m["reference_values"], name)
        for m in members
        for name in _TABLES
        if m[name] is None and m["reference_values"] is not None
        if getattr(m["reference_values"], name) != type(getattr(m["reference_values"], name))()
    }


def try_branches(policy: EvidencePolicy, appraise: Callable[[EvidencePolicy], T]) -> tuple[str, tuple[T, ...]]:
    """The first branch of which every view accepts: its id, and what ``appraise`` gave for each view.

    When none does: AppraisalFailed, where the evidence was verified under at least one; otherwise the error of the
    branch that came furthest. Either carries ``mismatches`` of all branches, whose ``branch`` says which.
    """
    mismatches: list[Mismatch] = []
    errors: list[AttestError] = []
    for branch in policy.branches:
        accepted: list[T] = []
        for view in branch.views:
            try:
                accepted.append(appraise(view))
            except AttestError as error:
                errors.append(error)
                mismatches += [m for m in _mismatches(error, branch.id) if m not in mismatches]
        if len(accepted) == len(branch.views):
            return branch.id, tuple(accepted)
    raise _failure(errors, tuple(mismatches))


def _mismatches(error: AttestError, branch: str) -> list[Mismatch]:
    if isinstance(error, AppraisalFailed):
        return [Mismatch(m.code, m.claim, m.expected, m.actual, m.side, m.hint, branch) for m in error.mismatches]
    return [Mismatch(error.code, "evidence", "accepted by this branch", str(error), branch=branch)]


def _failure(errors: list[AttestError], mismatches: tuple[Mismatch, ...]) -> AttestError:
    if any(isinstance(error, AppraisalFailed) for error in errors):
        return AppraisalFailed(mismatches)
    telling = [error for error in errors if not isinstance(error, UnsupportedEvidence)]
    first = (telling or errors)[0]
    failure = type(first)(f"no branch of the policy accepts: {first}", code=first.code)
    failure.mismatches = mismatches
    return failure
