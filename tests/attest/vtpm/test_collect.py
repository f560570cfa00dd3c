"""The collector where a TPM or the disk misbehaves: programs are stood in for, nothing is asked of a real TPM."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from attest.errors import CollectionFailed
from attest.evidence import TPM_QUOTE
from attest.schemes.vtpm.abi import decode_quote_part
from attest.schemes.vtpm.collect import TpmCollector
from attest.schemes.vtpm.tools import TpmTools
from attest.testkit.tpm import SoftwareTpm

HASH = bytes(range(32))
TPM = SoftwareTpm()


class Programs:
    """tpm2-tools whose TPM is the testkit's. ``spoil`` changes each quote's PCR values as they are written."""

    def __init__(self, spoil: Callable[[bytes, int], bytes] = lambda values, _: values) -> None:
        self.spoil, self.quotes, self.ran = spoil, 0, list[str]()

    def __call__(self, tools: TpmTools, program: str, *arguments: str, stdin: bytes = b"") -> bytes:
        self.ran.append(program)
        named = dict(pairwise(arguments))
        if program in ("tpm2_create", "tpm2_readpublic"):
            public = TPM.public()
            if program == "tpm2_create":
                Path(named["-u"]).write_bytes(len(public).to_bytes(2, "big") + public)
                Path(named["-r"]).write_bytes(b"wrapped")
            else:
                Path(named["-o"]).write_bytes(public)
        if program == "tpm2_quote":
            self.quotes += 1
            part = decode_quote_part(TPM.quote(bytes.fromhex(named["-q"])))
            values = b"".join(value for _, value in sorted(part.pcrs[0x000B].items()))
            Path(named["-m"]).write_bytes(part.attest)
            Path(named["-s"]).write_bytes(part.signature)
            Path(named["-o"]).write_bytes(self.spoil(values, self.quotes))
        return b""


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Programs]:
    def install(*arguments: Callable[[bytes, int], bytes]) -> Programs:
        made = Programs(*arguments)
        monkeypatch.setattr(TpmTools, "_execute", lambda self, *a, stdin=b"": made(self, *a, stdin=stdin))
        return made

    return install


def refused(tpm: TpmCollector) -> CollectionFailed:
    with pytest.raises(CollectionFailed) as caught:
        tpm.parts(HASH)
    return caught.value


def test_pcrs_that_change_between_quote_and_read_are_quoted_again(programs: Callable[..., Programs]) -> None:
    made = programs(lambda values, quotes: values if quotes > 1 else b"\x01" + values[1:])
    with TpmCollector("device:x", range(8)) as tpm:
        assert TPM_QUOTE in tpm.parts(HASH)
    assert made.quotes == 2 and made.ran.count("tpm2_load") == 2


def test_a_handle_is_not_loaded_again(programs: Callable[..., Programs]) -> None:
    made = programs(lambda values, quotes: values if quotes > 1 else b"\x01" + values[1:])
    with TpmCollector("device:x", range(8), ak_handle="0x81010002") as tpm:
        assert TPM_QUOTE in tpm.parts(HASH)
    assert made.quotes == 2 and "tpm2_load" not in made.ran


def test_a_quote_that_never_fits_its_values(programs: Callable[..., Programs]) -> None:
    programs(lambda values, _: b"\x01" + values[1:])
    with TpmCollector("device:x", range(8)) as tpm:
        error = refused(tpm)
    assert error.code == "tpm_failed" and "does not verify" in str(error)


def test_values_of_another_length(programs: Callable[..., Programs]) -> None:
    programs(lambda values, _: values[:-1])
    with TpmCollector("device:x", range(8)) as tpm:
        assert "255 bytes of PCR values, expected 256 (sha256)" in str(refused(tpm))


def test_the_ak_is_kept_whole_or_not_at_all(programs: Callable[..., Programs], tmp_path: Path) -> None:
    programs()
    with TpmCollector("device:x", range(8), ak_file=str(tmp_path / "none" / "ak")) as tpm:
        assert "cannot keep the AK" in str(refused(tpm))
    (tmp_path / "dir").mkdir()
    with TpmCollector("device:x", range(8), ak_file=str(tmp_path / "dir")) as tpm:
        assert str(tmp_path / "dir") in str(refused(tpm))


@pytest.mark.parametrize(("tcti", "flushes"), [("device:/dev/tpmrm0", 0), ("tabrmd:", 0), ("device:/dev/tpm0", 1)])
def test_slots_are_freed_where_no_resource_manager_does(
    programs: Callable[..., Programs], tcti: str, flushes: int
) -> None:
    made = programs()
    TpmTools(tcti, 1.0).run("tpm2_getcap")
    assert made.ran.count("tpm2_flushcontext") == flushes


def test_closing_what_was_never_used() -> None:
    TpmCollector("device:x", (0,)).close()
