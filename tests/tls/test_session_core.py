"""Sessions without I/O: known answers, and the table."""

from __future__ import annotations

import hashlib
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from attest.binding import Role
from cube_mesh.ports import ChannelAttestation
from cube_mesh.tls.frames import FrameError, decode_attach, decode_attached
from cube_mesh.tls.reasons import Refusal
from cube_mesh.tls.sessions import (
    MAX_PER_PEER,
    Agreed,
    Session,
    SessionTable,
    attach_value,
    check_proof,
    expand,
    prove,
    session_keys,
    transcript,
)

BODIES = tuple(bytes([n]) * (n + 1) for n in range(6))


def exporter(label: bytes, context: bytes, size: int) -> bytes:
    return sha256(b"test exporter" + bytes([len(label)]) + label + context).digest()[:size]


def test_known_answers() -> None:
    """Made with hashlib and cryptography's HKDF, not with this code. The exporter is the stand-in above."""
    expected = hashlib.new("sha256", b"cube-mesh/1 session\0" + b"".join(sha256(b).digest() for b in BODIES)).digest()
    assert transcript(*BODIES) == expected
    secret = exporter(b"EXPORTER-cube-mesh-session", expected, 32)
    sizes = {b"sid": 16, b"attach client": 32, b"attach server": 32}
    by_library = tuple(
        HKDFExpand(hashes.SHA256(), size, b"cube-mesh/1 " + info).derive(secret) for info, size in sizes.items()
    )
    assert session_keys(exporter, BODIES) == by_library
    leaves = (b"\x11" * 32, b"\x22" * 32)
    context = sha256(b"cube-mesh/1 attach\0" + by_library[0] + leaves[0] + leaves[1]).digest()
    value = attach_value(exporter, by_library[0], leaves)
    assert value == exporter(b"EXPORTER-cube-mesh-attach", context, 32)
    check_proof(by_library[1], value, prove(by_library[1], value))


@pytest.mark.parametrize("at", range(6))
def test_every_frame_is_in_the_transcript(at: int) -> None:
    other = tuple(body + b"x" if n == at else body for n, body in enumerate(BODIES))
    assert not set(session_keys(exporter, other)) & set(session_keys(exporter, BODIES))


def test_sizes() -> None:
    for body in (b"", b"a" * 47, b"a" * 49):
        with pytest.raises(FrameError):
            decode_attach(body)
    for body in (b"", b"a" * 31, b"a" * 33):
        with pytest.raises(FrameError):
            decode_attached(body)
    for size in (0, 33):
        with pytest.raises(ValueError):
            expand(b"k", b"i", size)


def session(
    number: int, *, peer: str = "p", boot: int = 0, role: Role = Role.SERVER, ends: float = 100, **changes: Any
) -> Session:
    agreed = Agreed(
        role=role,
        id=bytes([number]) * 16,
        client_key=b"SECRET-c" * 4,
        server_key=b"SECRET-s" * 4,
        leaves=(b"c", b"s"),
        leaf_keys=changes.get("leaf_keys", (b"kc", b"ks")),
        peer_boot_id=bytes([boot]),
    )
    facts = ChannelAttestation(
        mode="control", peer_id=peer, platform="vtpm", verdict="accept", confidential=False, simulated=False,
        policy_id="", policy_digest=changes.get("policy", ""), appraisal_id="", expires_at=ends, tls_version="",
        cipher="", peer_cert_issuer="", peer_cert_serial="", evidence_digest="", nonce="", handshake_ms=0,
        attestation_ms=0,
    )  # fmt: skip
    return Session(agreed=agreed, facts=facts, began_at=number, expires_at=ends)


def test_no_key_is_shown() -> None:
    assert "SECRET" not in repr(session(1)) + str([session(1)])


def test_a_new_session_takes_the_place_of_the_old_one_at_once() -> None:
    table = SessionTable()
    table.add(session(1), 0)
    made, gone = table.add(session(2), 0)
    assert (made.generation, [one.id[0] for one in gone]) == (2, [1])
    with pytest.raises(Refusal, match="session_unknown"):
        table.find(bytes([1]) * 16, 0)
    assert table.find(bytes([2]) * 16, 0) == made


def test_a_proxy_that_runs_twice_has_two_sessions_and_an_agent_one() -> None:
    table = SessionTable()
    for number, role in ((1, Role.SERVER), (2, Role.SERVER), (3, Role.CLIENT), (4, Role.CLIENT)):
        table.add(session(number, boot=number, role=role), 0)
    assert sorted(one.id[0] for one in table) == [1, 2, 4]


def test_the_table_is_bounded_and_the_oldest_goes() -> None:
    table = SessionTable()
    for number in range(MAX_PER_PEER + 1):
        table.add(session(number, boot=number), 0)
    assert len(table) == MAX_PER_PEER
    with pytest.raises(Refusal):
        table.find(bytes(16), 0)


def test_what_has_ended_is_gone_and_what_is_revoked_too() -> None:
    table = SessionTable()
    table.add(session(1, ends=10), 0)
    table.add(session(2, peer="q"), 0)
    table.find(bytes([1]) * 16, 9.9)
    with pytest.raises(Refusal):
        table.find(bytes([1]) * 16, 10)
    assert len(table) == 1
    assert [one.peer_id for one in table.revoke("q")] == ["q"]
    assert len(table) == 0


@pytest.mark.parametrize(
    "change", [{"boot": 1}, {"leaf_keys": (b"kc", b"new")}, {"policy": "new"}, {"role": Role.CLIENT}, {"peer": "q"}]
)
def test_a_session_renews_only_what_is_the_same(change: dict[str, Any]) -> None:
    assert session(2).renews(session(1))
    assert not session(2, **change).renews(session(1))
