"""Timestamps and cleaning."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube_mesh.errors import PeerError
from cube_mesh.text import Stamp, clean, describe

STAMP = Stamp()


@given(st.floats(0, 4_000_000_000))
def test_stamps_are_rfc_3339_in_utc_cut_to_milliseconds(at: float) -> None:
    text = STAMP(at)
    assert len(text) == 24 and text.endswith("Z")
    assert 0 <= at - datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() < 0.001001


def test_the_second_changes_in_both_directions() -> None:
    assert [STAMP(t) for t in (1.9995, 2.0, 1.0)] == [
        "1970-01-01T00:00:01.999Z", "1970-01-01T00:00:02.000Z", "1970-01-01T00:00:01.000Z",
    ]  # fmt: skip


@given(st.text(max_size=400), st.integers(0, 300))
def test_clean_text_is_printable_and_bounded(text: str, limit: int) -> None:
    made = clean(text, limit)
    assert made.isprintable() and len(made) <= 10 * limit
    made.encode("utf-8")
    if text.isprintable():
        assert made == text[:limit]


@pytest.mark.parametrize(("text", "shown"), [("a\nb", "a\\u000ab"), ("\u202e", "\\u202e"), ("é\u4e2d", "é\u4e2d")])
def test_what_is_shown_instead(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_an_exceptions_own_text_is_shown_only_if_it_is_ours() -> None:
    def made(error: Exception) -> str:
        try:
            raise error
        except Exception as caught:
            return describe(caught)

    assert "secret" not in made(ValueError("secret")) and "ValueError" in made(ValueError("secret"))
    assert "ours" in made(PeerError("c", "m", detail="ours"))
