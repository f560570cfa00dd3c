"""Open channels over loopback sockets: bytes, back-pressure, and every way to end."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import pytest

from cube_mesh.ports import ChannelAttestation
from cube_mesh.settings import Attestation
from cube_mesh.tls.channel import ChannelExpired, RecordPosition, TruncatedStream
from tests.tls.mesh import AGENT, PROXY, SETTINGS, Agent, Mesh, Recorder, connector, running_agent


async def opened(mesh: Mesh, agent: Agent, settings: Attestation = SETTINGS) -> Recorder:
    made = Recorder()
    await connector(mesh.proxy_keeper(), agent.port, settings=settings).connect(lambda: made)
    return made


async def test_bytes_both_ways_and_what_the_ends_know(mesh: Mesh) -> None:
    async with running_agent(mesh.agent_keeper()) as agent:
        client = await opened(mesh, agent)
        client.transport.write(b"ping")
        assert await client.until(4) == b"ping"
        seen: ChannelAttestation = client.transport.get_extra_info("attestation")
        assert (seen.mode, seen.peer_id, seen.platform, seen.verdict) == ("quote", AGENT, "vtpm", "accept")
        assert (seen.confidential, seen.simulated, seen.tls_version) == (False, False, "TLSv1.3")
        assert client.transport.get_extra_info("peer_id") == AGENT
        assert 500 < client.transport.get_extra_info("expires_at") - time.time() <= 600
        assert client.transport.get_extra_info("peername")[1] == agent.port
        assert client.transport.get_extra_info("nothing", 7) == 7
        server = agent.inner[0].transport
        assert server.get_extra_info("peer_id") == PROXY
        assert server.get_extra_info("attestation").platform == "none"
        client.transport.close()
        assert await client.lost is None
        assert await agent.inner[0].lost is None
        assert agent.inner[0].eof


@pytest.mark.parametrize("size", [1, 16_383, 16_384, 16_385, 1_000_000])
async def test_sizes_around_a_record(mesh: Mesh, size: int) -> None:
    data = os.urandom(size)
    async with running_agent(mesh.agent_keeper()) as agent:
        client = await opened(mesh, agent)
        client.transport.write(memoryview(data))
        assert await client.until(size) == data
        client.transport.abort()


async def test_many_small_writes_keep_their_order(mesh: Mesh) -> None:
    parts = [str(i).encode() + b"," for i in range(3000)]
    async with running_agent(mesh.agent_keeper()) as agent:
        client = await opened(mesh, agent)
        for part in parts:
            client.transport.write(part)
        client.transport.writelines(parts)
        client.transport.write(b"")
        whole = b"".join(parts) * 2
        assert await client.until(len(whole)) == whole
        client.transport.abort()


async def test_back_pressure_reaches_the_writer_and_ends(mesh: Mesh) -> None:
    async with running_agent(mesh.agent_keeper(), echo=False) as agent:
        client = await opened(mesh, agent)
        client.transport.set_write_buffer_limits(high=65_536, low=16_384)
        server = agent.inner[0]
        server.transport.pause_reading()
        sent = 0
        while not client.paused:
            client.transport.write(bytes(65_536))
            sent += 65_536
            await asyncio.sleep(0)
            assert sent < 64 << 20, "a peer that does not read never slowed the writer"
        assert client.paused == [True]
        assert client.transport.get_write_buffer_size() > 65_536
        before = len(server.received)
        await asyncio.sleep(0.05)
        assert len(server.received) == before
        server.transport.resume_reading()
        await server.until(sent)
        assert client.paused == [True, False]
        client.transport.abort()


async def test_pausing_within_data_received_stops_at_the_record(mesh: Mesh) -> None:
    class OneAtATime(Recorder):
        def data_received(self, data: bytes) -> None:
            assert not self.stopped, "delivered while paused"
            super().data_received(data)
            self.stopped = True
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(0.001, self.go)

        def go(self) -> None:
            self.stopped = False
            self.transport.resume_reading()

        stopped = False

    async with running_agent(mesh.agent_keeper()) as agent:
        client = OneAtATime()
        await connector(mesh.proxy_keeper(), agent.port).connect(lambda: client)
        for _ in range(20):
            client.transport.write(b"x" * 1000)
        assert len(await client.until(20_000)) == 20_000
        client.transport.abort()


async def test_eof_without_close_notify_is_a_broken_stream(mesh: Mesh) -> None:
    async with running_agent(mesh.agent_keeper()) as agent:
        client = await opened(mesh, agent)
        client.transport.write(b"partial")
        await agent.inner[0].until(7)
        client.transport._tcp.write_eof()  # TCP ends, TLS does not
        assert isinstance(await agent.inner[0].lost, TruncatedStream)
        assert not agent.inner[0].eof
        client.transport.abort()


async def test_a_changed_record_breaks_the_stream(mesh: Mesh) -> None:
    async with running_agent(mesh.agent_keeper(), echo=False) as agent:
        client = await opened(mesh, agent)
        client.transport.write(b"good")
        await agent.inner[0].until(4)
        client.transport._tcp.write(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert await agent.inner[0].lost is not None
        assert agent.inner[0].received == b"good"
        assert await client.lost is not None


async def test_after_close_nothing_is_sent_or_delivered(mesh: Mesh) -> None:
    async with running_agent(mesh.agent_keeper()) as agent:
        client = await opened(mesh, agent)
        client.transport.write(b"1")
        await client.until(1)
        client.transport.write(b"2")
        client.transport.close()
        client.transport.write(b"3")
        client.transport.close()
        assert client.transport.is_closing()
        assert await client.lost is None
        assert await agent.inner[0].lost is None
        assert agent.inner[0].received == b"12"
        assert client.received == b"1"


async def test_close_sends_what_was_written_before(mesh: Mesh) -> None:
    async with running_agent(mesh.agent_keeper(), echo=False) as agent:
        client = await opened(mesh, agent)
        client.transport.write(bytes(5_000_000))
        client.transport.close()
        assert await client.lost is None
        assert await agent.inner[0].lost is None
        assert len(agent.inner[0].received) == 5_000_000


async def test_half_close_lets_the_other_end_finish(mesh: Mesh) -> None:
    class Finishes(Recorder):
        def eof_received(self) -> bool:
            super().eof_received()
            asyncio.get_running_loop().call_later(0.01, self.finish)
            return True

        def finish(self) -> None:
            self.transport.close()

    async with running_agent(mesh.agent_keeper()) as agent:
        client = Finishes()
        await connector(mesh.proxy_keeper(), agent.port).connect(lambda: client)
        agent.inner[0].transport.close()
        assert await client.lost is None
        assert client.eof


async def test_the_end_of_what_was_accepted_ends_the_channel(mesh: Mesh) -> None:
    short = Attestation(attester="vtpm", interval_s=1.2, handshake_timeout_s=5.0)
    async with running_agent(mesh.agent_keeper()) as agent:
        client = await opened(mesh, agent, settings=short)
        assert client.transport.get_extra_info("expires_at") - time.time() <= 1.2
        async with asyncio.timeout(2):
            assert isinstance(await client.lost, ChannelExpired)
            assert await agent.inner[0].lost is not None  # no close_notify: what was under way is not whole


async def test_a_stalled_peer_does_not_keep_an_expired_channel(mesh: Mesh) -> None:
    short = Attestation(attester="vtpm", interval_s=1.2, handshake_timeout_s=5.0)
    async with running_agent(mesh.agent_keeper(), echo=False) as agent:
        client = await opened(mesh, agent, settings=short)
        agent.inner[0].transport.pause_reading()
        client.transport.write(bytes(8 << 20))
        async with asyncio.timeout(2):
            assert isinstance(await client.lost, ChannelExpired)


@asynccontextmanager
async def chopping(port: int, sizes: Iterable[int]) -> AsyncIterator[int]:
    """A relay that passes both directions on in pieces of the given sizes, again and again."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            for size in itertools.cycle(sizes):
                data = await reader.read(size)
                if not data:
                    break
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(0.0002)  # so that the next piece is a segment of its own
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


class Greets(Recorder):
    """Speaks first: its bytes follow the agent's RESULT closely."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        for i in range(50):
            self.transport.write(b"greeting %02d " % i)


@pytest.mark.parametrize("sizes", [(97,), (5, 1000, 3, 40), (60, 61, 62, 1), (1400, 2)])
async def test_any_segmentation_of_handshake_gate_and_records(
    mesh: Mesh, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first byte on. The channel starts in the middle of whatever record the gate's last bytes ended in."""
    greeting = b"".join(b"greeting %02d " % i for i in range(50))
    async with running_agent(mesh.agent_keeper()) as agent:
        monkeypatch.setattr(agent, "make_inner", lambda: agent.inner.append(Greets(echo=True)) or agent.inner[-1])
        agent.factory._inner_factory = agent.make_inner
        async with chopping(agent.port, sizes) as port:
            client = Recorder()
            await connector(mesh.proxy_keeper(), port).connect(lambda: client)
            assert await client.until(len(greeting)) == greeting
            for number in range(20):
                client.transport.write(b"%04d" % number * 20)
            assert len(await client.until(len(greeting) + 1600)) == len(greeting) + 1600
            client.transport.close()
            assert await client.lost is None


RECORDS = [b"\x17\x03\x03" + len(body).to_bytes(2, "big") + body for body in (b"a", b"b" * 300, b"", b"c" * 40)]


def test_record_boundaries_are_found_at_any_cut() -> None:
    wire = b"".join(RECORDS)
    ends = {0}
    for record in RECORDS:
        ends.add(max(ends) + len(record))
    for first in range(len(wire) + 1):
        for second in range(first, min(first + 12, len(wire)) + 1):
            position = RecordPosition()
            fed = 0
            for cut in (first, second, len(wire)):
                if cut > fed:
                    position.advance(wire[fed:cut])
                    assert position.aligned == (cut in ends)
                    fed = cut
