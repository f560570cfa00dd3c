"""The audit trail: one event for every request whose head was read, on record before its answer is complete."""

from cube_mesh.audit.event import PARTS, EventWriter
from cube_mesh.audit.sinks import Ageing, Sink, open_sink

__all__ = ["PARTS", "Ageing", "EventWriter", "Sink", "open_sink"]
