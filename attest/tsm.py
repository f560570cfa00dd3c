"""Reports through configfs-tsm (Linux 6.7 and later), the kernel's one interface to SEV-SNP and TDX.

``Documentation/ABI/testing/configfs-tsm-report``: a directory made under ``report/`` has ``inblob`` to write,
``outblob`` and ``auxblob`` to read, ``provider``, and ``generation``, which counts the writes. A report belongs to our
input only when ``generation`` is what we have written, before and after it was read: another writer shows there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from attest.errors import CollectionFailed

__all__ = ["TSM_DIRECTORY", "TsmReport", "read_tsm", "tsm_available"]

TSM_DIRECTORY = Path("/sys/kernel/config/tsm/report")
MAX_BLOB_BYTES = 1 << 20
_POLL_S = 0.005
_names = itertools.count()


class TsmReport(msgspec.Struct, frozen=True):
    """What the kernel handed out: ``outblob`` is the report or quote, ``auxblob`` the certificate table, if any."""

    outblob: bytes
    auxblob: bytes


def tsm_available(directory: Path = TSM_DIRECTORY) -> bool:
    """Whether the interface is there; a provider may still be missing."""
    return directory.is_dir()


def read_tsm(
    report_data: bytes,
    provider: str,
    *,
    directory: Path = TSM_DIRECTORY,
    privilege_level: int | None = None,
    timeout_s: float = 10.0,
) -> TsmReport:
    """A report over ``report_data`` (64 bytes) from the kernel's ``provider`` ("sev_guest", "tdx_guest").

    ``privilege_level``: the VMPL to report at (SEV-SNP); the kernel's own when None. Raises CollectionFailed.
    """
    if len(report_data) != 64:
        raise ValueError("report data has 64 bytes")
    with _entry(directory) as entry:
        try:
            return _report(entry, report_data, provider, privilege_level, timeout_s)
        except OSError as error:
            raise CollectionFailed(f"configfs-tsm: {error.strerror}: {error.filename}", code="tsm_failed") from None


@contextlib.contextmanager
def _entry(directory: Path) -> Iterator[Path]:
    """A report directory of our own, gone afterwards; its attributes go with it on configfs."""
    entry = directory / f"cube-mesh-{os.getpid()}-{next(_names)}"
    try:
        entry.mkdir(mode=0o700)
    except OSError as error:
        raise CollectionFailed(f"configfs-tsm: {error.strerror}: {entry}", code="tsm_unavailable") from None
    try:
        yield entry
    finally:
        with contextlib.suppress(OSError):
            entry.rmdir()


def _report(entry: Path, report_data: bytes, provider: str, level: int | None, timeout_s: float) -> TsmReport:
    _wait(lambda: (entry / "provider").exists(), timeout_s, "no attributes appear")
    found = (entry / "provider").read_text().strip()
    if found != provider:
        raise CollectionFailed(f"configfs-tsm: the provider is {found!r}, not {provider!r}", code="tsm_provider")
    start = _generation(entry)
    writes = 1
    if level is not None:
        (entry / "privlevel").write_text(str(level))
        writes += 1
    (entry / "inblob").write_bytes(report_data)
    _wait(lambda: _generation(entry) >= start + writes, timeout_s, "the write is not seen")
    outblob, auxblob = _blob(entry / "outblob"), _blob(entry / "auxblob", optional=True)
    if (generation := _generation(entry)) != start + writes:
        raise CollectionFailed(
            f"configfs-tsm: generation {generation}, not {start + writes}: somebody else wrote", code="tsm_generation"
        )
    if not outblob:
        raise CollectionFailed("configfs-tsm: an empty report", code="tsm_failed")
    return TsmReport(outblob, auxblob)


def _generation(entry: Path) -> int:
    text = (entry / "generation").read_text().strip()
    if not text.isascii() or not text.isdigit():
        raise CollectionFailed(f"configfs-tsm: generation {text!r}", code="tsm_failed")
    return int(text)


def _blob(path: Path, *, optional: bool = False) -> bytes:
    """An attribute's bytes. ``auxblob`` is not there when the provider has none, or fails to read when it is empty."""
    try:
        with path.open("rb") as file:
            blob = file.read(MAX_BLOB_BYTES + 1)
    except OSError:
        if optional:
            return b""
        raise
    if len(blob) > MAX_BLOB_BYTES:
        raise CollectionFailed(f"configfs-tsm: {path.name} is above {MAX_BLOB_BYTES} bytes", code="tsm_failed")
    return blob


def _wait(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    """The kernel answers at once; a simulation of it needs a moment. No clock: so many waits, then an error."""
    pause = threading.Event()
    for _ in range(max(1, int(timeout_s / _POLL_S))):
        if holds():
            return
        pause.wait(_POLL_S)
    raise CollectionFailed(f"configfs-tsm: {what} within {timeout_s} s", code="tsm_timeout")
