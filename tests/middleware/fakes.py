"""Requests and small parts for tests of stages: a real parsed head, no connection."""

from __future__ import annotations

from typing import Any

from cube_mesh._fastpath import scan_request
from cube_mesh.authz import DomainAuthorizer, load_roles
from cube_mesh.endpoints import load_endpoints
from cube_mesh.exchange import Exchange
from cube_mesh.identity import CredentialAuthenticator
from cube_mesh.identity.api_keys import format_key, hash_key, key_table
from cube_mesh.middleware import Common, proxy_chain
from cube_mesh.middleware.chain import Chain
from cube_mesh.ports import ChannelAttestation
from cube_mesh.routes import RouteTable
from cube_mesh.settings import ApiKey, Domain, Member, RouteMatch, RouteRule, Settings
from cube_mesh.telemetry.metrics import Metrics

A = "6b1e1b2c-9a1c-4d57-9d53-0d6a3c1f2e11"
B = "0f8fad5b-d9cb-469f-a165-70867728950e"
KEY_A = format_key("key-a", b"a" * 32)
KEY_B = format_key("key-b", b"b" * 32)
CHAT = "/v1/chat/completions"


def exchange(
    path: str = f"/{A}{CHAT}", method: str = "POST", *fields: tuple[str, str | bytes], query: str = ""
) -> Exchange:
    lines = [f"{method} {path}{query} HTTP/1.1\r\nHost: mesh\r\n".encode()]
    lines += [n.encode() + b": " + (v if isinstance(v, bytes) else v.encode()) + b"\r\n" for n, v in fields]
    head = scan_request(b"".join(lines) + b"\r\n", 0, 65_536, 100)
    assert head is not None
    return Exchange(head, "127.0.0.1")


def bearer(key: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {key}")


def end(done: Exchange, status: int = 200, outcome: str = "completed") -> Exchange:
    """What the connection notes when an exchange ends."""
    done.status, done.outcome = status, outcome
    done.ended_at = done.started_at + 0.25
    return done


class MemorySink:
    """An AuditSink that keeps copies, or fails with ``error``."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.error: Exception | None = None

    def append(self, event: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.lines.append(event)

    def close(self) -> None: ...


class Target:
    name = "agent"

    def acquire(self) -> Any: ...

    def head(self, *args: Any) -> bytes:
        return b""


DOMAINS = (
    Domain(id=A, name="a", members=(Member(subject="alice", role="member"), Member(subject="vera", role="viewer"))),
    Domain(id=B, name="b", members=(Member(subject="bob", role="member"), Member(subject="alice", role="auditor"))),
)
KEYS = (
    ApiKey(id="key-a", hash=hash_key(KEY_A), subject="alice", domain=A),
    ApiKey(id="key-b", hash=hash_key(KEY_B), subject="bob", domain=B),
)


class Mesh:
    """A proxy's whole chain with its parts in reach."""

    def __init__(self, settings: Settings | None = None, **common: Any) -> None:
        self.settings = settings or Settings()
        self.sink = MemorySink()
        self.log: list[bytes] = []
        self.numbers = Metrics(d.id for d in DOMAINS)
        self.authenticator = CredentialAuthenticator(key_table(KEYS, frozenset({A, B})))
        rules = (RouteRule(name="v1", upstream="agent", match=RouteMatch(path_prefix="/v1")),)
        parts = Common(
            self.settings, "spiffe://cube/proxy/p1", load_endpoints(), RouteTable(rules), {"agent": Target()},
            self.numbers, self.log.append, True, **common,
        )  # fmt: skip
        self.chain: Chain = proxy_chain(parts, self.authenticator, DomainAuthorizer(DOMAINS, load_roles()), self.sink)


def channel(**changes: Any) -> ChannelAttestation:
    facts: dict[str, Any] = {
        "mode": "quote", "peer_id": "spiffe://cube/agent/a1", "platform": "vtpm", "verdict": "accept",
        "confidential": False, "simulated": False, "policy_id": "dev", "policy_digest": "d" * 64,
        "appraisal_id": "a1" * 16, "expires_at": 1_800_000_000.0, "tls_version": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256", "peer_cert_issuer": "CN=a1", "peer_cert_serial": "7",
        "evidence_digest": "e" * 64, "nonce": "0c" * 32, "handshake_ms": 1.5, "attestation_ms": 20.0,
        "claims": {"pcr.sha256.0": "00" * 32},
    }  # fmt: skip
    return ChannelAttestation(**{**facts, **changes})
