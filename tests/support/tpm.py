"""A software TPM 2.0 (swtpm) behind a unix socket."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.process import Child


@contextmanager
def software_tpm() -> Iterator[str]:
    """Start one; the value is its TCTI. Its own short directory, because a socket's path holds 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="tpm-") as name:
        directory = Path(name)
        socket = directory / "s"
        argv = (
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}", "--flags", "not-need-init,startup-clear",
            "--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={socket}.ctrl",
        )  # fmt: skip
        with Child(argv, directory / "log") as child:
            child.wait_until("swtpm's socket", lambda: socket.exists() and Path(f"{socket}.ctrl").exists())
            yield f"swtpm:path={socket}"
