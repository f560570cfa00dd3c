"""The whole path for a module, and a backend that is as new for every test.

Fixtures and tests here share one event loop per module, because the nodes keep connections to the backend.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cube_mesh.demo.backend import Script
from tests.support.mesh import Mesh
from tests.support.way import Way, whole_way


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def way(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Way]:
    async with whole_way(mesh, tmp_path_factory.mktemp("way")) as running:
        yield running


@pytest.fixture(autouse=True)
def _fresh_script(request: pytest.FixtureRequest) -> None:
    """Every test finds the backend as it comes, with nothing in its memory."""
    if "way" in request.fixturenames:
        way: Way = request.getfixturevalue("way")
        way.backend.script = Script()
        way.backend.requests.clear()
