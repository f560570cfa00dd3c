"""A small mesh for tests: a CA, keepers with a software TPM, an echoing agent on a real loopback socket, on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attest.attester import Collector, NoEvidence
from attest.policy import parse_policy
from attest.schemes.vtpm.verify import ak_name
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import Verifier
from cube_mesh.keeper import Keeper
from cube_mesh.settings import Attestation, Upstream
from cube_mesh.tls import ca
from cube_mesh.tls.connector import AttestedConnector, AttestedServer
from cube_mesh.tls.control import ControlLink
from cube_mesh.tls.identity import Leaf, NodeRole, load_leaf, parse_spiffe_id
from cube_mesh.tls.port import GateEvent

AGENT = "spiffe://cube/agent/a1"
PROXY = "spiffe://cube/proxy/p1"
POLICY = "policy.toml"
SETTINGS = Attestation(attester="vtpm", handshake_timeout_s=5.0)


class Recorder(asyncio.Protocol):
    """An application protocol that keeps what it sees; with ``echo`` it sends everything back."""

    def __init__(self, *, echo: bool = False) -> None:
        self.echo = echo
        self.received = bytearray()
        self.transport: Any = None
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.eof = False
        self.paused: list[bool] = []
        self._wanted = 0
        self._enough: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.echo:
            self.transport.write(data)
        if self._enough is not None and len(self.received) >= self._wanted and not self._enough.done():
            self._enough.set_result(None)

    def eof_received(self) -> bool:
        self.eof = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)

    def pause_writing(self) -> None:
        self.paused.append(True)

    def resume_writing(self) -> None:
        self.paused.append(False)

    async def until(self, size: int, timeout_s: float = 5.0) -> bytes:
        """Wait until ``size`` bytes have come."""
        if len(self.received) < size:
            self._wanted = size
            self._enough = asyncio.get_running_loop().create_future()
            async with asyncio.timeout(timeout_s):
                await self._enough
        return bytes(self.received)


@dataclass
class Mesh:
    """Files and policy of one mesh. ``policy`` is TOML text; the default pins the software TPM's AK."""

    directory: Path
    tpm: SoftwareTpm = field(default_factory=SoftwareTpm)
    policy: str = ""

    def __post_init__(self) -> None:
        ca.init_ca(self.directory / "ca", "cube")

    @property
    def roots(self) -> tuple[bytes, ...]:
        return ca.load_certificates(self.directory / "ca" / "ca.crt")

    def issue(self, role: NodeRole, node_id: str, ca_dir: str = "ca") -> Leaf:
        files = ca.issue_leaf(self.directory / ca_dir, role, node_id, self.directory, 1)
        return load_leaf(ca.load_certificates(files.cert_file)[0], ca.load_key(files.key_file))

    def default_policy(self, ak: str = "", pcrs: dict[int, str] | None = None) -> str:
        """Pins the AK and PCRs 0 and 1; the software TPM's when nothing is given."""
        name = ak or ak_name(self.tpm.public())
        values = pcrs or {0: "00" * 32, 1: "00" * 32}
        return f"""
id = "test"
unsafe_accept_vtpm_only = true
[vtpm]
pcr_bank = "sha256"
pcrs = [0, 1]
[reference_values.vtpm]
ak_names = ["{name}"]
[reference_values.vtpm.pcr_values]
0 = ["{values[0]}"]
1 = ["{values[1]}"]
"""

    def verifier(self) -> Verifier:
        return Verifier(parse_policy(self.policy or self.default_policy()), allow_simulated=True)

    def agent_keeper(self, collector: Collector | None = None, **changes: Any) -> Keeper:
        return Keeper(parse_spiffe_id(AGENT), collector or self.tpm, {}, self.roots, **changes)

    def proxy_keeper(self, leaf: Leaf | None = None, **changes: Any) -> Keeper:
        leaf = leaf or self.issue("proxy", "p1")
        return Keeper(parse_spiffe_id(PROXY), NoEvidence(), {POLICY: self.verifier()}, self.roots, leaf=leaf, **changes)


class Agent:
    """A listening agent and what its application protocols and its gate have seen."""

    def __init__(self, keeper: Keeper, *, echo: bool = True) -> None:
        self.keeper = keeper
        self.inner: list[Recorder] = []
        self.events: list[GateEvent] = []
        self.port = 0
        self.factory: Any = None
        self._echo = echo

    def make_inner(self) -> Recorder:
        self.inner.append(Recorder(echo=self._echo))
        return self.inner[-1]

    @property
    def application_bytes(self) -> int:
        return sum(len(inner.received) for inner in self.inner)

    async def reason(self) -> str:
        """The reason of the (one) attempt, once it has ended."""
        async with asyncio.timeout(5):
            while not self.events:
                await asyncio.sleep(0.005)
        return self.events[-1].reason


@asynccontextmanager
async def running_agent(
    keeper: Keeper, *, allowed: tuple[str, ...] = (PROXY,), settings: Attestation = SETTINGS, echo: bool = True
) -> AsyncIterator[Agent]:
    agent = Agent(keeper, echo=echo)
    await keeper.start()
    factory = AttestedServer(keeper, agent.make_inner, settings, allowed, on_gate=agent.events.append)
    agent.factory = factory
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    agent.port = server.sockets[0].getsockname()[1]
    try:
        yield agent
    finally:
        server.close()
        for inner in agent.inner:
            if inner.transport is not None:
                inner.transport.abort()
        await keeper.close()
        await asyncio.sleep(0)


def upstream(port: int, **changes: Any) -> Upstream:
    values = {"name": "u", "url": f"atls://127.0.0.1:{port}", "node_id": AGENT, "policy": POLICY, "mode": "quote"}
    return Upstream(**{**values, **changes})


def connector(keeper: Keeper, port: int, *, settings: Attestation = SETTINGS, **changes: Any) -> AttestedConnector:
    return AttestedConnector(upstream(port, **changes), keeper, settings)


def control_link(keeper: Keeper, port: int, *, settings: Attestation = SETTINGS, **changes: Any) -> ControlLink:
    return ControlLink(connector(keeper, port, settings=settings, **changes), keeper.sessions)


def attaching(keeper: Keeper, port: int, *, settings: Attestation = SETTINGS, **changes: Any) -> AttestedConnector:
    """A connector of mode "session" with the link that makes its sessions; nothing is dialled yet."""
    keeper.sessions.add_link(control_link(keeper, port, settings=settings, **changes))
    return connector(keeper, port, settings=settings, mode="session", **changes)
