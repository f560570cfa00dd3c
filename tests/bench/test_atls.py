"""Connections: the plain yardstick verifies both certificates, the summary is its medians, and a short run ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.atls import __main__ as atls
from bench.atls import ends, plain


async def test_the_yardstick_is_mutual(tmp_path: Path) -> None:
    """A peer of another CA is refused by either end: else the yardstick would be cheaper than what it stands for."""
    mesh, other = ends.mesh_at(tmp_path / "one"), ends.mesh_at(tmp_path / "other")
    proxy, agent = mesh.issue("proxy", "p1"), mesh.issue("agent", "a1")
    strange = other.issue("proxy", "p1")
    server = plain.context(agent, mesh.roots, server=True)
    assert await _tried(server, plain.context(proxy, mesh.roots, server=False)) == ""
    assert await _tried(server, plain.context(strange, mesh.roots, server=False)) != ""
    assert await _tried(server, plain.context(proxy, other.roots, server=False)) != ""


async def _tried(server: plain.SSL.Context, client: plain.SSL.Context) -> str:
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: plain.End(server, server=True), "127.0.0.1", 0)
    async with listening:
        try:
            end = await asyncio.wait_for(plain.connect(client, listening.sockets[0].getsockname()[1]), 5)
        except OSError as error:
            return str(error)
        else:
            end.abort()
            return ""
        finally:
            await asyncio.sleep(0.05)  # both ends see the end


def figures(again: float = 2_000.0, rounds: int = 7) -> atls.Figures:
    def row(both: float) -> dict[str, list[float]]:
        return {"per_s": [400.0] * rounds, "client_us": [1e3] * rounds, "server_us": [1e3] * rounds} | {
            "both_us": [both, *[both] * (rounds - 1)]
        }

    return {atls.PLAIN: row(2_000.0), atls.ATTACHED: row(2_600.0), atls.AGAIN: row(again)}


def test_summary_is_ratios_to_the_plain_handshake() -> None:
    result = atls.summary(figures(), {"control": "no TPM"})
    assert result["valid"]
    assert result["rows"][atls.ATTACHED]["ratio"]["both_us"] == pytest.approx(1.3)
    text = atls.table(result)
    assert "x1.30" in text and "Not run: control: no TPM" in text and "INVALID" not in text


@pytest.mark.parametrize(("known", "word"), [(figures(again=2_201.0), "1.10, more"), (figures(rounds=6), "6 rounds")])
def test_a_run_that_does_not_count_says_why(known: atls.Figures, word: str) -> None:
    result = atls.summary(known, {})
    assert not result["valid"]
    assert word in result["faults"][0]
    assert "INVALID" in atls.table(result)


@pytest.mark.slow
@pytest.mark.needs("swtpm", "tpm2_quote")
def test_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    argv = [sys.executable, "-m", "bench.atls", "--rounds", "1", "--connections", "4", "--json", str(out)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)  # it forks: not in here
    assert done.returncode == 1 and out.exists(), done.stderr
    result = json.loads(out.read_text())
    assert {atls.PLAIN, atls.AGAIN, atls.SIMULATED, atls.TPM} <= set(result["rows"])
    assert (atls.ATTACHED in result["rows"]) != (atls.ATTACHED in result["absent"])
    assert all(row["server_us"]["median"] > 0 for row in result["rows"].values())
