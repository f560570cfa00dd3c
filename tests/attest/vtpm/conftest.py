"""A real TPM 2.0 implementation (swtpm) behind a unix socket."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tcti(tmp_path: Path, require_tools: Callable[..., None]) -> Iterator[str]:
    require_tools("swtpm", "tpm2_flushcontext")
    (tmp_path / "state").mkdir()
    socket = tmp_path / "tpm.sock"
    process = subprocess.Popen(
        [
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path}/state",
            "--flags", "not-need-init,startup-clear", "--server",
            f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={socket}.ctrl",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 5
    while not (socket.exists() and Path(f"{socket}.ctrl").exists()) and time.monotonic() < deadline:
        time.sleep(0.01)
    yield f"swtpm:path={socket}"
    process.terminate()
    process.wait(5)
