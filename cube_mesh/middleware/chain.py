"""The chain: runs the gates in order until one refuses, and every observer once when the exchange ends.

The common case is a loop in C (``_fastpath/stages.pxi``) over bound methods: no task, no await, nothing allocated. A
gate that has to wait hands back an awaitable, and the rest of the gates run in a coroutine from there on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from logging import getLogger
from typing import Any, TypeAlias

from cube_mesh._fastpath import ChainCore
from cube_mesh.errors import CubeMeshError, InternalError, PeerError, PolicyError
from cube_mesh.exchange import Exchange
from cube_mesh.message import Response, error_response
from cube_mesh.ports import Recording
from cube_mesh.text import describe

Verdict: TypeAlias = Response | None
Enter: TypeAlias = Callable[[Exchange], Verdict | Awaitable[Verdict]]
Leave: TypeAlias = Callable[[Exchange], Recording | None]
_MISTAKE = "The server made a mistake."
_log = getLogger("cube_mesh.chain")


class Chain(ChainCore):
    """Stages by name, in order. A stage has ``enter`` (a gate), ``leave`` (an observer), or both.

    ``in_flight`` counts exchanges between ``enter`` and ``leave``; ``failures`` counts, by stage, observers that
    raised what is not a CubeMeshError. Observers see the exchange in the order of the stages, so audit comes before
    log and metrics, and what its failure changes (status 503, ``audit_unavailable``) is what they record.
    """

    def __init__(self, stages: Mapping[str, Any]) -> None:
        self._gates: tuple[Enter, ...] = tuple(s.enter for s in stages.values() if hasattr(s, "enter"))
        self._observers: tuple[Leave, ...] = tuple(s.leave for s in stages.values() if hasattr(s, "leave"))
        self._names = tuple(name for name, s in stages.items() if hasattr(s, "leave"))
        self.failures: dict[str, int] = {}

    def _stopped(
        self, exchange: Exchange, gate: Enter, verdict: Response | Awaitable[Verdict]
    ) -> Response | Awaitable[Verdict]:
        if isinstance(verdict, Response):
            exchange.outcome = exchange.outcome or "refused"
            return verdict
        return self._resume(exchange, self._gates.index(gate) + 1, verdict)

    async def _resume(self, exchange: Exchange, next_gate: int, waiting: Awaitable[Verdict]) -> Verdict:
        try:
            verdict = await waiting
            for gate in self._gates[next_gate:]:
                if verdict is not None:
                    break
                answer = gate(exchange)
                verdict = answer if answer is None or isinstance(answer, Response) else await answer
        except Exception as error:
            return self._refuse(exchange, error)
        if verdict is not None:
            exchange.outcome = exchange.outcome or "refused"
        return verdict

    def _observer_failed(self, exchange: Exchange, index: int, error: Exception) -> CubeMeshError | None:
        if isinstance(error, CubeMeshError):
            exchange.error, exchange.status, exchange.outcome = error, error.status, "failed"
            return error
        name = self._names[index]
        self.failures[name] = self.failures.get(name, 0) + 1
        if self.failures[name] == 1:
            _log.error("observer %s failed; its later failures are only counted: %s", name, describe(error))
        return None

    def _refuse(self, exchange: Exchange, error: Exception) -> Response:
        if not isinstance(error, CubeMeshError):
            _log.error("a gate failed, request %s: %s", exchange.request_id, describe(error))
            error = InternalError("internal", _MISTAKE, detail=type(error).__name__)
        exchange.error = error
        exchange.outcome = "refused" if isinstance(error, (PeerError, PolicyError)) else "failed"
        return error_response(error)
