"""The gateways that are measured, each a pinned process that serves the same request to the same upstream."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.mesh import Tenant, identity
from tests.support.node import Node
from tests.support.process import Child, accepts, free_port

GATEWAY, OTHERS = ("taskset", "-c", "0"), ("taskset", "-c", "1")
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class System:
    """A running gateway. ``measured``: name of a row to the process whose tree is charged for it."""

    name: str
    url: str
    measured: dict[str, int]


@contextmanager
def upstream(scratch: Path) -> Iterator[int]:
    """The canned upstream; its port."""
    port = free_port()
    argv = (*OTHERS, sys.executable, "-m", "bench.load.upstream", str(port))
    with Child(argv, scratch / "upstream.log") as child:
        child.wait_until("the upstream", lambda: accepts(port))
        yield port


@contextmanager
def nginx(name: str, scratch: Path, upstream_port: int) -> Iterator[System]:
    """nginx by the pinned configuration. Two of them are the noise floor: the same thing measured twice."""
    directory, port = scratch / name.replace(" ", "-"), free_port()
    directory.mkdir()
    text = (HERE / "nginx.conf").read_text()
    (directory / "nginx.conf").write_text(text.replace("18080", str(port)).replace("18081", str(upstream_port)))
    argv = (*GATEWAY, NGINX, "-p", str(directory), "-c", "nginx.conf", "-e", "stderr")
    with Child(argv, directory / "log") as child:
        child.wait_until("nginx", lambda: accepts(port))
        yield System(name, f"http://127.0.0.1:{port}", {name: child.pid})


@contextmanager
def cube_mesh(scratch: Path, upstream_port: int, tenant: Tenant) -> Iterator[System]:
    """The whole chain with its defaults: authentication, authorization, audit written to a file, a log line per request
    to another, metrics; a plain upstream on this machine."""
    name = "cube-mesh"
    directory = scratch / name
    config = {
        "upstreams": [{"name": "model", "url": f"http://127.0.0.1:{upstream_port}"}],
        "routes": [{"name": "all", "upstream": "model", "match": {"path_prefix": "/"}}],
        "identity": identity(tenant),
        "audit": {"path": directory / "audit.jsonl"},
        "log": {"format": "json"},
    }
    with Node("proxy", config, directory, launcher=GATEWAY) as node:
        node.wait_ready()
        yield System(name, node.url, {name: node.pid})
