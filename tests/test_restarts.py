"""When a process that has ended starts again, as a table of what happens and when."""

from __future__ import annotations

import pytest

from cube_mesh.restarts import LOOP, STEADY_S, Slot, unready

# Each step: "start", "up" or "end" and the time since the step before; of an "end" the pause that must follow.
LIVES = {
    "the first end is answered at once": [("start", 0.0), ("up", 0.3), ("end", 100.0, 0.0)],
    "so is the first end of one that never came up": [("start", 0.0), ("end", 0.1, 0.0)],
    "steady in between: nothing is held against it": [
        ("start", 0.0), ("up", 0.3), ("end", STEADY_S, 0.0), ("start", 0.0), ("up", 0.3), ("end", STEADY_S, 0.0),
    ],
    "never steady: the pause doubles, and stays short": [
        ("start", 0.0), ("up", 0.3), ("end", 0.1, 0.0),
        ("start", 0.0), ("up", 0.3), ("end", 0.1, 0.1),
        ("start", 0.1), ("up", 0.3), ("end", STEADY_S - 0.01, 0.2),
        ("start", 0.2), ("up", 0.3), ("end", 0.1, 0.2),
        ("start", 0.2), ("up", 0.3), ("end", 0.1, 0.2),
    ],
    "never up: it doubles on": [
        *(("start", 0.0), ("end", 0.1, 0.0)),
        *(step for pause in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15.0, 15.0)
          for step in (("start", 1.0), ("end", 0.1, pause))),
    ],
    "steady after a loop: forgotten": [
        *(step for pause in (0.0, 0.1, 0.2, 0.2, 0.2) for step in (("start", 0.0), ("up", 0.0), ("end", 0.0, pause))),
        ("start", 0.2), ("up", 0.3), ("end", STEADY_S, 0.0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("life", LIVES.values(), ids=list(LIVES))
def test_pauses(life: list[tuple[str, float] | tuple[str, float, float]]) -> None:
    slot, now, ends = Slot(), 1_000.0, 0
    for what, after, *pause in life:
        now += after
        if what == "start":
            slot.started()
        elif what == "up":
            slot.up(now)
        else:
            assert slot.ended(now) == pytest.approx(pause[0])
            assert slot.due_at == pytest.approx(now + pause[0])
            ends += 1
    assert slot.restarts == ends


def loop(slot: Slot, ends: int, now: float) -> None:
    for _ in range(ends):
        slot.started()
        slot.up(now)
        slot.ended(now)


def test_a_crash_loop_ends_when_the_process_has_been_steady() -> None:
    slot = Slot()
    loop(slot, LOOP - 1, 10.0)
    assert not slot.looping(10.0)
    loop(slot, 1, 10.0)
    assert slot.looping(10.0) and slot.looping(1_000.0), "while it waits"
    slot.started()
    slot.up(20.0)
    slot.up(21.0)  # each report says it again
    assert slot.looping(20.0 + STEADY_S - 0.01)
    assert not slot.looping(20.0 + STEADY_S)


def slots(*states: str) -> list[Slot]:
    made = []
    for state in states:
        slot = Slot()
        slot.started()
        if state == "loop":
            loop(slot, LOOP, 0.0)
        elif state == "up":
            slot.up(0.0)
        made.append(slot)
    return made


UP: dict[str, str] = {"node": "", "upstream a": ""}
DOWN = {"node": "", "upstream a": "not attested"}
CASES = [
    ("all up", "", ("up", "up"), {0: UP, 1: UP}, {}),
    ("one starts again", "", ("up", "starting"), {0: UP}, {}),
    ("none is up", "", ("starting", "starting"), {}, {"workers": "none is up"}),
    ("one hangs", "", ("up", "up"), {0: UP, 1: None}, {"workers": "worker 1 does not answer"}),
    ("one is not ready", "", ("up", "up"), {0: UP, 1: DOWN}, {"upstream a": "not attested"}),
    ("the other one is not ready", "", ("up", "up"), {0: DOWN, 1: UP}, {"upstream a": "not attested"}),
    ("crash loop", "", ("up", "loop"), {0: UP}, {"workers": "worker 1 ended 5 times in a row"}),
    ("starting", "starting", ("up", "up"), {0: UP, 1: UP}, {"node": "starting"}),
    ("draining", "draining", ("up", "up"), {0: UP, 1: UP}, {"node": "draining"}),
]


@pytest.mark.parametrize(("name", "phase", "states", "answers", "expected"), CASES, ids=[case[0] for case in CASES])
def test_what_a_node_waits_for(name: str, phase: str, states, answers, expected) -> None:  # type: ignore[no-untyped-def]
    found = unready(phase, slots(*states), answers, 0.0)
    assert {check: reason for check, reason in found.items() if reason} == expected
    assert {"node", "workers"} <= set(found)
