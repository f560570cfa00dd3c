"""Reason codes are stable names: every one that the code gives is documented, and every documented one is given."""

import re
from pathlib import Path

import cube_mesh.keeper
import cube_mesh.remote_keeper
from cube_mesh.tls import reasons

SOURCES = [*Path(reasons.__file__).parent.glob("*.py"), Path(cube_mesh.keeper.__file__)]
SOURCES.append(Path(cube_mesh.remote_keeper.__file__))
_GIVEN = re.compile(r'(?:Refusal|FrameError|AuthenticatorError|failed|_fail|_refuse)\(\s*"([a-z0-9_]+)"')


def test_reasons_given_and_documented_are_the_same() -> None:
    given = {code for source in SOURCES for code in _GIVEN.findall(source.read_text())}
    assert given == set(reasons.REASONS)
