"""SipHash-2-4-128 as its authors publish it, and as OpenSSL's own command has it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cube_mesh._fastpath import siphash

KEY = bytes(range(16))


@pytest.mark.parametrize(
    ("size", "expected"), [(0, "a3817f04ba25a8e66df67214c7550293"), (1, "da87c1d86b99af44347659119b22fc45")]
)
def test_the_published_vectors(size: int, expected: str) -> None:
    assert siphash(KEY, bytes(range(size))).hex() == expected


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("size", [7, 8, 9, 63, 64, 255, 256, 1000])
def test_as_openssl(tmp_path: Path, size: int) -> None:
    data = bytes(at * 7 % 256 for at in range(size))
    (tmp_path / "data").write_bytes(data)
    argv = [shutil.which("openssl") or "openssl", "mac", "-macopt", f"hexkey:{KEY.hex()}", "-in", "data", "SIPHASH"]
    said = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert siphash(KEY, data).hex() == said.strip().lower()


def test_a_key_of_another_length_is_none() -> None:
    with pytest.raises(ValueError, match="16"):
        siphash(KEY[:-1], b"")
