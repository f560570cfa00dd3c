"""The slab: laid out once, bounded, kept when its writer dies, read while it is written, and no worse for a bad one."""

from __future__ import annotations

import math
import mmap
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cube_mesh._fastpath import SLAB_KEY_BYTES, SLAB_ROW_BYTES, SLAB_SPARE_ROWS, Slab, SlabCell, SlabRow
from cube_mesh.errors import InternalError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import Endpoint
from cube_mesh.telemetry import families as kinds
from cube_mesh.telemetry import slab as slabs
from cube_mesh.telemetry.families import process_families
from cube_mesh.telemetry.metrics import Metrics, NodeCollector, registry
from cube_mesh.telemetry.slab import COUNTS, GAUGE, REGION_BYTES, SECONDS, TIMES, row_key
from tests.middleware.fakes import A, B, end, exchange

ROOT = Path(__file__).parents[2]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def memory(rows: int = SLAB_SPARE_ROWS + 4) -> mmap.mmap:
    """Three rows that anyone may take, the spare ones, and the header."""
    return mmap.mmap(-1, rows * SLAB_ROW_BYTES)


def row_of(slab: Slab, key: bytes, spare: bool = False) -> SlabRow:
    row = slab.row(key, spare)
    assert row is not None
    return row


def samples(collector: NodeCollector) -> Samples:
    """The page, as Prometheus's parser reads it."""
    text = generate_latest(registry(collector)).decode()
    found: Samples = {}
    names = set()
    for family in text_string_to_metric_families(text):
        assert family.name not in names, f"{family.name} twice"
        names.add(family.name)
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def cube(found: Samples) -> Samples:
    return {key: value for key, value in found.items() if key[0].startswith("cube_")}


def passed(domain: str = A, endpoint: str | None = "/v1/x", status: int = 200, took: float = 0.25,
           size: int = 10, tokens: int | None = 3) -> Exchange:  # fmt: skip
    passing = end(exchange(), status, "completed")
    passing.domain_id = domain
    passing.endpoint = Endpoint(endpoint, "POST", endpoint, "p", "chat", "json") if endpoint is not None else None
    passing.started_at, passing.forwarded_at, passing.first_byte_at, passing.ended_at = 1.0, 1.5, 1.75, 1.0 + took
    passing.request_size, passing.response_size, passing.input_tokens, passing.output_tokens = size, 2, tokens, None
    return passing


# -- rows


def test_rows_are_found_again_in_the_same_memory() -> None:
    where = memory()
    row_of(first := Slab(where, SECONDS), b"a").add(0, 5)
    row_of(first, b"b").add(19, 1)
    again = Slab(where, SECONDS)
    assert [row.key for row in again.rows()] == [b"a", b"b"]
    row_of(again, b"a").add(0, 2)
    assert COUNTS.unpack(first.rows()[0].numbers())[0] == 7
    assert COUNTS.unpack(again.rows()[1].numbers()) == (0,) * 19 + (1,)


def test_the_table_is_bounded_and_says_how_often_it_was_full() -> None:
    slab = Slab(memory(), SECONDS)
    made = [slab.row(b"%d" % n) for n in range(10)]
    assert [row is not None for row in made] == [True] * 3 + [False] * 7 and slab.overflowed == 7
    assert slab.row(b"1") is not None and slab.overflowed == 7, "those that have a row keep it"
    spare = [slab.row(b"s%d" % n, True) for n in range(SLAB_SPARE_ROWS + 1)]
    assert [row is None for row in spare] == [False] * SLAB_SPARE_ROWS + [True]
    assert len(slab.rows()) == SLAB_SPARE_ROWS + 3
    assert slab.row(b"later") is None


@pytest.mark.parametrize(("size", "fits"), [(0, False), (1, True), (SLAB_KEY_BYTES, True), (SLAB_KEY_BYTES + 1, False)])
def test_the_length_of_a_key(size: int, fits: bool) -> None:
    slab = Slab(memory(), SECONDS)
    row = slab.row(b"k" * size)
    assert (row is not None) == fits and slab.overflowed == (not fits)
    if row is not None:
        row.add(0, 1)
        assert slab.rows()[0].key == b"k" * size and COUNTS.unpack(slab.rows()[0].numbers())[0] == 1


def test_a_row_half_made_when_its_writer_died_is_none() -> None:
    where = memory()
    row_of(Slab(where, SECONDS), b"a")
    at = 2 * SLAB_ROW_BYTES  # the second row: a key and numbers, and its length not yet there
    where[at + 8 : at + SLAB_ROW_BYTES] = b"\xff" * (SLAB_ROW_BYTES - 8)
    slab = Slab(where, SECONDS)
    assert [row.key for row in slab.rows()] == [b"a"]
    assert not any(row_of(slab, b"b").numbers())


@pytest.mark.parametrize("at", [0, 8, 24, 32])
def test_memory_that_was_laid_out_otherwise_is_refused(at: int) -> None:
    where = memory()
    Slab(where, SECONDS)
    where[at] ^= 1
    with pytest.raises(ValueError, match="laid out"):
        Slab(where, SECONDS)


@pytest.mark.parametrize("bounds", [(), tuple(range(19)), (*SECONDS[:-1], 301.0), SECONDS[:-1]])
def test_bounds_are_part_of_the_layout(bounds: tuple[float, ...]) -> None:
    where = memory()
    Slab(where, SECONDS)
    with pytest.raises(ValueError):
        Slab(where, bounds)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        (lambda: bytes(SLAB_ROW_BYTES * 100), BufferError),
        (lambda: bytearray(SLAB_ROW_BYTES * 100 + 8), ValueError),
        (lambda: bytearray(SLAB_ROW_BYTES * (SLAB_SPARE_ROWS + 1)), ValueError),
        (lambda: memoryview(bytearray(SLAB_ROW_BYTES * 100 + 1))[1:], ValueError),
    ],
)
def test_memory_that_is_no_region(where: Callable[[], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Slab(where(), SECONDS)


def test_numbers_that_make_no_sense() -> None:
    slab = Slab(memory(), SECONDS)
    row = row_of(slab, b"a")
    for number in (-1, 20):
        for change in (lambda n: row.add(n, 1), lambda n: row.put(n, 1), lambda n: row.put_real(n, 1.0)):
            with pytest.raises(IndexError):
                change(number)
    row.add(0, -5)
    with pytest.raises(TypeError):
        SlabRow()
    times = row_of(slab, b"t")
    for seconds in (math.nan, -1.0, math.inf):
        times.time(seconds)
    *counts, total = TIMES.unpack(times.numbers())
    assert COUNTS.unpack(row.numbers())[0] == 0
    assert (counts[0], counts[len(SECONDS)], total) == (2, 1, math.inf)


def test_the_memory_outlives_the_slab_that_a_row_was_made_by() -> None:
    row = row_of(Slab(bytearray(SLAB_ROW_BYTES * 100), SECONDS), b"a")
    row.add(0, 1)
    assert COUNTS.unpack(row.numbers())[0] == 1


# -- against a model

ENDINGS = st.tuples(
    st.sampled_from([A, B, "stranger"]), st.sampled_from(["/v1/x", "/v1/y", None]),
    st.sampled_from([200, 201, 404, 502]), st.floats(0, 400), st.integers(0, 2**40), st.none() | st.integers(0, 10**6),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.just("restart") | st.tuples(st.integers(0, 1), ENDINGS), max_size=40))
def test_pages_are_what_a_plain_count_says(steps: list[Any]) -> None:
    """Two workers, restarted at any moment, rendered by a third process's collector."""
    where = [mmap.mmap(-1, REGION_BYTES) for _ in range(2)]
    workers = [Metrics([A, B], Slab(part, SECONDS)) for part in where]
    requests: Counter[tuple[str, str, str]] = Counter()
    model: Counter[tuple[str, str]] = Counter()
    buckets: Counter[float] = Counter()
    total = 0.0
    for step in steps:
        if step == "restart":
            workers = [Metrics([A, B], Slab(part, SECONDS)) for part in where]
            continue
        worker, (domain, endpoint, status, took, size, tokens) = step
        passing = passed(domain, endpoint, status, took, size, tokens)
        workers[worker].observe(passing)
        domain = domain if domain in (A, B) else "other"
        requests[domain, endpoint or "other", str(status)] += 1
        model["in", domain] += size
        model["tokens", domain] += tokens or 0
        for bound in SECONDS:
            buckets[bound] += passing.ended_at - passing.started_at <= bound
        total += passing.ended_at - passing.started_at
    readers = [Slab(part, SECONDS) for part in where]
    found = samples(NodeCollector(Metrics(), {"version": "1"}, others=readers))
    counted = {
        (d["domain"], d["endpoint"], d["status"]): value
        for (name, labels), value in found.items() if name == "cube_requests_total" for d in [dict(labels)]
    }  # fmt: skip
    assert counted == requests
    for domain in {domain for domain, *_ in requests}:
        assert found["cube_request_body_bytes_total", (("domain", domain),)] == float(model["in", domain])
        assert found["cube_tokens_total", (("domain", domain), ("type", "input"))] == model["tokens", domain]
    seen: Counter[str] = Counter()
    for (name, labels), value in found.items():
        if name.startswith("cube_request_duration_seconds"):
            seen[dict(labels).get("le", name)] += value  # type: ignore[assignment]
    assert {bound: seen[str(bound)] for bound in SECONDS} == {bound: buckets[bound] for bound in SECONDS}
    assert seen["+Inf"] == seen["cube_request_duration_seconds_count"] == sum(requests.values())
    assert seen["cube_request_duration_seconds_sum"] == pytest.approx(total)


def test_a_full_table_counts_the_rest_as_other() -> None:
    small = Slab(memory(SLAB_SPARE_ROWS + 7), SECONDS)  # six rows: two exchanges' and no more
    numbers = Metrics([A, B], small)
    for endpoint in ("/v1/x", "/v1/y", "/v1/z", "/v1/w", "/v1/z"):
        numbers.observe(passed(endpoint=endpoint))
    found = cube(samples(NodeCollector(numbers, {"version": "1"})))
    by_endpoint = {dict(k[1])["endpoint"]: v for k, v in found.items() if k[0] == "cube_requests_total"}
    assert by_endpoint == {"/v1/x": 1, "/v1/y": 1, "other": 3}
    assert found["cube_request_body_bytes_total", (("domain", "other"),)] == 30
    assert found["cube_metrics_overflows_total", ()] >= 3
    assert len(numbers.cells) == 2, "what found no room is not remembered"
    again = Metrics([A, B], small)
    again.observe(passed(endpoint="/v1/w"))
    assert {v for k, v in cube(samples(NodeCollector(again, {}))).items() if ("endpoint", "other") in k[1]} >= {4}


def test_a_restart_goes_on_where_the_last_one_stopped() -> None:
    where = memory(200)
    totals = {"written": 5}
    for life in (1, 2):
        numbers = Metrics([A], Slab(where, SECONDS))
        collector = NodeCollector(numbers, {})
        collector.counter("cube_audit_events", "Events.", "result", lambda: totals)
        numbers.protocol_error("bare_lf")
        numbers.observe(passed())
        for _ in range(2):  # publishing is no counting
            found = samples(collector)
            assert found["cube_audit_events_total", (("result", "written"),)] == 5 * life
            assert found["cube_protocol_errors_total", (("code", "bare_lf"),)] == life
            assert (
                found["cube_upstream_first_byte_seconds_sum", (("endpoint", "/v1/x"), ("method", "POST"))]
                == 0.25 * life
            )


def test_gauges_add_up_or_take_the_least_and_end_with_their_process() -> None:
    fd = slabs.create(3)
    mine, one, two = slabs.regions(fd)
    os.close(fd)
    page = NodeCollector(Metrics(slab=mine), {}, others=(one, two))
    for region, value in ((one, 7.5), (two, 3)):
        worker = NodeCollector(Metrics(slab=region), {})
        worker.gauge("cube_connections", "Open.", lambda value=value: value)  # type: ignore[misc]
        worker.gauge("cube_expiry", "Until.", lambda value=value: value, "min")  # type: ignore[misc]
        worker.counter("cube_turned_away", "Away.", "limit", lambda: {"address": 1})
        worker.publish()
    found = samples(page)
    assert (found["cube_connections", ()], found["cube_expiry", ()]) == (10.5, 3)
    slabs.retire(two)
    found = samples(page)
    assert (found["cube_connections", ()], found["cube_expiry", ()]) == (7.5, 7.5)
    assert found["cube_turned_away_total", (("limit", "address"),)] == 2
    slabs.retire(one)
    assert not any(name in ("cube_connections", "cube_expiry") for name, _ in samples(page))


async def test_a_worker_publishes_by_itself_and_of_itself() -> None:
    import asyncio

    numbers = Metrics()
    worker, now = NodeCollector(numbers, {}), {"value": 1.0}
    worker.gauge("cube_connections", "Open.", lambda: now["value"])
    worker.start(asyncio.get_running_loop())
    page = NodeCollector(Metrics(), {}, others=[numbers.slab])
    assert samples(page)["cube_connections", ()] == 1
    now["value"] = 2.0
    worker.stop()
    assert samples(page)["cube_connections", ()] == 2
    (memory_of,) = [
        f for f in process_families([("worker-0", numbers.slab)]) if f.name == "process_resident_memory_bytes"
    ]
    assert memory_of.samples[0].labels == {"process": "worker-0"} and memory_of.samples[0].value > 1e6
    (cpu,) = [f for f in process_families([("worker-0", numbers.slab)]) if f.name == "process_cpu_seconds"]
    assert (cpu.type, cpu.samples[0].name) == ("counter", "process_cpu_seconds_total")


# -- a region that was written by nobody honest


WORDS = st.text(max_size=20) | st.sampled_from([*kinds.KINDS, "cube_requests", "cube_x", "cube_x_total"])


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=SLAB_KEY_BYTES) | st.lists(WORDS, min_size=1, max_size=7).map(lambda key: row_key(*key)),
    st.binary(min_size=160, max_size=160),
)
def test_the_page_stays_a_page_whatever_is_in_a_row(key: bytes, numbers: bytes) -> None:
    slab = Slab(memory(), SECONDS)
    row = slab.row(key)
    if row is not None:
        for at, value in enumerate(COUNTS.unpack(numbers)):
            row.put(at, value)
    samples(NodeCollector(Metrics(), {}, others=[slab]))
    list(process_families([("worker-0", slab)]))


@pytest.mark.parametrize(
    "key",
    [
        ("counter", "cube_requests", "t", "domain", "x"), ("counter", "cube_requests_total", "t", "domain", "x"),
        ("gauge", "cube_Build", "t", "sum"), ("gauge", "cube_build_info", "t", "sum"), ("gauge", "up", "t", "sum"),
        ("gauge", "cube_request_duration_seconds_count", "t", "sum"), ("counter", "cube_x", "t", "__name__", "x"),
        ("counter", "cube_x", "t", "a b", "x"), ("process", "cube_x", "cube_x", "t"), ("requests", "a"), ("what",),
    ],
)  # fmt: skip
def test_no_row_takes_the_name_of_another_family(key: tuple[str, ...]) -> None:
    empty, slab = Slab(memory(), SECONDS), Slab(memory(), SECONDS)
    row = row_of(slab, row_key(*key))
    row.put_real(0, 7.0)
    row.put(1, 1)
    assert cube(samples(NodeCollector(Metrics(), {}, others=[slab]))) == cube(
        samples(NodeCollector(Metrics(), {}, others=[empty]))
    )
    assert not list(process_families([("worker-0", slab)]))


@pytest.mark.parametrize("size", [SLAB_KEY_BYTES + 1, 2**63, 2**64 - 1])
def test_a_length_that_is_none_is_not_followed(size: int) -> None:
    where = memory()
    row_of(Slab(where, SECONDS), b"a")
    where[SLAB_ROW_BYTES : SLAB_ROW_BYTES + 8] = size.to_bytes(8, sys.byteorder)
    assert Slab(where, SECONDS).rows() == []


# -- processes

WRITER = """
    import sys
    from cube_mesh.telemetry.metrics import Metrics
    from cube_mesh.telemetry.slab import attach
    from tests.middleware.fakes import A
    from tests.telemetry.test_slab import passed
    numbers = Metrics([A], attach(int(sys.argv[1]), int(sys.argv[2])))
    passing, upto = passed(size=7), int(sys.argv[3])
    print("up", flush=True)
    while upto:
        numbers.observe(passing)
        upto -= 1
"""


def writer(fd: int, region: int, upto: int) -> subprocess.Popen[bytes]:
    """A process that counts ``upto`` exchanges of 7 bytes, for ever when that is negative."""
    argv = [sys.executable, "-c", textwrap.dedent(WRITER), str(fd), str(region), str(upto)]
    child = subprocess.Popen(argv, cwd=ROOT, pass_fds=[fd], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    if child.stdout.readline() != b"up\n":
        child.kill()
        raise AssertionError(child.communicate()[1].decode())
    return child


def ended(child: subprocess.Popen[bytes]) -> int:
    child.communicate(timeout=30)
    return child.returncode


@pytest.fixture
def shared() -> Iterator[int]:
    fd = slabs.create(3)
    yield fd
    os.close(fd)


def counted(found: Samples) -> float:
    return sum(value for (name, _), value in found.items() if name == "cube_requests_total")


def body_bytes(found: Samples) -> float:
    return sum(value for (name, _), value in found.items() if name == "cube_request_body_bytes_total")


def test_two_processes_count_while_a_third_reads(shared: int) -> None:
    mine, *others = slabs.regions(shared)
    page = NodeCollector(Metrics(slab=mine), {}, others=others)
    children = [writer(shared, region, 300_000) for region in (1, 2)]
    seen = []
    while any(child.poll() is None for child in children):
        found = samples(page)
        assert counted(found) - 2 <= body_bytes(found) / 7, "an exchange of each process may be half counted"
        seen += [counted(found), body_bytes(found) / 7]  # a row's bytes are read after its count
    assert [ended(child) for child in children] == [0, 0]
    found = samples(page)
    assert seen[::2] == sorted(seen[::2]) and len(set(seen)) > 2, "read while written, and never backwards"
    assert all(size <= later + 2 for size, later in zip(seen[1::2], seen[2::2], strict=False))
    assert counted(found) == 600_000 and body_bytes(found) == 7 * 600_000
    assert (
        found["cube_request_duration_seconds_count", (("endpoint", "/v1/x"), ("method", "POST"), ("status", "2xx"))]
        == 6e5
    )


def test_a_region_has_one_owner(shared: int) -> None:
    child = writer(shared, 1, -1)
    try:
        with pytest.raises(InternalError, match="region 1"):
            slabs.attach(shared, 1)
        slabs.attach(shared, 2)
    finally:
        child.kill()
        ended(child)
    slabs.attach(shared, 1)


def test_what_a_killed_writer_counted_is_kept(shared: int) -> None:
    """kill -9 at moments that nobody chose: every number stays, at most the last exchange is half counted."""
    mine, worker, _ = slabs.regions(shared)
    page = NodeCollector(Metrics(slab=mine), {}, others=[worker])
    before = 0.0
    for life in range(1, 5):
        child = writer(shared, 1, -1)
        while counted(samples(page)) < before + 1000 * life:
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        found = samples(page)
        assert counted(found) > before
        before = counted(found)
        assert 0 <= before - body_bytes(found) / 7 <= life
        (count,) = [value for (name, _), value in found.items() if name == "cube_request_duration_seconds_count"]
        assert 0 <= before - count <= life
        assert found["cube_metrics_overflows_total", ()] == 0


def test_no_process_can_take_the_memory_away(shared: int) -> None:
    for size in (0, REGION_BYTES, 10 * REGION_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(shared, size)
    assert not os.get_inheritable(shared)


def test_a_descriptor_that_is_no_slab_is_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"?" * REGION_BYTES)
    for region in (0, 1):  # of another layout; beyond the end
        with pytest.raises(InternalError):
            slabs.attach(fd, region)
    os.close(fd)


def test_the_gauge_layout() -> None:
    row = row_of(Slab(memory(), SECONDS), b"a")
    row.put_real(0, -1.5)
    row.put(1, 1)
    assert GAUGE.unpack(row.numbers()) == (-1.5, 1)
    SlabCell(row, row, row)
