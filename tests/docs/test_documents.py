"""The documentation against the code: commands run, links lead somewhere, settings are all there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cube_mesh.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")])
README = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(README) if kind == language]


def test_the_readme_by_hand_works_as_written(tmp_path: Path) -> None:
    """Every `cube-mesh` line of its shell blocks, in order, on the files that it shows."""
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "cube-mesh"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cube_mesh "$@"\n')
    shim.chmod(0o755)
    files = {text.splitlines()[0].removeprefix("# "): text for text in blocks("toml")}
    assert set(files) == {"agent.toml", "proxy.toml"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    shutil.copy(ROOT / "policies/evidence/agent-vtpm.example.toml", tmp_path / "policy.toml")
    script = "".join(text for text in blocks("sh") if "cube-mesh" in text)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CUBE_MESH_")}
    done = subprocess.run(
        ["sh", "-eu", "-c", script], cwd=tmp_path, env=clean | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ok: an agent can start" in done.stdout and "ok: a proxy can start" in done.stdout


def test_make_verbs_that_are_named_exist() -> None:
    verbs = set(re.findall(r"^([a-z][a-z-]*):.*## ", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        named = set(re.findall(r"(?:`|^|=\w+ )make ([a-z-]+)", page.read_text("utf-8"), re.M))
        assert named <= verbs, page


def test_commands_that_are_named_exist() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups if group.name}
    for page in PAGES:
        named = set(re.findall(r"(?:`|^)cube-mesh ([a-z-]+)", page.read_text("utf-8"), re.M))
        assert named <= known, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
    for path in re.findall(r"`((?:attest|cube_mesh|tests|policies|deploy|bench|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def settings_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_page_is_made_from_the_code() -> None:
    made = settings_page().page()
    assert (ROOT / "docs/settings.md").read_text("utf-8") == made, "run: python docs/make_settings.py"
    undocumented = re.findall(r"^\| `([^`]+)` \|.*\|  \|$", made, re.M)
    assert undocumented == []


def test_settings_that_are_named_exist() -> None:
    """`section.key` in backticks, anywhere in the documentation, is a setting (or the name of a file)."""
    from cube_mesh.config import keys

    known = {key.replace(".*", "") for key in keys()}
    sections = {key.partition(".")[0] for key in known if "." in key}
    for page in PAGES:
        for name in re.findall(r"`([a-z_]+\.[a-z_.]+)`", page.read_text("utf-8")):
            if name.partition(".")[0] in sections and not name.endswith((".py", ".toml", ".jsonl")):
                assert name in known, f"{page.name}: {name}"
