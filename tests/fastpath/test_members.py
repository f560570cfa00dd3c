"""Members noted in C are those that the general reader finds, and what C leaves is left untouched."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube_mesh._fastpath import note_members
from cube_mesh.bodies import decode_members
from cube_mesh.errors import FramingError, PeerError
from cube_mesh.exchange import Exchange
from tests.middleware.fakes import exchange

NAMES = ("model", "stream", "max_tokens", "max_completion_tokens", "temperature", "Model", "messages", "é", "x" * 70)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=300), st.lists(st.integers(), max_size=2), st.just("llama"), st.integers(0, 4096),
)  # fmt: skip


def noted(passing: Exchange) -> tuple[Any, ...]:
    return passing.model, passing.stream, passing.max_tokens, passing.temperature


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6), st.booleans())
def test_it_agrees_with_the_general_reader(members: dict[str, Any], ascii_only: bool) -> None:
    data = json.dumps(members, ensure_ascii=ascii_only).encode("utf-8", "replace")
    fast, slow = exchange(), exchange()
    if not note_members(fast, data, 0, len(data)):
        assert noted(fast) == (None, False, None, None)
        return
    decode_members(slow, data, 0, len(data))
    assert noted(fast) == noted(slow)
    assert [type(value) for value in noted(fast)] == [type(value) for value in noted(slow)]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}', b'{"model":"a","Model":"b"}', b'{"model":1}', b'{"stream":1}',
        b'{"stream":"true"}', b'{"max_tokens":1.5}', b'{"max_tokens":true}', b'{"temperature":"1"}',
        b'{"mod\\u0065l":"a","model":"b"}',
        b'{"model":"a"', b"[]", b'{"model":"a"}x', b'{"model":"' + b"m" * 257 + b'"}',
    ],
)  # fmt: skip
def test_what_is_refused_is_never_noted(body: bytes) -> None:
    passing = exchange()
    with suppress(FramingError):
        assert note_members(passing, body, 0, len(body)) is False
    assert noted(passing) == (None, False, None, None)
    with pytest.raises((FramingError, PeerError)):
        decode_members(passing, body, 0, len(body))
