"""The peers: how each is started, and how each is installed. Nothing here is a dependency of cube-mesh."""

from __future__ import annotations

import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load.run import body
from bench.load.systems import GATEWAY, PLAIN, System
from tests.support.process import Child, accepts, free_port

HERE, HOME = Path(__file__).parent, Path("var/peers").resolve()
PATH = "/v1/chat/completions"
LITELLM_KEY = "sk-bench-0123456789abcdef0123456789abcdef"  # of a gateway that guards nothing, on loopback, for seconds
START_S = 60.0


@dataclass(frozen=True)
class Peer:
    """``program`` is where it would be, and may not exist; ``install`` are the commands that put it there."""

    name: str
    program: Path
    install: tuple[tuple[str, ...], ...]
    start: Callable[[Path, int], AbstractContextManager[System]]

    @property
    def here(self) -> bool:
        return self.program.exists()


@contextmanager
def haproxy(scratch: Path, upstream_port: int) -> Iterator[System]:
    """HAProxy, one thread."""
    port, file = free_port(), scratch / "haproxy.cfg"
    text = (HERE / "haproxy.cfg").read_text()
    file.write_text(text.replace("18080", str(port)).replace("18081", str(upstream_port)))
    with _served("HAProxy", (str(HAPROXY.program), "-f", str(file)), scratch, port) as system:
        yield system


@contextmanager
def vllm_router(scratch: Path, upstream_port: int) -> Iterator[System]:
    """vLLM's router in Rust: one upstream, round robin, no authentication."""
    port = free_port()
    argv = (
        str(VLLM_ROUTER.program), "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin",
        "--worker-urls", f"http://127.0.0.1:{upstream_port}", "--prometheus-host", "127.0.0.1",
        "--prometheus-port", str(free_port()), "--log-level", "error",
    )  # fmt: skip
    with _served("vLLM router", argv, scratch, port, path=PATH) as system:
        yield system


@contextmanager
def litellm(scratch: Path, upstream_port: int) -> Iterator[System]:
    """LiteLLM's proxy: one worker, its default chain, a master key, no database."""
    port, file = free_port(), scratch / "litellm.yaml"
    file.write_text((HERE / "litellm.yaml").read_text().replace("18081", str(upstream_port)))
    argv = (str(LITELLM.program), "--config", str(file), "--host", "127.0.0.1", "--port", str(port))
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": LITELLM_KEY, "LITELLM_LOG": "ERROR"}
    with _served("LiteLLM", argv, scratch, port, path=PATH, key=LITELLM_KEY, environ=environ) as system:
        yield system


@contextmanager
def _served(
    name: str,
    argv: tuple[str, ...],
    scratch: Path,
    port: int,
    *,
    path: str = "",
    key: str = "",
    environ: dict[str, str] | None = None,
) -> Iterator[System]:
    log = scratch / f"{name.replace(' ', '-')}.log"
    with Child((*GATEWAY, *argv), log, environ=environ) as child:
        child.wait_until(name, lambda: accepts(port), START_S)
        authorization = f"Bearer {key}" if key else ""
        url = f"http://127.0.0.1:{port}"
        child.wait_until(f"an answer of {name}", lambda: _answers(url + PATH, authorization), START_S)
        yield System(name, url, {name: child.pid}, {name: PLAIN}, path, authorization)


def _answers(url: str, authorization: str) -> bool:
    """Whether a first request succeeds; for some gateways that takes seconds, and none of them is measured."""
    headers = {"content-type": "application/json", "authorization": authorization}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body(stream=False), headers), timeout=START_S
        ) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _with_pip(package: str, version: str) -> tuple[tuple[str, ...], ...]:
    """In an environment of its own: what it needs is not what cube-mesh needs."""
    home = HOME / package
    return (
        (sys.executable, "-m", "venv", str(home)),
        (str(home / "bin/python"), "-m", "pip", "install", "-q", f"{version}"),
    )


_APT = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "haproxy")
HAPROXY = Peer("HAProxy", Path(shutil.which("haproxy") or "/usr/sbin/haproxy"), (_APT,), haproxy)
VLLM_ROUTER = Peer(
    "vLLM router",
    HOME / "vllm-router/bin/vllm-router",
    _with_pip("vllm-router", "vllm-router==0.1.17"),
    vllm_router,
)
LITELLM = Peer("LiteLLM", HOME / "litellm/bin/litellm", _with_pip("litellm", "litellm[proxy]==1.108.7"), litellm)
PEERS = (HAPROXY, VLLM_ROUTER, LITELLM)


def install(peer: Peer) -> str:
    """Put a peer on this machine; what went wrong, or nothing."""
    for command in peer.install:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}"
    return "" if peer.here else f"{peer.program} is not there after all"
