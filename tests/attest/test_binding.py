"""Known-answer values of attested-TLS §9, and every way in which claims can speak of something else."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attest.binding import (
    Claims,
    Expected,
    Phase,
    Role,
    ak_report_data,
    check_binding,
    data_hash,
    decode_claims,
    encode_claims,
    exporter_context,
    exporter_label,
    snp_report_data,
)
from attest.codec import cbor_decode, cbor_encode
from attest.errors import BindingMismatch, MalformedEvidence, Stale

GENERATOR = ec.derive_private_key(1, ec.SECP256R1()).public_key()
SPKI_HASH = hashlib.sha256(GENERATOR.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
NONCE = bytes(range(32))
PHASE_1 = Claims(
    role=Role.SERVER, phase=Phase.HANDSHAKE, node_id="spiffe://cube/agent/a1", not_after=1_800_000_000,
    boot_id=bytes(16), spki_hash=SPKI_HASH, nonce=NONCE,
)  # fmt: skip
PHASE_2 = msgspec.structs.replace(
    PHASE_1, phase=Phase.POST_HANDSHAKE, channel_binding=b"\xcb" * 32, peer_spki_hash=b"\xee" * 32
)
NOW = 1_799_999_000.0


def expected_for(claims: Claims) -> Expected:
    return Expected(**{f: getattr(claims, f) for f in Expected.__struct_fields__})


def test_known_answers() -> None:
    first, second = encode_claims(PHASE_1), encode_claims(PHASE_2)
    assert len(first) == 149 and first.hex().startswith("a36463756265583388010101")
    assert data_hash(first).hex() == "1b12339e4fe0e1501c0516892f49245551d8bb87c75eef8d9e7237aa04567981"
    assert len(second) == 215
    assert data_hash(second).hex() == "93db0488823b49ee097401cca6f391e18fb2c1a3f3571bf7ab9d4dd19ea1dffc"
    context = exporter_context(NONCE, b"\x11" * 32, b"\x22" * 32)
    assert context.hex() == "0dd8a80d819c74517ae30edb3001eacba3501e6d28da604e4a12114831a7afb8"


def test_labels_and_report_data() -> None:
    assert exporter_label(Role.SERVER) == b"EXPORTER-cube-mesh-attest-server"
    assert exporter_label(Role.CLIENT) == b"EXPORTER-cube-mesh-attest-client"
    assert snp_report_data(b"\x07" * 32) == b"\x07" * 32 + bytes(32)
    assert ak_report_data(b"ak", b"\x07" * 32) == hashlib.sha512(b"cube-mesh/1 ak\x00ak" + b"\x07" * 32).digest()
    with pytest.raises(ValueError, match="32 bytes"):
        snp_report_data(b"\x07" * 31)


@pytest.mark.parametrize("claims", [PHASE_1, PHASE_2])
def test_round_trip_and_accept(claims: Claims) -> None:
    raw = encode_claims(claims)
    assert decode_claims(raw) == claims
    assert check_binding(raw, expected_for(claims), NOW, 3600) == claims


OTHER = {
    "role": Role.CLIENT,
    "node_id": "spiffe://cube/agent/a2",
    "spki_hash": b"\x01" * 32,
    "nonce": b"\x02" * 32,
    "channel_binding": b"\x03" * 32,
    "peer_spki_hash": b"\x04" * 32,
}


@pytest.mark.parametrize("field", OTHER)
def test_one_differing_field_is_refused_by_name(field: str) -> None:
    other = msgspec.structs.replace(PHASE_2, **{field: OTHER[field]})
    with pytest.raises(BindingMismatch, match=field):
        check_binding(encode_claims(other), expected_for(PHASE_2), NOW, 3600)


def test_other_phase_is_refused() -> None:
    with pytest.raises(BindingMismatch, match="phase"):
        check_binding(encode_claims(PHASE_1), expected_for(PHASE_2), NOW, 3600)


@pytest.mark.parametrize(("now", "lifetime"), [(1_800_000_000.0, 3600), (1_799_996_399.0, 3600), (2e9, 3600)])
def test_out_of_time(now: float, lifetime: float) -> None:
    with pytest.raises(Stale):
        check_binding(encode_claims(PHASE_1), expected_for(PHASE_1), now, lifetime)


def test_limits_of_time_are_accepted() -> None:
    check_binding(encode_claims(PHASE_1), expected_for(PHASE_1), 1_799_999_999.5, 3600)
    check_binding(encode_claims(PHASE_1), expected_for(PHASE_1), 1_799_996_400.0, 3600)


@pytest.mark.parametrize(
    "change",
    [
        {"phase": Phase.PASSPORT},
        {"nonce": None},
        {"nonce": bytes(31)},
        {"channel_binding": None},
        {"peer_spki_hash": bytes(16)},
        {"node_id": ""},
        {"node_id": "x" * 256},
        {"spki_hash": b""},
    ],
)
def test_expected_cannot_be_incomplete(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="binding"):
        msgspec.structs.replace(expected_for(PHASE_2), **change)


def _with_cube(position: int, value: object) -> bytes:
    fields = cbor_decode(encode_claims(PHASE_2))
    assert isinstance(fields, dict) and isinstance(fields["cube"], bytes)
    cube = cbor_decode(fields["cube"])
    assert isinstance(cube, list)
    cube[position] = value  # type: ignore[call-overload]
    fields["cube"] = cbor_encode(cube)
    return cbor_encode(fields)


def _with_field(name: str | int, value: object) -> bytes:
    fields = cbor_decode(encode_claims(PHASE_2))
    assert isinstance(fields, dict)
    fields[name] = value  # type: ignore[assignment]
    return cbor_encode(fields)


MALFORMED = {
    "empty": b"",
    "not a map": cbor_encode([1]),
    "no cube": cbor_encode({"pubkey-hash": cbor_encode([1, bytes(32)])}),
    "version": _with_cube(0, 2),
    "role": _with_cube(1, 2),
    "phase": _with_cube(2, 3),
    "node id not text": _with_cube(3, b"spiffe://cube/agent/a1"),
    "not-after zero": _with_cube(4, 0),
    "not-after huge": _with_cube(4, 1 << 60),
    "channel text": _with_cube(5, "x" * 32),
    "boot id short": _with_cube(7, bytes(15)),
    "extra member": _with_field("x", 1),
    "nonce null": _with_field("nonce", None),
    "hash algorithm": _with_field("pubkey-hash", cbor_encode([2, SPKI_HASH])),
    "hash with tail": _with_field("pubkey-hash", cbor_encode([1, SPKI_HASH]) + b"\x00"),
    "cube not bytes": _with_field("cube", 1),
    "cube not array": _with_field("cube", cbor_encode(1)),
    "cube of seven": _with_field("cube", cbor_encode([1, 1, 2, "n", 1_800_000_000, None, None])),
    "not-after text": _with_cube(4, "soon"),
    "pubkey-hash not array": _with_field("pubkey-hash", cbor_encode(1)),
    "trailing": encode_claims(PHASE_2) + b"\x00",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_claims(name: str) -> None:
    for read in (decode_claims, lambda raw: check_binding(raw, expected_for(PHASE_2), NOW, 3600)):
        with pytest.raises(MalformedEvidence):
            read(MALFORMED[name])


def test_claims_made_ahead_of_any_connection() -> None:
    passport = msgspec.structs.replace(PHASE_1, phase=Phase.PASSPORT, nonce=None)
    assert decode_claims(encode_claims(passport)) == passport
    assert check_binding(encode_claims(passport), expected_for(passport), NOW, 3600) == passport


def test_every_truncation_is_malformed() -> None:
    raw = encode_claims(PHASE_2)
    for length in range(len(raw)):
        with pytest.raises(MalformedEvidence):
            decode_claims(raw[:length])
