"""The gate as a playbook: two gates in memory, a connection that is a hash function, and events out of turn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attest.appraise import AttestationResult
from attest.attester import NoEvidence, evidence_for
from attest.binding import Claims, Expected, Phase, Role, check_binding
from attest.evidence import decode_evidence
from cube_mesh.tls import gate as gate_module
from cube_mesh.tls.frames import FrameType, encode_frame
from cube_mesh.tls.gate import Appraise, Close, Collect, Command, Facts, Gate, Open, Plan, Send, State, check_handshake
from cube_mesh.tls.identity import KnownLeaves, Leaf, parse_spiffe_id, self_signed_leaf, spki_hash
from cube_mesh.tls.reasons import REASONS, Refusal
from cube_mesh.tls.verdict import Result, decode_result, encode_result

NOW = 1_800_000_000.0
ROLE_NAME = {Role.CLIENT: "spiffe://cube/proxy/p1", Role.SERVER: "spiffe://cube/agent/a1"}
BOOT = bytes(16)


def claims(role: Role, phase: Phase, key_hash: bytes, not_after: int, **channel: Any) -> Claims:
    return Claims(
        role=role,
        phase=phase,
        node_id=ROLE_NAME[role],
        not_after=not_after,
        boot_id=BOOT,
        spki_hash=key_hash,
        **channel,
    )


def make_leaf(role: Role, seed: int, lifetime: int = 3600) -> Leaf:
    key = ec.derive_private_key(seed, ec.SECP256R1())
    passport = evidence_for(
        NoEvidence(), claims(role, Phase.PASSPORT, spki_hash(key.public_key()), int(NOW) + lifetime)
    )
    name = parse_spiffe_id(ROLE_NAME[role])
    return self_signed_leaf(name, key, passport, serial=1, not_before=NOW - 60, not_after=NOW + lifetime)


LEAVES = {Role.CLIENT: make_leaf(Role.CLIENT, 5), Role.SERVER: make_leaf(Role.SERVER, 6)}


def accept(raw: bytes, expected: Expected, *, now: float) -> AttestationResult:
    """Appraises the binding alone: what the evidence is worth is not the gate's business."""
    seen = check_binding(decode_evidence(raw).claims, expected, now, 86_400)
    return AttestationResult(
        platform="none",
        confidential=False,
        simulated=False,
        claims={},
        policy_id="test",
        policy_digest="00",
        node_id=seen.node_id,
        boot_id=seen.boot_id,
        expires=seen.not_after,
        evidence_digest="00",
        appraisal_id="00",
    )


def other(role: Role) -> Role:
    return Role.SERVER if role is Role.CLIENT else Role.CLIENT


def exporter(label: bytes, context: bytes, size: int) -> bytes:
    return hashlib.shake_256(b"connection" + label + b"|" + context).digest(size)


def plan(role: Role, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "role": role,
        "protocols": (b"cube-mesh/1-quote",),
        "trust_domain": "cube",
        "allowed": frozenset({ROLE_NAME[other(role)]}),
        "policy": "p",
        "roots": (),
        "needs_passport": True,
        "interval_s": 600.0,
        "max_age_s": 3600.0,
        "nonce": bytes((int(role) + 1,)) * 32,
    }
    return Plan(**{**values, **changes})


def facts(role: Role, **changes: Any) -> Facts:
    values: dict[str, Any] = {
        "version": "TLSv1.3",
        "protocol": b"cube-mesh/1-quote",
        "suite": "TLS_AES_128_GCM_SHA256",
        "certificate_seen": True,
        "peer_leaf": LEAVES[other(role)].cert_der,
        "peer_chain": (),
        "exporter": exporter,
        "leaf": LEAVES[role],
    }
    return Facts(**{**values, **changes})


def make_gate(role: Role, **changes: Any) -> Gate:
    its_plan, its_facts = plan(role, **changes), facts(role)
    return Gate(its_plan, its_facts, check_handshake(its_facts, its_plan, NOW))


class End:
    """A host for one gate: carries out commands at once, and keeps what the gate asked for."""

    def __init__(self, role: Role, **changes: Any) -> None:
        self.role = role
        self.gate = make_gate(role, **changes)
        self.wire = b""
        self.log: list[Command] = []
        self.expiry_of_claims = int(NOW) + 600

    def run(self, commands: list[Command]) -> None:
        for command in commands:
            self.log.append(command)
            match command:
                case Send(data):
                    self.wire += data
                case Collect():
                    self.run(self.gate.collected(self.evidence(command), NOW))
                case Appraise(raw, expected, _):
                    self.run(self.appraise(raw, expected))

    def evidence(self, command: Collect) -> bytes:
        channel = {
            "nonce": command.nonce,
            "channel_binding": command.channel_binding,
            "peer_spki_hash": command.peer_spki_hash,
        }
        made = claims(self.role, Phase.POST_HANDSHAKE, command.spki_hash, self.expiry_of_claims, **channel)
        return evidence_for(NoEvidence(), made)

    def appraise(self, raw: bytes, expected: Expected) -> list[Command]:
        return self.gate.appraised(accept(raw, expected, now=NOW), NOW)

    def take(self) -> bytes:
        wire, self.wire = self.wire, b""
        return wire

    @property
    def last(self) -> Command:
        return self.log[-1]


def talk(client: End, server: End) -> None:
    client.run(client.gate.start())
    server.run(server.gate.start())
    while client.wire or server.wire:
        server.run(server.gate.receive(client.take(), NOW))
        client.run(client.gate.receive(server.take(), NOW))


def pair(**changes: Any) -> tuple[End, End]:
    return End(Role.CLIENT, **changes), End(Role.SERVER, **changes)


def kinds(end: End) -> list[str]:
    return [type(command).__name__ for command in end.log]


def test_both_gates_open() -> None:
    client, server = pair()
    talk(client, server)
    assert kinds(client) == ["Appraise", "Send", "Appraise", "Collect", "Send", "Send", "Open"]
    assert kinds(server) == ["Appraise", "Send", "Collect", "Send", "Appraise", "Send", "Open"]
    assert isinstance(client.last, Open) and isinstance(server.last, Open)
    assert client.last.expires_at == server.last.expires_at == NOW + 600


def test_byte_by_byte() -> None:
    client, server = pair()
    client.run(client.gate.start())
    server.run(server.gate.start())
    while client.wire or server.wire:
        for here, there in ((client, server), (server, client)):
            for byte in there.take():
                here.run(here.gate.receive(bytes((byte,)), NOW))
    assert isinstance(client.last, Open) and isinstance(server.last, Open)


def test_what_a_server_sends_right_behind_its_result_reaches_the_application() -> None:
    client, server = pair()
    talk_until(client, server, lambda: isinstance(server.last, Open))
    client.run(client.gate.receive(server.take() + b"HTTP/1.1 200", NOW))
    assert isinstance(client.last, Open)
    assert client.last.rest == b"HTTP/1.1 200"


def talk_until(client: End, server: End, done: Callable[[], bool]) -> None:
    client.run(client.gate.start())
    server.run(server.gate.start())
    while not done():
        assert client.wire or server.wire
        server.run(server.gate.receive(client.take(), NOW))
        if not done():
            client.run(client.gate.receive(server.take(), NOW))


@pytest.mark.parametrize(
    ("limit", "end"),
    [({"interval_s": 5.0}, 5), ({"max_age_s": 7.0}, 7)],
)
def test_the_earliest_end_wins_at_both_ends(limit: dict[str, float], end: int) -> None:
    client, server = End(Role.CLIENT, **limit), End(Role.SERVER)
    talk(client, server)
    assert isinstance(client.last, Open) and isinstance(server.last, Open)
    assert client.last.expires_at == server.last.expires_at == NOW + end


def test_claims_that_end_early_end_the_channel() -> None:
    client, server = pair()
    client.expiry_of_claims = int(NOW) + 30
    talk(client, server)
    assert isinstance(client.last, Open) and isinstance(server.last, Open)
    assert client.last.expires_at == server.last.expires_at == NOW + 30


# --- refused ---


def closed(end: End, reason: str, phase: str) -> None:
    assert isinstance(end.last, Close), end.log
    assert (end.last.reason, end.last.phase) == (reason, phase)
    assert end.gate.state is State.CLOSED
    assert not any(isinstance(command, Open) for command in end.log)


REQUEST = encode_frame(FrameType.REQUEST, b"x")
ACCEPTS = encode_frame(FrameType.RESULT, encode_result(Result(0, "ok", "", "", 2_000_000_000)))
REFUSES = encode_frame(FrameType.RESULT, encode_result(Result(1, "measurement", "", "", 0)))


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"POST /v1/chat HTTP/1.1\r\n", "frame_type"),
        (encode_frame(FrameType.AUTHENTICATOR, b"x"), "frame_order"),
        (encode_frame(FrameType.AUX, b"x"), "frame_order"),
        (encode_frame(FrameType.ATTACH, b"x"), "frame_order"),
        (encode_frame(FrameType.ATTACHED, b"x"), "frame_order"),
        (ACCEPTS, "frame_order"),
        (encode_frame(FrameType.RESULT, b""), "result_malformed"),
        (encode_frame(FrameType.REQUEST, b""), "authenticator_malformed"),
        (REFUSES, "refused"),
    ],
)
@pytest.mark.parametrize("role", list(Role))
def test_what_may_not_come_first(role: Role, wire: bytes, reason: str) -> None:
    end = End(role)
    end.run(end.gate.start())
    end.run(end.gate.receive(wire, NOW))
    closed(end, reason, "attest")


def test_the_peers_reason_is_kept_as_detail() -> None:
    end = End(Role.CLIENT)
    end.run(end.gate.start())
    end.run(end.gate.receive(REFUSES, NOW))
    assert isinstance(end.last, Close) and end.last.detail == "measurement"


@pytest.mark.parametrize("role", list(Role))
def test_a_second_request_is_out_of_order(role: Role) -> None:
    end, peer = End(role), End(other(role))
    end.run(end.gate.start())
    peer.run(peer.gate.start())
    request = peer.take()
    end.run(end.gate.receive(request + request, NOW))
    closed(end, "frame_order", "attest")


def test_early_data_behind_the_clients_result() -> None:
    client, server = pair()
    talk_until(client, server, lambda: client.gate.state is State.RESULT)
    server.run(server.gate.receive(client.take() + b"POST /", NOW))
    closed(server, "early_data", "result")


def test_early_data_while_the_server_appraises() -> None:
    """The host has not answered yet: bytes are kept, and refused once the server would open."""
    client, server = pair()
    waiting: list[Appraise] = []

    def later(raw: bytes, expected: Expected) -> list[Command]:
        waiting.append(Appraise(raw, expected, "p"))
        return []

    talk_until(client, server, lambda: server.gate.state is State.REQUEST)
    server.appraise = later  # type: ignore[method-assign]
    talk_on(client, server, lambda: bool(waiting))
    server.run(server.gate.receive(client.take() + b"P", NOW))
    server.run(server.gate.appraised(accept(waiting[0].raw, waiting[0].expected, now=NOW), NOW))
    closed(server, "early_data", "result")


def talk_on(client: End, server: End, done: Callable[[], bool]) -> None:
    while not done():
        assert client.wire or server.wire
        server.run(server.gate.receive(client.take(), NOW))
        client.run(client.gate.receive(server.take(), NOW))


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("state", ["start", "open", "closed"])
def test_answers_that_nobody_asked_for(role: Role, state: str) -> None:
    end, peer = End(role), End(other(role))
    result = accept(
        evidence_for(NoEvidence(), claims(role, Phase.PASSPORT, LEAVES[role].spki_hash, int(NOW) + 60)),
        Expected(role=role, phase=Phase.PASSPORT, node_id=ROLE_NAME[role], spki_hash=LEAVES[role].spki_hash),
        now=NOW,
    )
    if state == "start":
        for answer in (end.gate.collected(b"e", NOW), make_gate(role).appraised(result, NOW)):
            assert isinstance(answer[-1], Close) and answer[-1].reason == "internal"
        return
    if state == "open":
        talk(*((end, peer) if role is Role.CLIENT else (peer, end)))
    else:
        end.run(end.gate.failed("timeout"))
    assert end.gate.collected(b"e", NOW) == end.gate.appraised(result, NOW) == end.gate.receive(b"x", NOW) == []
    assert end.gate.failed("timeout") == []


def test_a_peer_that_is_not_proven_does_not_learn_the_reason() -> None:
    end = End(Role.CLIENT)
    end.run(end.gate.start())
    end.take()
    end.run(end.gate.failed("binding_mismatch", "secret detail"))
    assert decode_result(end.take()[5:]).reason == "refused"


def test_a_peer_of_the_mesh_ca_learns_the_code_and_never_the_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module.identity, "check_chain", lambda *_: None)
    end = End(Role.SERVER, roots=(b"root",), needs_passport=False)
    end.run(end.gate.start())
    end.take()
    end.run(end.gate.failed("stale", "secret detail"))
    wire = end.take()
    assert decode_result(wire[5:]).reason == "stale"
    assert b"secret" not in wire


def test_a_result_that_has_ended_already_opens_nothing() -> None:
    client, server = pair()
    talk_until(client, server, lambda: client.gate.state is State.RESULT)
    ended = encode_frame(FrameType.RESULT, encode_result(Result(0, "ok", "", "", int(NOW))))
    client.run(client.gate.receive(ended, NOW))
    closed(client, "expired", "result")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "TLSv1.2"}, "tls_version"),
        ({"protocol": b""}, "alpn"),
        ({"protocol": b"cube-mesh/1-cert"}, "alpn"),
        ({"certificate_seen": False}, "resumed"),
        ({"peer_leaf": b""}, "no_leaf"),
        ({"peer_leaf": b"\x30\x00"}, "leaf_malformed"),
        ({"peer_leaf": LEAVES[Role.CLIENT].cert_der}, "wrong_role"),
    ],
)
def test_wrong_only_in_the_handshake(change: dict[str, Any], reason: str) -> None:
    assert reason in REASONS
    with pytest.raises(Refusal) as caught:
        check_handshake(facts(Role.CLIENT, **change), plan(Role.CLIENT), NOW)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trust_domain": "cube2"}, "trust_domain"),
        ({"allowed": frozenset({"spiffe://cube/agent/a2"})}, "not_allowed"),
    ],
)
def test_wrong_only_in_the_plan(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_handshake(facts(Role.CLIENT), plan(Role.CLIENT, **change), NOW)
    assert caught.value.reason == reason


@pytest.mark.parametrize("change", [{"allowed": frozenset()}, {"needs_passport": False}])
def test_a_plan_without_a_peer_or_a_proof_cannot_be_made(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a plan names"):
        plan(Role.SERVER, **change)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        encode_result(Result(0, "ok", "", "", 0)),
        encode_result(Result(1, "no", "", "", 5)),
        encode_result(Result(0, "ok", "", "", 5)) + b"\x00",
    ],
)
def test_results_that_contradict_themselves(body: bytes) -> None:
    with pytest.raises(ValueError):
        decode_result(body)


# --- leaves that are known ---


class Verifications:
    """Counts what is read and verified while the gate's checks are the real ones, but for the chain's signature."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = self.chains = 0
        parse = gate_module.identity.parse_peer_leaf

        def counted(der: bytes) -> gate_module.identity.PeerLeaf:
            self.read += 1
            return parse(der)

        def chain(*_: object) -> None:
            self.chains += 1

        monkeypatch.setattr(gate_module.identity, "parse_peer_leaf", counted)
        monkeypatch.setattr(gate_module.identity, "check_chain", chain)


ROOTED: dict[str, Any] = {"roots": (LEAVES[Role.CLIENT].cert_der,), "needs_passport": False}


def test_a_known_leaf_is_read_and_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, known = Verifications(monkeypatch), KnownLeaves()
    first, second = (check_handshake(facts(Role.SERVER), plan(Role.SERVER, **ROOTED), NOW, known) for _ in range(2))
    assert first == second and (seen.read, seen.chains) == (1, 1)


def test_what_is_not_kept_of_a_known_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing that a later connection may change is looked at again, although the leaf is known."""
    seen, known = Verifications(monkeypatch), KnownLeaves()

    def refusal(now: float = NOW, of: Facts | None = None, **changes: Any) -> str:
        with pytest.raises(Refusal) as caught:
            check_handshake(of or facts(Role.SERVER), plan(Role.SERVER, **{**ROOTED, **changes}), now, known)
        return caught.value.reason

    check_handshake(facts(Role.SERVER), plan(Role.SERVER, **ROOTED), NOW, known)
    assert refusal(NOW + 3600) == "leaf_expired"
    assert refusal(NOW - 3600) == "leaf_expired"
    assert refusal(allowed=frozenset({"spiffe://cube/proxy/p2"})) == "not_allowed"
    assert refusal(trust_domain="other") == "trust_domain"
    assert refusal(of=facts(Role.SERVER, certificate_seen=False)) == "resumed"
    assert refusal(of=facts(Role.SERVER, peer_leaf=LEAVES[Role.SERVER].cert_der)) == "wrong_role"
    assert (seen.read, seen.chains) == (4, 1), "out of its time it is unknown; another leaf is another"


@pytest.mark.parametrize("change", ["root ends", "clock set back", "other chain"])
def test_a_chain_is_verified_again(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, known = Verifications(monkeypatch), KnownLeaves()
    roots = (make_leaf(Role.SERVER, 6, lifetime=100).cert_der,) if change == "root ends" else ROOTED["roots"]
    later = {"root ends": NOW + 200, "clock set back": NOW - 1}.get(change, NOW)
    chain = (LEAVES[Role.SERVER].cert_der,) if change == "other chain" else ()
    for now, given in ((NOW, ()), (later, chain)):
        its_plan = plan(Role.SERVER, roots=roots, needs_passport=False)
        check_handshake(facts(Role.SERVER, peer_chain=given), its_plan, now, known)
    assert seen.chains == 2


def test_what_is_refused_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, known = Verifications(monkeypatch), KnownLeaves()
    for _ in range(2):
        with pytest.raises(Refusal, match="not_allowed"):
            check_handshake(facts(Role.SERVER), plan(Role.SERVER, **ROOTED, allowed=frozenset({"x"})), NOW, known)
    assert (seen.read, seen.chains) == (2, 2)
