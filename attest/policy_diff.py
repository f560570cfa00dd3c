"""What changes between two policies, rule by rule, and in which direction: looser, stricter, or only different."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from attest.policy import EvidencePolicy

__all__ = ["Change", "diff_policies"]

Direction = Literal["looser", "stricter", "changed"]
# Lists of what is refused or demanded: more members are stricter. In every other list more members accept more.
_DEMANDING = {
    "refused_advisories", "platform_info_required", "required_launch_mitigations", "required_current_mitigations",
    "pcrs", "rtmrs", "event_log_rtmrs", "support_attributes",
}  # fmt: skip
# What is set alone accepts more; other lists, when absent, are not compared at all.
_GRACE = {"grace_period_s", "max_lifetime_s"}


class Change(msgspec.Struct, frozen=True):
    """One rule or list. ``rule``: as in the file, "sev-snp.min_tcb.snp"; None: absent."""

    rule: str
    direction: Direction
    before: Any
    after: Any


def diff_policies(before: EvidencePolicy, after: EvidencePolicy) -> tuple[Change, ...]:
    """Every rule that differs, by name. Ids, and where reference values stand, are no rules. Branches of compositions
    are compared by their ids: a branch that only one has is a way more or less to be accepted.
    """
    changes: list[Change] = []
    if before.max_lifetime_s != after.max_lifetime_s:
        changes.append(_change("max_lifetime_s", before.max_lifetime_s, after.max_lifetime_s))
    old, new = _branches(before), _branches(after)
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            whole: Direction = "looser" if name in new else "stricter"
            whole = "changed" if "" in (*old, *new) else whole
            changes.append(Change(name or "tables", whole, name in old or None, name in new or None))
            continue
        changes += _views(name, old[name], new[name])
    return tuple(changes)


def _branches(policy: EvidencePolicy) -> dict[str, tuple[EvidencePolicy, ...]]:
    return {branch.id: branch.views for branch in policy.branches} or {"": (policy,)}


def _views(name: str, old: tuple[EvidencePolicy, ...], new: tuple[EvidencePolicy, ...]) -> list[Change]:
    if len(old) != len(new):
        return [Change(f"{name}: members", "changed", len(old), len(new))]
    changes = []
    for first, second in zip(old, new, strict=True):
        one, two = _flat(first), _flat(second)
        for rule in sorted(one.keys() | two.keys()):
            if one.get(rule) != two.get(rule):
                changes.append(_change(f"{name}: {rule}" if name else rule, one.get(rule), two.get(rule)))
    return changes


def _flat(policy: EvidencePolicy) -> dict[str, Any]:
    found: dict[str, Any] = {"unsafe_accept_vtpm_only": policy.unsafe_accept_vtpm_only}
    for field in ("vtpm", "sev_snp", "tdx", "azure", "maa", "gcp", "none"):
        if (rules := getattr(policy, field)) is None:
            continue
        table = field.replace("_", "-")
        found[f"[{table}]"] = True
        _fields(rules, table, found)
        if field != "none":
            _fields(getattr(policy.reference_values, field), f"reference_values.{table}", found)
    for scheme, own in policy.schemes.items():
        found[f"[schemes.{scheme}]"] = True
        _fields(own, f"schemes.{scheme}", found)
    return found


def _fields(table: Any, path: str, found: dict[str, Any]) -> None:
    named = table if isinstance(table, Mapping) else {f: getattr(table, f) for f in table.__struct_fields__}
    for name, value in named.items():
        if isinstance(value, (msgspec.Struct, Mapping)):
            _fields(value, f"{path}.{name}", found)
        else:
            found[f"{path}.{name}"] = value


def _change(rule: str, before: Any, after: Any) -> Change:
    return Change(rule, _direction(rule, before, after), before, after)


def _direction(rule: str, before: Any, after: Any) -> Direction:
    name = rule.rpartition(".")[2].rpartition(": ")[2]
    if name.startswith("["):  # a table more asks for more evidence
        return "stricter" if after else "looser"
    if ".schemes." in f".{rule}":
        return "changed"  # only the scheme knows its rules
    if isinstance(before, bool) or isinstance(after, bool):
        permits = name.startswith(("unsafe_", "allow_", "permit_", "accept_"))
        return "looser" if bool(after) is permits else "stricter"
    if isinstance(before or after, (tuple, list)):
        return _lists(name, before, after)
    numbers = [value for value in (before, after) if isinstance(value, (int, float))]
    if len(numbers) == len([v for v in (before, after) if v is not None]):
        more = (after is not None and before is None) or (after or 0) > (before or 0)
        return "looser" if more is (name in _GRACE) else "stricter"
    if name == "min_tee_tcb_svn":
        return _bytes(before or "0" * 32, after or "0" * 32)
    return "changed"


def _lists(name: str, before: Any, after: Any) -> Direction:
    old, new = set(before or ()), set(after or ())
    if name == "arguments" and before is not None and after is not None:  # one exact command line
        return "changed"
    if name not in _DEMANDING and (not old or not new):  # absent: not compared
        return "stricter" if new else "looser"
    if not (old <= new or new <= old):
        return "changed"
    return "stricter" if (old <= new) is (name in _DEMANDING) else "looser"


def _bytes(before: str, after: str) -> Direction:
    pairs = list(zip(bytes.fromhex(before), bytes.fromhex(after), strict=True))
    if all(new >= old for old, new in pairs):
        return "stricter"
    return "looser" if all(new <= old for old, new in pairs) else "changed"
