"""What an attacker has: a raw TLS end that it scripts itself, and a keeper that lies.

Victims are always the product's own ends over real sockets. The attacker's ends use the product's codecs where that
saves writing them twice; what they say is theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from attest.appraise import AttestationResult
from attest.attester import Collector, NoEvidence, evidence_for
from attest.binding import Claims, Expected, Phase, Role
from cube_mesh.errors import DependencyError
from cube_mesh.keeper import Keeper
from cube_mesh.tls.authenticator import build_authenticator, build_request, exported_keys, parse_request
from cube_mesh.tls.connector import AttestedServer
from cube_mesh.tls.frames import Frame, FrameDecoder, FrameType, encode_frame
from cube_mesh.tls.gate import channel_binding
from cube_mesh.tls.identity import Leaf, SpiffeId, parse_spiffe_id
from cube_mesh.tls.keeping import Sessions
from cube_mesh.tls.verdict import Result, encode_result
from tests.tls.mesh import AGENT, PROXY, SETTINGS, Agent, Mesh, Recorder, connector

BOOT = bytes(range(16))
PROMPT = b"POST /secret HTTP/1.1\r\n\r\n"
FAR = 2**40


@dataclass(frozen=True)
class Outcome:
    """``reason`` is the victim's; ``leaked`` counts application bytes that went where they must not."""

    reason: str
    leaked: int


class RawTls:
    """One TLS end over asyncio streams, without a gate."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: SSL.Connection) -> None:
        self.reader, self.writer, self.tls = reader, writer, tls
        self.frames = FrameDecoder()

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except SSL.WantReadError:
                await self._flush()
                await self._fill()
            else:
                await self._flush()
                return

    async def send(self, data: bytes) -> None:
        self.tls.sendall(data)
        await self._flush()

    async def receive(self) -> bytes:
        """The next bytes; b"" when the peer has closed."""
        while True:
            try:
                return self.tls.recv(65_536)
            except SSL.WantReadError:
                if not await self._fill():
                    return b""
            except SSL.Error:
                return b""

    async def frame(self, wanted: FrameType) -> bytes:
        """The next frame's body; ConnectionError when another comes, or the end."""
        while (frame := self._next()) is None:
            data = await self.receive()
            if not data:
                raise ConnectionError("closed by the victim")
            self.frames.feed(data)
        if frame.type is not wanted or (wanted is FrameType.RESULT and frame.body[1:3] == b"\x01\x01"):
            raise ConnectionError(f"got {frame}")
        return frame.body

    def _next(self) -> Frame | None:
        return self.frames.next_frame()

    async def _fill(self) -> bool:
        data = await self.reader.read(65_536)
        if data:
            self.tls.bio_write(data)
        return bool(data)

    async def _flush(self) -> None:
        with suppress(SSL.WantReadError):
            while True:
                self.writer.write(self.tls.bio_read(65_536))
        await self.writer.drain()

    def export(self, label: bytes, context: bytes, size: int) -> bytes:
        return self.tls.export_keying_material(label, size, context)

    def close(self) -> None:
        self.writer.close()


def raw_context(leaf: Leaf | None, *, server: bool = False, tls12: bool = False) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
    if tls12:
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.set_verify(SSL.VERIFY_PEER if server else SSL.VERIFY_NONE, lambda *_: True)
    if leaf is not None:
        context.use_certificate(x509.load_der_x509_certificate(leaf.cert_der))
        context.use_privatekey(leaf.key)
    if server:
        context.set_alpn_select_callback(lambda _, offered: offered[0])
    return context


async def raw_client(
    port: int,
    leaf: Leaf | None,
    *,
    alpn: bytes = b"cube-mesh/1-quote",
    context: SSL.Context | None = None,
    session: Any = None,
) -> RawTls:
    """Dial ``port`` and finish the handshake (which a TLS 1.3 client can do before it has been refused)."""
    tls = SSL.Connection(context or raw_context(leaf), None)
    if alpn:
        tls.set_alpn_protos([alpn])
    if session is not None:
        tls.set_session(session)
    tls.set_connect_state()
    raw = RawTls(*await asyncio.open_connection("127.0.0.1", port), tls)
    try:
        await raw.handshake()
    except BaseException:
        raw.close()
        raise
    return raw


def accepting() -> bytes:
    return encode_frame(FrameType.RESULT, encode_result(Result(0, "ok", "a", "p", FAR)))


@dataclass
class ClientScript:
    """A client that goes through the exchange with ``leaf``, up to where the victim's RESULT is due."""

    raw: RawTls
    leaf: Leaf
    node_id: str = PROXY
    collector: Collector | None = None

    def hashes(self) -> tuple[bytes, bytes]:
        peer = self.raw.tls.get_peer_certificate(as_cryptography=True)
        assert isinstance(peer, x509.Certificate)
        from hashlib import sha256

        return sha256(self.leaf.cert_der).digest(), sha256(peer.public_bytes(Encoding.DER)).digest()

    def peer_key_hash(self) -> bytes:
        from hashlib import sha256

        from cryptography.hazmat.primitives.serialization import PublicFormat

        peer = self.raw.tls.get_peer_certificate(as_cryptography=True)
        assert isinstance(peer, x509.Certificate)
        return sha256(peer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()

    async def ask(self, nonce: bytes) -> bytes:
        """Send our REQUEST and give the victim's evidence out of its AUTHENTICATOR, unverified."""
        await self.raw.send(encode_frame(FrameType.REQUEST, build_request(Role.CLIENT, nonce)))
        self.request = await self.raw.frame(FrameType.REQUEST)
        body = await self.raw.frame(FrameType.AUTHENTICATOR)
        return _evidence_in(body)

    def answer(self) -> bytes:
        """Our AUTHENTICATOR (claims only) as a frame."""
        raw, nonce = self.raw, parse_request(Role.SERVER, self.request)
        claims = Claims(
            role=Role.CLIENT,
            phase=Phase.POST_HANDSHAKE,
            node_id=self.node_id,
            not_after=_soon(),
            boot_id=BOOT,
            spki_hash=self.leaf.spki_hash,
            nonce=nonce,
            channel_binding=channel_binding(raw.export, Role.CLIENT, nonce, self.hashes()),
            peer_spki_hash=self.peer_key_hash(),
        )
        keys = exported_keys(raw.export, raw.tls.get_cipher_name() or "", Role.CLIENT)
        evidence = evidence_for(self.collector or NoEvidence(), claims)
        body = build_authenticator(keys, self.request, self.leaf.cert_der, evidence, self.leaf.sign)
        return encode_frame(FrameType.AUTHENTICATOR, body)


def _evidence_in(authenticator: bytes) -> bytes:
    """Certificate message: type, length, context of 32 bytes, list, entry, extensions with one extension."""
    at = 4 + 33 + 3
    size = int.from_bytes(authenticator[at : at + 3], "big")
    at += 3 + size + 2 + 2
    size = int.from_bytes(authenticator[at : at + 2], "big")
    return authenticator[at + 2 : at + 2 + size]


def _soon() -> int:
    import time

    return int(time.time()) + 300


async def send_prompt(raw: RawTls, leaf: Leaf, *, node_id: str = PROXY) -> None:
    """The whole exchange as a client, and then the prompt."""
    script = ClientScript(raw, leaf, node_id)
    await script.ask(b"n" * 32)
    await raw.send(script.answer() + accepting())
    await raw.frame(FrameType.RESULT)
    await raw.send(PROMPT)


async def against_agent(agent: Agent, attack: Callable[[], Awaitable[object]]) -> Outcome:
    """Run an attacking client; what the agent's gate said about it, and what its application received."""
    before = len(agent.events)
    with suppress(ConnectionError, SSL.Error):
        async with asyncio.timeout(5):
            await attack()
    async with asyncio.timeout(5):
        while len(agent.events) == before:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)  # whatever may still arrive
    return Outcome(agent.events[-1].reason, agent.application_bytes)


class LyingKeeper:
    """A keeper for the attacker's own listener: any leaf, any evidence, and every peer is welcome."""

    def __init__(
        self, leaf: Leaf, roots: tuple[bytes, ...], evidence: Callable[..., Awaitable[bytes]], node_id: str = AGENT
    ) -> None:
        self.node_id: SpiffeId = parse_spiffe_id(node_id)
        self.leaf, self.roots = leaf, roots
        self.sessions = Sessions()
        self._evidence = evidence

    async def evidence(self, role: Role, phase: Phase, **channel: Any) -> bytes:
        return await self._evidence(role, phase, **channel)

    async def appraise(self, raw: bytes, expected: Expected, policy_name: str) -> AttestationResult:
        return AttestationResult(
            platform="none",
            confidential=False,
            simulated=False,
            claims={},
            policy_id="",
            policy_digest="",
            node_id=expected.node_id,
            boot_id=BOOT,
            expires=FAR,
            evidence_digest="",
            appraisal_id="",
        )


@asynccontextmanager
async def fake_agent(keeper: LyingKeeper) -> AsyncIterator[Agent]:
    """The attacker's listener. It speaks the protocol well; only its keeper lies."""
    agent = Agent(keeper)  # type: ignore[arg-type]
    factory = AttestedServer(keeper, agent.make_inner, SETTINGS, (PROXY,), on_gate=agent.events.append)
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    agent.port = server.sockets[0].getsockname()[1]
    try:
        yield agent
    finally:
        server.close()
        for inner in agent.inner:
            inner.transport.abort()
        await asyncio.sleep(0)


async def victim_proxy(mesh: Mesh, port: int, leaf: Leaf, fake: Agent | None = None) -> Outcome:
    """The product's connector dials ``port``; when its gate opens, the prompt goes out to whoever is there."""
    keeper: Keeper = mesh.proxy_keeper(leaf)
    try:
        made = await connector(keeper, port).connect(Recorder)
    except DependencyError as error:
        return Outcome(error.code.removeprefix("atls_"), fake.application_bytes if fake else 0)
    assert isinstance(made, Recorder)
    made.transport.write(PROMPT)
    await made.until(len(PROMPT))  # the other end echoes
    made.transport.abort()
    return Outcome("ok", fake.application_bytes if fake else len(PROMPT))


LEAKED = len(PROMPT)
