"""Policies as text: what is written is what is read."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from attest.tomltext import toml_text

PLAIN = st.text(st.characters(codec="utf-8"), max_size=9) | st.just("\x7f\U0001f600") | st.integers(0, 1 << 60)
VALUES = PLAIN | st.booleans() | st.lists(PLAIN, min_size=1, max_size=3)
KEYS = st.from_regex(r"[a-z][a-z0-9_-]{0,5}", fullmatch=True)
TABLES = st.recursive(
    st.dictionaries(KEYS, VALUES, min_size=1, max_size=3),
    lambda inner: st.dictionaries(KEYS, VALUES | inner, min_size=1, max_size=3),
    max_leaves=5,
)


@given(TABLES)
def test_what_is_written_is_what_is_read(document: dict[str, object]) -> None:
    assert tomllib.loads(toml_text(document, ("a comment",))) == document


def test_nothing_empty_is_written() -> None:
    document = {"id": "p", "a": None, "b": [], "t": {"x": None}, "deep": {"er": {"n": 1, "list": ("a", "b")}}}
    text = toml_text(document, ("Compare before use.",))
    assert text == '# Compare before use.\nid = "p"\n\n[deep.er]\nn = 1\nlist = ["a", "b"]\n'
