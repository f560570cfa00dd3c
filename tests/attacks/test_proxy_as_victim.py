"""Attacks on a proxy that dials: refused for their reason without one byte leaked, successful without their defence."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attest import attester as attester_module
from attest import verifier as verifier_module
from attest.appraise import AttestationResult
from attest.attester import Collector, NoEvidence, evidence_for
from attest.binding import (
    Claims,
    Expected,
    Phase,
    Role,
    check_binding,
    data_hash,
    decode_claims,
    encode_claims,
    exporter_context,
)
from attest.evidence import CMW_OID, Evidence, decode_evidence, encode_evidence, extension_value
from cube_mesh.keeper import Keeper
from cube_mesh.tls import ca, gate, identity
from cube_mesh.tls.identity import Leaf, load_leaf, parse_peer_leaf, parse_spiffe_id, passport_of, self_signed_leaf
from cube_mesh.tls.reasons import REASONS
from tests.attacks.attacker import (
    BOOT,
    LEAKED,
    ClientScript,
    LyingKeeper,
    Outcome,
    fake_agent,
    raw_client,
    victim_proxy,
)
from tests.tls.mesh import AGENT, Mesh, running_agent

ATTEST_CODES = {"binding_mismatch", "stale", "part_missing", "nonce_mismatch", "unattested_server"}


def refused(outcome: Outcome, reason: str) -> None:
    assert outcome == Outcome(reason, 0)
    assert reason in REASONS or reason in ATTEST_CODES


def succeeded(outcome: Outcome) -> None:
    assert outcome == Outcome("ok", LEAKED)


def claims_of(leaf_key_hash: bytes, phase: Phase = Phase.POST_HANDSHAKE, **channel: Any) -> Claims:
    values: dict[str, Any] = {
        "role": Role.SERVER,
        "phase": phase,
        "node_id": AGENT,
        "not_after": int(time.time()) + 300,
        "boot_id": BOOT,
        "spki_hash": leaf_key_hash,
    }
    return Claims(**{**values, **channel})


def forged_leaf(passport: bytes, key: ec.EllipticCurvePrivateKey) -> Leaf:
    """A self-signed leaf in the agent's name for a key of the attacker's."""
    now = time.time()
    return self_signed_leaf(parse_spiffe_id(AGENT), key, passport, serial=7, not_before=now - 60, not_after=now + 3000)


def key_hash(key: ec.EllipticCurvePrivateKey) -> bytes:
    return identity.spki_hash(key.public_key())


@pytest.fixture
def attackers_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


# --- A1: relay with stolen leaf keys ---


async def _a1(mesh: Mesh) -> Outcome:
    """The attacker holds the agent's leaf key and the proxy's, and asks the genuine agent for evidence with the
    victim's own nonce. Keys, nonce and leaves all fit: the evidence is bound to another connection, no more."""
    proxy_leaf = mesh.issue("proxy", "p1")
    async with running_agent(mesh.agent_keeper()) as genuine:

        async def relay(_role: Role, _phase: Phase, *, nonce: bytes, **_: Any) -> bytes:
            raw = await raw_client(genuine.port, proxy_leaf)
            evidence = await ClientScript(raw, proxy_leaf).ask(nonce)
            raw.close()
            return evidence

        async with fake_agent(LyingKeeper(genuine.keeper.leaf, mesh.roots, relay)) as fake:
            return await victim_proxy(mesh, fake.port, proxy_leaf, fake)


async def test_a1_relay(mesh: Mesh) -> None:
    refused(await _a1(mesh), "binding_mismatch")


async def test_a1_without_the_exporter(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gate, "channel_binding", lambda _exporter, _role, nonce, leaves: exporter_context(nonce, *leaves)
    )
    succeeded(await _a1(mesh))


# --- A2: the TEE as an oracle for bytes of the attacker's choice ---


async def _a2(mesh: Mesh, key: ec.EllipticCurvePrivateKey) -> Outcome:
    """The attacker writes claims for its own key and channel, and has the genuine machine sign their hash by sending
    it as a nonce. It is allowed to connect; what it must not get is a signature over what it chose."""
    proxy_leaf = mesh.issue("proxy", "p1")
    async with running_agent(mesh.agent_keeper()) as genuine:

        async def signed(claims: Claims) -> bytes:
            raw_claims = encode_claims(claims)
            raw = await raw_client(genuine.port, proxy_leaf)
            theirs = await ClientScript(raw, proxy_leaf).ask(data_hash(raw_claims))
            raw.close()
            return encode_evidence(Evidence(raw_claims, decode_evidence(theirs).parts))

        async def forge(_role: Role, _phase: Phase, **channel: Any) -> bytes:
            return await signed(claims_of(channel.pop("spki_hash"), **channel))

        leaf = forged_leaf(await signed(claims_of(key_hash(key), Phase.PASSPORT)), key)
        async with fake_agent(LyingKeeper(leaf, mesh.roots, forge)) as fake:
            return await victim_proxy(mesh, fake.port, proxy_leaf, fake)


async def test_a2_oracle(mesh: Mesh, attackers_key: ec.EllipticCurvePrivateKey) -> None:
    refused(await _a2(mesh, attackers_key), "nonce_mismatch")


async def test_a2_with_a_tee_that_signs_what_callers_send(
    mesh: Mesh, attackers_key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attester_module, "data_hash", lambda raw: decode_claims(raw).nonce or data_hash(raw))
    succeeded(await _a2(mesh, attackers_key))


# --- A4: reflection ---


async def _a4(mesh: Mesh) -> Outcome:
    """The victim's own evidence comes back: bound to this very connection and its nonce, in the role of the client.
    The genuine machine makes it here, as a victim with an attester and the same node id would have."""
    proxy_leaf = mesh.issue("proxy", "p1")
    keeper = mesh.agent_keeper()
    await keeper.start()
    export: dict[str, Any] = {}
    plain = gate.channel_binding

    def both_labels(exporter: Any, attester: Role, nonce: bytes, leaves: tuple[bytes, bytes]) -> bytes:
        export.update(exporter=exporter, leaves=leaves)  # the attacker terminates TLS: it can export any label
        return plain(exporter, attester, nonce, leaves)

    async def reflect(
        _role: Role, _phase: Phase, *, nonce: bytes, spki_hash: bytes, peer_spki_hash: bytes, **_: Any
    ) -> bytes:
        mirrored = plain(export["exporter"], Role.CLIENT, nonce, export["leaves"])
        claims = claims_of(
            spki_hash, role=Role.CLIENT, nonce=nonce, channel_binding=mirrored, peer_spki_hash=peer_spki_hash
        )
        return evidence_for(mesh.tpm, claims)

    with pytest.MonkeyPatch.context() as observe:
        observe.setattr(gate, "channel_binding", both_labels)
        async with fake_agent(LyingKeeper(keeper.leaf, mesh.roots, reflect)) as fake:
            outcome = await victim_proxy(mesh, fake.port, proxy_leaf, fake)
    await keeper.close()
    return outcome


async def test_a4_reflection(mesh: Mesh) -> None:
    refused(await _a4(mesh), "binding_mismatch")


async def test_a4_without_roles(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "expected_role", lambda own: own)
    succeeded(await _a4(mesh))


# --- A5: replay and stale evidence ---


async def _a5_replay(mesh: Mesh) -> Outcome:
    """With the stolen leaf key, the evidence of an earlier connection is played again."""
    proxy_leaf = mesh.issue("proxy", "p1")
    async with running_agent(mesh.agent_keeper()) as genuine:
        raw = await raw_client(genuine.port, proxy_leaf)
        recorded = await ClientScript(raw, proxy_leaf).ask(b"earlier nonce of the same proxy!")
        raw.close()

        async def replay(*_: Any, **__: Any) -> bytes:
            return recorded

        async with fake_agent(LyingKeeper(genuine.keeper.leaf, mesh.roots, replay)) as fake:
            return await victim_proxy(mesh, fake.port, proxy_leaf, fake)


def _never_compares(raw: bytes, _expected: Expected, _now: float, _lifetime: float) -> Claims:
    return decode_claims(raw)


async def test_a5_replay(mesh: Mesh) -> None:
    refused(await _a5_replay(mesh), "binding_mismatch")


async def test_a5_replay_when_claims_are_not_rebuilt(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier_module, "check_binding", _never_compares)
    succeeded(await _a5_replay(mesh))


async def _a5_stale(mesh: Mesh) -> Outcome:
    """A machine whose passport has ended, in a leaf that has not; its evidence for the connection is good."""
    agent = mesh.agent_keeper()
    key = ec.generate_private_key(ec.SECP256R1())
    ended = claims_of(key_hash(key), Phase.PASSPORT, not_after=int(time.time()) - 5)
    leaf = forged_leaf(evidence_for(mesh.tpm, ended), key)
    async with fake_agent(LyingKeeper(leaf, mesh.roots, agent.evidence)) as fake:
        outcome = await victim_proxy(mesh, fake.port, mesh.issue("proxy", "p1"), fake)
    await agent.close()
    return outcome


def _without_a_clock(raw: bytes, expected: Expected, _now: float, lifetime_s: float) -> Claims:
    return check_binding(raw, expected, decode_claims(raw).not_after - 1, lifetime_s)


async def test_a5_stale(mesh: Mesh) -> None:
    refused(await _a5_stale(mesh), "stale")


async def test_a5_stale_without_a_clock(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier_module, "check_binding", _without_a_clock)
    succeeded(await _a5_stale(mesh))


# --- A6: the key lives outside the TEE ---


async def _a6(mesh: Mesh, genuine: Keeper, key: ec.EllipticCurvePrivateKey) -> Outcome:
    """The host terminates TLS with a key of its own and asks the TEE inside for evidence; the TEE tells the truth about
    *its* key. The channel binding and the rest are those of the connection."""
    inside = genuine.leaf.spki_hash
    leaf = forged_leaf(passport_of(parse_peer_leaf(genuine.leaf.cert_der)), key)

    async def ask_inside(role: Role, phase: Phase, **channel: Any) -> bytes:
        return await genuine.evidence(role, phase, **{**channel, "spki_hash": inside})

    async with fake_agent(LyingKeeper(leaf, mesh.roots, ask_inside)) as fake:
        return await victim_proxy(mesh, fake.port, mesh.issue("proxy", "p1"), fake)


async def test_a6_key_outside(mesh: Mesh, attackers_key: ec.EllipticCurvePrivateKey) -> None:
    genuine = mesh.agent_keeper()
    await genuine.start()
    refused(await _a6(mesh, genuine, attackers_key), "binding_mismatch")
    await genuine.close()


async def test_a6_without_the_key_check(
    mesh: Mesh, attackers_key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = mesh.agent_keeper()
    await genuine.start()
    monkeypatch.setattr(gate, "expected_key", lambda _peer: genuine.leaf.spki_hash)
    succeeded(await _a6(mesh, genuine, attackers_key))
    await genuine.close()


# --- A7: a middlebox with a certificate of the trusted mesh CA ---


def _ca_signed_leaf(mesh: Mesh, key: ec.EllipticCurvePrivateKey, passport: bytes | None) -> Leaf:
    """The mesh CA itself signs the agent's name for the middlebox, with or without an evidence extension."""
    directory = mesh.directory / "ca"
    issuer = x509.load_der_x509_certificate(ca.load_certificates(directory / "ca.crt")[0])
    plain = mesh.issue("agent", "a1")
    template = x509.load_der_x509_certificate(plain.cert_der)
    builder = x509.CertificateBuilder(issuer.subject, x509.Name([]), key.public_key(), 99)
    builder = builder.not_valid_before(template.not_valid_before_utc).not_valid_after(template.not_valid_after_utc)
    for extension in template.extensions:
        if not isinstance(extension.value, x509.SubjectKeyIdentifier):
            builder = builder.add_extension(extension.value, extension.critical)
    if passport is not None:
        cmw = x509.UnrecognizedExtension(x509.ObjectIdentifier(CMW_OID), extension_value(passport))
        builder = builder.add_extension(cmw, critical=False)
    signed = builder.sign(ca.load_key(directory / "ca.key"), hashes.SHA256())
    return load_leaf(signed.public_bytes(Encoding.DER), key)


async def _a7(mesh: Mesh, key: ec.EllipticCurvePrivateKey) -> Outcome:
    leaf = _ca_signed_leaf(mesh, key, evidence_for(NoEvidence(), claims_of(key_hash(key), Phase.PASSPORT)))
    return await _served_with(mesh, leaf, NoEvidence())


async def _served_with(mesh: Mesh, leaf: Leaf, collector: Collector) -> Outcome:
    async def evidence(_role: Role, _phase: Phase, **channel: Any) -> bytes:
        return evidence_for(collector, claims_of(channel.pop("spki_hash"), **channel))

    async with fake_agent(LyingKeeper(leaf, mesh.roots, evidence)) as fake:
        return await victim_proxy(mesh, fake.port, mesh.issue("proxy", "p1"), fake)


async def _trusts_the_ca(self: Keeper, raw: bytes, expected: Expected, policy_name: str) -> AttestationResult:
    claims = check_binding(decode_evidence(raw).claims, expected, time.time(), 86_400)
    return AttestationResult(
        platform="none",
        confidential=False,
        simulated=False,
        claims={},
        policy_id="",
        policy_digest="",
        node_id=claims.node_id,
        boot_id=claims.boot_id,
        expires=claims.not_after,
        evidence_digest=hashlib.sha256(raw).hexdigest(),
        appraisal_id="",
    )


async def test_a7_middlebox(mesh: Mesh, attackers_key: ec.EllipticCurvePrivateKey) -> None:
    refused(await _a7(mesh, attackers_key), "part_missing")


async def test_a7_when_the_mesh_ca_is_enough(
    mesh: Mesh, attackers_key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Keeper, "appraise", _trusts_the_ca)
    succeeded(await _a7(mesh, attackers_key))


# --- A10: downgrade, as a server ---


async def test_a10_leaf_without_evidence(mesh: Mesh, attackers_key: ec.EllipticCurvePrivateKey) -> None:
    """A certificate that promises nothing, while phase 2 would be genuine."""
    refused(await _served_with(mesh, _ca_signed_leaf(mesh, attackers_key, None), mesh.tpm), "evidence_missing")


async def test_a10_leaf_without_evidence_when_a_passport_is_optional(
    mesh: Mesh, attackers_key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = evidence_for(mesh.tpm, claims_of(key_hash(attackers_key), Phase.PASSPORT))
    monkeypatch.setattr(identity, "passport_of", lambda _peer: genuine)
    succeeded(await _served_with(mesh, _ca_signed_leaf(mesh, attackers_key, None), mesh.tpm))


async def _a10_claims_only(mesh: Mesh, key: ec.EllipticCurvePrivateKey) -> Outcome:
    """A genuine passport, then an authenticator that carries claims and no evidence at all."""
    passport = evidence_for(mesh.tpm, claims_of(key_hash(key), Phase.PASSPORT))
    return await _served_with(mesh, forged_leaf(passport, key), NoEvidence())


async def test_a10_claims_only(mesh: Mesh, attackers_key: ec.EllipticCurvePrivateKey) -> None:
    refused(await _a10_claims_only(mesh, attackers_key), "part_missing")


async def test_a10_claims_only_when_evidence_is_negotiable(
    mesh: Mesh, attackers_key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Keeper, "appraise", _trusts_the_ca)
    succeeded(await _a10_claims_only(mesh, attackers_key))


async def test_the_stage_itself_holds(mesh: Mesh, attackers_key: ec.EllipticCurvePrivateKey) -> None:
    """The same stage with nothing wrong opens: what the attacks above lack is exactly what they name."""
    passport = evidence_for(mesh.tpm, claims_of(key_hash(attackers_key), Phase.PASSPORT))
    succeeded(await _served_with(mesh, forged_leaf(passport, attackers_key), mesh.tpm))
