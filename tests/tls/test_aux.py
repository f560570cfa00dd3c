"""An event log on the wire: one AUX frame before the authenticator that names it; what a peer may not do with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from attest.binding import Expected, Phase, Role
from attest.errors import CollectionFailed
from attest.eventlog import parse_event_log, replay
from attest.evidence import MAX_AUX_BYTES, join_aux, split_aux
from attest.schemes.vtpm.abi import Alg
from attest.schemes.vtpm.verify import ak_name
from attest.testkit.eventlog import agile_log
from cube_mesh.errors import DependencyError
from cube_mesh.tls.frames import FrameDecoder, FrameType, encode_frame
from cube_mesh.tls.gate import Collect, Command, Open, State
from cube_mesh.tls.sessions import Session, name_of
from tests.tls.mesh import AGENT, POLICY, Mesh, Recorder, attaching, connector, running_agent
from tests.tls.test_gate import NOW, End, closed, pair, talk, talk_until
from tests.tls.test_keeper import PHASE2

LOG = agile_log()
AUX = encode_frame(FrameType.AUX, b"log")


class Logging(End):
    """An end that sends ``log`` with its evidence, and keeps what it is asked to appraise."""

    log_bytes = LOG

    def evidence(self, command: Collect) -> bytes:
        return join_aux(super().evidence(command), self.log_bytes)

    def appraise(self, raw: bytes, expected: Expected) -> list[Command]:
        self.seen = split_aux(raw)
        return super().appraise(self.seen[0], expected)


def test_both_ends_may_send_one_and_get_the_others() -> None:
    client, server = Logging(Role.CLIENT), Logging(Role.SERVER)
    server.log_bytes = b"the server's"
    talk(client, server)
    assert isinstance(client.last, Open) and isinstance(server.last, Open)
    assert client.seen[1] == b"the server's" and server.seen[1] == LOG


def test_byte_by_byte() -> None:
    client, server = Logging(Role.CLIENT), Logging(Role.SERVER)
    client.run(client.gate.start())
    server.run(server.gate.start())
    while client.wire or server.wire:
        for here, there in ((client, server), (server, client)):
            for byte in there.take():
                here.run(here.gate.receive(bytes((byte,)), NOW))
    assert isinstance(client.last, Open) and client.seen[1] == server.seen[1] == LOG


def test_the_largest_log_fits() -> None:
    client, server = Logging(Role.CLIENT), Logging(Role.SERVER)
    client.log_bytes = server.log_bytes = bytes(MAX_AUX_BYTES)
    talk(client, server)
    assert isinstance(client.last, Open) and len(client.seen[1]) == MAX_AUX_BYTES


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (AUX + AUX, "frame_order"),
        (encode_frame(FrameType.AUX, b""), "frame_size"),
        (AUX + encode_frame(FrameType.REQUEST, b"x"), "frame_order"),
        (b"\x04\x00\x10\x00\x01", "frame_size"),
    ],
)
def test_what_a_server_may_not_send_in_place_of_its_authenticator(wire: bytes, reason: str) -> None:
    client, server = pair()
    client.run(client.gate.start())
    server.run(server.gate.start())
    client.run(client.gate.receive(server.take(), NOW))
    assert client.gate.state is State.AUTHENTICATOR
    client.run(client.gate.receive(wire, NOW))
    closed(client, reason, "attest")


def test_after_its_authenticator_a_server_has_nothing_to_say_but_its_result() -> None:
    client, server = pair()
    talk_until(client, server, lambda: client.gate.state is State.RESULT)
    client.run(client.gate.receive(AUX, NOW))
    closed(client, "frame_order", "result")


def test_nor_has_a_client() -> None:
    client, server = pair()
    talk_until(client, server, lambda: client.gate.state is State.RESULT)
    frames = FrameDecoder()
    frames.feed(client.take())
    while (frame := frames.next_frame()) is not None:
        server.run(server.gate.receive(encode_frame(*frame), NOW))
        if frame.type is FrameType.AUTHENTICATOR:
            server.run(server.gate.receive(AUX, NOW))
    closed(server, "frame_order", "result")


def test_a_log_inside_of_the_authenticator_is_refused() -> None:
    """Its frame is where it is bounded; what has two places could be there twice."""

    class Inside(End):
        def evidence(self, command: Collect) -> bytes:
            made = super().evidence(command)
            return join_aux(join_aux(made, LOG), b"outer")

    client, server = End(Role.CLIENT), Inside(Role.SERVER)
    talk(client, server)
    closed(client, "authenticator_malformed", "attest")


# --- keepers and real channels ---


def measure(mesh: Mesh, directory: Path) -> Path:
    """The mesh's TPM has booted by the log, which is returned as a file; the policy asks for it."""
    values = replay(parse_event_log(LOG), Alg.SHA256)
    mesh.tpm.pcrs[Alg.SHA256] |= {index: value for index, value in values.items() if index < 8}
    mesh.policy = f"""id = "log"
unsafe_accept_vtpm_only = true
[vtpm]
pcrs = [0, 7]
require_event_log = true
require_secure_boot = true
[reference_values.vtpm]
ak_names = ["{ak_name(mesh.tpm.public())}"]
[reference_values.vtpm.pcr_values]
0 = ["{values[0].hex()}"]
7 = ["{values[7].hex()}"]
"""
    (directory / "log").write_bytes(LOG)
    return directory / "log"


async def test_a_channel_whose_policy_asks_for_the_log(mesh: Mesh, tmp_path: Path) -> None:
    log = measure(mesh, tmp_path)
    proxy = mesh.proxy_keeper()
    async with running_agent(mesh.agent_keeper(event_log=log)) as agent:
        inner = Recorder()
        await connector(proxy, agent.port).connect(lambda: inner)
        assert inner.transport.get_extra_info("attestation").platform == "vtpm"
        inner.transport.abort()
    async with running_agent(mesh.agent_keeper()) as agent:
        with pytest.raises(DependencyError) as caught:
            await connector(proxy, agent.port).connect(Recorder)
        assert caught.value.code == "atls_event_log_missing"


async def test_a_passport_has_no_log_and_a_channels_evidence_has(mesh: Mesh, tmp_path: Path) -> None:
    log = measure(mesh, tmp_path)
    keeper = mesh.agent_keeper(event_log=log)
    passport = await keeper.evidence(Role.SERVER, Phase.PASSPORT, spki_hash=b"s" * 32)
    fresh = await keeper.evidence(Role.SERVER, Phase.POST_HANDSHAKE, **PHASE2)
    assert split_aux(passport)[1] == b"" and split_aux(fresh)[1] == LOG
    await keeper.close()


@pytest.mark.parametrize("content", [None, b"", bytes(MAX_AUX_BYTES + 1)])
async def test_a_log_that_cannot_be_sent(mesh: Mesh, tmp_path: Path, content: bytes | None) -> None:
    log = tmp_path / "log"
    if content is not None:
        log.write_bytes(content)
    keeper = mesh.agent_keeper(event_log=log)
    with pytest.raises(CollectionFailed) as caught:
        await keeper.evidence(Role.SERVER, Phase.POST_HANDSHAKE, **PHASE2)
    assert caught.value.code == "event_log_unreadable" and keeper.quote_failures == {"event_log_unreadable": 1}
    await keeper.close()


async def test_a_session_keeps_the_log_for_a_further_policy(mesh: Mesh, tmp_path: Path) -> None:
    log = measure(mesh, tmp_path)
    async with running_agent(mesh.agent_keeper(event_log=log)) as agent:
        keeper = mesh.proxy_keeper()
        inner = Recorder()
        await attaching(keeper, agent.port).connect(lambda: inner)
        session = keeper.sessions.to(AGENT)
        assert isinstance(session, Session) and split_aux(session.agreed.evidence)[1] == LOG
        again = await keeper.appraise_session(name_of(session.id), POLICY)
        assert again.claims["eventlog.secure_boot"] == "true"
        inner.transport.abort()
        await keeper.close()
