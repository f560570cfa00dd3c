"""Reports of a real SEV-SNP guest: configfs-tsm, or the ioctls of ``/dev/sev-guest`` on kernels before 6.7.

``Documentation/virt/coco/sev-guest.rst``. The host's certificate table comes with the report where the host has one
(on a cloud it usually does); without one, ``certificates`` or the relying party must supply the VCEK or VLEK.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attest.binding import snp_report_data
from attest.errors import AttestError, CollectionFailed
from attest.evidence import (
    ENDORSEMENTS,
    HARDWARE,
    LAUNCH_ENDORSEMENT,
    LAUNCH_ENDORSEMENT_TYPE,
    SNP_REPORT_TYPE,
    Part,
    encode_certificates,
)
from attest.schemes.sev_snp.abi import REPORT_BYTES, parse_report
from attest.schemes.sev_snp.certtable import certificates_of, launch_endorsement_of
from attest.tsm import TSM_DIRECTORY, read_tsm, tsm_available

__all__ = ["SnpCollector", "read_device"]

SEV_GUEST = Path("/dev/sev-guest")
PROVIDER = "sev_guest"
# _IOWR('S', nr, struct snp_guest_request_ioctl), 32 bytes.
SNP_GET_REPORT, SNP_GET_EXT_REPORT = 0xC020_5300, 0xC020_5302
_CERTIFICATES_BYTES = 0x4000  # the kernel's maximum, whole pages
_RESPONSE_BYTES = 4000
_REPORT_AT = 0x20

Ioctl = Callable[[int, int, Any], Any]


class _Request(ctypes.Structure):
    """struct snp_guest_request_ioctl"""

    _fields_ = (
        ("msg_version", ctypes.c_uint8),
        ("req_data", ctypes.c_uint64),
        ("resp_data", ctypes.c_uint64),
        ("fw_error", ctypes.c_uint64),
    )


class _ExtendedReport(ctypes.Structure):
    """struct snp_ext_report_req; its first 96 bytes are struct snp_report_req."""

    _fields_ = (
        ("user_data", ctypes.c_uint8 * 64),
        ("vmpl", ctypes.c_uint32),
        ("reserved", ctypes.c_uint8 * 28),
        ("certs_address", ctypes.c_uint64),
        ("certs_len", ctypes.c_uint32),
    )


class SnpCollector:
    """Collector of scheme "sev-snp". Nothing is touched before the first use. Raises CollectionFailed.

    ``privilege_level``: the VMPL to report at (0 to 3). ``certificates``: DER, leaf first; ``launch_endorsement``:
    Google's, of the firmware. Each is used when the host's table has none. ``directory``, ``device``: where the
    kernel's interfaces are; ``ioctl`` stands in for the real one in tests.
    """

    scheme = "sev-snp"

    def __init__(
        self,
        *,
        privilege_level: int | None = None,
        certificates: Sequence[bytes] = (),
        launch_endorsement: bytes = b"",
        directory: Path = TSM_DIRECTORY,
        device: Path = SEV_GUEST,
        ioctl: Ioctl = fcntl.ioctl,
    ) -> None:
        if privilege_level is not None and not 0 <= privilege_level <= 3:
            raise ValueError("a VMPL is 0 to 3")
        self._level, self._certificates = privilege_level, tuple(certificates)
        self._launch_endorsement = launch_endorsement
        self._directory, self._device, self._ioctl = directory, device, ioctl

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        """A report over ``data_hash`` (32 bytes), looked at before it is handed out."""
        return self.parts_over(snp_report_data(data_hash))

    def parts_over(self, report_data: bytes) -> dict[int, Part]:
        """The same over ``report_data`` (64 bytes), which ``binding`` makes: a hash under a tag of ours."""
        if tsm_available(self._directory):
            found = read_tsm(report_data, PROVIDER, directory=self._directory, privilege_level=self._level)
            report, table = found.outblob, found.auxblob
        else:
            report, table = read_device(report_data, self._level or 0, device=self._device, ioctl=self._ioctl)
        return self._parts(report_data, report, table)

    def _parts(self, report_data: bytes, report: bytes, table: bytes) -> dict[int, Part]:
        try:
            certificates = certificates_of(table) or self._certificates
            endorsement = launch_endorsement_of(table) or self._launch_endorsement
            if parse_report(report).report_data != report_data:
                raise CollectionFailed("the report is over other data than was asked", code="snp_failed")
        except CollectionFailed:
            raise
        except AttestError as error:
            raise CollectionFailed(f"the machine's own report is malformed: {error}", code="snp_failed") from error
        parts = {HARDWARE: Part(SNP_REPORT_TYPE, report)}
        if certificates:
            parts[ENDORSEMENTS] = encode_certificates(certificates)
        if endorsement:
            parts[LAUNCH_ENDORSEMENT] = Part(LAUNCH_ENDORSEMENT_TYPE, endorsement)
        return parts


def read_device(
    report_data: bytes, vmpl: int, *, device: Path = SEV_GUEST, ioctl: Ioctl = fcntl.ioctl
) -> tuple[bytes, bytes]:
    """Report and certificate table (b"" when the host has none) by ioctl. Raises CollectionFailed."""
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise CollectionFailed(f"{device}: {error.strerror}", code="device_unavailable") from None
    try:
        return _extended_report(descriptor, report_data, vmpl, ioctl)
    except OSError as error:
        raise CollectionFailed(f"{device}: {error.strerror}", code="snp_failed") from None
    finally:
        os.close(descriptor)


def _extended_report(descriptor: int, report_data: bytes, vmpl: int, ioctl: Ioctl) -> tuple[bytes, bytes]:
    table = (ctypes.c_uint8 * _CERTIFICATES_BYTES)()
    response = (ctypes.c_uint8 * _RESPONSE_BYTES)()
    wanted = _ExtendedReport(
        user_data=(ctypes.c_uint8 * 64)(*report_data),
        vmpl=vmpl,
        certs_address=ctypes.addressof(table),
        certs_len=_CERTIFICATES_BYTES,
    )
    request = _Request(msg_version=1, req_data=ctypes.addressof(wanted), resp_data=ctypes.addressof(response))
    try:
        ioctl(descriptor, SNP_GET_EXT_REPORT, request)
    except OSError:
        # A host without extended requests, or a table above the kernel's maximum: the plain report is still to be had.
        ctypes.memset(table, 0, _CERTIFICATES_BYTES)
        request.fw_error = 0
        ioctl(descriptor, SNP_GET_REPORT, request)
    raw = bytes(response)
    status, size = (int.from_bytes(raw[at : at + 4], "little") for at in (0, 4))
    if status != 0 or size != REPORT_BYTES:
        raise CollectionFailed(f"firmware status {status:#x}, report of {size} bytes", code="snp_failed")
    return raw[_REPORT_AT : _REPORT_AT + REPORT_BYTES], bytes(table)
