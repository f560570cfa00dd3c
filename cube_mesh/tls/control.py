"""Control links: a proxy attests an agent ahead of any request and keeps the answer fresh; readiness follows it."""

from __future__ import annotations

import asyncio
import logging
import time

from cube_mesh.errors import CubeMeshError
from cube_mesh.ports import ChannelAttestation
from cube_mesh.tls.connector import AttestedConnector, ControlEnd

_log = logging.getLogger(__name__)
_RENEW_SHARE = 0.8  # of the remaining life: the new connection is made before the old one ends
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 30.0


class ControlLink:
    """Keeps one attested control connection to ``connector``'s agent. One task for the link's life.

    ``attestation`` is the current result, None while there is none; ``reason`` is why ("" when ready). Ready means
    that the agent attested within the interval *and* the connection still stands.
    """

    def __init__(self, connector: AttestedConnector) -> None:
        self._connector = connector
        self._end: ControlEnd | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.peer_id = str(connector.target)
        self.attestation: ChannelAttestation | None = None
        self.reason = "not attested yet"

    @property
    def ready(self) -> bool:
        return self.attestation is not None and self.attestation.expires_at > time.time()

    def start(self) -> None:
        """Begin in the background; never raises for an agent that is not there."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._drop()

    async def attest_once(self) -> ChannelAttestation:
        """Attest now on a new control connection, which replaces the old; DependencyError as by ``connect``."""
        end = ControlEnd(lambda exc: self._lost(end, exc))
        await self._connector.connect_control(lambda: end)
        assert end.transport is not None
        attestation: ChannelAttestation = end.transport.get_extra_info("attestation")
        old, self._end = self._end, end
        self.attestation, self.reason = attestation, ""
        if old is not None and old.transport is not None:
            old.transport.close()
        return attestation

    async def _run(self) -> None:
        retry_s = _FIRST_RETRY_S
        while True:
            self._changed.clear()
            try:
                attestation = await self.attest_once()
            except CubeMeshError as error:
                self._note(error)
                wait_s, retry_s = retry_s, min(retry_s * 2, _LAST_RETRY_S)
            else:
                wait_s, retry_s = (attestation.expires_at - time.time()) * _RENEW_SHARE, _FIRST_RETRY_S
            await self._wait(wait_s)

    async def _wait(self, wait_s: float) -> None:
        """Until it is time, or until the connection that stands for the result is lost (then after a first pause)."""
        try:
            async with asyncio.timeout(max(_FIRST_RETRY_S, wait_s)):
                await self._changed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_FIRST_RETRY_S)

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
        self._changed.set()

    def _drop(self) -> None:
        end, self._end = self._end, None
        self.attestation, self.reason = None, "closed"
        if end is not None and end.transport is not None:
            end.transport.close()
