"""A real ``cube-mesh proxy`` or ``agent``: a dictionary becomes its TOML file, and /readyz says when it serves."""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

from tests.support.process import Child, free_port

Config = dict[str, Any]


class Node(Child):
    """A node process. ``port`` is where clients or proxies connect, ``local_port`` has metrics and health."""

    def __init__(
        self,
        role: Literal["proxy", "agent"],
        config: Config,
        directory: Path,
        *,
        launcher: tuple[str, ...] = (),
        environ: dict[str, str] | None = None,
    ) -> None:
        """``launcher`` goes before the command, for example ``("taskset", "-c", "0")``."""
        self.role = role
        listen, metrics = dict(config.get("listen", {})), dict(config.get("metrics", {}))
        self.port = listen.setdefault("port", free_port())
        self.local_port = metrics.setdefault("port", free_port())
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"{role}.toml"
        defaults = {"workers": 0}  # one process, so that ``pid`` is the one that serves; None: an older version
        config = {key: value for key, value in {**defaults, **config}.items() if value is not None}
        file.write_text(to_toml({**config, "listen": listen, "metrics": metrics}))
        argv = (*launcher, sys.executable, "-m", "cube_mesh", role, "--config", str(file))
        super().__init__(argv, directory / f"{role}.log", environ=environ)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # -- a node of several processes

    @property
    def supervisor_pid(self) -> int:
        """0 when there is none at the moment."""
        return next(iter(children(self.pid, "cube_mesh.supervisor")), 0)

    @property
    def keeper_pid(self) -> int:
        """0 when there is none at the moment."""
        return next(iter(children(self.supervisor_pid, "cube_mesh.keeper_main")), 0)

    def worker_pids(self) -> dict[int, int]:
        """Worker's index to its pid."""
        found = children(self.supervisor_pid, "cube_mesh.worker")
        return {int(line[-2]): pid for pid in found if (line := command_line(pid))}

    def wait_ready(self, timeout_s: float = 20.0) -> Node:
        self.wait_until("/readyz", lambda: self.local("/readyz")[0] == 200, timeout_s)
        return self

    def local(self, path: str) -> tuple[int, str]:
        """(status, body) from the local listener; (0, reason) when there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.local_port}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.read().decode()
        except OSError as error:
            return 0, str(error)


def children(parent: int, module: str) -> list[int]:
    """Pids of the live processes that ``parent`` made as ``python -m module``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and module in command_line(int(entry.name)):
            with contextlib.suppress(OSError):
                state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(ppid) == parent and state != "Z":
                    found.append(int(entry.name))
    return sorted(found)


def command_line(pid: int) -> list[str]:
    """Its arguments; empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


def to_toml(config: Config) -> str:
    """One line for each top-level key. Strings as JSON, which TOML's basic strings contain."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in config.items())


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, Path):
        return json.dumps(str(value))
    return json.dumps(value)
