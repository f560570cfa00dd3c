"""One worker of a node: ``python -m cube_mesh.worker <supervisor's pid> <plan> <link> <index> <keeper>``.

The same node as in one process, with the listening socket inherited, no local listener, and the supervisor in the place
of signals: a signal that the service manager or a terminal sends to every process of the node is never the second one.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

import uvloop

from cube_mesh import plan as plans
from cube_mesh import process
from cube_mesh.errors import ConfigError
from cube_mesh.node import EX_CONFIG, Node, serve
from cube_mesh.parts import Place
from cube_mesh.telemetry import slab
from cube_mesh.worker_link import Report, WorkerEnd

_PATIENCE_S = 2.0  # for the worker before this one, should it still be dying


class Orders:
    """What the supervisor says, as the events that a node stops by. SIGTERM to a worker alone drains that worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, node: Node) -> None:
        self.asked = asyncio.Event()
        self.now = asyncio.Event()
        self._actions = {b"D": self.asked.set, b"N": self._stop_now, b"H": node.reload}
        loop.add_signal_handler(signal.SIGTERM, self.asked.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)

    def __call__(self, command: bytes) -> None:
        self._actions[command]()

    def _stop_now(self) -> None:
        self.asked.set()
        self.now.set()


async def _serve(plan: plans.Plan, link: socket.socket, index: int, keeper_fd: int) -> int:
    loop = asyncio.get_running_loop()
    listener = socket.socket(fileno=plan.tenants_fd)
    settings = plans.share(plan.settings, plan.workers)
    numbers = slab.attach(plan.slab_fd, index, _PATIENCE_S)
    keeper = socket.socket(fileno=keeper_fd) if keeper_fd >= 0 else None
    place = Place(
        worker=index,
        listener=listener,
        instance=plan.instance,
        slab=numbers,
        spans_fd=plan.spans_fd,
        keeper=keeper,
        turns_fd=plan.turns_fd,
    )
    node = Node(plan.role, settings, place)
    orders = Orders(loop, node)
    end = WorkerEnd(lambda: Report(node.checks()), orders)
    await loop.create_unix_connection(lambda: end, sock=link)
    code = await serve(node, orders, end.send)
    await end.close()
    return code


def main() -> int:
    parent, plan_fd, link_fd, index, keeper_fd = map(int, sys.argv[1:])
    process.die_with(parent)
    process.harden()
    plan = plans.read(plan_fd)
    link = socket.socket(fileno=link_fd)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(plan, link, index, keeper_fd))
    except ConfigError as error:
        print(f"cube-mesh: worker {index}: {error}", file=sys.stderr)
        return EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
