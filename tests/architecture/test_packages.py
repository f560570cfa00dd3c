"""What ships: every package of the tree, and the data beside it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from cube_mesh import __version__
from cube_mesh.data import policies

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_package_list_is_the_tree() -> None:
    found = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for package in ("attest", "cube_mesh")
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"cube_mesh.policies"}


def test_every_folder_with_code_is_a_package() -> None:
    for package in ("attest", "cube_mesh"):
        for file in (ROOT / package).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), file


def test_the_policies_of_the_checkout_are_found_and_shipped() -> None:
    assert policies() == ROOT / "policies"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["cube_mesh.policies"]
    shipped = {file for pattern in patterns for file in policies().glob(pattern)}
    assert {file for file in policies().rglob("*") if file.is_file()} == shipped
    assert policies() / "authz" / "endpoints.toml" in shipped


def test_every_data_file_of_the_packages_is_shipped() -> None:
    for package in ("attest", "cube_mesh"):
        patterns = PROJECT["tool"]["setuptools"]["package-data"]
        shipped = {
            file
            for name, globs in patterns.items()
            if name.partition(".")[0] == package and name != "cube_mesh.policies"
            for pattern in globs
            for file in (ROOT / name.replace(".", "/")).glob(pattern)
        }
        built = {".py", ".pyx", ".pxi", ".so", ".c", ".pyc"}
        data = {file for file in (ROOT / package).rglob("*") if file.is_file() and file.suffix not in built}
        assert data == shipped


def test_each_runtime_dependency_has_its_line_of_reason() -> None:
    reasons = (ROOT / "docs" / "adr" / "0002-dependencies.md").read_text()
    named = set(re.findall(r"^\| `([^`]+)` \|", reasons, re.M))
    required = {re.split(r"[<>=\[]", dependency)[0] for dependency in PROJECT["project"]["dependencies"]}
    assert named == required | {"cython"}


def test_the_version_is_in_the_changelog() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
