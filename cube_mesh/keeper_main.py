"""The keeper of a node: ``python -m cube_mesh.keeper_main <supervisor's pid> <plan> <end of the rendezvous>``."""

from __future__ import annotations

import socket
import sys

from cube_mesh import plan as plans
from cube_mesh import process
from cube_mesh.errors import ConfigError
from cube_mesh.keeper_process import run_keeper
from cube_mesh.node import EX_CONFIG
from cube_mesh.telemetry import log, slab

_PATIENCE_S = 2.0  # for the keeper before this one to be gone


def main() -> int:
    parent, plan_fd, keepers_fd = map(int, sys.argv[1:])
    process.die_with(parent)
    process.harden()
    plan = plans.read(plan_fd)
    settings = plan.settings
    unsafe = settings.unsafe_allow_simulated
    log.setup(settings.log.level, settings.log.format, settings.mesh.node_id, unsafe=unsafe, process="keeper")
    numbers = slab.attach(plan.slab_fd, plan.keeper_region, _PATIENCE_S) if plan.slab_fd >= 0 else None
    try:
        return run_keeper(settings, plan.role, socket.socket(fileno=keepers_fd), numbers)
    except ConfigError as error:
        print(f"cube-mesh: {error}", file=sys.stderr)
        return EX_CONFIG


if __name__ == "__main__":
    sys.exit(main())
