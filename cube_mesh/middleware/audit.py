"""Audit: puts every exchange on record, refused, failed and cancelled ones too, and lets no answer end without."""

from __future__ import annotations

from cube_mesh.audit.event import EventWriter
from cube_mesh.errors import CubeMeshError, InternalError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import AuditSink, Recording


class Audit:
    """Observer. Raises the sink's error, or InternalError ``audit_failed`` for a fault of ours: the chain refuses
    then.
    """

    def __init__(self, writer: EventWriter, sink: AuditSink) -> None:
        self._line = writer.line
        self._append = sink.append

    def leave(self, exchange: Exchange) -> Recording | None:
        try:
            return self._append(self._line(exchange))
        except CubeMeshError:
            raise
        except Exception as error:
            detail = f"the event could not be made: {type(error).__name__}"
            raise InternalError("audit_failed", "The server made a mistake.", detail=detail) from error
