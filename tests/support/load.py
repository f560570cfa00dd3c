"""Clients that keep a proxy busy and remember which responses they received whole."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.client import Client, Reply, bearer, chat
from tests.support.mesh import Tenant, read_events


@dataclass
class Ledger:
    """Request ids by what the client got. ``whole``: a complete 200. ``odd``: a complete answer with another status.
    ``broken``: a part of an answer. ``unanswered``: not one byte, as when a kept connection closed under the request.
    """

    whole: list[str] = field(default_factory=list)
    odd: list[tuple[str, int]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    no_connection: int = 0

    def note(self, request_id: str, reply: Reply) -> None:
        if not reply.status:
            self.unanswered.append(request_id)
        elif not reply.whole:
            self.broken.append(request_id)
        elif reply.status == 200:
            self.whole.append(request_id)
        else:
            self.odd.append((request_id, reply.status))

    def wrongly_recorded(self, directory: Path) -> list[str]:
        """Ids of whole responses without exactly one event, and ids of any request with more than one."""
        events = Counter(event["request_id"] for event in read_events(directory))
        missing = [request_id for request_id in self.whole if events[request_id] != 1]
        return missing + [request_id for request_id, count in events.items() if count > 1]


async def keep_busy(port: int, tenant: Tenant, ledger: Ledger, stop: asyncio.Event, clients: int = 16) -> None:
    """Requests without pause, every other one a stream, until ``stop``; each client finishes what it has begun."""
    await asyncio.gather(*(_client(port, tenant, ledger, stop, number) for number in range(clients)))


async def _client(port: int, tenant: Tenant, ledger: Ledger, stop: asyncio.Event, number: int) -> None:
    client: Client | None = None
    path = f"/{tenant.domain}/v1/chat/completions"
    while not stop.is_set():
        if client is None or not client.reusable:
            try:
                client = await Client.connect(port)
            except OSError:
                ledger.no_connection += 1
                await asyncio.sleep(0.01)
                continue
        request_id = uuid.uuid4().hex
        number += 1
        body = chat("under load", stream=number % 2 == 0)
        reply = await client.request("POST", path, bearer(tenant.key, x_request_id=request_id), body)
        ledger.note(request_id, reply)
        if not client.reusable:
            await client.close()
            client = None
    if client is not None:
        await client.close()
