"""The node's keeper: owner of the TEE or TPM, the leaf key and the evidence policies (attested-TLS protocol §4, §7).

With ``tls`` the only caller of ``attest``. In this process for now, behind ``tls.port.KeeperPort``: async methods,
bytes in, frozen values out. Devices block, so the keeper uses them on threads of its own: one thread, one quote.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attest.appraise import AttestationResult
from attest.attester import Closing, Collector, NoEvidence, evidence_for
from attest.binding import Claims, Expected, Phase, Role
from attest.errors import AttestError, CollectionFailed, EndorsementUnavailable, UnsupportedEvidence
from attest.evidence import MAX_AUX_BYTES
from attest.policy import load_policy, parse_policy
from attest.verifier import Verifier
from cube_mesh.attesters import collector_from_settings, event_log_of, schemes_from_settings
from cube_mesh.collateral.feed import Appraiser, FedVerifier, Feed, feed_from_settings
from cube_mesh.errors import ConfigError
from cube_mesh.settings import Mesh, Settings
from cube_mesh.tls.ca import load_certificates, load_key
from cube_mesh.tls.identity import (
    TLS_ROLE,
    Leaf,
    SpiffeId,
    check_chain,
    check_role,
    check_validity,
    load_leaf,
    parse_peer_leaf,
    parse_spiffe_id,
    self_signed_leaf,
    spki_hash,
    validity_window,
)
from cube_mesh.tls.keeping import Sessions
from cube_mesh.tls.port import CLAIMS_ONLY, SessionsPort
from cube_mesh.tls.reasons import Refusal

_log = logging.getLogger(__name__)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
_MEMO_ENTRIES = 256
_CLAIMS_ONLY_POLICY = f'id = "{CLAIMS_ONLY}"\n[none]\naccept_unattested_clients = true\n'


class Keeper:
    """See ``tls.port.KeeperPort``. ``verifiers`` are by policy name; a name that is not there refuses.

    ``leaf`` is a proxy's, from disk; without one the keeper makes its own, self-signed with a passport in it, at
    ``start`` and again at half of ``leaf_lifetime_s``. ``event_log``: the firmware's, sent with evidence for a channel.
    ``feed``: collateral for ``verifiers``, started and closed here.
    ``clock`` is Unix time.
    """

    def __init__(
        self,
        node_id: SpiffeId,
        collector: Collector,
        verifiers: Mapping[str, Appraiser],
        roots: tuple[bytes, ...],
        *,
        leaf: Leaf | None = None,
        event_log: Path | None = None,
        leaf_lifetime_s: float = 3600.0,
        claims_lifetime_s: float = 600.0,
        max_concurrent_quotes: int = 1,
        boot_id: bytes | None = None,
        feed: Feed | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.node_id = node_id
        self.role = node_id.role
        self.roots = roots
        self.sessions = Sessions(clock)
        self.quotes = 0  # asked of the TEE or TPM so far
        self.quote_failures: Counter[str] = Counter()  # by code
        self.feed = feed
        self._collector = collector
        self._verifiers: dict[str, Appraiser] = {**verifiers, CLAIMS_ONLY: Verifier(parse_policy(_CLAIMS_ONLY_POLICY))}
        self._event_log = event_log
        self._leaf = leaf
        self._makes_leaf = leaf is None
        self._leaf_lifetime_s = leaf_lifetime_s
        self._claims_lifetime_s = claims_lifetime_s
        self._boot_id = boot_id or read_boot_id()
        self._clock = clock
        self._threads = ThreadPoolExecutor(max_concurrent_quotes, thread_name_prefix="keeper")
        self._rotation: asyncio.Task[None] | None = None
        self._memo: dict[tuple[bytes, Expected, str], AttestationResult] = {}

    # --- life ---

    async def start(self) -> None:
        """Make the first leaf, if it is ours to make, and go on rotating; AttestError when there is no evidence."""
        if self.feed is not None:
            await self.feed.start()
        if self._makes_leaf:
            await self.renew_leaf()
            self._rotation = asyncio.get_running_loop().create_task(self._rotate())

    async def close(self) -> None:
        """Stop rotating. A quote that is being made finishes on its thread; nobody waits for it."""
        if self._rotation is not None:
            self._rotation.cancel()
            await asyncio.gather(self._rotation, return_exceptions=True)
        if self.feed is not None:
            await self.feed.close()
        await self.sessions.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if isinstance(self._collector, Closing):
            self._collector.close()

    @property
    def leaf(self) -> Leaf:
        """The current leaf; Refusal ``evidence_unavailable`` when there is none or it has ended."""
        if self._leaf is None or not self.has_leaf:
            raise Refusal("evidence_unavailable", "this node has no valid leaf")
        return self._leaf

    @property
    def has_leaf(self) -> bool:
        """Whether ``leaf`` would give one."""
        return self._leaf is not None and self._leaf.not_after > self._clock()

    @property
    def not_ready(self) -> str:
        """Why this node can take no attested connection; "" when it can."""
        return "" if self.has_leaf else "this node has no valid leaf"

    async def renew_leaf(self) -> None:
        """A new key, a passport for it, and a leaf that carries it. The old leaf stays until this has worked."""
        key = ec.generate_private_key(ec.SECP256R1())
        not_before, not_after = validity_window(self._clock(), self._leaf_lifetime_s)
        passport = await self._collect(
            self._claims(TLS_ROLE[self.role], Phase.PASSPORT, spki_hash(key.public_key()), not_after)
        )
        serial = x509.random_serial_number()
        self._leaf = self_signed_leaf(
            self.node_id, key, passport, serial=serial, not_before=not_before, not_after=not_after
        )
        _log.info("leaf %s of %s is valid until %d", self._leaf.key_id, self.node_id, self._leaf.not_after)

    async def _rotate(self) -> None:
        retry_s = _FIRST_RETRY_S
        wait_s = self._leaf_lifetime_s / 2
        while True:
            await asyncio.sleep(wait_s)
            try:
                await self.renew_leaf()
            except (
                Exception
            ) as error:  # whatever it was, the next attempt may succeed and the old leaf has half its life
                _log.warning("the leaf could not be renewed: %r", error)
                wait_s, retry_s = retry_s, min(retry_s * 2, _LAST_RETRY_S)
            else:
                wait_s, retry_s = self._leaf_lifetime_s / 2, _FIRST_RETRY_S

    # --- evidence ---

    async def evidence(
        self,
        role: Role,
        phase: Phase,
        *,
        spki_hash: bytes,
        nonce: bytes | None = None,
        channel_binding: bytes | None = None,
        peer_spki_hash: bytes | None = None,
    ) -> bytes:
        """Evidence of this node for one channel. The TEE or TPM signs a hash of our own claims, never a caller's bytes.

        Waits for a thread of the keeper; a caller that gives up before its turn costs no quote. Raises AttestError.
        """
        not_after = self._clock() + self._claims_lifetime_s
        claims = self._claims(role, phase, spki_hash, not_after, nonce, channel_binding, peer_spki_hash)
        return await self._collect(claims)

    def _claims(
        self,
        role: Role,
        phase: Phase,
        spki_hash: bytes,
        not_after: float,
        nonce: bytes | None = None,
        channel_binding: bytes | None = None,
        peer_spki_hash: bytes | None = None,
    ) -> Claims:
        return Claims(
            role=role,
            phase=phase,
            node_id=str(self.node_id),
            not_after=int(not_after),
            boot_id=self._boot_id,
            spki_hash=spki_hash,
            nonce=nonce,
            channel_binding=channel_binding,
            peer_spki_hash=peer_spki_hash,
        )

    async def _collect(self, claims: Claims) -> bytes:
        if isinstance(self._collector, NoEvidence):
            return evidence_for(self._collector, claims)
        loop = asyncio.get_running_loop()
        self.quotes += 1
        try:
            return await loop.run_in_executor(self._threads, self._make, claims)
        except AttestError as error:
            self.quote_failures[error.code] += 1
            _log.warning("no evidence could be made: %s: %s", error.code, error)
            raise

    def _make(self, claims: Claims) -> bytes:
        """On a thread. A passport is in a certificate, where there is no room for a log."""
        log = b"" if self._event_log is None or claims.phase is Phase.PASSPORT else read_event_log(self._event_log)
        return evidence_for(self._collector, claims, log)

    # --- appraisal ---

    async def appraise(self, raw: bytes, expected: Expected, policy_name: str) -> AttestationResult:
        """Verify and appraise a peer's evidence; AttestError when it is not accepted. Takes 0.1 to 1 ms of this thread.

        The verdict on a passport is kept until it expires: same bytes, same expectation, same policy, same verdict.
        Evidence with a nonce is never kept.
        """
        verifier = self._verifiers.get(policy_name)
        if verifier is None:
            raise UnsupportedEvidence(f"no evidence policy named {policy_name!r}")
        now = self._clock()
        if expected.phase is not Phase.PASSPORT:
            return await self._judged(verifier, raw, expected, now)
        key = (hashlib.sha256(raw).digest(), expected, policy_name)
        known = self._memo.get(key)
        if known is None or known.expires <= now:
            known = await self._judged(verifier, raw, expected, now)
            if len(self._memo) >= _MEMO_ENTRIES:
                self._memo.clear()
            self._memo[key] = known
        return known

    async def _judged(self, verifier: Appraiser, raw: bytes, expected: Expected, now: float) -> AttestationResult:
        """The verdict; where configuration lets evidence call for collateral, after that has come."""
        try:
            return verifier.appraise(raw, expected, now=now)
        except EndorsementUnavailable:
            on_demand = self.feed.on_demand if self.feed is not None else None
            if on_demand is None or not await on_demand.obtain(raw):
                raise
        return verifier.appraise(raw, expected, now=self._clock())

    async def appraise_session(self, session: str, policy_name: str) -> AttestationResult:
        """See ``KeeperPort``. Everything is verified again: another policy may have looked at less."""
        agreed = self.sessions.named(session).agreed
        if agreed.expected is None:
            raise Refusal("session_unknown", session)
        return await self.appraise(agreed.evidence, agreed.expected, policy_name)


class Numbers(Protocol):
    """Where numbers for metrics are registered: telemetry's collector."""

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None: ...
    def counter(self, name: str, text: str, label: str, read: Callable[[], dict[str, int]]) -> None: ...


def count_sessions(keeper: Keeper, numbers: Numbers) -> None:
    """The keeper's own families, in whatever process it is. docs/metrics.md."""
    sessions = keeper.sessions
    numbers.gauge("cube_sessions_active", "Attested sessions that take connections.", lambda: sessions.active)
    numbers.counter("cube_sessions", "What happened to sessions.", "event", lambda: sessions.counts)
    numbers.counter("cube_quotes", "Quotes asked of the TEE or TPM.", "role", lambda: {keeper.role: keeper.quotes})
    numbers.counter("cube_quote_failures", "Quotes that were not made.", "code", lambda: dict(keeper.quote_failures))


def count_attaches(sessions: SessionsPort, numbers: Numbers) -> None:
    """How connections under a session fared, in a process that has them."""
    live = sessions.live
    text = "Data connections that went on under a newer session."
    numbers.counter("cube_session_extensions", text, "mode", lambda: {"attach": live.extended})
    numbers.counter("cube_session_attaches", "Attempts to attach.", "reason", lambda: live.attaches)


def read_event_log(path: Path) -> bytes:
    """The firmware's log, read when it is needed: 1 byte to 1 MiB, else CollectionFailed."""
    try:
        with path.open("rb") as file:
            log = file.read(MAX_AUX_BYTES + 1)
    except OSError as error:
        raise CollectionFailed(f"{path}: {error.strerror}", code="event_log_unreadable") from None
    if not 0 < len(log) <= MAX_AUX_BYTES:
        raise CollectionFailed(f"{path}: empty, or above {MAX_AUX_BYTES} bytes", code="event_log_unreadable")
    return log


def read_boot_id() -> bytes:
    """The kernel's boot id, 16 bytes: another one means another boot."""
    return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))


# --- from settings ---

MAX_AGENT_LEAF_S = 3600.0  # a self-signed leaf's; its evidence is no fresher than that


def keeper_from_settings(settings: Settings, role: Literal["proxy", "agent"]) -> Keeper:
    """The keeper of a node with ``role``. Reads the files that the settings name; ConfigError says which is wrong.

    ``start`` is still to be awaited. A device is not touched before that.
    """
    mesh, attestation = settings.mesh, settings.attestation
    node_id = own_id(mesh, role)
    roots = mesh_roots(mesh)
    if attestation.leaf_lifetime_s > MAX_AGENT_LEAF_S:
        raise ConfigError(f"at most {MAX_AGENT_LEAF_S:.0f}", key="attestation.leaf_lifetime_s")
    feed = feed_from_settings(settings.collateral) if role == "proxy" else None
    return Keeper(
        node_id,
        collector_from_settings(settings, role),
        _verifiers(settings, feed),
        roots,
        leaf=_proxy_leaf(mesh, node_id, roots) if role == "proxy" else None,
        event_log=event_log_of(attestation),
        leaf_lifetime_s=attestation.leaf_lifetime_s,
        claims_lifetime_s=attestation.interval_s,
        max_concurrent_quotes=attestation.max_concurrent_quotes,
        feed=feed,
    )


def mesh_roots(mesh: Mesh) -> tuple[bytes, ...]:
    """DER of the mesh CAs; ConfigError when there are none."""
    if not mesh.ca_file:
        raise ConfigError("the mesh CA's certificate is needed", key="mesh.ca_file")
    return load_certificates(mesh.ca_file)


def own_id(mesh: Mesh, role: Literal["proxy", "agent"]) -> SpiffeId:
    """This node's SPIFFE id; ConfigError when ``mesh.node_id`` makes none."""
    try:
        return parse_spiffe_id(f"spiffe://{mesh.trust_domain}/{role}/{mesh.node_id}")
    except ValueError as error:
        raise ConfigError(str(error), key="mesh.node_id") from None


def _proxy_leaf(mesh: Mesh, node_id: SpiffeId, roots: tuple[bytes, ...]) -> Leaf:
    """The leaf from disk, if it is what agents will accept: found out here, and not at the first connection."""
    if not mesh.cert_file or not mesh.key_file:
        raise ConfigError("a proxy needs its leaf and key, as `cube-mesh ca issue` makes them", key="mesh.cert_file")
    first, *chain = load_certificates(mesh.cert_file)
    try:
        leaf = load_leaf(first, load_key(mesh.key_file), tuple(chain))
        seen = parse_peer_leaf(first)
        check_role(seen, TLS_ROLE[node_id.role])
        check_validity(seen, time.time())
        check_chain(seen, leaf.chain_der, roots, time.time())
    except (ValueError, Refusal) as error:
        raise ConfigError(str(error), key="mesh.cert_file", where=mesh.cert_file) from error
    if seen.spiffe_id != node_id:
        raise ConfigError(f"the leaf is {seen.spiffe_id}, the node {node_id}", key="mesh.node_id")
    return leaf


def _verifiers(settings: Settings, feed: Feed | None) -> dict[str, Appraiser]:
    """One per policy file that an attested upstream or a domain names; the file's name is the policy's."""
    verifiers: dict[str, Appraiser] = {}
    policies: dict[str, str] = {}
    for upstream in settings.upstreams:
        if not upstream.url.startswith("atls://"):
            continue
        if policies.setdefault(upstream.node_id, upstream.policy) != upstream.policy:
            problem = f"{upstream.node_id} has another policy above; it has one session, and so one policy"
            raise ConfigError(problem, key=f"upstreams.{upstream.name}.policy")
        key = f"upstreams.{upstream.name}.policy"
        verifiers[upstream.policy] = _verifier(settings, feed, upstream.policy, key)
        if upstream.mode != "session" and any(domain.evidence_policy for domain in settings.identity.domains):
            problem = 'must be "session": a domain has an evidence policy, and nothing else keeps the evidence for it'
            raise ConfigError(problem, key=f"upstreams.{upstream.name}.mode")
    for domain in settings.identity.domains:
        if domain.evidence_policy:
            key = f"identity.domains.{domain.id}.evidence_policy"
            verifiers[domain.evidence_policy] = _verifier(settings, feed, domain.evidence_policy, key)
    return verifiers


def _verifier(settings: Settings, feed: Feed | None, file: str, key: str) -> Appraiser:
    simulated, schemes = settings.unsafe_allow_simulated, schemes_from_settings(settings)
    try:
        policy = load_policy(file)
        if feed is not None:
            return FedVerifier(policy, feed, allow_simulated=simulated, schemes=schemes)
        return Verifier(policy, allow_simulated=simulated, schemes=schemes)
    except AttestError as error:
        raise ConfigError(str(error), key=key, where=file) from error
