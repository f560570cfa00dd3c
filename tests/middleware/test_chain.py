"""The order of stages, who may stop an exchange, and that its end is recorded once."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from cube_mesh.errors import CubeMeshError, DependencyError, InternalError, PeerError, PolicyError
from cube_mesh.exchange import Exchange
from cube_mesh.message import Response
from cube_mesh.middleware import AGENT_CHAIN, CHAIN
from cube_mesh.middleware.chain import Chain
from cube_mesh.ports import Done
from tests.middleware.fakes import Mesh, end, exchange


class Stage:
    """Records its calls in ``seen``; answers and raises what it is told."""

    def __init__(self, seen: list[str], name: str, enter: Any = None, leave: Any = None) -> None:
        self._seen, self._name, self._enter, self._leave = seen, name, enter, leave

    def enter(self, passing: Exchange) -> Any:
        self._seen.append(f"enter {self._name}")
        return self._do(self._enter)

    def leave(self, passing: Exchange) -> Any:
        self._seen.append(f"leave {self._name}")
        return self._do(self._leave)

    @staticmethod
    def _do(what: Any) -> Any:
        if isinstance(what, Exception):
            raise what
        return what


def chain(**stages: dict[str, Any]) -> tuple[Chain, list[str]]:
    seen: list[str] = []
    return Chain({name: Stage(seen, name, **told) for name, told in stages.items()}), seen


def leave(made: Chain, passing: Exchange) -> list[CubeMeshError | None]:
    """How the end of the exchange was said to be over; empty while something is still being recorded."""
    over: list[CubeMeshError | None] = []
    made.leave(passing, over.append)
    return over


class Pending:
    """A Recording that is done when the test says so."""

    def __init__(self) -> None:
        self.done: list[Done] = []

    def then(self, done: Done) -> None:
        self.done.append(done)


async def later(value: Any) -> Any:
    await asyncio.sleep(0)
    if isinstance(value, Exception):
        raise value
    return value


def test_the_documented_order() -> None:
    assert CHAIN == (
        "request_id", "tenant", "cors", "load", "authn", "audit", "authz", "logging", "tracing", "metrics", "route",
        "forward",
    )  # fmt: skip
    assert AGENT_CHAIN == ("request_id", "peer", "load", "logging", "tracing", "metrics", "route", "forward")
    built = Mesh().chain
    assert [type(gate.__self__).__name__ for gate in built._gates] == [  # type: ignore[attr-defined]
        "RequestId", "Tenant", "Load", "Authn", "Authz", "Route", "Forward",
    ]  # fmt: skip
    assert built._names == ("audit", "logging", "metrics")


def test_gates_in_order_observers_in_order() -> None:
    made, seen = chain(a={}, b={}, c={})
    assert made.enter(passing := exchange()) is None
    assert leave(made, passing) == [None]
    assert seen == ["enter a", "enter b", "enter c", "leave a", "leave b", "leave c"]


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (PeerError("x", "m"), 400, "refused"),
        (PolicyError("x", "m", status=401), 401, "refused"),
        (DependencyError("x", "m", status=503), 503, "failed"),
        (InternalError("x", "m"), 500, "failed"),
    ],
)
@pytest.mark.parametrize("wait", [False, True])
async def test_an_error_stops_the_gates_and_no_observer(
    error: Exception, status: int, outcome: str, wait: bool
) -> None:
    made, seen = chain(a={}, b={"enter": later(error) if wait else error}, c={})
    passing = exchange()
    answer: Any = made.enter(passing)
    if wait:
        answer = await answer
    assert (answer.status, passing.error, passing.outcome) == (status, error, outcome)
    assert leave(made, passing) == [None]
    assert seen == ["enter a", "enter b", "leave a", "leave b", "leave c"]


@pytest.mark.parametrize("wait", [False, True])
async def test_a_gates_own_answer_stops_the_rest(wait: bool) -> None:
    mine = Response(204)
    made, seen = chain(a={"enter": later(mine) if wait else mine}, b={})
    answer: Any = made.enter(passing := exchange())
    assert (await answer if wait else answer) is mine
    assert (passing.outcome, seen) == ("refused", ["enter a"])


async def test_waiting_gates_go_on_from_where_they_waited() -> None:
    made, seen = chain(a={}, b={"enter": later(None)}, c={"enter": later(None)}, d={})
    answer: Any = made.enter(exchange())
    assert seen == ["enter a", "enter b"]
    assert await answer is None
    assert seen == ["enter a", "enter b", "enter c", "enter d"]


@pytest.mark.parametrize("wait", [False, True])
async def test_a_bug_in_a_gate_is_a_500_that_tells_nobody_what_it_saw(
    wait: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cube_mesh"), "propagate", True)
    bug = ValueError("a tenant's secret prompt")
    made, _ = chain(a={"enter": later(bug) if wait else bug})
    answer: Any = made.enter(passing := exchange())
    if wait:
        answer = await answer
    assert (answer.status, passing.outcome) == (500, "failed")
    assert json.loads(answer.body)["error"]["code"] == "internal"
    assert "secret prompt" not in caplog.text and b"secret" not in answer.body
    assert "ValueError" in caplog.text and "test_chain.py" in caplog.text


def test_a_bug_in_an_observer_stops_nothing_and_is_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cube_mesh"), "propagate", True)
    made, seen = chain(a={}, b={"leave": ValueError("secret")}, c={})
    for _ in range(2):
        assert leave(made, exchange()) == [None]
    assert seen == ["leave a", "leave b", "leave c"] * 2
    assert made.failures == {"b": 2}
    assert len(caplog.records) == 1 and "secret" not in caplog.text


def test_the_observers_behind_a_recording_and_the_end_wait_for_it() -> None:
    pending = Pending()
    made, seen = chain(a={"leave": pending}, b={})
    over: list[CubeMeshError | None] = []
    made.leave(exchange(), over.append)
    assert (seen, over) == (["leave a"], [])
    pending.done[0](None)
    assert (seen, over) == (["leave a", "leave b"], [None])


@pytest.mark.parametrize("wait", [False, True])
def test_what_is_not_on_record_is_not_answered_and_the_others_see_why(wait: bool) -> None:
    refusal = DependencyError("audit_unavailable", "m", status=503)
    pending = Pending()
    statuses: list[tuple[int, str]] = []
    made, seen = chain(a={"leave": pending if wait else refusal}, b={})
    made._observers = (*made._observers, lambda e: statuses.append((e.status, e.outcome)))
    over: list[CubeMeshError | None] = []
    made.leave(end(exchange()), over.append)
    for done in pending.done:
        done(refusal)
    assert over == [refusal]
    assert seen == ["leave a", "leave b"]
    assert statuses == [(503, "failed")]


def test_a_second_end_records_nothing() -> None:
    made, seen = chain(a={})
    made.enter(passing := exchange())
    assert leave(made, passing) == leave(made, passing) == [None]
    assert seen == ["enter a", "leave a"]
    assert made.in_flight == 0


async def test_in_flight_is_exact_over_every_way_out() -> None:
    made, _ = chain(a={})
    open_ones = [exchange() for _ in range(3)]
    for one in open_ones:
        made.enter(one)
    assert made.in_flight == 3
    for one in open_ones + open_ones:
        leave(made, one)
    assert made.in_flight == 0
