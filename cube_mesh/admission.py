"""How much the node takes on: client connections in all and of one address, and requests at the same time. Counters and
limits, no I/O; connections and a stage of the chain ask, the metrics read.
"""

from __future__ import annotations

from cube_mesh._fastpath import AdmissionCounts
from cube_mesh.settings import Limits


class Admission(AdmissionCounts):
    """``connections`` and ``running`` are what is open now; ``refused`` counts, by limit, what was turned away.

    ``running``: exchanges between their head and the release of their answer; kept by the connections.
    """

    def __init__(self, limits: Limits) -> None:
        self.max_connections = limits.max_connections
        self._max_per_address = limits.max_connections_per_address
        self.max_running = limits.max_in_flight
        self._by_address: dict[str, int] = {}
        self.connections = 0
        self.refused = {"connections": 0, "address": 0, "in_flight": 0, "handshake": 0}

    def enter(self, address: str, *, exempt: bool = False) -> bool:
        """Whether one more connection of ``address`` is let in; each yes is owed one ``leave``.

        ``exempt``: it speaks for others, so that only the total limits it.
        """
        count = self._by_address.get(address, 0)
        if self.connections >= self.max_connections:
            self.refused["connections"] += 1
            return False
        if count >= self._max_per_address and not exempt:
            self.refused["address"] += 1
            return False
        self.connections += 1
        self._by_address[address] = count + 1
        return True

    def leave(self, address: str) -> None:
        """A connection that was let in has ended."""
        self.connections -= 1
        count = self._by_address[address] - 1
        if count:
            self._by_address[address] = count
        else:
            del self._by_address[address]

    def overloaded(self) -> bool:
        """Whether the exchange that was counted last is one too many."""
        if self.running <= self.max_running:
            return False
        self.refused["in_flight"] += 1
        return True
