"""Quotes of a trust domain: through configfs-tsm, or ``/dev/tdx_guest`` with a fake ioctl and a quote service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attest.attester import Collector
from attest.binding import Expected
from attest.errors import CollectionFailed
from attest.evidence import HARDWARE, LAUNCH_ENDORSEMENT, LAUNCH_ENDORSEMENT_TYPE, Part
from attest.policy import first_report_policy
from attest.schemes.tdx.collect import TDX_CMD_GET_REPORT0, TdxCollector, read_tdreport
from attest.testkit.intel import collateral
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tsm import TsmDirectory, tdx_responder
from attest.verifier import Verifier

from ..conftest import NOW

DATA = bytes(range(64))
HASH = bytes(range(32))
TDX = TdxPlatform(b"collect")
QUOTE = TDX.quote(HASH + bytes(32))


def _refused(collect: Callable[[], object]) -> str:
    with pytest.raises(CollectionFailed) as caught:
        collect()
    return caught.value.code


def test_through_configfs(tmp_path: Path, expected: Expected, evidence: Callable[[Collector], bytes]) -> None:
    with TsmDirectory(tmp_path / "report", "tdx_guest", tdx_responder(TDX)) as tsm:
        raw = evidence(TdxCollector(directory=tsm.path))
        assert len(TdxCollector(directory=tsm.path).parts(HASH)[HARDWARE].body) == len(QUOTE)
    verifier = Verifier(first_report_policy("tdx"), allow_simulated=True)
    result = verifier.appraise(raw, expected, now=NOW, endorsements=[collateral()])
    assert (result.platform, result.claims["ppid"]) == ("simulated-tdx", TDX.info.ppid.hex())


def test_googles_endorsement_goes_along(tmp_path: Path) -> None:
    with TsmDirectory(tmp_path / "report", "tdx_guest", tdx_responder(TDX)) as tsm:
        parts = TdxCollector(directory=tsm.path, launch_endorsement=b"google's").parts(HASH)
        assert LAUNCH_ENDORSEMENT not in TdxCollector(directory=tsm.path).parts(HASH)
    assert parts[LAUNCH_ENDORSEMENT] == Part(LAUNCH_ENDORSEMENT_TYPE, b"google's")


@pytest.mark.parametrize("answer", [b"x", TDX.quote(bytes(64)), QUOTE[:-1]])
def test_a_quote_is_looked_at(tmp_path: Path, answer: bytes) -> None:
    device = tmp_path / "tdx_guest"
    device.touch()
    collector = TdxCollector(quote_service=lambda _: answer, device=device, ioctl=lambda *_: 0)
    assert _refused(lambda: collector.parts(HASH)) == "tdx_failed"


def test_through_the_device_and_a_quote_service(tmp_path: Path) -> None:
    device = tmp_path / "tdx_guest"
    device.touch()

    def ioctl(_: int, number: int, buffer: bytearray) -> int:
        assert number == TDX_CMD_GET_REPORT0 and len(buffer) == 64 + 1024
        buffer[64 + 128 : 64 + 192] = buffer[:64]
        return 0

    def service(tdreport: bytes) -> bytes:
        assert len(tdreport) == 1024
        return TDX.quote(tdreport[128:192], trailing=bytes(9))

    body = TdxCollector(quote_service=service, device=device, ioctl=ioctl).parts(HASH)[HARDWARE].body
    assert len(body) == len(QUOTE)


def test_devices_that_fail(tmp_path: Path) -> None:
    (tmp_path / "tdx_guest").touch()  # a file: no such ioctl
    assert _refused(lambda: read_tdreport(DATA, device=tmp_path / "absent")) == "device_unavailable"
    assert _refused(lambda: read_tdreport(DATA, device=tmp_path / "tdx_guest")) == "tdx_failed"
    with pytest.raises(ValueError, match="64 bytes"):
        read_tdreport(DATA[:-1])
