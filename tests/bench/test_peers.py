"""Peers that are not there are named as not run, and what an installation could not do is said."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from bench.peers import __main__ as peers
from bench.peers.systems import HAPROXY, LITELLM, PEERS, Peer, install


def test_the_only_ones_that_are_asked_for() -> None:
    assert [peer.name for peer in PEERS if peers._named(peer, ["haproxy", "Lite"])] == ["HAProxy", "LiteLLM"]
    assert all(peers._named(peer, None) for peer in PEERS)


def test_an_installation_that_fails_says_where(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    failing = dataclasses.replace(LITELLM, program=absent, install=((sys.executable, "-c", "raise SystemExit('no')"),))
    assert "ended with 1: no" in install(failing)
    nothing = dataclasses.replace(LITELLM, program=absent, install=())
    assert "not there after all" in install(nothing)


@pytest.mark.slow
@pytest.mark.needs("nginx", "wrk", "taskset")
def test_a_short_run_names_what_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent: Peer = dataclasses.replace(LITELLM, program=tmp_path / "absent")
    there = [HAPROXY] if HAPROXY.here else []
    monkeypatch.setattr(peers, "PEERS", [*there, absent])
    out = tmp_path / "out.json"
    peers.main(["--rounds", "1", "--seconds", "1", "--json", str(out)])
    result = json.loads(out.read_text())
    assert set(result["rows"]) == {"nginx", "cube-mesh", "nginx again", *(peer.name for peer in there)}
    assert set(result["absent"]) == {"LiteLLM"}
    assert "Not run: LiteLLM" in capsys.readouterr().out
