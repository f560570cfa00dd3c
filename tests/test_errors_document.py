"""docs/errors.md and the code name the same errors."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MADE = re.compile(r'(?:PeerError|PolicyError|DependencyError|InternalError|FramingError)\(\s*f?"([a-z0-9_]+)')

# Where evidence is made, or a package or signature is taken, in the library.
MAKERS = ("tsm.py", "attester.py", "transport.py", "collect.py", "client.py", "tools.py", "plugins.py", "cose.py")
READERS = {"oversize", "not_signed"}  # of cose.py, about a file's form


def test_every_code_is_documented_and_every_documented_code_exists() -> None:
    files = [
        *(ROOT / "cube_mesh").rglob("*.py"),
        *(ROOT / "cube_mesh").rglob("*.px[id]"),
        *(ROOT / "cube_mesh").rglob("*.pyx"),
    ]
    source = "\n".join(file.read_text("utf-8") for file in files)
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    first_columns = re.findall(r"^\| ((?:`[a-z0-9_]+\*?`(?:, )?)+) \|", text, re.MULTILINE)
    listed = [code for column in first_columns for code in re.findall(r"`([a-z0-9_]+)\*?`", column)]
    library = {file: file.read_text("utf-8") for file in (ROOT / "attest").rglob("*.py")}
    making = "\n".join(text for file, text in library.items() if file.name in MAKERS)
    assert len(listed) == len(set(listed))
    assert set(MADE.findall(source)) - set(listed) == set()
    assert set(re.findall(r'code="([a-z0-9_]+)"', making)) - set(listed) - READERS == set()
    assert [code for code in listed if f'"{code}' not in source + "".join(library.values())] == []
