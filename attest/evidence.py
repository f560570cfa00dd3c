"""The evidence envelope: a CMW collection (RFC 9999) in deterministic CBOR, and its place in a certificate.

attested-TLS protocol ``cube-mesh/1`` §3: ``{"__cmwc_t": "urn:cube-mesh:evidence:1", 0: claims, 1..7: parts}``, each
member a record ``[media type, bytes]``. Decoding proves nothing: neither claims nor parts are verified here, and a
media type that nobody knows is refused later, by the verifier.
"""

from __future__ import annotations

import msgspec

from attest.codec import CborValue, cbor_decode, cbor_encode
from attest.errors import MalformedEvidence

__all__ = [
    "AUX_DIGEST",
    "AUX_DIGEST_TYPE",
    "AZURE_HCL_TYPE",
    "CLAIMS_TYPE",
    "CMW_OID",
    "ENDORSEMENTS",
    "ENDORSEMENTS_TYPE",
    "GPU",
    "HARDWARE",
    "LAUNCH_ENDORSEMENT",
    "LAUNCH_ENDORSEMENT_TYPE",
    "MAX_AUX_BYTES",
    "MAX_EVIDENCE_BYTES",
    "SNP_REPORT_TYPE",
    "TDX_QUOTE_TYPE",
    "TOKEN",
    "TOKEN_TYPE",
    "TPM2_QUOTE_TYPE",
    "TPM_QUOTE",
    "Evidence",
    "Part",
    "cmw_from_extension",
    "decode_certificates",
    "decode_evidence",
    "encode_certificates",
    "encode_evidence",
    "extension_value",
    "has_aux",
    "join_aux",
    "split_aux",
]

CMW_OID = "1.3.6.1.5.5.7.1.35"  # id-pe-cmw
COLLECTION_TYPE = "urn:cube-mesh:evidence:1"
CLAIMS_TYPE = "application/vnd.cube-mesh.claims+cbor"
SNP_REPORT_TYPE = "application/vnd.cube-mesh.snp-report"
TDX_QUOTE_TYPE = "application/vnd.cube-mesh.tdx-quote"
AZURE_HCL_TYPE = "application/vnd.cube-mesh.azure-hcl"
TOKEN_TYPE = "application/eat+jwt"
TPM2_QUOTE_TYPE = "application/vnd.cube-mesh.tpm2-quote+cbor"
ENDORSEMENTS_TYPE = "application/vnd.cube-mesh.endorsements+cbor"
AUX_DIGEST_TYPE = "application/vnd.cube-mesh.aux-digest"
LAUNCH_ENDORSEMENT_TYPE = "application/vnd.cube-mesh.gce-launch-endorsement"

# The keys of the collection.
CLAIMS, HARDWARE, TPM_QUOTE, ENDORSEMENTS, TOKEN, GPU, AUX_DIGEST, LAUNCH_ENDORSEMENT = range(8)

MAX_EVIDENCE_BYTES = 65_533  # what the extension of one authenticator can hold
MAX_AUX_BYTES = 1 << 20  # what one AUX frame can hold
MAX_CERTIFICATES = 8


_ARRAY_OF_TWO = b"\x82"  # how join_aux begins; a collection is a map


class Part(msgspec.Struct, frozen=True):
    """One member of the collection: what it says it is, and its bytes."""

    media_type: str
    body: bytes


class Evidence(msgspec.Struct, frozen=True):
    """A decoded, unverified collection. ``claims`` are the encoded claims (``binding``); ``parts`` has keys 1 to 7."""

    claims: bytes
    parts: dict[int, Part]


def encode_evidence(evidence: Evidence) -> bytes:
    """The collection as bytes. Raises ValueError when a part's key or size is not allowed."""
    members: dict[int | str, CborValue] = {"__cmwc_t": COLLECTION_TYPE, CLAIMS: [CLAIMS_TYPE, evidence.claims]}
    for key, part in evidence.parts.items():
        if not HARDWARE <= key <= LAUNCH_ENDORSEMENT:
            raise ValueError(f"evidence has no part {key}")
        members[key] = [part.media_type, part.body]
    raw = cbor_encode(members)
    if len(raw) > MAX_EVIDENCE_BYTES:
        raise ValueError(f"evidence of {len(raw)} bytes is above {MAX_EVIDENCE_BYTES}")
    return raw


def decode_evidence(raw: bytes) -> Evidence:
    """The collection, strictly: exact type, claims present, only known keys, records of two, nothing empty.

    Raises MalformedEvidence. Nothing is verified.
    """
    if len(raw) > MAX_EVIDENCE_BYTES:
        raise MalformedEvidence(f"evidence of {len(raw)} bytes is above {MAX_EVIDENCE_BYTES}", code="oversize")
    members = cbor_decode(raw)
    if not isinstance(members, dict) or members.pop("__cmwc_t", None) != COLLECTION_TYPE:
        raise MalformedEvidence("not a cube-mesh evidence collection")
    parts: dict[int, Part] = {}
    for key, record in members.items():
        if not isinstance(key, int) or key > LAUNCH_ENDORSEMENT:
            raise MalformedEvidence(f"evidence has no part {key!r}")
        parts[key] = _part(record)
    claims = parts.pop(CLAIMS, None)
    if claims is None or claims.media_type != CLAIMS_TYPE:
        raise MalformedEvidence("evidence without claims")
    return Evidence(claims.body, parts)


def _part(record: CborValue) -> Part:
    if isinstance(record, list) and len(record) == 2:
        media_type, body = record
        if isinstance(media_type, str) and isinstance(body, bytes) and media_type and body:
            return Part(media_type, body)
    raise MalformedEvidence("a member of the collection is not a record [media type, bytes]")


def join_aux(raw: bytes, aux: bytes) -> bytes:
    """A collection, and what its part 6 names by SHA-256 (an event log, 1 byte to 1 MiB), as one value: between the
    channel, which carries them apart, and whoever judges both. Without ``aux``, the collection as it is.
    """
    return cbor_encode([raw, aux]) if aux else raw


def has_aux(raw: bytes) -> bool:
    """Whether ``raw`` is what :func:`join_aux` makes of a collection and something beside it."""
    return raw[:1] == _ARRAY_OF_TWO


def split_aux(raw: bytes) -> tuple[bytes, bytes]:
    """The inverse of :func:`join_aux`: collection and aux, b"" when there is none. Raises MalformedEvidence for a value
    that is neither; that the digest fits is for the verifier to see.
    """
    if not has_aux(raw):
        return raw, b""
    if len(raw) > MAX_EVIDENCE_BYTES + MAX_AUX_BYTES + 16:
        raise MalformedEvidence(f"evidence of {len(raw)} bytes", code="oversize")
    items = cbor_decode(raw)
    assert isinstance(items, list)  # by its first byte, which also says that there are two
    collection, aux = (_bytes(item) for item in items)
    if len(aux) > MAX_AUX_BYTES:
        raise MalformedEvidence(f"an event log of {len(aux)} bytes", code="oversize")
    return collection, aux


def encode_certificates(certificates: tuple[bytes, ...]) -> Part:
    """DER certificates as the endorsements part (key 3), in the given order."""
    return Part(ENDORSEMENTS_TYPE, cbor_encode(list(certificates)))


def decode_certificates(body: bytes) -> tuple[bytes, ...]:
    """The DER certificates of an endorsements part, unverified: 1 to 8 byte strings."""
    items = cbor_decode(body)
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_CERTIFICATES:
        raise MalformedEvidence(f"endorsements are not 1 to {MAX_CERTIFICATES} certificates")
    return tuple(_bytes(item) for item in items)


def _bytes(item: CborValue) -> bytes:
    if not isinstance(item, bytes) or not item:
        raise MalformedEvidence("not a byte string, or an empty one")
    return item


def extension_value(raw_cmw: bytes) -> bytes:
    """The value of the id-pe-cmw extension: ``raw_cmw`` as a DER OCTET STRING (X.690 §8.7, §10)."""
    length = len(raw_cmw)
    if length < 0x80:
        return b"\x04" + bytes((length,)) + raw_cmw
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return b"\x04" + bytes((0x80 | len(size),)) + size + raw_cmw


def cmw_from_extension(value: bytes) -> bytes:
    """The inverse of :func:`extension_value`; raises MalformedEvidence for anything that it does not write."""
    if len(value) < 3 or value[0] != 0x04:
        raise MalformedEvidence("id-pe-cmw does not hold an OCTET STRING")
    start = 2 + (value[1] & 0x7F if value[1] & 0x80 else 0)
    raw = value[start:]
    if not raw or len(raw) > MAX_EVIDENCE_BYTES or extension_value(raw) != value:
        raise MalformedEvidence("id-pe-cmw is not exactly one DER OCTET STRING")
    return raw
