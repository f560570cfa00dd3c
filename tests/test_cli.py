"""The command line as a user meets it: exit codes, streams, and what stands on them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cube_mesh import __version__

DOMAIN = "6b0e3a52-6d3c-4b76-9f0e-0f6a2c1d9e11"


def run(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CUBE_MESH_")}
    return subprocess.run(
        [sys.executable, "-m", "cube_mesh", *arguments], env=clean | (env or {}), cwd=cwd, timeout=30,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_version() -> None:
    done = run("version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cube-mesh {__version__}\n", "")


def test_version_loads_nothing_heavy() -> None:
    code = "import sys, cube_mesh.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    heavy = {"cryptography", "OpenSSL", "uvloop", "opentelemetry", "prometheus_client", "jwt", "asyncio", "rich", "re2"}
    assert loaded & heavy == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("proxy", "--prot", "1"),
        ("proxy", "--port", "many"),
        ("proxy", "--set", "listen.port"),
        ("proxy", "--config", "."),
        ("validate",),
        ("validate", "gateway"),
        ("ca", "issue", "x", "y", "--days", "9999"),
    ],
)
def test_usage_errors_are_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Usage:" in done.stderr and done.stdout == ""


def test_configuration_errors_are_78_and_one_line(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text("[listen]\nprot = 1\n")
    for command in ("proxy", "agent"):
        done = run(command, "--config", str(file))
        assert done.returncode == 78
        assert done.stderr == f"cube-mesh: {file}: listen.prot: unknown key; did you mean 'listen.port'?\n"
    absent = run("proxy", "--config", str(tmp_path / "absent"))
    assert absent.returncode == 78
    assert "absent: cannot be read" in absent.stderr
    assert run("proxy").returncode == 78


def test_validate_tells_every_problem_at_once(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("[mesh]\nallowed_proxies = []\n[limits]\nmax_fields = 0\n")
    done = run("validate", "agent", "--config", str(file))
    assert done.returncode == 78
    lines = done.stderr.splitlines()
    assert len(lines) >= 3 and all(line.startswith("cube-mesh: ") for line in lines)
    assert f"cube-mesh: {file}: limits.max_fields: must be at least 1, not 0" in lines


def test_validate_accepts_what_starts(tmp_path: Path) -> None:
    (tmp_path / "proxy.toml").write_text(f"""
[[upstreams]]
name = "model"
url = "http://127.0.0.1:9"
[[routes]]
name = "all"
upstream = "model"
[[identity.domains]]
id = "{DOMAIN}"
members = [{{ subject = "alice", role = "admin" }}]
[[identity.api_keys]]
id = "k"
hash = "sha256:{"0" * 64}"
subject = "alice"
domain = "{DOMAIN}"
""")
    done = run("validate", "proxy", env={"CUBE_MESH_CONFIG": "proxy.toml"}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ok: a proxy can start with this configuration\n"


def test_print_config_shows_sources_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[[upstreams]]\nname = "m"\nurl = "http://127.0.0.1:9"\n')
    env = {"CUBE_MESH_UPSTREAMS__0__API_KEY": "sk-secret", "CUBE_MESH_LOG__LEVEL": "debug"}
    arguments = ("--config", "a.toml", "--port", "9000", "--set", "listen.port=1", "--set", "log.format=json")
    done = run("agent", *arguments, "--print-config", env=env, cwd=tmp_path)
    assert done.returncode == 0
    assert "port = 9000  # --port" in done.stdout  # a named flag wins over --set
    assert 'level = "debug"  # CUBE_MESH_LOG__LEVEL' in done.stdout
    assert 'format = "json"  # --set' in done.stdout
    assert 'host = "127.0.0.1"  # default' in done.stdout
    assert "sk-secret" not in done.stdout + done.stderr
    assert tomllib.loads(done.stdout)["listen"]["port"] == 9000


def test_admin_key_shows_the_key_once_and_its_hash_for_the_file() -> None:
    done = run(
        "admin", "key", "--subject", "alice", "--domain", DOMAIN, "--id", "laptop", "--expires", "2031-01-01T00:00:00Z"
    )
    assert done.returncode == 0
    key = done.stderr.strip()
    assert re.fullmatch(r"cm_laptop_[A-Za-z0-9_-]{43}", key)
    row = tomllib.loads(done.stdout)["identity"]["api_keys"][0]
    assert row == {
        "id": "laptop", "hash": "sha256:" + sha256(key.encode()).hexdigest(), "subject": "alice", "domain": DOMAIN,
        "expires": "2031-01-01T00:00:00Z",
    }  # fmt: skip
    again = run("admin", "key", "--subject", "alice", "--domain", DOMAIN, "--id", "laptop")
    assert again.stderr.strip() != key
    assert run("admin", "key", "--subject", "alice", "--domain", DOMAIN, "--id", "A B").returncode == 78
    assert run("admin", "key", "--subject", "", "--domain", DOMAIN).returncode == 78
    assert run("admin", "key", "--subject", "a", "--domain", DOMAIN, "--expires", "soon").returncode == 78


def test_ca_makes_what_a_proxy_needs_and_overwrites_nothing(tmp_path: Path) -> None:
    made = run("ca", "init", "ca", "--trust-domain", "corp", cwd=tmp_path)
    assert (made.returncode, made.stdout) == (0, "ca/ca.crt\nca/ca.key\n")
    issued = run("ca", "issue", "ca", "p1", cwd=tmp_path)
    assert (issued.returncode, issued.stdout) == (0, "spiffe://corp/proxy/p1\nproxy-p1.crt\nproxy-p1.key\n")
    assert (tmp_path / "proxy-p1.key").stat().st_mode & 0o777 == 0o600
    for again in (("ca", "init", "ca"), ("ca", "issue", "ca", "p1"), ("ca", "issue", "absent", "p2")):
        assert run(*again, cwd=tmp_path).returncode == 78


@pytest.fixture
def node() -> Iterator[HTTPServer]:
    """Something that answers /readyz with ``node.status``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"path": self.path}).encode()
            self.send_response(self.server.status)  # type: ignore[attr-defined]
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (500, 1), (301, 1), (503, 1)])
def test_healthcheck(node: HTTPServer, status: int, code: int) -> None:
    node.status = status  # type: ignore[attr-defined]
    done = run("healthcheck", "--url", f"http://127.0.0.1:{node.server_port}/base/")
    assert done.returncode == code
    assert f'{status} {{"path": "/base/readyz"}}' in (done.stderr if code else done.stdout)


def test_healthcheck_of_a_node_that_is_down_or_silent() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        done = run("healthcheck", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.3")
        assert done.returncode == 1 and "timed out" in done.stderr
        assert time.monotonic() - began < 5
        port = silent.getsockname()[1]
    assert run("healthcheck", "--url", f"http://127.0.0.1:{port}").returncode == 1
    assert run("healthcheck", "--url", "https://127.0.0.1").returncode == 1


def test_another_attest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "attest").mkdir()
    (tmp_path / "attest" / "__init__.py").touch()
    code = "import sys; sys.path.insert(0, sys.argv[1]); from cube_mesh.cli import _own_attest; _own_attest()"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert f"another package called attest is in the way: {tmp_path}" in done.stderr
