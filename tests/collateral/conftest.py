"""Vectors for the tests of collateral; see CUBE_MESH_VECTORS."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def vectors() -> Path:
    default = Path(__file__).resolve().parents[3] / "shared" / "vectors"
    path = Path(os.environ.get("CUBE_MESH_VECTORS", default))
    if not (path / "cases.json").exists():
        if os.environ.get("CUBE_MESH_REQUIRE") == "all":
            pytest.fail("no attestation vectors, and CUBE_MESH_REQUIRE=all")
        pytest.skip("no attestation vectors (set CUBE_MESH_VECTORS)")
    return path
