"""Tenants' own evidence policies: appraised before a tenant's first byte on a connection, not when it is opened.

Tenants share warm connections, and those stand on sessions whose evidence passed the *upstream's* policy. A tenant that
names a policy of its own gets a target that also asks this one, of the very evidence that the session stands on. The
verdict is kept by session, generation and policy; a connection that does not satisfy it is given to others only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping

import msgspec

from attest.appraise import AttestationResult
from attest.errors import AttestError
from cube_mesh.errors import ConfigError, DependencyError, InternalError
from cube_mesh.exchange import Exchange
from cube_mesh.hops import Hop
from cube_mesh.ports import ChannelAttestation, Target
from cube_mesh.settings import Domain
from cube_mesh.tls.port import KeeperPort
from cube_mesh.tls.reasons import Refusal
from cube_mesh.upstream import UpstreamConnection

_MAX_VERDICTS = 256  # of one policy
_REFUSED_S = 10.0  # a no is kept for: collateral that was missing may come, and nobody can have us appraise all day
_ATTEMPTS = 8  # connections that stand on sessions of the past, which are closed
_UNSATISFIED = "The upstream does not satisfy the evidence policy of this domain."
Key = tuple[str, int]  # session, generation


class TenantPolicy:
    """Verdicts of one evidence policy, which the keeper knows by ``name``, about the sessions of this node."""

    def __init__(self, name: str, keeper: KeeperPort) -> None:
        self._name = name
        self._keeper = keeper
        self._verdicts: dict[Key, tuple[AttestationResult | DependencyError, float]] = {}  # and until when
        self._asking: dict[Key, asyncio.Task[AttestationResult | DependencyError]] = {}

    def accepted(self, channel: ChannelAttestation | None) -> AttestationResult | None:
        """The verdict when it is known, stands, and is yes."""
        if channel is None or not channel.session:
            return None
        verdict = self._known((channel.session, channel.session_generation))
        return verdict if isinstance(verdict, AttestationResult) else None

    def _known(self, key: Key) -> AttestationResult | DependencyError | None:
        verdict, until = self._verdicts.get(key, (None, 0.0))
        return verdict if until > time.time() else None

    async def check(self, channel: ChannelAttestation | None) -> None:
        """Returns when what ``channel`` stands on satisfies the policy. Refusal ``session_unknown``: it is of the past.

        Everything else is DependencyError: ``atls_tenant_policy``, also for a channel without a session, whose
        evidence nobody has kept, or ``atls_keeper``, which another attempt may not meet.
        """
        if channel is None or not channel.session:
            raise _unsatisfied("the connection stands on no attested session")
        key = channel.session, channel.session_generation
        verdict = self._known(key) or await self._ask(key)
        if isinstance(verdict, DependencyError):
            raise verdict

    async def _ask(self, key: Key) -> AttestationResult | DependencyError:
        """However many wait for the same verdict, the keeper is asked once."""
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.get_running_loop().create_task(self._judge(key))
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(asking)

    async def _judge(self, key: Key) -> AttestationResult | DependencyError:
        verdict: AttestationResult | DependencyError
        until = time.time() + _REFUSED_S
        try:
            verdict = await self._keeper.appraise_session(key[0], self._name)
            until = verdict.expires
        except AttestError as error:
            verdict = _unsatisfied(f"{self._name}: {error.code}: {error}")
        except Refusal as refusal:
            if refusal.reason == "session_unknown":
                raise
            detail = f"{self._name}: {refusal}"
            return DependencyError("atls_keeper", _UNSATISFIED, detail=detail, status=503, retryable=True)
        if len(self._verdicts) >= _MAX_VERDICTS:
            self._verdicts.clear()
        self._verdicts[key] = verdict, until
        return verdict


class TenantTarget:
    """``ports.Target``: the upstream of ``hop`` for a tenant with a policy of its own. The pool is everybody's."""

    def __init__(self, hop: Hop, policy: TenantPolicy) -> None:
        self.name = hop.name
        self._hop = hop
        self._policy = policy
        self._stamped: tuple[ChannelAttestation, AttestationResult, ChannelAttestation] | None = None

    def acquire(self) -> UpstreamConnection | Awaitable[UpstreamConnection]:
        """As by the pool, but no connection that the policy has not accepted."""
        found = self._hop.acquire()
        if isinstance(found, UpstreamConnection):
            return found if self._policy.accepted(found.attestation) else self._checked(found)
        return self._connected(found)

    async def _connected(self, connecting: Awaitable[UpstreamConnection]) -> UpstreamConnection:
        return await self._checked(await connecting)

    async def _checked(self, connection: UpstreamConnection) -> UpstreamConnection:
        """``connection``, or the next one while they stand on sessions that the keeper no longer has."""
        for _ in range(_ATTEMPTS):
            try:
                while not self._policy.accepted(connection.attestation):  # it may be renewed while we ask
                    await self._policy.check(connection.attestation)
            except Refusal:
                connection.transport.close()
            except BaseException:
                self._hop.pool.release(connection)
                raise
            else:
                if not connection.transport.is_closing():
                    return connection
            found = self._hop.acquire()
            connection = found if isinstance(found, UpstreamConnection) else await found
        self._hop.pool.release(connection)
        raise _unsatisfied("no connection stands on a session of now")

    def head(self, exchange: Exchange, length: int, data: bytes = b"", pos: int = 0, end: int = 0) -> bytes:
        """As the hop's. Puts on record which policy of the tenant's was satisfied; without one no byte is made."""
        channel = exchange.attestation
        verdict = self._policy.accepted(channel)
        if channel is None or verdict is None:
            raise InternalError("internal", "The server made a mistake.", detail="a connection that was not checked")
        exchange.attestation = self._on_record(channel, verdict)
        return self._hop.head(exchange, length, data, pos, end)

    def _on_record(self, channel: ChannelAttestation, verdict: AttestationResult) -> ChannelAttestation:
        """One object as long as the channel's is the same: the trail encodes each only once."""
        known = self._stamped
        if known is None or known[0] is not channel or known[1] is not verdict:
            names = {"tenant_policy_id": verdict.policy_id, "tenant_policy_digest": verdict.policy_digest}
            known = self._stamped = (channel, verdict, msgspec.structs.replace(channel, **names))
        return known[2]


def tenant_targets(
    domains: tuple[Domain, ...], hops: Mapping[str, Hop], keeper: KeeperPort | None
) -> dict[str, dict[str, Target]]:
    """Targets by domain and upstream, for the domains that name an evidence policy; each policy's verdicts are shared.

    ConfigError for such a domain when nothing is attested: without a keeper.
    """
    policies: dict[str, TenantPolicy] = {}
    made: dict[str, dict[str, Target]] = {}
    for domain in domains:
        if not domain.evidence_policy:
            continue
        if keeper is None:
            raise ConfigError("no upstream is attested", key=f"identity.domains.{domain.id}.evidence_policy")
        policy = policies.setdefault(domain.evidence_policy, TenantPolicy(domain.evidence_policy, keeper))
        made[domain.id] = {name: TenantTarget(hop, policy) for name, hop in hops.items()}
    return made


def _unsatisfied(detail: str) -> DependencyError:
    return DependencyError("atls_tenant_policy", _UNSATISFIED, detail=detail, status=503)
