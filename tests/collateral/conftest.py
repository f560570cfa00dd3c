"""Vectors for the tests of collateral; see CUBE_MESH_VECTORS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.require import vectors


@pytest.fixture(scope="session", name="vectors")
def _vectors() -> Path:
    return vectors()
