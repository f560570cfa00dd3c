"""TPM 2.0 structures as fields: TPMS_ATTEST (quotes), TPMT_PUBLIC, TPMT_SIGNATURE. TCG TPM 2.0 Library r1.59, part 2.

Big endian, strict: a size that runs out of its structure, an unknown selector, or a byte too many is MalformedEvidence.
Nothing is verified here. Section numbers are those of part 2.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from functools import lru_cache

import msgspec

from attest.codec import CborValue, cbor_decode, cbor_encode
from attest.errors import MalformedEvidence

__all__ = [
    "Alg",
    "Attribute",
    "PcrSelection",
    "Public",
    "Quote",
    "QuotePart",
    "Signature",
    "decode_quote_part",
    "encode_quote_part",
    "parse_public",
    "parse_quote",
    "parse_signature",
]

TPM_GENERATED = 0xFF544347
ST_ATTEST_QUOTE = 0x8018
MAX_STRUCTURE_BYTES = 2048  # above any quote, public area or signature of the algorithms below
MAX_PART_BYTES = 16_384  # above three of these and all PCRs of four banks
_MAX_BANKS = 8
_MAX_INDEX = 31
_U16, _HEAD, _SELECTION = struct.Struct(">H"), struct.Struct(">IH"), struct.Struct(">HB")
_CLOCK = struct.Struct(">QIIBQI")  # TPMS_CLOCK_INFO, firmware version, number of selections
_KEY, _SCHEME, _RSA, _ECC = struct.Struct(">HHI"), struct.Struct(">HH"), struct.Struct(">HI"), struct.Struct(">HH")


class Alg(IntEnum):
    """TPM_ALG_ID (§6.3), those that a quote can meet."""

    RSA = 0x0001
    SHA1 = 0x0004
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    NULL = 0x0010
    RSASSA = 0x0014
    RSAPSS = 0x0016
    ECDSA = 0x0018
    ECC = 0x0023


DIGEST_BYTES: dict[int, int] = {Alg.SHA1: 20, Alg.SHA256: 32, Alg.SHA384: 48, Alg.SHA512: 64}
BANK_NAMES: dict[int, str] = {Alg.SHA1: "sha1", Alg.SHA256: "sha256", Alg.SHA384: "sha384", Alg.SHA512: "sha512"}


class Attribute(IntEnum):
    """TPMA_OBJECT (§8.3), bit masks."""

    FIXED_TPM = 1 << 1
    FIXED_PARENT = 1 << 4
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18


class PcrSelection(msgspec.Struct, frozen=True):
    """TPMS_PCR_SELECTION (§10.6.2): a bank and its selected indexes, ascending."""

    bank: int
    indexes: tuple[int, ...]


class Quote(msgspec.Struct, frozen=True):
    """TPMS_ATTEST (§10.12.12) of type quote. ``clock`` is milliseconds."""

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes


class Public(msgspec.Struct, frozen=True):
    """TPMT_PUBLIC (§12.2.4) of an RSA or ECC key. ``scheme`` is NULL when the key leaves it open."""

    type: int
    name_alg: int
    attributes: int
    scheme: int
    scheme_hash: int
    key_bits: int  # RSA
    exponent: int  # RSA
    curve: int  # ECC
    unique: tuple[bytes, ...]  # RSA: (modulus,); ECC: (x, y)


class Signature(msgspec.Struct, frozen=True):
    """TPMT_SIGNATURE (§11.3.4). ``values`` is (signature,) for RSA, (r, s) for ECDSA."""

    alg: int
    hash: int
    values: tuple[bytes, ...]


class QuotePart(msgspec.Struct, frozen=True):
    """Body of the evidence part ``tpm2-quote+cbor``: raw structures and the PCR values by bank and index."""

    attest: bytes
    signature: bytes
    ak_public: bytes
    pcrs: dict[int, dict[int, bytes]]


class _Reader:
    """Takes fields off the front of a structure; every read checks what is left."""

    __slots__ = ("_at", "_raw", "_what")

    def __init__(self, raw: bytes, what: str) -> None:
        if len(raw) > MAX_STRUCTURE_BYTES:
            raise MalformedEvidence(f"{what}: {len(raw)} bytes are above {MAX_STRUCTURE_BYTES}", code="oversize")
        self._raw, self._at, self._what = raw, 0, what

    def take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._raw):
            raise MalformedEvidence(f"{self._what}: truncated")
        data = self._raw[self._at : end]
        self._at = end
        return data

    def numbers(self, layout: struct.Struct) -> tuple[int, ...]:
        try:
            values = layout.unpack_from(self._raw, self._at)
        except struct.error:
            raise MalformedEvidence(f"{self._what}: truncated") from None
        self._at += layout.size
        return values

    def sized(self, most: int) -> bytes:
        """A TPM2B of at most ``most`` bytes."""
        (length,) = self.numbers(_U16)
        if length > most:
            raise MalformedEvidence(f"{self._what}: field of {length} bytes, at most {most}")
        return self.take(length)

    def end(self) -> None:
        if self._at != len(self._raw):
            raise MalformedEvidence(f"{self._what}: {len(self._raw) - self._at} trailing bytes")


def parse_quote(raw: bytes) -> Quote:
    """A quote. What is not marked as made inside the TPM, or attests something else, is refused here by its code:
    ``tpm_magic`` (§10.12.12: TPM_GENERATED_VALUE keeps restricted keys from signing forgeries) and ``tpm_type``.
    """
    reader = _Reader(raw, "TPMS_ATTEST")
    magic, kind = reader.numbers(_HEAD)
    if magic != TPM_GENERATED:
        raise MalformedEvidence("TPMS_ATTEST: not made by a TPM", code="tpm_magic")
    if kind != ST_ATTEST_QUOTE:
        raise MalformedEvidence("TPMS_ATTEST: not a quote", code="tpm_type")
    qualified_signer, extra_data = reader.sized(66), reader.sized(64)
    clock, reset_count, restart_count, safe, firmware_version, banks = reader.numbers(_CLOCK)
    quote = Quote(
        qualified_signer=qualified_signer,
        extra_data=extra_data,
        clock=clock,
        reset_count=reset_count,
        restart_count=restart_count,
        safe=_yes_no(safe),
        firmware_version=firmware_version,
        selections=_selections(reader, banks),
        pcr_digest=reader.sized(64),
    )
    reader.end()
    return quote


def _yes_no(value: int) -> bool:
    if value > 1:
        raise MalformedEvidence("TPMS_ATTEST: TPMI_YES_NO is neither 0 nor 1")
    return value == 1


def _selections(reader: _Reader, count: int) -> tuple[PcrSelection, ...]:
    if count > _MAX_BANKS:
        raise MalformedEvidence(f"TPMS_ATTEST: {count} PCR banks")
    selections = []
    for _ in range(count):
        bank, size = reader.numbers(_SELECTION)
        if not 1 <= size <= 4:
            raise MalformedEvidence(f"TPMS_ATTEST: PCR bitmap of {size} bytes")
        selections.append(PcrSelection(bank, _indexes(reader.take(size))))
    if len({selection.bank for selection in selections}) != count:
        raise MalformedEvidence("TPMS_ATTEST: a PCR bank is selected twice")
    return tuple(selections)


@lru_cache(maxsize=256)
def _indexes(bitmap: bytes) -> tuple[int, ...]:
    bits = int.from_bytes(bitmap, "little")
    return tuple(index for index in range(8 * len(bitmap)) if bits >> index & 1)


def parse_public(raw: bytes) -> Public:
    """The public area of an RSA or ECC key; other kinds are MalformedEvidence. ``verify`` judges curve and sizes."""
    reader = _Reader(raw, "TPMT_PUBLIC")
    kind, name_alg, attributes = reader.numbers(_KEY)
    if kind not in (Alg.RSA, Alg.ECC):
        raise MalformedEvidence(f"TPMT_PUBLIC: key type {kind:#06x}")
    reader.sized(64)  # authPolicy: who may use the key is the machine's own affair
    symmetric, scheme = reader.numbers(_SCHEME)
    if symmetric != Alg.NULL:  # TPMT_SYM_DEF_OBJECT: only storage keys have one
        raise MalformedEvidence("TPMT_PUBLIC: a storage key", code="ak_attributes")
    scheme_hash = reader.numbers(_U16)[0] if scheme != Alg.NULL else 0
    key_bits = exponent = curve = 0
    if kind == Alg.RSA:
        key_bits, exponent = reader.numbers(_RSA)
        exponent = exponent or 65537
        unique: tuple[bytes, ...] = (reader.sized(512),)
    else:
        curve, derivation = reader.numbers(_ECC)
        if derivation != Alg.NULL:
            raise MalformedEvidence("TPMT_PUBLIC: key derivation scheme")
        unique = (reader.sized(66), reader.sized(66))
    reader.end()
    return Public(kind, name_alg, attributes, scheme, scheme_hash, key_bits, exponent, curve, unique)


def parse_signature(raw: bytes) -> Signature:
    """An RSASSA, RSAPSS or ECDSA signature; another algorithm is MalformedEvidence."""
    reader = _Reader(raw, "TPMT_SIGNATURE")
    alg, hash_alg = reader.numbers(_SCHEME)
    if alg in (Alg.RSASSA, Alg.RSAPSS):
        values: tuple[bytes, ...] = (reader.sized(512),)
    elif alg == Alg.ECDSA:
        values = (reader.sized(66), reader.sized(66))
    else:
        raise MalformedEvidence(f"TPMT_SIGNATURE: algorithm {alg:#06x}")
    reader.end()
    return Signature(alg, hash_alg, values)


def encode_quote_part(part: QuotePart) -> bytes:
    """``CBOR [attest, signature, AK public, {bank: {index: digest}}]``."""
    pcrs: dict[int | str, CborValue] = {bank: dict(values.items()) for bank, values in part.pcrs.items()}
    return cbor_encode([part.attest, part.signature, part.ak_public, pcrs])


def decode_quote_part(body: bytes) -> QuotePart:
    """The inverse, unverified; shapes and digest sizes are checked, the structures inside are not yet parsed."""
    if len(body) > MAX_PART_BYTES:
        raise MalformedEvidence(f"tpm2-quote: {len(body)} bytes are above {MAX_PART_BYTES}", code="oversize")
    try:
        attest, signature, ak_public, pcrs = msgspec.convert(
            cbor_decode(body), tuple[bytes, bytes, bytes, dict[int, dict[int, bytes]]], builtin_types=(bytes,)
        )
    except msgspec.ValidationError as error:
        raise MalformedEvidence(f"tpm2-quote: {error}") from None
    for bank, values in pcrs.items():
        if set(map(len, values.values())) - {DIGEST_BYTES.get(bank)} or max(values, default=0) > _MAX_INDEX:
            raise MalformedEvidence(f"tpm2-quote: PCR values of bank {bank:#06x}")
    return QuotePart(attest, signature, ak_public, pcrs)
