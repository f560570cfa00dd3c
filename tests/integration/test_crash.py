"""The audit trail when the proxy is killed, and nothing lost when it is asked to stop."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cube_mesh.demo.backend import Script, ScriptedBackend
from tests.support.crash import kill_at_random
from tests.support.load import Ledger, keep_busy
from tests.support.mesh import Mesh, read_events
from tests.support.process import accepts


async def test_kill_9_under_load_loses_no_event(mesh: Mesh, backend: ScriptedBackend, tmp_path: Path) -> None:
    """A few kills here; `make prove-01` does fifty."""
    agent = await asyncio.to_thread(mesh.agent, tmp_path / "agent", backend.url)
    with agent:
        crashes = await kill_at_random(mesh, agent.port, tmp_path / "proxy", kills=5, seed=1)
    assert crashes.wrong == []
    assert crashes.whole > 50
    assert crashes.cut > 0  # else the kills hit nothing


async def test_drain_under_load_finishes_what_runs(mesh: Mesh, backend: ScriptedBackend, tmp_path: Path) -> None:
    """SIGTERM in the middle of slow streams: all end whole, then no connection is taken, exit code 0."""
    backend.script = Script(events=20, gap_s=0.02)
    with await asyncio.to_thread(mesh.agent, tmp_path / "agent", backend.url) as agent:
        proxy = await asyncio.to_thread(mesh.proxy, tmp_path / "proxy", agent.port)
        with proxy:
            ledger, stop = Ledger(), asyncio.Event()
            load = asyncio.create_task(keep_busy(proxy.port, mesh.tenants[0], ledger, stop))
            await asyncio.sleep(0.6)
            stopped = asyncio.create_task(asyncio.to_thread(proxy.stop))
            await asyncio.sleep(0.1)
            refuses = not accepts(proxy.port)
            code = await stopped
            stop.set()
            await load
    assert (code, refuses) == (0, True)
    assert (ledger.broken, ledger.odd) == ([], [])
    assert len(ledger.whole) >= 16
    assert ledger.wrongly_recorded(tmp_path / "proxy") == []
    recorded = {event["request_id"] for event in read_events(tmp_path / "proxy")}
    assert recorded.isdisjoint(ledger.unanswered)  # sent as the connection closed: never begun, so safe to send again
