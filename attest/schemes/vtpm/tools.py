"""The tpm2-tools programs on one TPM: run, with the TPM's slots kept free, and NV indexes read and written.

TCG TPM 2.0 Library r1.59, part 1 §37 (NV). NV is read with the owner's authorization, the empty one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess

from attest.errors import CollectionFailed

__all__ = ["TpmTools"]

_MAX_STDERR = 400


class TpmTools:
    """``tcti``: how to reach the TPM; ``timeout_s``: for each program. Everything raises CollectionFailed:
    ``tool_missing``, ``tpm_timeout``, ``tpm_failed``.
    """

    def __init__(self, tcti: str, timeout_s: float) -> None:
        self.tcti, self._timeout_s = tcti, timeout_s

    def run(self, program: str, *arguments: str, stdin: bytes = b"") -> bytes:
        """What the program writes to its standard output."""
        written = self._execute(program, *arguments, stdin=stdin)
        # Without a resource manager, objects stay in the TPM's few slots after each program.
        if "tpmrm" not in self.tcti and not self.tcti.startswith("tabrmd"):
            with contextlib.suppress(CollectionFailed):
                self._execute("tpm2_flushcontext", "-t")
        return written

    def read_nv(self, index: int) -> bytes:
        """The whole content of an NV index."""
        return self.run("tpm2_nvread", "-C", "o", f"{index:#010x}")

    def write_nv(self, index: int, content: bytes) -> None:
        """Make ``content`` the whole content of an NV index, which is defined when it is not there."""
        write = ("tpm2_nvwrite", "-Q", "-C", "o", "-i", "-", f"{index:#010x}")
        try:
            self.run(*write, stdin=content)
        except CollectionFailed as error:
            try:
                self.run("tpm2_nvdefine", "-Q", "-C", "o", "-s", str(len(content)), f"{index:#010x}")
            except CollectionFailed:
                raise error from None  # it is there: what failed is the writing
            self.run(*write, stdin=content)

    def read_certificate(self, index: int) -> bytes:
        """The DER certificate at the front of an NV index, whose rest is zeros or ones: never written, or erased."""
        raw = self.read_nv(index)
        end = 4 + int.from_bytes(raw[2:4], "big")
        if raw[:2] != b"\x30\x82" or end > len(raw) or len(set(raw[end:]) - {0x00, 0xFF}) > 0:
            raise CollectionFailed(f"NV {index:#010x}: no certificate", code="tpm_failed")
        return raw[:end]

    def _execute(self, program: str, *arguments: str, stdin: bytes = b"") -> bytes:
        try:
            done = subprocess.run(
                [program, *arguments, "-T", self.tcti],
                input=stdin,
                capture_output=True,
                env={"PATH": os.environ.get("PATH", os.defpath)},
                timeout=self._timeout_s,
                check=False,
            )
        except FileNotFoundError:
            raise CollectionFailed(
                f"{program} is not installed (Debian, Ubuntu: apt install tpm2-tools)", code="tool_missing"
            ) from None
        except subprocess.TimeoutExpired:
            raise CollectionFailed(f"{program} gave no answer in {self._timeout_s} s", code="tpm_timeout") from None
        if done.returncode != 0:
            detail = done.stderr.decode(errors="replace").strip()[-_MAX_STDERR:]
            raise CollectionFailed(f"{program} failed ({done.returncode}) on {self.tcti}: {detail}", code="tpm_failed")
        return done.stdout
