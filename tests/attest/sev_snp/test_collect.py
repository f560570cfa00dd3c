"""Reports of a guest: through configfs-tsm, through ``/dev/sev-guest`` with a fake ioctl; the host's certificates."""

from __future__ import annotations

import base64
import ctypes
import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from attest.attester import Collector
from attest.binding import Expected
from attest.errors import AttestError, CollectionFailed, MalformedEvidence
from attest.evidence import (
    ENDORSEMENTS,
    LAUNCH_ENDORSEMENT,
    LAUNCH_ENDORSEMENT_TYPE,
    Part,
    decode_certificates,
)
from attest.policy import first_report_policy
from attest.schemes.sev_snp.abi import REPORT_BYTES
from attest.schemes.sev_snp.certtable import (
    ARK,
    ASK,
    MAX_TABLE_BYTES,
    VCEK,
    certificates_of,
    encode_table,
    parse_table,
)
from attest.schemes.sev_snp.collect import SNP_GET_EXT_REPORT, SNP_GET_REPORT, SnpCollector
from attest.testkit.snp import SnpPlatform
from attest.testkit.tsm import TsmDirectory, snp_responder
from attest.verifier import Verifier

from ..conftest import NOW

HASH = bytes(range(32))
SNP = SnpPlatform(b"collect")
Encode = Callable[[Collector], bytes]


def _refused(collect: Callable[[], object]) -> str:
    with pytest.raises(CollectionFailed) as caught:
        collect()
    return caught.value.code


# -- configfs-tsm ------------------------------------------------------------------------------------------------------


def test_through_configfs(tmp_path: Path, expected: Expected, evidence: Encode) -> None:
    with TsmDirectory(tmp_path / "report", "sev_guest", snp_responder(SNP)) as tsm:
        raw = evidence(SnpCollector(directory=tsm.path))
        again = evidence(SnpCollector(directory=tsm.path, privilege_level=1))
    for sent, vmpl in ((raw, "0"), (again, "1")):
        result = Verifier(first_report_policy("sev-snp"), allow_simulated=True).appraise(sent, expected, now=NOW)
        assert (result.claims["vmpl"], result.claims["chip_id"]) == (vmpl, SNP.hwid.hex())


def test_certificates_of_the_configuration_when_the_host_has_none(tmp_path: Path) -> None:
    with TsmDirectory(tmp_path / "r", "sev_guest", snp_responder(SNP, with_table=False)) as tsm:
        assert ENDORSEMENTS not in SnpCollector(directory=tsm.path).parts(HASH)
        parts = SnpCollector(directory=tsm.path, certificates=SNP.endorsements).parts(HASH)
    assert decode_certificates(parts[ENDORSEMENTS].body) == SNP.endorsements


def test_googles_endorsement_from_the_host_or_the_configuration(tmp_path: Path) -> None:
    for handed, own, sent in ((b"host's", b"own", b"host's"), (b"", b"own", b"own"), (b"host's", b"", b"host's")):
        with TsmDirectory(tmp_path / "r", "sev_guest", snp_responder(SNP, launch_endorsement=handed)) as tsm:
            parts = SnpCollector(directory=tsm.path, launch_endorsement=own).parts(HASH)
        assert parts[LAUNCH_ENDORSEMENT] == Part(LAUNCH_ENDORSEMENT_TYPE, sent)
        assert decode_certificates(parts[ENDORSEMENTS].body) == SNP.endorsements
    with TsmDirectory(tmp_path / "r", "sev_guest", snp_responder(SNP, with_table=False)) as tsm:
        assert LAUNCH_ENDORSEMENT not in SnpCollector(directory=tsm.path).parts(HASH)


@pytest.mark.parametrize("answer", [b"x", SNP.report(bytes(64)), SNP.report(HASH + bytes(32))[:-1]])
def test_what_the_kernel_says_is_looked_at(tmp_path: Path, answer: bytes) -> None:
    with TsmDirectory(tmp_path / "r", "sev_guest", lambda *_: (answer, b"")) as tsm:
        assert _refused(lambda: SnpCollector(directory=tsm.path).parts(HASH)) == "snp_failed"


# -- /dev/sev-guest ----------------------------------------------------------------------------------------------------


class FakeSevGuest:
    """Stands in for ``ioctl`` on ``/dev/sev-guest``: follows the pointers of the request, as the kernel does."""

    def __init__(self, *, extended: bool = True, status: int = 0) -> None:
        self.extended, self.status = extended, status
        self.calls: list[int] = []

    def __call__(self, _: int, number: int, request: ctypes.Structure) -> int:
        self.calls.append(number)
        assert ctypes.sizeof(request) == 32 and request.msg_version == 1
        if number == SNP_GET_EXT_REPORT and not self.extended:
            raise OSError(errno.EIO, "host says no")
        wanted = ctypes.string_at(request.req_data, 112)
        report_data, vmpl = wanted[:64], int.from_bytes(wanted[64:68], "little")
        if number == SNP_GET_EXT_REPORT:
            address, size = int.from_bytes(wanted[96:104], "little"), int.from_bytes(wanted[104:108], "little")
            table = encode_table({VCEK: SNP.endorsements[0], ASK: SNP.endorsements[1]})
            assert size % 4096 == 0 and len(table) <= size
            ctypes.memmove(address, table, len(table))
        head = self.status.to_bytes(4, "little") + REPORT_BYTES.to_bytes(4, "little") + bytes(24)
        response = head + SNP.report(report_data, vmpl=vmpl)
        ctypes.memmove(request.resp_data, response, len(response))
        return 0


def _device_collector(tmp_path: Path, fake: FakeSevGuest, **arguments: int) -> SnpCollector:
    device = tmp_path / "sev-guest"
    device.touch()
    return SnpCollector(directory=tmp_path / "none", device=device, ioctl=fake, **arguments)  # type: ignore[arg-type]


def test_through_the_device(tmp_path: Path, expected: Expected, evidence: Encode) -> None:
    fake = FakeSevGuest()
    raw = evidence(_device_collector(tmp_path, fake, privilege_level=2))
    result = Verifier(first_report_policy("sev-snp"), allow_simulated=True).appraise(raw, expected, now=NOW)
    assert result.claims["vmpl"] == "2" and fake.calls == [SNP_GET_EXT_REPORT]


def test_a_host_without_extended_requests(tmp_path: Path) -> None:
    fake = FakeSevGuest(extended=False)
    assert ENDORSEMENTS not in _device_collector(tmp_path, fake).parts(HASH)
    assert fake.calls == [SNP_GET_EXT_REPORT, SNP_GET_REPORT]


def test_devices_that_fail(tmp_path: Path) -> None:
    assert _refused(lambda: _device_collector(tmp_path, FakeSevGuest(status=0x16)).parts(HASH)) == "snp_failed"
    absent = SnpCollector(directory=tmp_path / "none", device=tmp_path / "absent")
    assert _refused(lambda: absent.parts(HASH)) == "device_unavailable"
    real = SnpCollector(directory=tmp_path / "none", device=tmp_path / "sev-guest")  # a file: no such ioctl
    assert _refused(lambda: real.parts(HASH)) == "snp_failed"


@pytest.mark.parametrize("level", [-1, 4])
def test_a_vmpl_is_0_to_3(level: int) -> None:
    with pytest.raises(ValueError, match="VMPL"):
        SnpCollector(privilege_level=level)


# -- the host's certificate table --------------------------------------------------------------------------------------

TABLE = encode_table({VCEK: b"leaf", ASK: b"ask"})


def test_certificate_tables() -> None:
    assert parse_table(TABLE + bytes(9)) == {VCEK: b"leaf", ASK: b"ask"}
    leaf, ask = SNP.endorsements
    assert certificates_of(encode_table({ASK: ask, ARK: b"not looked at", VCEK: leaf})) == (leaf, ask)
    mixed = encode_table({ASK: ask, VCEK: leaf}).replace(VCEK.bytes, VCEK.bytes_le)
    assert certificates_of(mixed) == (leaf, ask)
    assert certificates_of(b"") == certificates_of(bytes(64)) == ()
    with pytest.raises(MalformedEvidence):
        certificates_of(TABLE)


@pytest.mark.parametrize(
    "raw",
    [
        b"x", TABLE[:24], TABLE[:-1], TABLE[:24] + TABLE[:24] + TABLE[48:], bytes(MAX_TABLE_BYTES + 1),
        TABLE[:20] + bytes(4) + TABLE[24:], b"\x01" * (24 * 40), VCEK.bytes_le + b"\xff" * 8 + bytes(24),
        b"".join(bytes((n, *bytes(15))) + bytes(4) + b"\x01\x00\x00\x00" for n in range(1, 40)),
    ],
    ids=["cut", "no end", "entry outside", "twice", "enormous", "empty entry", "same", "offset", "too many entries"],
)  # fmt: skip
def test_tables_that_are_none(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        parse_table(raw)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_real_table(vectors: Path) -> None:
    envelope = json.loads((vectors / "snp" / "veraison" / "sevsnp-tsm-report.json").read_text())
    table = base64.urlsafe_b64decode(envelope["auxblob"] + "==")
    leaf, ask = certificates_of(table)  # the table has DER and PEM
    assert leaf == (vectors / "snp" / "veraison" / "vcek.der").read_bytes()
    assert ask == (vectors / "snp" / "roots" / "genoa-ask.der").read_bytes()
    with pytest.raises(AttestError):
        parse_table(table[:100])
