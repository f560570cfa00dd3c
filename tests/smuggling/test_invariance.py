"""The outcome of a case does not depend on how its bytes are cut, nor on what comes behind them."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.smuggling import edge
from tests.smuggling.cases import CASES, Case

# A request that only a connection in step answers with 204: what follows a whole case must be read as this.
NEXT = b"PUT /next HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"
SHORT = [case for case in CASES if len(case.data) <= 600]


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
async def test_byte_by_byte(case: Case) -> None:
    pieces = [case.data[at : at + 1] for at in range(len(case.data))]
    assert await edge.run(case, *pieces) == edge.required(case)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(CASES), st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=6))
def test_random_cuts(case: Case, cuts: list[float]) -> None:
    size = len(case.data)
    places = [0, *sorted(int(cut * size) for cut in cuts), size]
    pieces = [case.data[start:end] for start, end in itertools.pairwise(places) if end > start]
    assert asyncio.run(edge.run(case, *pieces)) == edge.required(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.closes], ids=lambda case: case.name)
@pytest.mark.parametrize("more", [NEXT, b"\0", b"x" * 5000], ids=["request", "nul", "long"])
async def test_nothing_behind_the_end_is_read(case: Case, more: bytes) -> None:
    assert await edge.run(case, case.data + more) == edge.required(case)
    assert await edge.run(case, case.data, more) == edge.required(case)


@pytest.mark.parametrize("case", [c for c in CASES if not c.closes and not c.waits], ids=lambda case: case.name)
async def test_the_next_request_is_read_in_step(case: Case) -> None:
    after = b"GET /after HTTP/1.1\r\nHost: h\r\n\r\n"
    whole = await edge.run(case, case.data + NEXT + after)
    apart = await edge.run(case, case.data, NEXT, after)
    required = edge.required(case)
    if case.chain == "proxy":  # no tenant in its path: refused, in its turn, with its body skipped
        required.statuses += (400, 400)
    else:
        required.statuses += (204, 204)
        required.messages += (("PUT", "/next", b"{}"), ("GET", "/after", b""))
    assert whole == apart == required
