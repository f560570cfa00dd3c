"""Event logs from events, in both forms, and what they replay to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from attest.eventlog import EV_EFI_ACTION, EV_NO_ACTION, EV_SEPARATOR, EXIT_BOOT_SERVICES
from attest.schemes.vtpm.abi import BANK_NAMES, DIGEST_BYTES, Alg

__all__ = ["GOOD_BOOT", "GOOD_TD_BOOT", "agile_log", "ccel", "event", "header", "legacy_log", "secure_boot_data"]

EV_DRIVER_CONFIG = 0x80000001


def secure_boot_data(value: bytes = b"\x01") -> bytes:
    """UEFI_VARIABLE_DATA of the variable SecureBoot."""
    name = "SecureBoot".encode("utf-16-le")
    head = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c") + (10).to_bytes(8, "little")
    return head + len(value).to_bytes(8, "little") + name + value


# (register, type, data): a boot with secure boot, one separator each, and a system that took over.
GOOD_BOOT: tuple[tuple[int, int, bytes], ...] = (
    (0, 8, b"firmware 1"),
    (7, EV_DRIVER_CONFIG, secure_boot_data()),
    *((index, EV_SEPARATOR, bytes(4)) for index in range(8)),
    (4, 0x80000003, b"boot loader"),
    (5, EV_EFI_ACTION, EXIT_BOOT_SERVICES),
)

# The same of a trust domain, whose registers 1 to 3 are RTMR0 to RTMR2; nothing is measured into RTMR3.
GOOD_TD_BOOT: tuple[tuple[int, int, bytes], ...] = (
    (1, 0x8000000B, b"handoff of the host"),
    (1, EV_DRIVER_CONFIG, secure_boot_data()),
    (1, EV_SEPARATOR, bytes(4)),
    (1, 0x80000002, b"\x01\x00\x00\x00"),  # BootOrder, which looks like a separator after an error
    (2, EV_SEPARATOR, bytes(4)),
    (2, 0x80000003, b"boot loader"),
    (3, 13, b"kernel_cmdline: quiet"),
    (2, EV_EFI_ACTION, EXIT_BOOT_SERVICES),
)


def _u(value: int, width: int = 4) -> bytes:
    return value.to_bytes(width, "little")


def header(algorithms: Sequence[int] = (Alg.SHA256,), count: int | None = None) -> bytes:
    """The first event of a crypto-agile log."""
    pairs = b"".join(_u(alg, 2) + _u(DIGEST_BYTES[alg], 2) for alg in algorithms)
    data = b"Spec ID Event03\x00" + bytes(4) + b"\x00\x02\x00\x02"
    data += _u(len(algorithms) if count is None else count) + pairs + b"\x00"
    return _u(0) + _u(EV_NO_ACTION) + bytes(20) + _u(len(data)) + data


def event(
    index: int,
    kind: int,
    data: bytes,
    *,
    algorithms: Sequence[int] = (Alg.SHA256,),
    digests: Mapping[int, bytes] | None = None,
    count: int | None = None,
    size: int | None = None,
) -> bytes:
    """One crypto-agile event. ``digests`` replace the hashes of ``data``; ``count`` and ``size`` lie about them."""
    values = {alg: hashlib.new(BANK_NAMES[alg], data).digest() for alg in algorithms} | dict(digests or {})
    out = _u(index) + _u(kind) + _u(len(values) if count is None else count)
    out += b"".join(_u(alg, 2) + digest for alg, digest in values.items())
    return out + _u(len(data) if size is None else size) + data


def agile_log(events: Sequence[tuple[int, int, bytes]] = GOOD_BOOT, algorithms: Sequence[int] = (Alg.SHA256,)) -> bytes:
    """A crypto-agile log of these events."""
    return header(algorithms) + b"".join(event(*item, algorithms=algorithms) for item in events)


def ccel(events: Sequence[tuple[int, int, bytes]] = GOOD_TD_BOOT, size: int = 4096) -> bytes:
    """These events as the log of a trust domain: SHA-384, in a table of fixed size."""
    return agile_log(events, (Alg.SHA384,)).ljust(size, b"\xff")


def legacy_log(events: Sequence[tuple[int, int, bytes]] = GOOD_BOOT) -> bytes:
    """The same in the older form, SHA-1 only."""
    return b"".join(_u(i) + _u(k) + hashlib.sha1(d).digest() + _u(len(d)) + d for i, k, d in events)
