"""Numbers: each exchange once, labels bounded, a page that Prometheus reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cube_mesh.ports import Endpoint
from cube_mesh.telemetry.metrics import MAX_DOMAINS, Metrics, NodeCollector, registry
from cube_mesh.telemetry.slab import SECONDS
from tests.middleware.fakes import CHAT, A, B, end, exchange

CHAT_ROW = Endpoint(CHAT, "POST", CHAT, "p", "chat", "json")


def observed(numbers: Metrics, *, domain: str = A, status: int = 200, outcome: str = "completed", took: float = 0.25,
             listed: bool = True) -> None:  # fmt: skip
    passing = end(exchange(), status, outcome)
    passing.domain_id, passing.endpoint = domain, CHAT_ROW if listed else None
    passing.ended_at = passing.started_at + took
    passing.request_size, passing.response_size, passing.input_tokens, passing.output_tokens = 10, 20, 3, None
    passing.forwarded_at, passing.first_byte_at = passing.started_at + 0.1, passing.started_at + 0.15
    numbers.observe(passing)


def page(numbers: Metrics, *, unsafe: bool = False) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    text = generate_latest(registry(NodeCollector(numbers, {"version": "1"}, unsafe=unsafe))).decode()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_counts_add_up() -> None:
    numbers = Metrics([A, B])
    for _ in range(3):
        observed(numbers)
    observed(numbers, domain=B, status=401, outcome="refused", listed=False)
    found = page(numbers)
    assert sorted(found["cube_requests_total"].values()) == [1, 3]
    assert found["cube_request_body_bytes_total"] == {(("domain", A),): 30, (("domain", B),): 10}
    assert found["cube_tokens_total"][(("domain", A), ("type", "input"))] == 9
    assert found["cube_tokens_total"][(("domain", A), ("type", "output"))] == 0
    labels = {dict(key)["endpoint"]: dict(key) for key in found["cube_requests_total"]}
    assert (labels["other"]["method"], labels["other"]["status"]) == ("other", "401")
    assert labels[CHAT] == {
        "domain": A, "endpoint": CHAT, "method": "POST", "status": "200", "outcome": "completed",
    }  # fmt: skip


@pytest.mark.parametrize("took", [0.0, 0.001, 0.0010001, 0.05, 299.9, 300.0, 301.0])
def test_histograms_are_cumulative_and_bounds_inclusive(took: float) -> None:
    numbers = Metrics([A])
    passing = exchange()
    passing.endpoint, passing.started_at = CHAT_ROW, 0.0
    passing.status, passing.outcome, passing.ended_at = 200, "completed", took
    numbers.observe(passing)
    found = page(numbers)
    buckets = {dict(k)["le"]: v for k, v in found["cube_request_duration_seconds_bucket"].items()}
    for bound in SECONDS:
        assert buckets[str(bound)] == (1.0 if took <= bound else 0.0)
    assert buckets["+Inf"] == 1.0
    assert list(found["cube_request_duration_seconds_sum"].values()) == [took]


def test_what_a_client_chooses_is_no_label() -> None:
    numbers = Metrics([A])
    for n in range(500):
        passing = end(exchange(f"/x{n}", "DELETE"), 400, "refused")
        passing.domain_id = f"00000000-0000-4000-8000-{n:012x}"
        passing.model = f"m{n}"
        numbers.observe(passing)
    assert len(page(numbers)["cube_requests_total"]) == 1


def test_ten_thousand_domains_are_a_bounded_page() -> None:
    domains = [f"00000000-0000-4000-8000-{n:012x}" for n in range(10_000)]
    numbers = Metrics(domains)
    for domain in domains:
        observed(numbers, domain=domain)
    found = page(numbers)["cube_requests_total"]
    assert len(found) == MAX_DOMAINS + 1 and sum(found.values()) == 10_000


def test_unsafe_marks_every_sample() -> None:
    numbers = Metrics([A])
    observed(numbers)
    numbers.protocol_error("bare_lf")
    numbers.attestation("server", "refuse", "measurement", "vtpm", 0.2)
    for name, samples in page(numbers, unsafe=True).items():
        if name.startswith("cube_"):
            assert all(("unsafe", "true") in key for key in samples), name
    assert not any(("unsafe", "true") in k for s in page(numbers).values() for k in s)


def test_numbers_that_other_parts_keep() -> None:
    collector = NodeCollector(Metrics(), {"version": "1", "role": "proxy"})
    collector.gauge("cube_requests_in_flight", "Now.", lambda: 7)
    collector.counter("cube_audit_events", "Events.", "result", lambda: {"written": 5, "failed": 1})
    text = generate_latest(registry(collector)).decode()
    assert "cube_requests_in_flight 7.0" in text
    assert 'cube_audit_events_total{result="failed"} 1.0' in text
    assert 'cube_build_info{role="proxy",version="1"} 1.0' in text
    assert "process_open_fds" in text


def test_the_document_lists_every_family_and_its_labels() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| `(cube_[a-z_]+)` \|[^|]*\|([^|]*)\|", text, re.MULTILINE))
    numbers = Metrics([A])
    observed(numbers)
    numbers.protocol_error("bare_lf")
    numbers.attestation("server", "accept", "", "vtpm", 0.1)
    for family in numbers.families():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert name in listed, name
        assert set(re.findall(r"`([a-z]+)`", listed[name])) == labels, name
