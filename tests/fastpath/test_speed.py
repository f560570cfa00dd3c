"""Strictness costs nothing that matters: a head is scanned in less time than httptools takes, on the same bytes."""

from __future__ import annotations

from bench.micro.parse import run


def test_a_head_takes_no_longer_than_in_httptools() -> None:
    for name, ways in run(rounds=3).items():
        assert ways["with 5 get()"] <= ways["httptools"], (name, ways)
