"""The gateways that are measured, each a pinned process that serves the same request to the same upstream."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load.certificates import write_pair
from tests.support.mesh import Mesh, Tenant, identity
from tests.support.node import Node
from tests.support.process import Child, accepts, free_port
from tests.support.tpm import software_tpm

GATEWAY, OTHERS = ("taskset", "-c", "0"), ("taskset", "-c", "1")
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
HERE = Path(__file__).parent
PLAIN, TO_TLS, FROM_TLS = "nginx", "nginx to mutual TLS", "nginx from mutual TLS"
AGAIN = "nginx again"


@dataclass(frozen=True)
class System:
    """A running gateway. ``measured``: name of a row to the process whose tree is charged for it. ``against``: the row
    of nginx in the same place, for each of its rows."""

    name: str
    url: str
    measured: dict[str, int]
    against: dict[str, str]

    @property
    def group(self) -> str:
        """Systems of a group have the same kind of upstream and are offered the same rate."""
        return "plain" if PLAIN in self.against.values() else "mutual TLS"


@contextmanager
def upstream(scratch: Path) -> Iterator[int]:
    """The canned upstream; its port."""
    port = free_port()
    argv = (*OTHERS, sys.executable, str(HERE / "upstream.py"), str(port))
    with Child(argv, scratch / "upstream.log") as child:
        child.wait_until("the upstream", lambda: accepts(port))
        yield port


@contextmanager
def nginx(name: str, scratch: Path, upstream_port: int) -> Iterator[System]:
    """nginx by the pinned configuration. Two of them are the noise floor: the same thing measured twice."""
    port, directory = free_port(), scratch / name.replace(" ", "-")
    with _nginx("nginx.conf", GATEWAY, directory, port, {18080: port, 18081: upstream_port}) as pid:
        yield System(name, f"http://127.0.0.1:{port}", {name: pid}, {name: PLAIN})


@contextmanager
def nginx_pair(scratch: Path, upstream_port: int) -> Iterator[System]:
    """Two nginx with mutual TLS between them: what a proxy and an agent are compared with. The second one shares the
    core of upstream and generator."""
    front, back, certificates = free_port(), free_port(), scratch / "certificates"
    certificates.mkdir()
    for who in ("client", "server"):
        write_pair(certificates, who, "model.test")
    ports = {18080: front, 18443: back, 18081: upstream_port}
    with (
        _nginx("nginx-from-tls.conf", OTHERS, scratch / "from-tls", back, ports, certificates) as behind,
        _nginx("nginx-to-tls.conf", GATEWAY, scratch / "to-tls", front, ports, certificates) as before,
    ):
        rows = {TO_TLS: before, FROM_TLS: behind}
        yield System("nginx pair", f"http://127.0.0.1:{front}", rows, {name: name for name in rows})


@contextmanager
def _nginx(
    conf: str, pin: tuple[str, ...], directory: Path, port: int, ports: dict[int, int], certificates: Path | None = None
) -> Iterator[int]:
    directory.mkdir()
    text = (HERE / conf).read_text()
    for placeholder, number in ports.items():
        text = text.replace(str(placeholder), str(number))
    (directory / "nginx.conf").write_text(text)
    for file in certificates.iterdir() if certificates else ():
        shutil.copy(file, directory)
    argv = (*pin, NGINX, "-p", str(directory), "-c", "nginx.conf", "-e", "stderr")
    with Child(argv, directory / "log") as child:
        child.wait_until("nginx", lambda: accepts(port))
        yield child.pid


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
        yield System(name, node.url, {name: node.pid}, {name: PLAIN})


@contextmanager
def cube_mesh_pair(scratch: Path, upstream_port: int, tenant: Tenant) -> Iterator[System]:
    """Proxy and agent with attested TLS between them (mode "quote", a software TPM), the whole chain at both."""
    with software_tpm() as tcti:
        mesh = Mesh(scratch / "mesh", tcti, (tenant, tenant)).build()
        agent_config = mesh.agent_config(f"http://127.0.0.1:{upstream_port}")
        with Node("agent", agent_config, scratch / "agent", launcher=OTHERS) as agent:
            agent.wait_ready()
            config = mesh.proxy_config(agent.port, identity=identity(tenant), audit={"path": scratch / "pair.jsonl"})
            with Node("proxy", config, scratch / "proxy", launcher=GATEWAY) as proxy:
                proxy.wait_ready()
                rows = {"cube-mesh proxy, attested": proxy.pid, "cube-mesh agent": agent.pid}
                yield System("pair", proxy.url, rows, dict(zip(rows, (TO_TLS, FROM_TLS), strict=True)))
