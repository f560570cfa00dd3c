"""A whole mesh in a directory: CA, a policy from the first report, an agent with a software TPM, a proxy with tenants.

Everything is made by the product's own parts, and the nodes are real processes. Two tenants with a key each; more
members of the first one, a key for every role.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from attest.attester import evidence_for
from attest.binding import Claims, Expected, Phase, Role
from attest.policy import first_report_policy
from attest.schemes.vtpm.collect import TpmCollector
from attest.verifier import Verifier, policy_from_result
from cube_mesh.authz import load_roles
from cube_mesh.identity.api_keys import format_key, hash_key
from cube_mesh.tls.ca import init_ca, issue_leaf
from tests.support.node import Config, Node

AGENT_ID, PROXY_ID = "spiffe://cube/agent/a1", "spiffe://cube/proxy/p1"
PCRS = (0, 1, 2, 3, 4, 5, 6, 7)
ROLES = tuple(sorted(load_roles("")))


@dataclass(frozen=True)
class Tenant:
    """A domain, and a member and key of it for each role, by the role's name."""

    domain: str
    keys: dict[str, str]

    @property
    def key(self) -> str:
        return self.keys["member"]


def make_tenant(name: str) -> Tenant:
    """Fixed ids and secrets: a test mesh guards nothing."""
    domain = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    return Tenant(domain, {role: format_key(f"{name}-{role}", f"{name}-{role}".encode().ljust(32)) for role in ROLES})


def identity(*tenants: Tenant) -> Config:
    """The ``[identity]`` of a proxy that knows these tenants."""
    domains = [
        {"id": tenant.domain, "members": [{"subject": f"{role}@test", "role": role} for role in tenant.keys]}
        for tenant in tenants
    ]
    keys = [
        {"id": f"{at}-{role}", "hash": hash_key(key), "subject": f"{role}@test", "domain": tenant.domain}
        for at, tenant in enumerate(tenants)
        for role, key in tenant.keys.items()
    ]
    return {"domains": domains, "api_keys": keys}


@dataclass
class Mesh:
    """``build`` makes the files; ``agent`` and ``proxy`` start nodes from them, as often as wanted."""

    directory: Path
    tcti: str
    tenants: tuple[Tenant, Tenant] = field(default_factory=lambda: (make_tenant("red"), make_tenant("blue")))
    policy: Path = Path()

    def build(self) -> Mesh:
        self.directory.mkdir(parents=True, exist_ok=True)
        init_ca(self.directory / "ca", "cube")
        issue_leaf(self.directory / "ca", "proxy", "p1", self.directory, 1)
        self.policy = self.directory / "policy.toml"
        self.policy.write_text(self._policy_from_first_report())
        return self

    def _policy_from_first_report(self) -> str:
        claims = Claims(
            role=Role.SERVER, phase=Phase.PASSPORT, node_id=AGENT_ID, not_after=2_000,
            boot_id=bytes(16), spki_hash=bytes(32),
        )  # fmt: skip
        expected = Expected(role=Role.SERVER, phase=Phase.PASSPORT, node_id=AGENT_ID, spki_hash=bytes(32))
        with TpmCollector(self.tcti, PCRS, ak_file=str(self.directory / "ak")) as tpm:
            result = Verifier(first_report_policy("vtpm")).appraise(evidence_for(tpm, claims), expected, now=1_000.0)
        return policy_from_result(result, policy_id="test")

    def agent_config(self, backend_url: str, **changes: Any) -> Config:
        mesh = {"node_id": "a1", "ca_file": self.directory / "ca/ca.crt", "allowed_proxies": [PROXY_ID]}
        attestation = {"attester": "vtpm", "tcti": self.tcti, "pcrs": PCRS, "ak_context_file": self.directory / "ak"}
        return {
            "upstreams": [{"name": "model", "url": backend_url}],
            "routes": [{"name": "all", "upstream": "model", "match": {"path_prefix": "/"}}],
            "mesh": mesh,
            "attestation": attestation,
            "log": {"format": "json"},
            **changes,
        }

    def proxy_config(self, agent_port: int, **changes: Any) -> Config:
        url = f"atls://127.0.0.1:{agent_port}"
        return {
            "upstreams": [{"name": "agent", "url": url, "node_id": AGENT_ID, "policy": self.policy}],
            "routes": [{"name": "all", "upstream": "agent", "match": {"path_prefix": "/"}}],
            "identity": identity(*self.tenants),
            "mesh": {
                "node_id": "p1",
                "ca_file": self.directory / "ca/ca.crt",
                "cert_file": self.directory / "proxy-p1.crt",
                "key_file": self.directory / "proxy-p1.key",
            },
            "attestation": {"attester": "none"},
            "log": {"format": "json"},
            **changes,
        }

    def agent(self, directory: Path, backend_url: str, **changes: Any) -> Node:
        """A started agent, ready. ``directory`` gets its configuration and output; ``changes`` are whole sections."""
        return Node("agent", self.agent_config(backend_url, **changes), directory).wait_ready()

    def proxy(self, directory: Path, agent_port: int, **changes: Any) -> Node:
        """A started proxy, ready, with its audit file at ``directory / "audit.jsonl"``."""
        config = self.proxy_config(agent_port, **{"audit": {"path": directory / "audit.jsonl"}, **changes})
        return Node("proxy", config, directory).wait_ready()


def read_events(directory: Path) -> list[dict[str, Any]]:
    """The whole lines of a proxy's audit files. A torn last line (after a kill) is left out."""
    files = sorted(directory.glob("audit*.jsonl"))
    lines = [line for file in files for line in file.read_bytes().split(b"\n")[:-1]]
    return [msgspec.json.decode(line) for line in lines]
