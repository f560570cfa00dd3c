"""Child processes of the demo: each with its own log file, all stopped, last one first, when the demo ends."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_STOP_S = 10.0
_POLL_S = 0.05


class DemoError(Exception):
    """The demo cannot go on; the message is for the person who started it."""


class Processes:
    """A context manager. Children run in sessions of their own, so that Ctrl-C reaches the demo alone."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[tuple[str, subprocess.Popen[bytes]]] = []
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for _, child in reversed(self._children):
            child.terminate()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def start(self, name: str, *argv: str) -> Path:
        """Start one; the result is its log (standard output and error)."""
        log = self._logs / f"{name}.log"
        # Settings of the surrounding shell are for the user's own nodes, not for the demo's.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CUBE_MESH_")}
        with log.open("wb") as output:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._children.append((name, child))
        return log

    def wait_for(self, what: str, ready: Callable[[], bool], timeout_s: float) -> None:
        """Poll ``ready``; DemoError when a child has ended or the time is over, with the end of the last log."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                name = self._children[-1][0]
                raise DemoError(f"{what}: not after {timeout_s:.0f} s\n{self._tail(name)}")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """DemoError when a child has ended: none of them should."""
        for name, child in self._children:
            if child.poll() is not None:
                raise DemoError(f"{name} ended with exit code {child.returncode}\n{self._tail(name)}")

    def _tail(self, name: str) -> str:
        log = self._logs / f"{name}.log"
        lines = log.read_text("utf-8", "replace").splitlines()[-12:]
        return "\n".join([f"the end of {log}:", *(f"    {line}" for line in lines)])


def pick_port(preferred: int) -> int:
    """``preferred`` when it is free on loopback, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    raise DemoError("no free port on 127.0.0.1")
