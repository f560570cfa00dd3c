"""Attested sessions over loopback: one quote, many connections."""

from __future__ import annotations

import asyncio

from tests.tls.mesh import AGENT, Mesh, Recorder, attaching, running_agent


async def test_connections_attach_under_one_quote(mesh: Mesh) -> None:
    agents, proxies = mesh.agent_keeper(), mesh.proxy_keeper()
    async with running_agent(agents) as agent:
        dial = attaching(proxies, agent.port)
        made = await asyncio.gather(*(dial.connect(Recorder) for _ in range(5)))
        assert agents.quotes == 2  # the passport's, and the session's
        for one in made:
            assert isinstance(one, Recorder)
            one.transport.write(b"hello")
            assert await one.until(5) == b"hello"
            facts = one.transport.get_extra_info("attestation")
            assert (facts.mode, facts.peer_id, facts.platform, facts.session_generation) == ("attach", AGENT, "vtpm", 1)
            assert len(facts.session) == 16
        assert len(agents.sessions.live) == len(proxies.sessions.live) == 5
        for one in made:
            one.transport.abort()
        await asyncio.sleep(0.05)
        assert len(agents.sessions.live) == len(proxies.sessions.live) == 0
        await proxies.close()
