"""What the connections of one listener share, and how they are drained and dropped."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Protocol

from cube_mesh._fastpath import ServiceCore
from cube_mesh.admission import Admission
from cube_mesh.deadlines import Sweeper
from cube_mesh.forwarded import Trust
from cube_mesh.message import Response
from cube_mesh.ports import Chain, Transport
from cube_mesh.settings import Limits, Timeouts

_LAST_REQUEST_S = 1.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no seconds


def drop(transport: Transport) -> None:
    """End a connection now. What its client does not take is reset, or the kernel would keep it for minutes."""
    if transport.get_write_buffer_size():
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


class Served(Protocol):
    """A connection, as the service sees it."""

    def drain(self) -> None: ...
    def cut(self) -> None: ...


class Service(ServiceCore):
    """``local`` answers the node's own paths (health) without the chain; ``on_protocol_error`` takes the code of bytes
    that were no request; ``trust``: whose word about the client's address is taken, None = nobody's.
    """

    admission: Admission

    def __init__(
        self,
        chain: Chain,
        limits: Limits,
        timeouts: Timeouts,
        sweeper: Sweeper,
        local: dict[str, Callable[[bytes], Response]],
        on_protocol_error: Callable[[str], None],
        *,
        admission: Admission | None = None,
        trust: Trust | None = None,
        pipelining: bool = True,
    ) -> None:
        self.chain = chain
        self.limits = limits
        self.timeouts = timeouts
        self.sweeper = sweeper
        self.local = local
        self.on_protocol_error = on_protocol_error
        self.admission = admission if admission is not None else Admission(limits)
        self.trust = trust
        self.pipelining = pipelining
        self.connections: set[Served] = set()
        self.draining = False
        self.max_head, self.max_fields = limits.max_head_bytes, limits.max_fields
        self.head_s, self.total_s, self.idle_s = timeouts.head_s, timeouts.total_s, timeouts.idle_s

    @property
    def in_flight(self) -> int:
        return self.admission.running

    def drain(self) -> None:
        """Answers that begin from now on say that their connection closes. One that has not said so has a moment for a
        last request.
        """
        self.draining = True
        self.idle_s = min(self.idle_s, _LAST_REQUEST_S)
        for connection in list(self.connections):
            connection.drain()

    def cut(self) -> None:
        """The drain deadline has passed: what still runs fails, with an error answer or a terminal frame."""
        for connection in list(self.connections):
            connection.cut()
