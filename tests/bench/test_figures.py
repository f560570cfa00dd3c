"""The harness's arithmetic on known figures: medians, what a gateway adds, when a run does not count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import plot, processes, report
from bench.load import measure
from bench.load.__main__ import variants
from bench.load.summary import Figures, summary, svg, table, with_added
from bench.load.systems import BenchError, Variant, check_trail

AGAINST = {"nginx": "nginx", "nginx again": "nginx", "cube-mesh": "nginx", "direct": "nginx"}


def figures(**changes: dict[str, list[float]]) -> Figures:
    """Seven rounds in which nothing is wrong."""
    known: Figures = {
        "nginx": {"rps": [60_000.0, 70_000.0, 50_000.0] * 3, "cpu_us": [10.0, 12.0, 11.0] * 3, "busy": [1.0] * 9},
        "nginx again": {"rps": [60_000.0] * 9, "cpu_us": [11.5] * 9, "busy": [1.0] * 9},
        "cube-mesh": {"rps": [30_000.0, 20_000.0, 40_000.0] * 3, "cpu_us": [22.0, 33.0, 11.0] * 3, "busy": [0.95] * 9},
    }
    return {name: {**of, **changes.get(name.replace("-", "_").replace(" ", "_"), {})} for name, of in known.items()}


def summed(known: Figures, **changes: Any) -> dict[str, Any]:
    return summary(known, AGAINST, **{"must_be_fast": True, **changes})


def test_summary_is_medians_and_their_ratio() -> None:
    result = summed(figures())
    assert (result["valid"], result["faults"], result["rounds"]) == (True, [], 9)
    assert result["rows"]["cube-mesh"]["cpu_us"] == {"median": 22.0, "min": 11.0, "max": 33.0}
    assert result["rows"]["cube-mesh"]["ratio"] == {"rps": 0.5, "cpu_us": 2.0}
    assert result["noise"]["cpu_us"] == pytest.approx(11.5 / 11)
    text = table(result)
    assert "x2.00" in text and "1.05 CPU us/request" in text and "INVALID" not in text and "lower bound" not in text
    assert "INVALID" not in svg(result)


FAULTS = [
    ("slow", {"nginx": {"rps": [49_999.0] * 9}}, {}, "under 50,000"),
    ("few", {"nginx_again": {"cpu_us": [11.5] * 9}, "nginx": {"cpu_us": [11.0] * 6}}, {}, "6 rounds"),
    ("noise", {"nginx_again": {"cpu_us": [12.2] * 9}}, {}, "1.11 in cpu_us"),
    ("noise below", {"nginx_again": {"cpu_us": [9.8] * 9}}, {}, "0.89 in cpu_us"),
    ("no clock", {"nginx": {"cpu_us": [0.0] * 9}}, {}, "nan in cpu_us"),
    ("found", {}, {"faults": ["the reader was busy", "the reader was busy"]}, "the reader was busy"),
]


@pytest.mark.parametrize(("changes", "arguments", "word"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_a_run_that_does_not_count_says_why(changes: Any, arguments: Any, word: str) -> None:
    result = summed(figures(**changes), **arguments)
    assert not result["valid"]
    assert len(result["faults"]) == 1 and word in result["faults"][0]
    assert table(result).count("INVALID") == 1
    assert "INVALID" in svg(result)


def test_without_a_second_nginx_the_noise_is_unknown() -> None:
    known = figures()
    del known["nginx again"]
    assert summed(known)["faults"] == ["nginx was not measured twice: the noise is not known"]


def test_streams_need_no_fast_nginx() -> None:
    assert summed(figures(nginx={"rps": [4_000.0] * 9}), must_be_fast=False)["valid"]


def test_requests_of_a_gateway_that_was_not_the_limit_are_a_lower_bound() -> None:
    assert "> 30,000" in table(summed(figures(cube_mesh={"busy": [0.5] * 9})))


@pytest.mark.parametrize(("busy", "limit"), [(0.95, True), (0.5, False)])
def test_two_workers_are_compared_with_one(busy: float, limit: bool) -> None:
    two = {"rps": [54_000.0] * 9, "cpu_us": [22.0] * 9, "busy": [busy] * 9, "even_cpu_us": [31.5] * 9}
    known = {**figures(cube_mesh={"even_cpu_us": [30.0] * 9}), "cube-mesh, 2 workers": two}
    result = summary(known, {**AGAINST, "cube-mesh, 2 workers": "nginx"}, must_be_fast=True)
    times = {"rps": pytest.approx(1.8), "cpu_us": pytest.approx(1.0), "even_cpu_us": pytest.approx(1.05)}
    assert result["scaling"] == {"cube-mesh, 2 workers": {**times, "gateway_was_the_limit": limit}}
    assert ("generator or upstream limited" in table(result)) != limit
    assert "with the same load a worker 1.05." in table(result)


def test_added_is_taken_round_by_round() -> None:
    added = with_added({"direct": {"one_p50_us": [50.0, 90.0]}, "nginx": {"one_p50_us": [80.0, 100.0]}})
    assert added == {"nginx": {"one_p50_us": [80.0, 100.0], "one_added_us": [30.0, 10.0]}}


def test_rounds_take_turns() -> None:
    seen: list[str] = []
    report.interleaved(["a", "b", "c"], 2, seen.append)
    assert seen == ["a", "b", "c", "c", "b", "a"]


def test_variants_are_the_combinations_that_differ() -> None:
    names = [variant.name for variant in variants(["full", "bare"], ["write", "batch"], [1, 2])]
    assert names == [
        "cube-mesh", "cube-mesh, 2 workers", "cube-mesh, audit batch", "cube-mesh, audit batch, 2 workers",
        "cube-mesh, bare", "cube-mesh, bare, 2 workers",
    ]  # fmt: skip
    assert Variant(durability="never").missing == "no audit.durability never"
    assert Variant().missing == ""


def test_the_trail_shows_which_chain_ran(tmp_path: Path) -> None:
    full, bare = Variant(), Variant(chain="bare")
    for trail in (None, b""):
        if trail is not None:
            (tmp_path / "audit.jsonl").write_bytes(trail)
        check_trail(bare, tmp_path)
        with pytest.raises(BenchError):
            check_trail(full, tmp_path)
    (tmp_path / "audit.1.jsonl").write_bytes(b"{}\n")
    check_trail(full, tmp_path)
    with pytest.raises(BenchError):
        check_trail(bare, tmp_path)


# -- what the tools print ----------------------------------------------------------------------------------------------

WRK = "Running 3s test\n  {} requests in {}, 75.30MB read\nRequests/sec:  45912.10\n"


@pytest.mark.parametrize(("elapsed", "seconds"), [("3.01s", 3.01), ("900.00ms", 0.9), ("1.50m", 90.0)])
def test_wrk_is_read(elapsed: str, seconds: float) -> None:
    assert measure.parse_wrk(WRK.format(1234, elapsed), "nginx") == (1234, pytest.approx(seconds))


@pytest.mark.parametrize(
    "said",
    [
        "",
        WRK.format(0, "3.00s"),
        WRK.format(9, "3.00s") + "  Non-2xx or 3xx responses: 1\n",
        WRK.format(9, "3.00s") + "  Socket errors: connect 0, read 1, write 0, timeout 0\n",
    ],
    ids=["nothing", "no request", "another status", "a socket error"],
)
def test_a_round_with_anything_but_success_ends_the_run(said: str) -> None:
    with pytest.raises(BenchError):
        measure.parse_wrk(said, "nginx")


def test_h2load_is_read() -> None:
    log = "1700000000000000\t200\t120\n1700000000000100\t200\t80\n1700000000000200\t200\t100\n"
    assert measure.parse_h2load(log, "nginx") == [80, 100, 120]
    for bad in ("", log + "1700000000000300\t503\t90\n", log + "1700000000000300\t-1\t90\n"):
        with pytest.raises(BenchError):
            measure.parse_h2load(bad, "nginx")


def test_quantiles_are_of_the_values() -> None:
    values = list(range(100))
    assert [measure.quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [0, 50, 99, 99]


def test_paced_is_read() -> None:
    said = '{"frames": 990, "p50_us": 30.5, "p99_us": 90.0, "merged": 0, "lost": 0, "reader_cpu": 0.12}\n'
    got = measure.parse_paced(said, "nginx", {"nginx": 0.0099}, 0.2, 1000)
    assert (got.frames, got.cpu_us, got.p50_us, got.reader_busy) == (990, {"nginx": pytest.approx(10.0)}, 30.5, 0.12)
    for bad in ("", said.replace("990", "979"), said.replace('"lost": 0', '"lost": 1')):
        with pytest.raises(BenchError):
            measure.parse_paced(bad, "nginx", {"nginx": 0.01}, 0.2, 1000)


# -- the kernel's figures ----------------------------------------------------------------------------------------------

BURN = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"


def test_cpu_time_is_the_trees() -> None:
    before = processes.cpu_s(os.getpid())
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in processes.tree(os.getpid())
        assert 0.2 <= processes.cpu_s(child.pid) < 1.0
        assert processes.cpu_s(os.getpid()) - before >= 0.2
        assert processes.rss_kb(child.pid) > 1_000
        assert processes.descriptors(child.pid) >= 3
        child.communicate(b"\n")


# -- plots -------------------------------------------------------------------------------------------------------------


def test_plots_are_well_formed_and_show_what_they_are_given() -> None:
    bars = ElementTree.fromstring(plot.bars("a < b", [("x & y", {"median": 2.0, "min": 1.0, "max": 4.0})]))
    rects = [each for each in bars.iter() if each.tag.endswith("rect")]
    assert float(rects[1].attrib["width"]) == pytest.approx((760 - 250 - 90) / 2)
    far = plot.bars("", [("x", {"median": 10.0, "min": 1.0, "max": 10_000.0})])
    assert "(logarithmic)" in far and 'width="105.0"' in far
    lines = ElementTree.fromstring(plot.lines("rss", {"worker": [(0, 10.0), (100, 20.0)]}, "requests"))
    (path,) = [each for each in lines.iter() if each.tag.endswith("polyline")]
    assert path.attrib["points"] == "80.0,160.0 740.0,46.0"
    for empty in (plot.bars("", []), plot.lines("", {}, ""), plot.bars("", [("x", {"median": 0, "min": 0, "max": 0})])):
        ElementTree.fromstring(empty)
