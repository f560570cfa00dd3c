"""The files of the demo's two nodes: what an operator would write by hand, written here with comments to learn from."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import msgspec

from cube_mesh.admin.keys import new_key
from cube_mesh.demo.processes import DemoError
from cube_mesh.tls.ca import init_ca, issue_leaf

MARKER = ".cube-mesh-demo"
DOMAIN = "3f0c7f4e-9a51-4c0b-8b6e-2d6a1c7e5f10"
AGENT_ID = "spiffe://cube/agent/demo-agent"
PROXY_ID = "spiffe://cube/proxy/demo-proxy"


class Ports(msgspec.Struct, frozen=True):
    proxy: int
    proxy_metrics: int
    agent: int
    agent_metrics: int


class Plan(msgspec.Struct, frozen=True):
    """What the demo runs. ``tcti`` is empty when evidence is simulated."""

    folder: Path
    ports: Ports
    backend_url: str
    tcti: str


def fresh_folder(folder: Path) -> None:
    """Empty the demo's folder. DemoError when it holds something that no demo has put there."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise DemoError(f"{folder} is not empty and not a demo's folder; choose another with --dir")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    (folder / MARKER).touch()


def write_mesh(folder: Path) -> None:
    """The mesh CA, the proxy's certificate, and a seed for simulated evidence."""
    init_ca(folder / "ca", "cube")
    issue_leaf(folder / "ca", "proxy", "demo-proxy", folder)
    _secret(folder / "simulated.seed", secrets.token_bytes(32))


def write_agent(plan: Plan) -> Path:
    attestation = (
        f'attester = "vtpm"\ntcti = "{plan.tcti}"  # in production: device:/dev/tpmrm0\n'
        f'ak_context_file = "agent.ak"  # the attestation key survives restarts, so that a policy can pin it\n'
        if plan.tcti
        else 'attester = "simulated-sev-snp"\nsimulated_seed_file = "simulated.seed"\n'
    )
    return _write(
        plan.folder / "agent.toml",
        f"""# cube-mesh agent --config agent.toml        (inside the confidential VM, in front of the model server)
{_unsafe(plan)}
[listen]
host = "127.0.0.1"
port = {plan.ports.agent}

[metrics]
port = {plan.ports.agent_metrics}

[[upstreams]]
name = "model"
url = "{plan.backend_url}"

[mesh]
node_id = "demo-agent"
ca_file = "ca/ca.crt"
allowed_proxies = ["{PROXY_ID}"]

[attestation]
{attestation}
[log]
format = "json"
""",
    )


def write_proxy(plan: Plan, subject: str) -> tuple[Path, str]:
    """(the proxy's file, the API key that its one domain accepts). ``policy.toml`` must be there when it starts."""
    key, block = new_key(subject, DOMAIN, key_id="demo")
    _secret(plan.folder / "api-key", key.encode())
    file = _write(
        plan.folder / "proxy.toml",
        f"""# cube-mesh proxy --config proxy.toml        (in front of tenants)
{_unsafe(plan)}
[listen]
host = "127.0.0.1"
port = {plan.ports.proxy}

[metrics]
port = {plan.ports.proxy_metrics}

[[upstreams]]
name = "agent"
url = "atls://127.0.0.1:{plan.ports.agent}"
node_id = "{AGENT_ID}"   # who must be at the other end
policy = "policy.toml"                      # what must be running there

[[routes]]
name = "all"
upstream = "agent"
match.path_prefix = "/v1"

[[identity.domains]]
id = "{DOMAIN}"
name = "demo"
members = [{{ subject = "{subject}", role = "admin" }}]

{block}
[audit]
path = "audit.jsonl"

[mesh]
node_id = "demo-proxy"
ca_file = "ca/ca.crt"
cert_file = "proxy-demo-proxy.crt"
key_file = "proxy-demo-proxy.key"

[attestation]
attester = "none"   # in this version the agent attests, the proxy shows its certificate

[log]
format = "json"
""",
    )
    return file, key


def _unsafe(plan: Plan) -> str:
    if plan.tcti:
        return ""
    return (
        "\nunsafe_allow_simulated = true   # simulated evidence proves nothing: for demo and tests, on loopback only\n"
    )


def _write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def _secret(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)
