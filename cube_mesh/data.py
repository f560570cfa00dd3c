"""Where the data that ships with the node is: ``policies/``, beside the package in a checkout, else inside it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def policies() -> Path:
    """The folder of built-in policies (``authz/``, ``evidence/``, ...); FileNotFoundError when it was not shipped."""
    for candidate in (_PACKAGE / "policies", _PACKAGE.parent / "policies"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError("policies/ is neither inside nor beside the package cube_mesh")
