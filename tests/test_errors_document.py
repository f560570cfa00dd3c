"""docs/errors.md and the code name the same errors."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MADE = re.compile(r'(?:PeerError|PolicyError|DependencyError|InternalError|FramingError)\(\s*f?"([a-z0-9_]+)')


def test_every_code_is_documented_and_every_documented_code_exists() -> None:
    files = [
        *(ROOT / "cube_mesh").rglob("*.py"),
        *(ROOT / "cube_mesh").rglob("*.px[id]"),
        *(ROOT / "cube_mesh").rglob("*.pyx"),
    ]
    source = "\n".join(file.read_text("utf-8") for file in files)
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    listed = re.findall(r"^\| `([a-z0-9_]+)\*?` \|", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(MADE.findall(source)) - set(listed) == set()
    assert [code for code in listed if f'"{code}' not in source] == []
