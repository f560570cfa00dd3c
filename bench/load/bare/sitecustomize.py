"""Put on PYTHONPATH by ``bench.load --chain bare``: the shortest chain that forwards, in every process of the node.

cube-mesh itself has no switch for this, and will not have one. Python imports this file by its name at start.
"""

from __future__ import annotations

from cube_mesh import middleware

middleware.CHAIN = ("request_id", "tenant", "route", "forward")  # type: ignore[assignment]
