"""One child process: its output in a file, stopped by SIGTERM, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

POLL_S = 0.02


class Child:
    """A running program. ``output`` is what it wrote to stdout and stderr. Use as a context manager, or ``close``."""

    def __init__(self, argv: Sequence[str], log: Path, *, environ: dict[str, str] | None = None) -> None:
        self.argv, self.log = list(argv), log
        # A developer's own CUBE_MESH_* settings are not the test's.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CUBE_MESH_")}
        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=clean | (environ or {}),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def output(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def wait_until(self, what: str, ready: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Poll ``ready``; RuntimeError with the program's output when it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.popen.poll() is not None:
                raise RuntimeError(f"{self.argv[:4]} ended with {self.popen.returncode}:\n{self.output[-4000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what}: not after {timeout_s} s:\n{self.output[-4000:]}")
            time.sleep(POLL_S)

    def first_line(self, timeout_s: float = 20.0) -> str:
        """The first line that the program prints: how the servers of this project tell their address."""
        self.wait_until("a line of output", lambda: "\n" in self.output, timeout_s)
        return self.output.splitlines()[0]

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM and wait. The exit code; subprocess.TimeoutExpired when it does not end."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, and wait until the kernel has taken it away."""
        self.popen.kill()
        self.popen.wait()

    def close(self) -> None:
        """Stop what still runs, the hard way if need be."""
        try:
            self.stop(5.0)
        except subprocess.TimeoutExpired:
            self.kill()


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def accepts(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
