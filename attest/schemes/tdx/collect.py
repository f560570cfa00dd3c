"""Quotes of a real TDX trust domain: configfs-tsm; or a TDREPORT of ``/dev/tdx_guest`` that a given service quotes.

configfs-tsm needs a quote service behind the host (QGS). Where a platform has its own way to a quote (Azure's IMDS),
the caller hands that in as ``quote_service``, which takes the TDREPORT and gives the quote.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from attest.binding import snp_report_data
from attest.errors import AttestError, CollectionFailed
from attest.evidence import HARDWARE, LAUNCH_ENDORSEMENT, LAUNCH_ENDORSEMENT_TYPE, TDX_QUOTE_TYPE, Part
from attest.schemes.tdx.abi import TDREPORT_BYTES, parse_quote
from attest.tsm import TSM_DIRECTORY, read_tsm

__all__ = ["TdxCollector", "read_tdreport"]

TDX_GUEST = Path("/dev/tdx_guest")
PROVIDER = "tdx_guest"
TDX_CMD_GET_REPORT0 = 0xC440_5401  # _IOWR('T', 1, 64 bytes in, 1024 out)

Ioctl = Callable[[int, int, bytearray], object]


class TdxCollector:
    """Collector of scheme "tdx". Nothing is touched before the first use. Raises CollectionFailed.

    ``quote_service``: makes a quote of a TDREPORT (1024 bytes); without it, configfs-tsm under ``directory`` does.
    ``launch_endorsement``: Google's, of the firmware, sent along. ``device``, ``ioctl``: the guest device and what
    stands in for the real call in tests.
    """

    scheme = "tdx"

    def __init__(
        self,
        *,
        quote_service: Callable[[bytes], bytes] | None = None,
        launch_endorsement: bytes = b"",
        directory: Path = TSM_DIRECTORY,
        device: Path = TDX_GUEST,
        ioctl: Ioctl = fcntl.ioctl,
    ) -> None:
        self._launch_endorsement = launch_endorsement
        self._service, self._directory, self._device, self._ioctl = quote_service, directory, device, ioctl

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        """A quote over ``data_hash`` (32 bytes), looked at before it is handed out; padding is cut off."""
        return self.parts_over(snp_report_data(data_hash))

    def parts_over(self, report_data: bytes) -> dict[int, Part]:
        """The same over ``report_data`` (64 bytes), which ``binding`` makes: a hash under a tag of ours."""
        if self._service is None:
            raw = read_tsm(report_data, PROVIDER, directory=self._directory).outblob
        else:
            raw = self._service(read_tdreport(report_data, device=self._device, ioctl=self._ioctl))
        try:
            quote = parse_quote(raw)
        except AttestError as error:
            raise CollectionFailed(f"the machine's own quote is malformed: {error}", code="tdx_failed") from error
        if quote.report.report_data != report_data:
            raise CollectionFailed("the quote is over other data than was asked", code="tdx_failed")
        parts = {HARDWARE: Part(TDX_QUOTE_TYPE, raw[: quote.size])}
        if self._launch_endorsement:
            parts[LAUNCH_ENDORSEMENT] = Part(LAUNCH_ENDORSEMENT_TYPE, self._launch_endorsement)
        return parts


def read_tdreport(report_data: bytes, *, device: Path = TDX_GUEST, ioctl: Ioctl = fcntl.ioctl) -> bytes:
    """The TDREPORT (1024 bytes) over ``report_data`` (64 bytes). Raises CollectionFailed."""
    if len(report_data) != 64:
        raise ValueError("report data has 64 bytes")
    buffer = bytearray(report_data) + bytearray(TDREPORT_BYTES)
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise CollectionFailed(f"{device}: {error.strerror}", code="device_unavailable") from None
    try:
        ioctl(descriptor, TDX_CMD_GET_REPORT0, buffer)
    except OSError as error:
        raise CollectionFailed(f"{device}: {error.strerror}", code="tdx_failed") from None
    finally:
        os.close(descriptor)
    return bytes(buffer[64:])
