"""What evidence speaks for: one key, role, phase, node, nonce and channel (protocol ``cube-mesh/1`` §2-§4).

The relying party never believes received claims. It rebuilds them from what it knows itself (:class:`Expected`), takes
only ``not_after`` and ``boot_id`` from the peer, and requires the same bytes. What the TEE or TPM signs is
:func:`data_hash` of those bytes, never bytes of a caller. That the signature is genuine is not checked here.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import IntEnum

import msgspec

from attest.codec import CborValue, cbor_decode, cbor_encode
from attest.errors import BindingMismatch, MalformedEvidence, Stale

__all__ = [
    "Claims",
    "Expected",
    "Phase",
    "Role",
    "ak_report_data",
    "check_binding",
    "data_hash",
    "decode_claims",
    "encode_claims",
    "exporter_context",
    "exporter_label",
    "snp_report_data",
]

MAX_NODE_ID_BYTES = 255
_MAX_TIME = 1 << 48


class Role(IntEnum):
    """The TLS role of the attester."""

    CLIENT = 0
    SERVER = 1


class Phase(IntEnum):
    """When the evidence was made: ahead of any connection, for a nonce in the handshake, or after the handshake."""

    PASSPORT = 0
    HANDSHAKE = 1
    POST_HANDSHAKE = 2


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What the attester says about itself and the channel. ``not_after`` is Unix seconds; hashes are SHA-256."""

    role: Role
    phase: Phase
    node_id: str
    not_after: int
    boot_id: bytes
    spki_hash: bytes
    nonce: bytes | None = None
    channel_binding: bytes | None = None
    peer_spki_hash: bytes | None = None

    def __post_init__(self) -> None:
        _check_shape(self.phase, self.node_id, self.spki_hash, self.nonce, self.channel_binding, self.peer_spki_hash)
        if len(self.boot_id) != 16 or not 0 < self.not_after < _MAX_TIME:
            raise ValueError("claims: boot id of 16 bytes and a positive not-after are required")


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What the relying party knows by itself about the channel and the peer that it wants. Nothing in it is optional
    by taste: the phase says what must be there, and a missing value is a ValueError when the object is made.
    """

    role: Role
    phase: Phase
    node_id: str
    spki_hash: bytes
    nonce: bytes | None = None
    channel_binding: bytes | None = None
    peer_spki_hash: bytes | None = None

    def __post_init__(self) -> None:
        _check_shape(self.phase, self.node_id, self.spki_hash, self.nonce, self.channel_binding, self.peer_spki_hash)


# How long nonce, channel binding and peer key hash are in each phase.
_SHAPES = ((None, None, None), (32, None, None), (32, 32, 32))


def _check_shape(phase: Phase, node_id: str, spki_hash: bytes, *hashes: bytes | None) -> None:
    """Phase 0 has neither nonce nor channel, phase 1 a nonce, phase 2 nonce, channel binding and the peer's key."""
    if not node_id or len(node_id.encode()) > MAX_NODE_ID_BYTES or len(spki_hash) != 32:
        raise ValueError("binding: a node id of 1 to 255 bytes and a 32-byte key hash are required")
    for name, value, size in zip(("nonce", "channel binding", "peer key hash"), hashes, _SHAPES[phase], strict=True):
        if (None if value is None else len(value)) != size:
            state = "absent" if size is None else "32 bytes"
            raise ValueError(f"binding: {name} must be {state} in phase {phase.name}")


def encode_claims(claims: Claims) -> bytes:
    """The bytes that are hashed and sent (§3)."""
    cube = cbor_encode([
        1, int(claims.role), int(claims.phase), claims.node_id, claims.not_after,
        claims.channel_binding, claims.peer_spki_hash, claims.boot_id,
    ])  # fmt: skip
    fields: dict[int | str, CborValue] = {"cube": cube, "pubkey-hash": cbor_encode([1, claims.spki_hash])}
    if claims.nonce is not None:
        fields["nonce"] = claims.nonce
    return cbor_encode(fields)


def decode_claims(raw: bytes) -> Claims:
    """Received claims as fields, unverified: nobody has signed them yet. Raises MalformedEvidence."""
    try:
        claims = _convert(cbor_decode(raw))
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedEvidence(f"claims: {error}") from None
    # The one encoding of these claims: nothing else may have been in the bytes.
    if encode_claims(claims) != raw:
        raise MalformedEvidence("claims: unknown or misplaced member")
    return claims


def _convert(fields: CborValue) -> Claims:
    if not isinstance(fields, dict):
        raise MalformedEvidence("claims: not a map")
    cube, key, nonce = fields["cube"], fields["pubkey-hash"], fields.get("nonce")
    if not isinstance(cube, bytes) or not isinstance(key, bytes):
        raise MalformedEvidence("claims: cube and pubkey-hash are byte strings")
    cube_items, key_items = cbor_decode(cube), cbor_decode(key)
    if not isinstance(cube_items, list) or not isinstance(key_items, list):
        raise MalformedEvidence("claims: cube and pubkey-hash hold arrays")
    version, role, phase, node_id, not_after, channel, peer, boot_id = cube_items
    algorithm, spki_hash = key_items
    if version != 1 or algorithm != 1:
        raise ValueError("unknown version or hash")
    return msgspec.convert(
        {
            "role": role, "phase": phase, "node_id": node_id, "not_after": not_after, "boot_id": boot_id,
            "spki_hash": spki_hash, "nonce": nonce, "channel_binding": channel, "peer_spki_hash": peer,
        },
        Claims,
        builtin_types=(bytes,),
    )  # fmt: skip


def data_hash(claims_bytes: bytes) -> bytes:
    """What the evidence must carry: SHA-256 over the encoded claims under our own tag (§3)."""
    return hashlib.sha256(b"cube-mesh/1 claims\x00" + claims_bytes).digest()


def snp_report_data(data_hash: bytes) -> bytes:
    """REPORT_DATA of SEV-SNP and TDX: the data hash and 32 zero bytes."""
    return _sized(data_hash) + bytes(32)


def ak_report_data(ak_public: bytes, data_hash: bytes) -> bytes:
    """REPORT_DATA of a machine with SEV-SNP and a vTPM: names the AK (TPMT_PUBLIC) and the data hash, 64 bytes."""
    return hashlib.sha512(b"cube-mesh/1 ak\x00" + ak_public + _sized(data_hash)).digest()


def exporter_label(role: Role) -> bytes:
    """Label of the TLS exporter whose value is the channel binding of the attester in ``role`` (§4)."""
    return b"EXPORTER-cube-mesh-attest-server" if role is Role.SERVER else b"EXPORTER-cube-mesh-attest-client"


def exporter_context(nonce: bytes, client_leaf_hash: bytes, server_leaf_hash: bytes) -> bytes:
    """Context of that exporter. Both leaves are in it because the TLS 1.3 exporter does not cover the client's."""
    parts = _sized(nonce) + _sized(client_leaf_hash) + _sized(server_leaf_hash)
    return hashlib.sha256(b"cube-mesh/1\x00" + parts).digest()


def check_binding(claims_bytes: bytes, expected: Expected, now: float, max_lifetime_s: float) -> Claims:
    """Rebuild the claims from ``expected`` and require that they are exactly ``claims_bytes`` (constant time).

    Only ``not_after`` and ``boot_id`` come from the peer; ``not_after`` must lie in ``(now, now + max_lifetime_s]``.
    Not checked: that any hardware vouches for these bytes. Raises MalformedEvidence, BindingMismatch or Stale.
    """
    not_after, boot_id = _from_the_peer(claims_bytes)
    try:
        rebuilt = Claims(
            role=expected.role,
            phase=expected.phase,
            node_id=expected.node_id,
            not_after=not_after,
            boot_id=boot_id,
            spki_hash=expected.spki_hash,
            nonce=expected.nonce,
            channel_binding=expected.channel_binding,
            peer_spki_hash=expected.peer_spki_hash,
        )
    except ValueError as error:
        raise MalformedEvidence(str(error)) from None
    if not hmac.compare_digest(encode_claims(rebuilt), claims_bytes):
        received = decode_claims(claims_bytes)  # not even claims in their one encoding: that is the error to report
        differing = [f for f in Claims.__struct_fields__ if getattr(rebuilt, f) != getattr(received, f)]
        raise BindingMismatch(f"claims speak of another {', '.join(differing)}")
    if not_after <= now:
        raise Stale(f"claims ended at {not_after}, it is {now:.0f}")
    if not_after > now + max_lifetime_s:
        raise Stale(f"claims last until {not_after}, over {max_lifetime_s:.0f} s from now")
    return rebuilt


def _from_the_peer(claims_bytes: bytes) -> tuple[int, bytes]:
    """``not_after`` and ``boot_id``, by their places alone: the comparison that follows judges everything else."""
    fields = cbor_decode(claims_bytes)
    cube = fields.get("cube") if isinstance(fields, dict) else None
    items = cbor_decode(cube) if isinstance(cube, bytes) else None
    if isinstance(items, list) and len(items) == 8:
        not_after, boot_id = items[4], items[7]
        if isinstance(not_after, int) and isinstance(boot_id, bytes):
            return not_after, boot_id
    raise MalformedEvidence("claims: not a map with a cube of eight items")


def _sized(value: bytes) -> bytes:
    if len(value) != 32:
        raise ValueError(f"a hash or nonce has 32 bytes, not {len(value)}")
    return value
