"""Each kind of rule, changed in each direction: looser, stricter, or only different."""

from __future__ import annotations

import pytest

from attest.policy import parse_policy
from attest.policy_diff import Change, diff_policies

TDX = '[tdx]\nunsafe_any_mr_td = true\nrtmrs = [0]\n{}\n[reference_values.tdx.rtmr_values]\n0 = ["' + "00" * 48 + '"]\n'
SCHEME = "[schemes.x]\nkey = {}\n"
VTPM = "[vtpm]\npcrs = [0]\nunsafe_any_pcr_values = true\nunsafe_any_ak = true\n{}\n"
GCP = "[gcp]\naudiences = ['a']\nunsafe_any_image = true\n{}\n"
ISSUERS = "[maa]\nunsafe_any_measurement = true\nissuers = [{}]\n"


def _zones(*names: str) -> str:
    return GCP.format("") + (f"[reference_values.gcp]\nzones = {list(names)}\n" if names else "")


# before, after, rule, direction; the opposite way is checked too.
CHANGES: dict[str, tuple[str, str, str, str]] = {
    "a number rises": (
        GCP.format("min_swversion = 1"), GCP.format("min_swversion = 2"), "gcp.min_swversion", "stricter",
    ),
    "grace rises": (TDX.format("grace_period_s = 1"), TDX.format("grace_period_s = 2"), "tdx.grace_period_s", "looser"),
    "a flag that permits": (
        VTPM.format(""), VTPM.format("unsafe_allow_sha1 = true"), "vtpm.unsafe_allow_sha1", "looser",
    ),
    "a flag that demands": (
        VTPM.format(""), VTPM.format("require_event_log = true"), "vtpm.require_event_log", "stricter",
    ),
    "a list grows": (
        ISSUERS.format("'https://a'"), ISSUERS.format("'https://a', 'https://b'"), "maa.issuers", "looser",
    ),
    "a list comes": (_zones(), _zones("a"), "reference_values.gcp.zones", "stricter"),
    "a list of demands grows": (
        VTPM.format(""), VTPM.replace("[0]", "[0, 1]").format(""), "vtpm.pcrs", "stricter",
    ),
    "an RTMR more that a log explains": (
        TDX.format("event_log_rtmrs = [0]"), TDX.format("event_log_rtmrs = [0, 1]"), "tdx.event_log_rtmrs", "stricter",
    ),
    "a trust domain's log": (
        TDX.format(""), TDX.format("require_secure_boot = true"), "tdx.require_secure_boot", "stricter",
    ),
    "a list is another": (_zones("a"), _zones("b"), "reference_values.gcp.zones", "changed"),
    "a command line comes": (GCP.format(""), GCP.format("arguments = ['a']"), "gcp.arguments", "stricter"),
    "a command line is another": (
        GCP.format("arguments = ['a']"), GCP.format("arguments = ['a', 'b']"), "gcp.arguments", "changed",
    ),
    "a level rises": (
        TDX.format(""), TDX.format(f"min_tee_tcb_svn = '{'01' * 16}'"), "tdx.min_tee_tcb_svn", "stricter",
    ),
    "a level rises and falls": (
        TDX.format(f"min_tee_tcb_svn = '{'0102' * 8}'"), TDX.format(f"min_tee_tcb_svn = '{'0201' * 8}'"),
        "tdx.min_tee_tcb_svn", "changed",
    ),
    "a text is another": (VTPM.format(""), VTPM.format("pcr_bank = 'sha384'"), "vtpm.pcr_bank", "changed"),
    "a scheme's rule": (SCHEME.format(1), SCHEME.format(2), "schemes.x.key", "changed"),
    "a scheme's flag": (SCHEME.format("true"), SCHEME.format("false"), "schemes.x.key", "changed"),
}  # fmt: skip
OPPOSITE = {"looser": "stricter", "stricter": "looser", "changed": "changed"}


@pytest.mark.parametrize("case", CHANGES)
def test_one_change(case: str) -> None:
    before, after, rule, direction = CHANGES[case]
    one, two = (parse_policy('id = "p"\nunsafe_accept_vtpm_only = true\n' + text) for text in (before, after))
    assert [(change.rule, change.direction) for change in diff_policies(one, two)] == [(rule, direction)]
    assert [(change.rule, change.direction) for change in diff_policies(two, one)] == [(rule, OPPOSITE[direction])]
    assert diff_policies(one, one) == ()


def test_lifetime_and_id() -> None:
    one, two = (parse_policy(f'id = "{n}"\nmax_lifetime_s = {n}\n' + SCHEME.format(1)) for n in (60, 61))
    assert diff_policies(one, two) == (Change("max_lifetime_s", "looser", 60.0, 61.0),)


def test_a_table_more_asks_for_more() -> None:
    one, two = (parse_policy('id = "p"\n' + text) for text in (SCHEME.format(1), SCHEME.format(1) + GCP.format("")))
    changes = {change.rule: change.direction for change in diff_policies(one, two)}
    assert changes["[gcp]"] == "stricter"
    assert {change.rule: change.direction for change in diff_policies(two, one)}["[gcp]"] == "looser"


def test_none_has_no_reference_values() -> None:
    one, two = (
        parse_policy(f'id = "p"\n{text}') for text in ("[none]\naccept_unattested_clients = true\n", GCP.format(""))
    )
    assert {"[none]", "none.accept_unattested_clients", "[gcp]"} <= {change.rule for change in diff_policies(one, two)}


def _member(name: str, text: str, at: str = "any_of") -> str:
    return f'[[{at}]]\nid = "{name}"\n' + text.replace("[vtpm]", f"[{at}.vtpm]")


def test_branches() -> None:
    head, plain = 'id = "p"\n', VTPM.format("")
    one = parse_policy(head + _member("a", plain) + _member("b", plain))
    two = parse_policy(head + _member("a", VTPM.format("unsafe_allow_sha1 = true")) + _member("c", plain))
    assert [(change.rule, change.direction) for change in diff_policies(one, two)] == [
        ("a: vtpm.unsafe_allow_sha1", "looser"), ("b", "stricter"), ("c", "looser"),
    ]  # fmt: skip
    alone = parse_policy(head + "unsafe_accept_vtpm_only = true\n" + plain)
    assert [(change.rule, change.direction) for change in diff_policies(alone, one)] == [
        ("tables", "changed"), ("a", "changed"), ("b", "changed"),
    ]  # fmt: skip


def test_a_branch_with_another_number_of_members() -> None:
    """The same id, "a+b": of two tables of one kind, or of two kinds."""
    plain = VTPM.format("")
    both = "".join(_member(name, plain, "all_of") for name in "ab")
    other = _member("a", plain, "all_of") + '[[all_of]]\nid = "b"\n[all_of.schemes.x]\nkey = 1\n'
    one, two = (parse_policy('id = "p"\n' + text) for text in (both, other))
    assert diff_policies(one, two) == (Change("a+b: members", "changed", 2, 1),)
