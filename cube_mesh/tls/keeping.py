"""The node's sessions where they are kept: the table, the links that make them, and those who are told of changes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from cube_mesh.errors import DependencyError
from cube_mesh.tls.live import LiveChannels
from cube_mesh.tls.sessions import Session, SessionTable

_LATE_S = 0.01  # a timer that fires a little early would find nothing to do


class Link(Protocol):
    """What makes sessions with one agent: a ControlLink."""

    peer_id: str

    @property
    def not_ready(self) -> str: ...

    async def attest(self) -> Session: ...
    async def close(self) -> None: ...


class Watcher(Protocol):
    """Another process of this node that has data connections."""

    def renewed(self, session: Session) -> None: ...
    def revoked(self, peer_id: str) -> None: ...


class Sessions:
    """See ``tls.port.SessionsPort``. One for each node; ``clock`` is Unix time.

    ``counts`` by what happened: "made" (first with that peer), "renewed", "revoked".
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.live = LiveChannels()
        self.watchers: list[Watcher] = []
        self.counts = dict.fromkeys(("made", "renewed", "revoked"), 0)
        self._table = SessionTable()
        self._links: dict[str, Link] = {}
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None  # drops keys when nobody else looks

    @property
    def active(self) -> int:
        """Sessions that take ATTACH now."""
        self._expire()
        return len(self._table)

    def add_link(self, link: Link) -> None:
        """``link`` makes the sessions with its agent from now on."""
        self._links[link.peer_id] = link

    async def register(self, session: Session) -> Session:
        now = self._clock()
        session, _ = self._table.add(session, now)
        self._rearm()
        self.counts["made" if session.generation == 1 else "renewed"] += 1
        self.live.renewed(session)
        for watcher in self.watchers:
            watcher.renewed(session)
        return session

    def find(self, session_id: bytes) -> Session:
        return self._table.find(session_id, self._clock())

    def named(self, name: str) -> Session:
        """The session that ``name_of`` names so; Refusal ``session_unknown``."""
        return self._table.named(name, self._clock())

    def to(self, target: str, refused: bytes = b"") -> Session | Awaitable[Session]:
        session = self._table.with_agent(target, self._clock())
        if session is not None and session.id != refused:
            return session
        link = self._links.get(target)
        if link is None:
            raise DependencyError(
                "atls_not_allowed", "The upstream could not be verified.", detail=f"no link to {target}", status=503
            )
        return link.attest()

    def not_ready(self, target: str) -> str:
        link = self._links.get(target)
        return "no link" if link is None else link.not_ready

    def revoke(self, peer_id: str) -> None:
        """End every session with ``peer_id`` and everything that stands on one, in every process, now."""
        self._table.revoke(peer_id)
        self.live.revoked(peer_id)
        self.counts["revoked"] += 1
        for watcher in self.watchers:
            watcher.revoked(peer_id)

    async def close(self) -> None:
        """Close the links and drop every key: the node ends."""
        for link in self._links.values():
            await link.close()
        if self._timer is not None:
            self._timer.cancel()
        self._table = SessionTable()

    def _expire(self) -> None:
        self._table.expire(self._clock())

    def _rearm(self) -> None:
        """Keys go when they end, and not when somebody looks."""
        if self._timer is not None:
            self._timer.cancel()
        left_s = self._table.next_expiry() - self._clock()
        self._timer = None
        if left_s < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, left_s) + _LATE_S, self._due)

    def _due(self) -> None:
        self._expire()
        self._rearm()
