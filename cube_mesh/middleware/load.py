"""Load: the gate that turns requests away while too many are being served. It stands before authn, so that refusing is
cheap, and within the chain, so that what it refuses has its audit event, log line and metric like any other.
"""

from __future__ import annotations

from cube_mesh._fastpath import LoadGate
from cube_mesh.admission import Admission
from cube_mesh.errors import DependencyError


class Load(LoadGate):
    """Gate. 503 ``overloaded`` beyond ``limits.max_in_flight``; nothing was done, so a retry is safe."""

    def __init__(self, admission: Admission) -> None:
        super().__init__(admission)
        self._overloaded = admission.overloaded

    def _refuse(self) -> None:
        if self._overloaded():
            raise DependencyError("overloaded", "The server is at its limit.", status=503, retryable=True)
