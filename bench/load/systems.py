"""The gateways that are measured, each a pinned process that serves the same request to the same upstream."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.load import answers
from bench.load.certificates import write_pair
from cube_mesh import settings
from tests.support.mesh import Mesh, Tenant, identity
from tests.support.node import Node
from tests.support.process import Child, accepts, free_port
from tests.support.tpm import software_tpm

GATEWAY, OTHERS = ("taskset", "-c", "0"), ("taskset", "-c", "1")
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
HERE = Path(__file__).parent
PLAIN, TO_TLS, FROM_TLS = "nginx", "nginx to mutual TLS", "nginx from mutual TLS"
AGAIN, DIRECT = "nginx again", "direct"


class BenchError(Exception):
    """The run measured something else than it should: errors, other statuses, a tool that failed."""


@dataclass(frozen=True)
class System:
    """A running gateway. ``measured``: name of a row to the process whose tree is charged for it; 0 is nobody.
    ``against``: the row of nginx in the same place, for each of its rows. ``path`` and ``authorization`` replace the
    run's own where a gateway wants others. ``cores``: how many it may use. ``workers``: what serves requests in it."""

    name: str
    url: str
    measured: dict[str, int]
    against: dict[str, str]
    path: str = ""
    authorization: str = ""
    cores: int = 1
    workers: int = 1

    @property
    def group(self) -> str:
        """Systems of a group have the same kind of upstream and are offered the same rate."""
        return "plain" if PLAIN in self.against.values() else "mutual TLS"


def compiled(source: str, scratch: Path) -> Path:
    """A C program of this folder. Needs ``cc``."""
    program = scratch / Path(source).stem
    made = subprocess.run(["cc", "-O2", "-o", program, HERE / source], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise BenchError(f"{source}: {made.stderr}")
    return program


@contextmanager
def upstream(scratch: Path) -> Iterator[int]:
    """The canned upstream; its port."""
    port, files = free_port(), []
    for name, answer in (("whole", answers.WHOLE), ("stream", answers.STREAM), ("begun", answers.BEGUN)):
        files.append(scratch / f"{name}.http")
        files[-1].write_bytes(answer)
    argv = (*OTHERS, str(compiled("canned.c", scratch)), str(port), *map(str, files))
    with Child(argv, scratch / "upstream.log") as child:
        child.wait_until("the upstream", lambda: accepts(port))
        yield port


@contextmanager
def paced_server(scratch: Path, rate: float) -> Iterator[tuple[Path, int, int]]:
    """The server of paced streams: (its program, port, process id)."""
    program, port = compiled("paced.c", scratch), free_port()
    with Child((*OTHERS, str(program), "serve", str(port), str(rate)), scratch / "paced.log") as child:
        child.wait_until("the paced server", lambda: accepts(port))
        yield program, port, child.pid


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


@dataclass(frozen=True)
class Variant:
    """How a plain proxy is run. ``bare`` is the shortest chain that forwards; it has no audit, so no durability."""

    chain: str = "full"
    durability: str = "write"
    workers: int = 1

    @property
    def name(self) -> str:
        parts = ["cube-mesh"]
        if self.chain != "full":
            parts.append(self.chain)
        if self.durability != "write":
            parts.append(f"audit {self.durability}")
        if self.workers != 1:
            parts.append(f"{self.workers} workers")
        return ", ".join(parts)

    @property
    def missing(self) -> str:
        """What this version of cube-mesh has not; empty when it has everything."""
        if self.workers != 1 and not has("workers"):
            return "no setting workers"
        try:
            msgspec.convert({"durability": self.durability}, settings.Audit)
        except msgspec.ValidationError:
            return f"no audit.durability {self.durability}"
        return ""


def has(section: str) -> bool:
    """Whether this version has a setting of this name at the top."""
    return section in settings.Settings.__struct_fields__


def workers(count: int) -> dict[str, Any]:
    """The setting, where there is one: without it a node is one process."""
    return {"workers": count} if has("workers") else {}


@contextmanager
def cube_mesh(scratch: Path, upstream_port: int, tenant: Tenant, variant: Variant = Variant()) -> Iterator[System]:
    """A proxy before a plain upstream on this machine. The full chain has its defaults: authentication, authorization,
    audit written to a file, a log line per request to another, metrics."""
    directory = scratch / variant.name.replace(", ", "-").replace(" ", "-")
    trail = directory / "audit.jsonl"
    config = {
        "upstreams": [
            {
                "name": "model",
                "url": f"http://127.0.0.1:{upstream_port}",
                "pool": {"max_connections_per_host": 10_000},
            }
        ],
        "routes": [{"name": "all", "upstream": "model", "match": {"path_prefix": "/"}}],
        "identity": identity(tenant),
        "limits": {"max_connections_per_address": 10_000, "max_in_flight": 10_000},
        "audit": {"path": trail, "durability": variant.durability},
        "log": {"format": "json"},
        **workers(variant.workers),
    }
    bare = variant.chain == "bare"
    environ = {"PYTHONPATH": f"{HERE / 'bare'}:{HERE.parents[1]}"} if bare else {}
    cores = min(variant.workers, 2)
    pin = GATEWAY if cores == 1 else ("taskset", "-c", "0,1")
    with Node("proxy", config, directory, launcher=pin, environ=environ) as node:
        node.wait_ready()
        rows = {variant.name: node.pid}
        yield System(variant.name, node.url, rows, {variant.name: PLAIN}, cores=cores, workers=variant.workers)
    check_trail(variant, directory)


def check_trail(variant: Variant, directory: Path) -> None:
    """The trail shows which chain ran: BenchError when it is another than the row says."""
    recorded = sum(file.stat().st_size for file in directory.glob("audit*") if file.is_file())
    if (variant.chain == "bare") == bool(recorded):
        raise BenchError(f"{variant.name}: {recorded} bytes of audit trail")


@contextmanager
def direct(upstream_port: int) -> Iterator[System]:
    """No gateway: what latencies are compared with."""
    yield System(DIRECT, f"http://127.0.0.1:{upstream_port}", {DIRECT: 0}, {DIRECT: PLAIN})


@contextmanager
def cube_mesh_pair(scratch: Path, upstream_port: int, tenant: Tenant) -> Iterator[System]:
    """Proxy and agent with attested TLS between them (one session, a software TPM), the whole chain at both."""
    with software_tpm() as tcti:
        mesh = Mesh(scratch / "mesh", tcti, (tenant, tenant)).build()
        agent_config = mesh.agent_config(f"http://127.0.0.1:{upstream_port}", **workers(1))
        with Node("agent", agent_config, scratch / "agent", launcher=OTHERS) as agent:
            agent.wait_ready()
            own = {"identity": identity(tenant), "audit": {"path": scratch / "pair.jsonl"}, **workers(1)}
            config = mesh.proxy_config(agent.port, **own)
            with Node("proxy", config, scratch / "proxy", launcher=GATEWAY) as proxy:
                proxy.wait_ready()
                rows = {"cube-mesh proxy, attested": proxy.pid, "cube-mesh agent": agent.pid}
                yield System("pair", proxy.url, rows, dict(zip(rows, (TO_TLS, FROM_TLS), strict=True)))
