"""The example package as an installed one, for this process and one test."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def install_example(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """What an installer leaves: the module on the path, and its entry point beside it in ``directory``."""
    about = directory / "site" / "attest_example_scheme-1.0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: attest-example-scheme\nVersion: 1.0\n")
    points = "[attest.schemes]\nexample = attest_example_scheme:ExampleScheme\n"
    (about / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.syspath_prepend(str(about.parent))
