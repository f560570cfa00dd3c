"""configfs-tsm as a look-alike directory: whose report it is, and a kernel that is silent, absent or answers badly."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from attest.errors import CollectionFailed
from attest.testkit.snp import SnpPlatform
from attest.testkit.tsm import TsmDirectory, snp_responder
from attest.tsm import MAX_BLOB_BYTES, read_tsm, tsm_available

DATA = bytes(range(64))
SNP = SnpPlatform(b"tsm")


def _refused(collect: Callable[[], object]) -> str:
    with pytest.raises(CollectionFailed) as caught:
        collect()
    return caught.value.code


def test_a_report_over_our_data(tmp_path: Path) -> None:
    assert not tsm_available(tmp_path / "report")
    with TsmDirectory(tmp_path / "report", "sev_guest", snp_responder(SNP)) as tsm:
        assert tsm_available(tsm.path)
        plain = read_tsm(DATA, "sev_guest", directory=tsm.path)
        levelled = read_tsm(DATA, "sev_guest", directory=tsm.path, privilege_level=1)
    assert DATA in plain.outblob and SNP.endorsements[0] in plain.auxblob
    assert plain.outblob[0x30] == 0 and levelled.outblob[0x30] == 1


def test_another_writer_shows_in_the_generation(tmp_path: Path) -> None:
    with TsmDirectory(tmp_path / "r", "sev_guest", snp_responder(SNP), extra_writes=1) as tsm:
        assert _refused(lambda: read_tsm(DATA, "sev_guest", directory=tsm.path)) == "tsm_generation"


def test_the_provider_must_be_the_wanted_one(tmp_path: Path) -> None:
    with TsmDirectory(tmp_path / "r", "tdx_guest", snp_responder(SNP)) as tsm:
        assert _refused(lambda: read_tsm(DATA, "sev_guest", directory=tsm.path)) == "tsm_provider"


def test_a_directory_that_is_not_there_or_silent(tmp_path: Path) -> None:
    assert _refused(lambda: read_tsm(DATA, "sev_guest", directory=tmp_path / "no")) == "tsm_unavailable"
    assert _refused(lambda: read_tsm(DATA, "sev_guest", directory=tmp_path, timeout_s=0.01)) == "tsm_timeout"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("outblob", [b"", b"x" * (MAX_BLOB_BYTES + 1)], ids=["empty", "enormous"])
def test_a_report_that_is_none(tmp_path: Path, outblob: bytes) -> None:
    with TsmDirectory(tmp_path / "r", "sev_guest", lambda *_: (outblob, b"")) as tsm:
        assert _refused(lambda: read_tsm(DATA, "sev_guest", directory=tsm.path)) == "tsm_failed"


# An entry of plain files, made at once: what stands in each attribute, and a directory where one cannot be written.
ENTRIES: dict[str, tuple[dict[str, bytes], tuple[str, ...], str]] = {
    "generation is no number": ({"generation": b"x"}, (), "tsm_failed"),
    "generation in other digits": ({"generation": "²".encode()}, (), "tsm_failed"),
    "generation does not rise": ({}, (), "tsm_timeout"),
    "inblob cannot be written": ({}, ("inblob",), "tsm_failed"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_a_kernel_that_answers_badly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    files, directories, code = ENTRIES[case]

    def mkdir(self: Path, mode: int = 0o777, **_: object) -> None:
        os.mkdir(self)
        for name in directories:
            os.mkdir(self / name)
        for name, content in {"provider": b"sev_guest\n", "generation": b"0", **files}.items():
            (self / name).write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", mkdir)
        assert _refused(lambda: read_tsm(DATA, "sev_guest", directory=tmp_path, timeout_s=0.01)) == code


@pytest.mark.parametrize("missing", ["outblob", "auxblob"])
def test_blobs_that_the_kernel_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """A provider without certificates has no auxblob; one without a report has failed."""
    generations = iter((0, 1, 1))
    monkeypatch.setattr("attest.tsm._generation", lambda _: next(generations))

    def mkdir(self: Path, mode: int = 0o777, **_: object) -> None:
        os.mkdir(self)
        for name in {"provider", "outblob", "auxblob"} - {missing}:
            (self / name).write_bytes(b"sev_guest")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    if missing == "outblob":
        assert _refused(lambda: read_tsm(DATA, "sev_guest", directory=tmp_path)) == "tsm_failed"
    else:
        assert read_tsm(DATA, "sev_guest", directory=tmp_path).auxblob == b""


def test_the_data_has_one_length() -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        read_tsm(DATA[:-1], "sev_guest")
