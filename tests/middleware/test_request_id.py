"""Names of a request: the client's when well formed, ours otherwise; W3C Trace Context read strictly."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube_mesh.ids import hex_ids
from cube_mesh.middleware.request_id import RequestId
from cube_mesh.trace_context import (
    client_span_id,
    parse_traceparent,
    parse_tracestate,
    sampled_by_ratio,
    traceparent_for_upstream,
)
from tests.middleware.fakes import exchange

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGE = RequestId(1.0, recording=True)
HEX32 = re.compile(r"[0-9a-f]{32}").fullmatch


def names(*fields: tuple[str, str | bytes], stage: RequestId = STAGE) -> tuple[str, str, str, bool, str]:
    passing = exchange("/x", "GET", *fields)
    stage.enter(passing)
    assert len(passing.span_id) == 16 and passing.span_id[-1] == "0"
    return passing.request_id, passing.trace_id, passing.parent_span_id, passing.sampled, passing.tracestate


@pytest.mark.parametrize("given_id", ["a", "x" * 128, "req-1.2:3_4", "A" * 36])
def test_a_well_formed_request_id_is_kept(given_id: str) -> None:
    assert names(("X-Request-Id", given_id))[0] == given_id


@pytest.mark.parametrize("bad", ["", "x" * 129, "a b", "a/b", "a\tb", "é", 'a"b', "a,b", "a;b", "${jndi:ldap://x}"])
def test_any_other_is_replaced(bad: str) -> None:
    made = names(("x-request-id", bad))[0]
    assert made != bad and HEX32(made)


def test_two_request_ids_are_none() -> None:
    assert HEX32(names(("x-request-id", "a"), ("x-request-id", "a"))[0])


@pytest.mark.parametrize(
    "bad",
    [
        "", "00", f"00-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-0", f"00-{TRACE}-{SPAN}-01-x", f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN.upper()}-01", f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE[:-1]}-{SPAN}-01", f"00-{TRACE}-{SPAN}-0g", f"0-{TRACE}-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01", f"01-{TRACE}-{SPAN}-01x", f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
    ],
)  # fmt: skip
def test_a_malformed_traceparent_begins_a_new_trace(bad: str) -> None:
    _, trace, parent, _, state = names(("traceparent", bad), ("tracestate", "a=b"))
    assert HEX32(trace) and trace != TRACE and (parent, state) == ("", "")


@pytest.mark.parametrize(
    ("value", "sampled"),
    [(f"00-{TRACE}-{SPAN}-01", True), (f"00-{TRACE}-{SPAN}-00", False), (f"00-{TRACE}-{SPAN}-02", False),
     (f"00-{TRACE}-{SPAN}-ff", True), (f"cc-{TRACE}-{SPAN}-01", True), (f"cc-{TRACE}-{SPAN}-01-what-follows", True)],
)  # fmt: skip
def test_a_good_one_is_continued(value: str, sampled: bool) -> None:
    assert names(("traceparent", value), ("tracestate", "a=1"))[1:] == (TRACE, SPAN, sampled, "a=1")


def test_two_traceparents_are_none() -> None:
    good = ("traceparent", f"00-{TRACE}-{SPAN}-01")
    assert names(good, good)[1] != TRACE


@pytest.mark.parametrize(
    ("values", "state"),
    [
        (["a=1"], "a=1"), (["a=1,b=2", "c=3"], "a=1,b=2,c=3"), (["a=1, b=2 ,,c=3"], "a=1,b=2,c=3"),
        (["t1@sys=x"], "t1@sys=x"), (["a=1,a=2"], ""), (["A=1"], ""), (["a"], ""), (["a=\x01"], ""), (["a=é"], ""),
        (["a=b=c"], ""), (["a=" + "x" * 257], ""), ([",".join(f"k{n}=1" for n in range(33))], ""),
        ([",".join(f"k{n}={'v' * 60}" for n in range(10))], ""), ([""], ""), (["a=1\r\nx: y"], ""),
    ],
)  # fmt: skip
def test_tracestate(values: list[str], state: str) -> None:
    assert parse_tracestate([v.encode("latin-1") for v in values]) == state


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255))
def test_every_valid_traceparent_is_read(trace: int, span: int, flags: int) -> None:
    assert parse_traceparent(f"00-{trace:032x}-{span:016x}-{flags:02x}".encode()) == (
        f"{trace:032x}", f"{span:016x}", bool(flags & 1),
    )  # fmt: skip


@given(st.binary(max_size=80))
def test_no_bytes_break_the_parsers(raw: bytes) -> None:
    parsed = parse_traceparent(raw)
    assert parsed is None or HEX32(parsed[0])
    state = parse_tracestate([raw])
    assert state.isascii() and all(32 <= ord(c) < 127 for c in state)


@given(st.integers(0, 54), st.sampled_from(list(range(256))))
def test_one_wrong_byte_is_refused_or_read_as_it_stands(at: int, byte: int) -> None:
    good = f"00-{TRACE}-{SPAN}-01".encode()
    changed = good[:at] + bytes([byte]) + good[at + 1 :]
    parsed = parse_traceparent(changed)
    if parsed is not None:
        assert changed[3:35].decode() == parsed[0] and changed[36:52].decode() == parsed[1]


def test_the_upstream_sees_our_client_span() -> None:
    passing = exchange("/x", "GET", ("traceparent", f"00-{TRACE}-{SPAN}-01"))
    STAGE.enter(passing)
    value = traceparent_for_upstream(passing)
    assert parse_traceparent(value.encode()) == (TRACE, client_span_id(passing.span_id), True)
    assert client_span_id(passing.span_id) != passing.span_id


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (1.0, 4000, 4000), (0.25, 850, 1150)])
def test_the_share_of_new_traces(ratio: float, low: int, high: int) -> None:
    stage = RequestId(ratio, recording=True)
    assert low <= sum(names(stage=stage)[3] for _ in range(4000)) <= high


def test_without_an_exporter_only_the_clients_decision_is_handed_on() -> None:
    stage = RequestId(1.0, recording=False)
    assert names(stage=stage)[3] is False
    assert names(("traceparent", f"00-{TRACE}-{SPAN}-01"), stage=stage)[3] is True


def test_the_decision_depends_on_the_trace_alone() -> None:
    assert sampled_by_ratio("f" * 32, 0.999) is False and sampled_by_ratio("0" * 31 + "1", 0.001) is True


def test_ids_are_unique_and_drawn_in_blocks() -> None:
    calls: list[int] = []

    def random(size: int) -> bytes:
        calls.append(size)
        return len(calls).to_bytes(4, "big") + bytes(range(256)) * 15 + bytes(range(252))

    take = hex_ids(32, random)
    first = [take() for _ in range(256)]
    assert len(calls) == 1 and all(HEX32(i) for i in first)
    take()
    assert len(calls) == 2
    assert len({hex_ids(32)() for _ in range(1000)}) == 1000
