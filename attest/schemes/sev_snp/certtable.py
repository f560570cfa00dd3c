"""The certificate table that a host hands to its guest with a report (GHCB specification 56421, SNP extended request).

Entries of 24 bytes: GUID, offset, length (u32, little endian); a zero GUID ends them. Real hosts write the bytes of a
GUID as its text reads; the mixed order of Microsoft's GUIDs is understood too. Unverified.
"""

from __future__ import annotations

import uuid

from cryptography.hazmat.primitives.serialization import Encoding

from attest.chain import load_certificate
from attest.errors import MalformedEvidence

__all__ = [
    "ARK",
    "ASK",
    "GCE_FIRMWARE",
    "VCEK",
    "VLEK",
    "certificates_of",
    "encode_table",
    "launch_endorsement_of",
    "parse_table",
]

MAX_TABLE_BYTES = 1 << 18
_ENTRY = 24
_MAX_ENTRIES = 32
VCEK = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK = uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ASK = uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
ARK = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
GCE_FIRMWARE = uuid.UUID("9f4116cd-c503-4f5a-8f6f-fb68882f4ce2")  # Google's launch endorsement, no certificate
_ZERO = uuid.UUID(int=0)


def parse_table(raw: bytes) -> dict[uuid.UUID, bytes]:
    """The table's entries by GUID. Raises MalformedEvidence: no end, an entry outside of the table, a GUID twice."""
    if len(raw) > MAX_TABLE_BYTES:
        raise MalformedEvidence(f"certificate table of {len(raw)} bytes is above {MAX_TABLE_BYTES}", code="oversize")
    entries: dict[uuid.UUID, bytes] = {}
    for at in range(0, _MAX_ENTRIES * _ENTRY, _ENTRY):
        entry = raw[at : at + _ENTRY]
        if len(entry) < _ENTRY:
            break
        guid = _guid(entry[:16])
        if guid == _ZERO:
            return entries
        start, size = (int.from_bytes(entry[n : n + 4], "little") for n in (16, 20))
        if guid in entries or not size or start + size > len(raw):
            raise MalformedEvidence(f"certificate table: entry {guid} twice, empty or outside")
        entries[guid] = raw[start : start + size]
    raise MalformedEvidence("certificate table without an end")


def _guid(raw: bytes) -> uuid.UUID:
    mixed = uuid.UUID(bytes_le=raw)
    return mixed if mixed in (VCEK, VLEK, ASK, ARK, GCE_FIRMWARE) else uuid.UUID(bytes=raw)


def certificates_of(raw: bytes) -> tuple[bytes, ...]:
    """What a relying party needs of the table, DER: VCEK or VLEK, then the ASK if there; none of an empty one.

    Hosts write PEM as well as DER. The ARK is left out: relying parties have it, and would not take one from here.
    """
    entries = parse_table(raw) if any(raw) else {}
    found = (entries[guid] for guid in (VCEK, VLEK, ASK) if guid in entries)
    return tuple(load_certificate(entry).public_bytes(Encoding.DER) for entry in found)


def launch_endorsement_of(raw: bytes) -> bytes:
    """Google's endorsement of the firmware that it launched, as its hosts hand it out; b"" where there is none."""
    return (parse_table(raw) if any(raw) else {}).get(GCE_FIRMWARE, b"")


def encode_table(entries: dict[uuid.UUID, bytes]) -> bytes:
    """A table with these entries (for simulations)."""
    at = _ENTRY * (len(entries) + 1)
    head, body = b"", b""
    for guid, data in entries.items():
        head += guid.bytes + (at + len(body)).to_bytes(4, "little") + len(data).to_bytes(4, "little")
        body += data
    return head + bytes(_ENTRY) + body
