"""The helper that exports spans: ``python -m cube_mesh.exporter <supervisor's pid> <plan>``, made by the supervisor.

The only process of a node of several that has OpenTelemetry's SDK in its memory. It holds no key and takes spans from
workers until the supervisor says that no more will come; signals that are meant for the node do not end it before.
"""

from __future__ import annotations

import signal
import socket
import sys

from cube_mesh import plan as plans
from cube_mesh import process
from cube_mesh.telemetry.otlp import Export, relay


def main() -> int:
    parent, plan_fd = map(int, sys.argv[1:])
    process.die_with(parent)
    process.harden()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    plan = plans.read(plan_fd)
    relay(socket.socket(fileno=plan.export_fd), Export(plan.settings.tracing.otlp_endpoint))
    return 0


if __name__ == "__main__":
    sys.exit(main())
