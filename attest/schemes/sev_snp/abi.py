"""The SEV-SNP ATTESTATION_REPORT, versions 2, 3 and 5, as fields. AMD 56860 "SEV Secure Nested Paging Firmware ABI".

Little endian, 1184 bytes, strict: what the specification reserves must be zero. Nothing is verified here.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from functools import lru_cache
from typing import Any, cast

import msgspec

from attest.errors import MalformedEvidence

__all__ = [
    "FIELDS",
    "PLATFORM_INFO",
    "REPORT_BYTES",
    "SIGNED_BYTES",
    "GuestPolicy",
    "Report",
    "Tcb",
    "Version",
    "parse_report",
    "product_of",
    "tcb_of",
]

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
SIGNING_KEYS = {0: "vcek", 1: "vlek"}

# Name: (offset, length), by offset. Lengths up to 8 are numbers, but for TCB versions; longer fields are bytes.
FIELDS: dict[str, tuple[int, int]] = {
    "version": (0x000, 4), "guest_svn": (0x004, 4), "policy": (0x008, 8), "family_id": (0x010, 16),
    "image_id": (0x020, 16), "vmpl": (0x030, 4), "signature_algo": (0x034, 4), "current_tcb": (0x038, 8),
    "platform_info": (0x040, 8), "flags": (0x048, 4), "report_data": (0x050, 64), "measurement": (0x090, 48),
    "host_data": (0x0C0, 32), "id_key_digest": (0x0E0, 48), "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32), "report_id_ma": (0x160, 32), "reported_tcb": (0x180, 8), "cpuid_family": (0x188, 1),
    "cpuid_model": (0x189, 1), "cpuid_stepping": (0x18A, 1), "chip_id": (0x1A0, 64), "committed_tcb": (0x1E0, 8),
    "current_build": (0x1E8, 1), "current_minor": (0x1E9, 1), "current_major": (0x1EA, 1),
    "committed_build": (0x1EC, 1), "committed_minor": (0x1ED, 1), "committed_major": (0x1EE, 1),
    "launch_tcb": (0x1F0, 8), "launch_mitigations": (0x1F8, 8), "current_mitigations": (0x200, 8),
    "signature_r": (0x2A0, 72), "signature_s": (0x2E8, 72),
}  # fmt: skip


def _layout() -> struct.Struct:
    """``FIELDS`` as one format, so that a report is taken apart by one call."""
    parts, at = ["<"], 0
    for name, (offset, length) in FIELDS.items():
        kind = {1: "B", 4: "I", 8: "Q"}.get(length)
        parts += [f"{offset - at}x", f"{length}s" if kind is None or name.endswith("_tcb") else kind]
        at = offset + length
    return struct.Struct("".join([*parts, f"{REPORT_BYTES - at}x"]))


_LAYOUT = _layout()
_Fields = cast(Any, namedtuple)("_Fields", FIELDS)  # a class made from a table, which mypy cannot follow
# Offsets that must be zero: in every version, and what older versions do not have yet.
_RESERVED = ((0x04C, 0x050), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0), (0x330, 0x4A0))
_RESERVED_IN = {2: (*_RESERVED, (0x188, 0x18B), (0x1F8, 0x208)), 3: (*_RESERVED, (0x1F8, 0x208)), 5: _RESERVED}


def _holes(*ranges: tuple[int, int]) -> tuple[struct.Struct, tuple[bytes, ...]]:
    """Takes out what stands in ``ranges`` by one call, and what that should be."""
    parts, at = ["<"], 0
    for start, end in sorted(ranges):
        parts.append(f"{start - at}x{end - start}s")
        at = end
    return struct.Struct("".join([*parts, f"{REPORT_BYTES - at}x"])), tuple(bytes(e - s) for s, e in sorted(ranges))


_HOLES_IN = {version: _holes(*ranges) for version, ranges in _RESERVED_IN.items()}
# Bits of PLATFORM_INFO by name; alias_check is the firmware's own search for memory that answers twice (BadRAM).
PLATFORM_INFO = {
    "smt": 0, "tsme": 1, "ecc": 2, "rapl_disabled": 3, "ciphertext_hiding": 4, "alias_check": 5, "tio": 7,
}  # fmt: skip
_ECDSA_P384_SHA384 = 1


class GuestPolicy(msgspec.Struct, frozen=True):
    """Guest policy (56860 §4.3): what the guest's owner lets the host do, by bits 16 and up; the ABI it wants."""

    abi_major: int
    abi_minor: int
    smt: bool
    migrate_ma: bool
    debug: bool
    single_socket: bool
    cxl: bool
    aes256_xts: bool
    rapl_disabled: bool
    ciphertext_hiding: bool
    page_swap_disabled: bool


class Version(msgspec.Struct, frozen=True, order=True):
    """A version of the SEV firmware."""

    major: int
    minor: int
    build: int


class Tcb(msgspec.Struct, frozen=True):
    """A TCB version by component. ``fmc`` exists on Turin; None on Milan and Genoa."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None


class Report(msgspec.Struct, frozen=True):
    """The fields of a report. ``raw`` is the whole of it; ``signed`` what the signature covers."""

    raw: bytes
    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: int
    author_key_en: bool
    signing_key: str  # "vcek" or "vlek"
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int]  # family, model, stepping; zeros in version 2
    chip_id: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    current_version: Version
    committed_version: Version
    launch_mitigations: int | None  # bit vectors, from version 5 on; None before
    current_mitigations: int | None
    signature: tuple[int, int]  # r, s

    @property
    def signed(self) -> bytes:
        return self.raw[:SIGNED_BYTES]


def parse_report(raw: bytes) -> Report:
    """A report's fields; MalformedEvidence unless length, version, algorithm, key and every reserved byte are right."""
    if len(raw) != REPORT_BYTES:
        raise MalformedEvidence(f"SNP report of {len(raw)} bytes, not {REPORT_BYTES}")
    fields = _Fields._make(_LAYOUT.unpack(raw))
    version, flags = fields.version, fields.flags
    if version not in _RESERVED_IN:
        raise MalformedEvidence(f"SNP report version {version}", code="snp_version")
    if fields.signature_algo != _ECDSA_P384_SHA384:
        raise MalformedEvidence("SNP report: signature algorithm is not ECDSA P-384 with SHA-384", code="snp_algorithm")
    holes, zeros = _HOLES_IN[version]
    if holes.unpack(raw) != zeros:
        start, end = next((start, end) for start, end in _RESERVED_IN[version] if any(raw[start:end]))
        raise MalformedEvidence(f"SNP report: reserved {start:#x} to {end:#x} is not zero", code="snp_reserved")
    signing_key = SIGNING_KEYS.get(flags >> 2 & 7)
    if signing_key is None or flags >> 5:
        raise MalformedEvidence(f"SNP report: key flags {flags:#x}", code="snp_signing_key")
    return Report(
        raw=raw,
        version=version,
        guest_svn=fields.guest_svn,
        policy=_guest_policy(fields.policy),
        family_id=fields.family_id,
        image_id=fields.image_id,
        vmpl=fields.vmpl,
        current_tcb=fields.current_tcb,
        platform_info=fields.platform_info,
        author_key_en=bool(flags & 1),
        signing_key=signing_key,
        report_data=fields.report_data,
        measurement=fields.measurement,
        host_data=fields.host_data,
        id_key_digest=fields.id_key_digest,
        author_key_digest=fields.author_key_digest,
        report_id=fields.report_id,
        report_id_ma=fields.report_id_ma,
        reported_tcb=fields.reported_tcb,
        cpuid=(fields.cpuid_family, fields.cpuid_model, fields.cpuid_stepping),
        chip_id=fields.chip_id,
        committed_tcb=fields.committed_tcb,
        launch_tcb=fields.launch_tcb,
        current_version=Version(fields.current_major, fields.current_minor, fields.current_build),
        committed_version=Version(fields.committed_major, fields.committed_minor, fields.committed_build),
        launch_mitigations=fields.launch_mitigations if version >= 5 else None,
        current_mitigations=fields.current_mitigations if version >= 5 else None,
        signature=(int.from_bytes(fields.signature_r, "little"), int.from_bytes(fields.signature_s, "little")),
    )


@lru_cache(maxsize=64)
def _guest_policy(value: int) -> GuestPolicy:
    if not value >> 17 & 1 or value >> 26:
        raise MalformedEvidence(f"SNP report: guest policy {value:#x} has reserved bits wrong", code="snp_policy_bits")
    return GuestPolicy(
        abi_major=value >> 8 & 0xFF,
        abi_minor=value & 0xFF,
        smt=bool(value >> 16 & 1),
        migrate_ma=bool(value >> 18 & 1),
        debug=bool(value >> 19 & 1),
        single_socket=bool(value >> 20 & 1),
        cxl=bool(value >> 21 & 1),
        aes256_xts=bool(value >> 22 & 1),
        rapl_disabled=bool(value >> 23 & 1),
        ciphertext_hiding=bool(value >> 24 & 1),
        page_swap_disabled=bool(value >> 25 & 1),
    )


def product_of(cpuid: tuple[int, int, int]) -> str | None:
    """Product name of a version 3+ report's CPUID family and model; None when there is none that we know."""
    family, model, _ = cpuid
    if family == 0x19 and model <= 0x0F:
        return "Milan"
    if family == 0x19 and (0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF):
        return "Genoa"
    return "Turin" if family == 0x1A else None


@lru_cache(maxsize=256)
def tcb_of(raw: bytes, product: str) -> Tcb:
    """The eight bytes of a TCB version. Turin has an order of its own; reserved bytes must be zero."""
    if product == "Turin":
        fmc, bootloader, tee, snp, *reserved, microcode = raw
    else:
        fmc, (bootloader, tee, *reserved, snp, microcode) = None, raw
    if any(reserved):
        raise MalformedEvidence(f"SNP report: TCB {raw.hex()} has reserved bytes set", code="snp_reserved")
    return Tcb(bootloader, tee, snp, microcode, fmc)
