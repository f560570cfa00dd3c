"""The collectors' network: patience where an endpoint is busy, and an error that says what it was."""

from __future__ import annotations

import email.utils
from collections.abc import Iterator
from pathlib import Path

import pytest

from attest.errors import CollectionFailed
from attest.transport import Answer, Ask, answered, json_member, token_part
from cube_mesh.collateral.transport import MAX_ATTEMPTS, BlockingTransport
from tests.support.endpoint import Endpoint, Reply, endpoint

NOW = 1_799_999_000.0


class Time:
    """Stands still but for sleeps, which are kept."""

    def __init__(self) -> None:
        self.now, self.slept = NOW, list[float]()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def service() -> Iterator[Endpoint]:
    with endpoint() as made:
        yield made


@pytest.fixture
def clock() -> Time:
    return Time()


def transport(clock: Time, deadline_s: float = 10.0) -> BlockingTransport:
    return BlockingTransport(deadline_s, clock=clock, sleep=clock.sleep, draw=lambda: 1.0)


def refused(one: BlockingTransport, ask: Ask) -> CollectionFailed:
    with pytest.raises(CollectionFailed) as caught:
        answered(one, ask, "it")
    return caught.value


def test_a_request_goes_out_as_it_was_asked(service: Endpoint, clock: Time) -> None:
    service.at("POST", "/a/b?c=d", Reply(b"done"))
    ask = Ask(url=f"{service.url}/a/b?c=d", method="POST", fields={"metadata": "true"}, body=b"\x00body")
    assert transport(clock)(ask) == Answer(200, b"done") and clock.slept == []
    (seen,) = service.seen
    assert (seen.body, seen.fields["metadata"], seen.fields["content-length"]) == (b"\x00body", "true", "5")
    assert seen.fields["host"] == service.url.removeprefix("http://")


def test_a_get_says_nothing_of_a_body(service: Endpoint, clock: Time) -> None:
    service.at("GET", "/", Reply(b"x"))
    assert transport(clock)(Ask(url=service.url)).body == b"x"
    assert "content-length" not in service.seen[0].fields


def test_a_unix_socket(tmp_path: Path, clock: Time) -> None:
    with endpoint(tmp_path / "s") as service:
        service.at("POST", "/v1/token", Reply(b"t"))
        ask = Ask(url="http://localhost/v1/token", method="POST", body=b"{}", unix_socket=str(tmp_path / "s"))
        assert transport(clock)(ask).body == b"t" and service.seen[0].fields["host"] == "localhost"
    gone = refused(transport(clock), ask)
    assert gone.code == "endpoint_unreachable" and str(tmp_path / "s") in str(gone)


@pytest.mark.parametrize("status", [429, 503, 410, 500])
def test_a_busy_endpoint_is_asked_again_after_a_growing_pause(service: Endpoint, clock: Time, status: int) -> None:
    service.at("GET", "/", Reply(status=status), Reply(status=status), Reply(b"now"))
    assert transport(clock)(Ask(url=service.url)).body == b"now" and clock.slept == [0.25, 0.5]


def test_what_it_asks_for_is_waited(service: Endpoint, clock: Time) -> None:
    date = email.utils.formatdate(NOW + 5, usegmt=True)
    service.at(
        "GET", "/", Reply(status=429, fields={"retry-after": "3"}), Reply(status=503, fields={"retry-after": date}),
        Reply(b"now"),
    )  # fmt: skip
    assert transport(clock)(Ask(url=service.url)).body == b"now" and clock.slept == [3.0, 2.0]


def test_nobody_waits_for_longer_than_the_deadline(service: Endpoint, clock: Time) -> None:
    service.at("GET", "/", Reply(b"later", 429, {"retry-after": "11"}))
    error = refused(transport(clock), Ask(url=service.url))
    assert (error.code, str(error), clock.slept) == ("endpoint_busy", "it: status 429: later", [])


def test_so_many_attempts_and_no_more(service: Endpoint, clock: Time) -> None:
    service.at("GET", "/", Reply(status=500))
    assert refused(transport(clock, 1e6), Ask(url=service.url)).code == "endpoint_busy"
    assert len(service.seen) == MAX_ATTEMPTS and clock.slept == [0.25, 0.5, 1.0, 2.0]


def test_a_connection_that_fails_is_tried_again(service: Endpoint, clock: Time) -> None:
    service.at("GET", "/", Reply(drop=True), Reply(b"now"))
    assert transport(clock)(Ask(url=service.url)).body == b"now" and clock.slept == [0.25]
    service.at("GET", "/", Reply(drop=True))
    assert refused(transport(clock), Ask(url=service.url)).code == "endpoint_unreachable"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 301, 204])
def test_a_refusal_is_final_and_says_why(service: Endpoint, clock: Time, status: int) -> None:
    service.at("GET", "/", Reply(b'{"error":\n"Required metadata header not specified"}\xff', status))
    error = refused(transport(clock), Ask(url=service.url))
    assert error.code == "endpoint_refused" and len(service.seen) == 1 and f"status {status}" in str(error)


def test_what_an_endpoint_says_is_cut_and_made_plain(service: Endpoint, clock: Time) -> None:
    service.at("GET", "/", Reply(b"\x1b[31m" + b"x" * 999, 400))
    said = str(refused(transport(clock), Ask(url=service.url)))
    assert said.startswith("it: status 400: [31mxxx") and len(said) < 230


def test_an_answer_above_its_bound(service: Endpoint, clock: Time) -> None:
    service.at("GET", "/", Reply(b"x" * 11))
    assert refused(transport(clock), Ask(url=service.url, max_bytes=10)).code == "endpoint_answer"
    assert len(service.seen) == 1


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"{}", b'{"quote":""}', b'{"quote":7}', b'{"quote":null}'])
def test_answers_without_the_member(body: bytes) -> None:
    with pytest.raises(CollectionFailed, match="it: no quote") as caught:
        json_member(body, "quote", "it")
    assert caught.value.code == "endpoint_answer"


@pytest.mark.parametrize("body", [b"", b"x", b"a.b", b"Unauthorized"])
def test_answers_that_are_no_token(body: bytes) -> None:
    with pytest.raises(CollectionFailed) as caught:
        token_part(body, "it")
    assert caught.value.code == "endpoint_answer"
