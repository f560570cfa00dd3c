"""The edge with sockets on both of its sides: a listening Service, and a backend of its own."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Self

from cube_mesh.connection import Downstream
from cube_mesh.connectors import PlainConnector
from cube_mesh.deadlines import Sweeper
from cube_mesh.hops import Hop
from cube_mesh.service import Service
from cube_mesh.settings import Pool as PoolSettings
from cube_mesh.settings import Timeouts
from cube_mesh.upstream import Pool
from tests.connection.wire import OTHER, Steps
from tests.smuggling.cases import Case, Message
from tests.smuggling.edge import ANSWER, LIMITS, STATUS, Backend, Outcome

_QUIET_S = 0.03  # a connection that has answered everything and says nothing for so long stays open


class Edge:
    """Use as an async context manager; ``outcome`` runs one connection."""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._messages: list[Message] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._backend = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._backend.sockets[0].getsockname()[1]
        sweeper = Sweeper()
        self._pool = Pool(PlainConnector("127.0.0.1", port), PoolSettings(), Timeouts(), LIMITS, sweeper)
        steps = Steps(Hop("u", "up:1", self._pool, mesh=False), OTHER)
        service = Service(steps, LIMITS, Timeouts(), sweeper, {}, lambda code: None)
        self._server = await loop.create_server(partial(Downstream, service), "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._pool.close()
        self._backend.close()
        await asyncio.gather(*self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        backend = Backend()
        try:
            while data := await reader.read(1 << 16):
                message = backend.receive(data)
                if message is not None:
                    self._messages.append(message)
                    writer.write(ANSWER)
        except ConnectionError:
            pass  # the edge gave the request up
        finally:
            writer.close()

    async def outcome(self, case: Case) -> Outcome:
        """Send, read as many final responses as are required, then see whether the connection closes."""
        self._messages = []
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(case.data)
        received, closed = b"", False
        while not closed:
            through = len(_statuses(received)) >= len(case.statuses) and not case.closes
            try:
                piece = await asyncio.wait_for(reader.read(1 << 16), _QUIET_S if through else 5.0)
            except TimeoutError:
                break
            received, closed = received + piece, not piece
        writer.close()
        return Outcome(_statuses(received), closed, tuple(self._messages), [])


def _statuses(received: bytes) -> tuple[int, ...]:
    return tuple(int(code) for code in STATUS.findall(received) if code != b"100")
