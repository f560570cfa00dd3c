"""The audit trail: one event for every request whose head was read, on record before its answer is complete."""

from cube_mesh.audit.event import PARTS, EventWriter
from cube_mesh.audit.file import FileSink

__all__ = ["PARTS", "EventWriter", "FileSink"]
