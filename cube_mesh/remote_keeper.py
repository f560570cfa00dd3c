"""The keeper as a worker sees it: ``tls.port.KeeperPort`` over a link to another process.

Every wait has a deadline. When the keeper is gone, what needs it is refused (``keeper``) and what stands goes on to its
expiry; a new link is offered at once, and the next keeper takes it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable
from typing import Any, Literal

import msgspec

from attest.appraise import AttestationResult
from attest.binding import Expected, Phase, Role
from attest.errors import AttestError
from cube_mesh import keeper_link as wire
from cube_mesh.errors import DependencyError
from cube_mesh.keeper import mesh_roots, own_id
from cube_mesh.settings import Settings
from cube_mesh.tls.identity import Leaf, SpiffeId
from cube_mesh.tls.live import LiveChannels
from cube_mesh.tls.reasons import Refusal
from cube_mesh.tls.sessions import Session

_log = logging.getLogger(__name__)
_RETRY_S = 0.1  # when the rendezvous is full
_LATE_S = 0.01  # a timer that fires a little early would find nothing to do


class RemoteKeeper:
    """One for each worker of the node ``node_id``. ``timeout_s`` bounds each call, and the wait for the
    first news in ``start``.
    """

    def __init__(
        self, workers_end: socket.socket, node_id: SpiffeId, roots: tuple[bytes, ...], timeout_s: float
    ) -> None:
        self.node_id = node_id
        self.roots = roots
        self._workers_end = workers_end
        self._timeout_s = timeout_s
        self._link: wire.FrameProtocol | None = None
        self._state: wire.State | None = None
        self._leaf: Leaf | None = None
        self._calls: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._number = 0
        self._news = asyncio.Event()
        self._closed = False
        self._joining: asyncio.Task[None] | None = None
        self.sessions = RemoteSessions(self)

    # --- life ---

    async def start(self) -> None:
        """Until the keeper has a leaf for us; DependencyError ``keeper`` when it has none in time."""
        self._joining = asyncio.get_running_loop().create_task(self._join())
        try:
            async with asyncio.timeout(self._timeout_s):
                while not self.has_leaf:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise DependencyError("keeper", "The node is not ready.", detail="no leaf from the keeper") from error

    async def close(self) -> None:
        self._closed = True
        if self._joining is not None:
            self._joining.cancel()
            await asyncio.gather(self._joining, return_exceptions=True)
        if self._link is not None:
            self._link.abort()
        await asyncio.sleep(0)

    async def _join(self) -> None:
        """Offer a link; the keeper that is there, or comes, takes it."""
        while (ours := self._introduce()) is None:
            await asyncio.sleep(_RETRY_S)
        link = wire.FrameProtocol(self._on_frame, self._lost)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        self._link = link

    def _introduce(self) -> socket.socket | None:
        try:
            return wire.introduce(self._workers_end)
        except BlockingIOError:
            return None

    def _lost(self) -> None:
        """The keeper is gone, and with it what it has promised: a revocation would not reach us any more."""
        self._link = None
        if self._state is not None:
            _log.warning("the keeper is gone; what needs it is refused until there is another")
        self._state = None
        self.sessions.forget()
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(Refusal("keeper", "it is gone"))
        if not self._closed:
            self._joining = asyncio.get_running_loop().create_task(self._join())

    # --- KeeperPort ---

    @property
    def connected(self) -> bool:
        """Whether a keeper answers at this moment."""
        return self._state is not None

    @property
    def state(self) -> wire.State:
        """The last news; Refusal ``keeper`` when there is no keeper."""
        if self._state is None:
            raise Refusal("keeper", "there is none")
        return self._state

    @property
    def has_leaf(self) -> bool:
        return self._leaf is not None and self._leaf.not_after > time.time()

    @property
    def not_ready(self) -> str:
        """See ``Keeper.not_ready``. A leaf alone does not do: sessions and evidence are the keeper's."""
        if not self.connected:
            return "no keeper"
        return "" if self.has_leaf else "this node has no valid leaf"

    @property
    def leaf(self) -> Leaf:
        if self._leaf is None or not self.has_leaf:
            raise Refusal("evidence_unavailable", "this node has no valid leaf")
        return self._leaf

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
        call = wire.Evidence(role, phase, spki_hash, nonce, channel_binding, peer_spki_hash)
        return msgspec.msgpack.decode(await self.call(call), type=bytes)

    async def appraise(self, raw: bytes, expected: Expected, policy_name: str) -> AttestationResult:
        answer = await self.call(wire.Appraise(raw, expected, policy_name))
        return msgspec.msgpack.decode(answer, type=AttestationResult)

    async def appraise_session(self, session: str, policy_name: str) -> AttestationResult:
        answer = await self.call(wire.AppraiseSession(session, policy_name))
        return msgspec.msgpack.decode(answer, type=AttestationResult)

    # --- calls ---

    async def call(
        self,
        what: wire.Evidence | wire.Appraise | wire.AppraiseSession | wire.Register | wire.Find | wire.To,
    ) -> msgspec.Raw:
        """The answer's value. Raises what the keeper raised, or Refusal ``keeper``: gone, late, or too much asked."""
        link = self._link
        if link is None or self._state is None:
            raise Refusal("keeper", "there is none")
        if len(self._calls) >= wire.MAX_CALLS:
            raise Refusal("keeper", "too many calls wait for it")
        self._number += 1
        number = self._number
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        link.send(wire.Call(number, what))
        try:
            async with asyncio.timeout(self._timeout_s):
                value: msgspec.Raw = await future
                return value
        except TimeoutError as error:
            raise Refusal("keeper", f"no answer in {self._timeout_s} s") from error
        finally:
            self._calls.pop(number, None)

    def _on_frame(self, frame: bytes) -> None:
        match wire.decode_news(frame):
            case wire.Answer(number, value):
                self._settle(number, value, None)
            case wire.Failed() as failed:
                self._settle(failed.number, None, _error(failed))
            case wire.State() as state:
                self._take(state)
            case wire.Renewed(session):
                self.sessions.renewed(session)
            case wire.Revoked(peer_id):
                self.sessions.revoked(peer_id)

    def _settle(self, number: int, value: msgspec.Raw | None, error: Exception | None) -> None:
        future = self._calls.get(number)
        if future is None or future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif value is not None:
            future.set_result(value)

    def _take(self, state: wire.State) -> None:
        if state.leaf is not None and (self._leaf is None or state.leaf.certificate != self._leaf.cert_der):
            self._leaf = wire.unpack_leaf(state.leaf)
        self._state = state
        self._news.set()


class RemoteSessions:
    """``tls.port.SessionsPort`` of a worker: what the keeper has told it, kept while the keeper is there."""

    def __init__(self, keeper: RemoteKeeper) -> None:
        self.live = LiveChannels()
        self._keeper = keeper
        self._by_id: dict[bytes, Session] = {}

    async def register(self, session: Session) -> Session:
        return _session(await self._keeper.call(wire.Register(session)))

    def find(self, session_id: bytes) -> Session | Awaitable[Session]:
        session = self._by_id.get(session_id)
        return session if session is not None else self._ask(wire.Find(session_id))

    def to(self, target: str, refused: bytes = b"") -> Session | Awaitable[Session]:
        now = time.time()
        for session in self._by_id.values():
            known = session.peer_id == target and session.agreed.role is Role.CLIENT and session.expires_at > now
            if known and session.id != refused:
                return session
        return self._ask(wire.To(target, refused))

    async def _ask(self, what: wire.Find | wire.To) -> Session:
        session = _session(await self._keeper.call(what))
        self._keep(session)
        return session

    def not_ready(self, target: str) -> str:
        if not self._keeper.connected:
            return "no keeper"
        return self._keeper.state.not_ready.get(target, "no link")

    # --- news ---

    def renewed(self, session: Session) -> None:
        """A session that is new; the ones that it has replaced take no more connections."""
        self._keep(session)
        self.live.renewed(session)

    def revoked(self, peer_id: str) -> None:
        self._drop(lambda session: session.peer_id == peer_id)
        self.live.revoked(peer_id)

    def forget(self) -> None:
        self._by_id.clear()

    def _keep(self, session: Session) -> None:
        now = time.time()
        self._drop(lambda old: old.expires_at <= now or _replaces(session, old))
        self._by_id[session.id] = session
        asyncio.get_running_loop().call_later(max(0.0, session.expires_at - now) + _LATE_S, self._expire)

    def _expire(self) -> None:
        """Keys go when they end. One timer for each session that was heard of: no more than the keeper made."""
        now = time.time()
        self._drop(lambda old: old.expires_at <= now)

    def _drop(self, over: Any) -> None:
        for session_id in [one.id for one in self._by_id.values() if over(one)]:
            del self._by_id[session_id]


def _replaces(new: Session, old: Session) -> bool:
    same_end = new.peer_id == old.peer_id and new.agreed.role is old.agreed.role
    return same_end and new.generation > old.generation and (new.agreed.role is Role.CLIENT or new.same_machine(old))


def _session(value: msgspec.Raw) -> Session:
    return msgspec.msgpack.decode(value, type=Session)


def _error(failed: wire.Failed) -> Exception:
    match failed.kind:
        case "attest":
            return AttestError(failed.detail, code=failed.code)
        case "dependency":
            return DependencyError(
                failed.code,
                "The upstream could not be verified.",
                detail=failed.detail,
                status=failed.status,
                retryable=failed.retryable,
            )
        case "refusal":
            return Refusal(failed.code, failed.detail)
        case _:
            return Refusal("internal", failed.detail)


def remote_keeper_from_settings(
    settings: Settings, role: Literal["proxy", "agent"], workers_end: socket.socket
) -> RemoteKeeper:
    """A worker's. ``workers_end`` is inherited: ``keeper_link.rendezvous``. ``start`` is still to be awaited."""
    mesh = settings.mesh
    return RemoteKeeper(workers_end, own_id(mesh, role), mesh_roots(mesh), settings.attestation.handshake_timeout_s)
