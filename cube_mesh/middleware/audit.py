"""Audit: puts every exchange on record, refused, failed and cancelled ones too, and lets no answer end without."""

from __future__ import annotations

from cube_mesh._fastpath import AuditStage
from cube_mesh.errors import CubeMeshError, InternalError


class Audit(AuditStage):
    """Observer. Raises the sink's error, or InternalError ``audit_failed`` for a fault of ours: the chain refuses
    then.
    """

    def _failed(self, error: Exception) -> CubeMeshError:
        if isinstance(error, CubeMeshError):
            return error
        failed = InternalError(
            "audit_failed",
            "The server made a mistake.",
            detail=f"the event could not be made: {type(error).__name__}",
        )
        failed.__cause__ = error
        return failed
