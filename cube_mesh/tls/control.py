"""Control links: a proxy attests an agent ahead of any request and keeps the answer fresh; readiness follows it."""

from __future__ import annotations

import asyncio
import logging
import time

from cube_mesh.errors import CubeMeshError, DependencyError
from cube_mesh.ports import ChannelAttestation
from cube_mesh.tls.connector import AttestedConnector, ControlEnd
from cube_mesh.tls.keeping import Sessions
from cube_mesh.tls.sessions import Session

_log = logging.getLogger(__name__)
_RENEW_SHARE = 0.8  # of the remaining life: the new connection is made before the old one ends
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 30.0


class ControlLink:
    """Keeps one attested control connection to ``connector``'s agent, and the session that it makes in ``sessions``.

    One task for the link's life, one more while it attests; however many wait for that, it is one. ``attestation`` is
    the current result, None while there is none; ``reason`` is why ("" when ready). Ready means that the agent attested
    within the interval *and* the connection still stands.
    """

    def __init__(self, connector: AttestedConnector, sessions: Sessions) -> None:
        self._connector = connector
        self._sessions = sessions
        self._attempt: asyncio.Task[Session] | None = None
        self._end: ControlEnd | None = None
        self._gone = asyncio.Event()
        self._due_at = 0.0  # of the loop's clock: the next renewal
        self._task: asyncio.Task[None] | None = None
        self.peer_id = str(connector.target)
        self.attestation: ChannelAttestation | None = None
        self.reason = "not attested yet"

    @property
    def ready(self) -> bool:
        return self.attestation is not None and self.attestation.expires_at > time.time()

    @property
    def not_ready(self) -> str:
        """For readiness: "" or why."""
        return "" if self.ready else self.reason

    def start(self) -> None:
        """Begin in the background; never raises for an agent that is not there."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        tasks = [task for task in (self._task, self._attempt) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._drop()

    async def attest(self) -> Session:
        """A new session: from the attempt that is under way, else from one that begins now. DependencyError as by
        ``connect``. A caller that gives up does not end the attempt for the others.
        """
        if self._attempt is None:
            self._attempt = asyncio.get_running_loop().create_task(self._attest())
            self._attempt.add_done_callback(self._attested)
        return await asyncio.shield(self._attempt)

    async def _attest(self) -> Session:
        """On a new control connection, which replaces the old one once the session is kept."""
        end = ControlEnd(lambda exc: self._lost(end, exc))
        await self._connector.connect_control(lambda: end)
        assert end.transport is not None
        session = await self._sessions.register(end.transport.get_extra_info("session"))
        old, self._end = self._end, end
        self._gone.clear()
        self.attestation, self.reason = session.facts, ""
        left_s = max(_FIRST_RETRY_S, (session.expires_at - time.time()) * _RENEW_SHARE)
        self._due_at = asyncio.get_running_loop().time() + left_s
        if old is not None and old.transport is not None:
            old.transport.close()
        return session

    def _attested(self, attempt: asyncio.Task[Session]) -> None:
        self._attempt = None
        error = None if attempt.cancelled() else attempt.exception()
        if isinstance(error, CubeMeshError):
            self._note(error)
            if is_verdict(error):
                self._sessions.revoke(self.peer_id)

    async def _run(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                await self.attest()
            except CubeMeshError:
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
            else:
                retry_s = _FIRST_RETRY_S
                await self._until_due()

    async def _until_due(self) -> None:
        """Until it is time to renew (a request may have renewed meanwhile: then that is later), or, after a first
        pause, until the connection is lost.
        """
        loop = asyncio.get_running_loop()
        while (left_s := self._due_at - loop.time()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._gone.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(_FIRST_RETRY_S)
            if self._gone.is_set():
                return

    def _note(self, error: CubeMeshError) -> None:
        if not self.ready:
            self.reason = error.code
        _log.warning("control link to %s: %s", self.peer_id, error)

    def _lost(self, end: ControlEnd, exc: Exception | None) -> None:
        if end is not self._end:
            return
        self._end = None
        self.attestation, self.reason = None, "control connection lost"
        _log.warning("control link to %s lost: %s", self.peer_id, exc)
        self._gone.set()

    def _drop(self) -> None:
        end, self._end = self._end, None
        self.attestation, self.reason = None, "closed"
        if end is not None and end.transport is not None:
            end.transport.close()


def is_verdict(error: CubeMeshError) -> bool:
    """Whether ``error`` says that the agent is not what it was accepted as: this end looked and refused. An agent that
    cannot be reached, is late, or refuses us, has lost nothing.
    """
    unsure = isinstance(error, DependencyError) and error.retryable
    return error.code.startswith("atls_") and error.code not in ("atls_refused", "atls_internal") and not unsure
