"""What every comparison shares: no values accept nothing, an absent list is not compared."""

from __future__ import annotations

import msgspec
import pytest

from attest.errors import Mismatch
from attest.rules import Table, require, require_if_listed, require_one_of


def test_a_rule_that_holds_says_nothing() -> None:
    assert require(True, "c", "x", "1", "2") == require_one_of(("1", "2"), "c", "x", "2") == ()
    assert require_if_listed((), "c", "x", "2") == require_if_listed(("2",), "c", "x", "2") == ()


def test_a_rule_that_does_not_hold_says_what_was_wanted() -> None:
    assert require(False, "c", "x", "1", "2", "do") == (Mismatch("c", "x", "1", "2", "attester", "do"),)
    assert require_one_of(("1", "3"), "c", "x", "2") == (Mismatch("c", "x", "1 or 3", "2"),)
    assert require_one_of((), "c", "x", "2") == (Mismatch("c", "x", "none", "2"),)
    assert require_if_listed(("1",), "c", "x", "2") == (Mismatch("c", "x", "1", "2"),)


def test_an_unknown_key_is_an_error() -> None:
    class Rules(Table, frozen=True):
        known: int = 0

    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"unknown": 1}, Rules)
