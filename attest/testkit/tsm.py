"""A directory that behaves as configfs-tsm does: make an entry, write ``inblob``, read ``outblob``, count the writes.

Ordinary files and a thread that watches them. What differs from the kernel: attributes appear a moment after the entry
is made, ``generation`` rises a moment after the write, and entries stay until the simulation ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from attest.schemes.sev_snp.certtable import ARK, ASK, GCE_FIRMWARE, VCEK, VLEK, encode_table
from attest.testkit.pki import ca_certificate
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import TdxPlatform

__all__ = ["TsmDirectory", "snp_responder", "tdx_responder"]

_POLL_S = 0.001
Responder = Callable[[bytes, int], tuple[bytes, bytes]]  # report data, privilege level → outblob, auxblob


class TsmDirectory:
    """``path`` as ``/sys/kernel/config/tsm/report`` of a guest whose kernel has ``provider``; a context manager.

    ``extra_writes`` makes ``generation`` rise by more than was written, as when another process writes as well.
    """

    def __init__(self, path: Path, provider: str, respond: Responder, *, extra_writes: int = 0) -> None:
        self.path, self._provider, self._respond, self._extra = path, provider, respond, extra_writes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._seen: dict[Path, tuple[int, int]] = {}

    def __enter__(self) -> TsmDirectory:
        self.path.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for entry in self._seen:
            for attribute in entry.iterdir():
                attribute.unlink()
            entry.rmdir()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            for entry in self.path.iterdir():
                if entry not in self._seen:
                    self._make(entry)
                self._answer(entry)

    def _make(self, entry: Path) -> None:
        for name, content in (("inblob", ""), ("privlevel", ""), ("generation", "0\n")):
            (entry / name).write_text(content)
        self._seen[entry] = (0, 0)
        # Last, because it is what readers wait for; by name, so that nobody sees it half written.
        (entry / "provider.tmp").write_text(f"{self._provider}\n")
        (entry / "provider.tmp").rename(entry / "provider")

    def _answer(self, entry: Path) -> None:
        report_data, level = (entry / "inblob").read_bytes(), (entry / "privlevel").read_text()
        written = ((entry / "inblob").stat().st_mtime_ns if report_data else 0, len(level))
        if len(report_data) != 64 or written == self._seen[entry]:
            return
        self._seen[entry] = written
        outblob, auxblob = self._respond(report_data, int(level or 0))
        (entry / "outblob").write_bytes(outblob)
        (entry / "auxblob").write_bytes(auxblob)
        (entry / "generation.tmp").write_text(f"{1 + bool(level) + self._extra}\n")
        (entry / "generation.tmp").rename(entry / "generation")


def snp_responder(platform: SnpPlatform, *, with_table: bool = True, launch_endorsement: bytes = b"") -> Responder:
    """What the kernel of a simulated SEV-SNP guest answers: a report, and the host's certificate table, in which
    Google's hosts put their launch endorsement.
    """
    leaf, intermediate = platform.endorsements
    root = ca_certificate("ark", platform.product)
    table = {
        VCEK if platform.signing_key == "vcek" else VLEK: leaf,
        ASK: intermediate,
        ARK: root.public_bytes(Encoding.DER),
    } | ({GCE_FIRMWARE: launch_endorsement} if launch_endorsement else {})

    def respond(report_data: bytes, level: int) -> tuple[bytes, bytes]:
        return platform.report(report_data, vmpl=level), encode_table(table) if with_table else b""

    return respond


def tdx_responder(platform: TdxPlatform, *, padding: int = 70) -> Responder:
    """What the kernel of a simulated trust domain answers: a quote with ``padding`` zero bytes after it."""
    return lambda report_data, _: (platform.quote(report_data, trailing=bytes(padding)), b"")
