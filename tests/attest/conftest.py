"""Shared by the attest tests: real vectors, tools, and one channel with the claims that fit it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from attest.attester import Collector, evidence_for
from attest.binding import Claims, Expected, Phase, Role

NOW = 1_799_999_000.0  # 2027-01-15
CLAIMS = Claims(
    role=Role.SERVER, phase=Phase.POST_HANDSHAKE, node_id="spiffe://cube/agent/a1", not_after=1_800_000_000,
    boot_id=b"b" * 16, spki_hash=b"s" * 32, nonce=b"n" * 32, channel_binding=b"c" * 32, peer_spki_hash=b"p" * 32,
)  # fmt: skip


def _absent(what: str) -> None:
    if os.environ.get("CUBE_MESH_REQUIRE") == "all":
        pytest.fail(f"{what}, and CUBE_MESH_REQUIRE=all")
    pytest.skip(what)


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Directory of real evidence; see CUBE_MESH_VECTORS."""
    default = Path(__file__).resolve().parents[3] / "shared" / "vectors"
    path = Path(os.environ.get("CUBE_MESH_VECTORS", default))
    if not (path / "cases.json").exists():
        _absent("no attestation vectors (set CUBE_MESH_VECTORS)")
    return path


@pytest.fixture(scope="session")
def require_tools() -> Callable[..., None]:
    def check(*names: str) -> None:
        missing = [name for name in names if shutil.which(name) is None]
        if missing:
            _absent(f"not installed: {', '.join(missing)}")

    return check


@pytest.fixture
def expected() -> Expected:
    return Expected(**{name: getattr(CLAIMS, name) for name in Expected.__struct_fields__})


@pytest.fixture
def evidence() -> Callable[[Collector], bytes]:
    return lambda collector: evidence_for(collector, CLAIMS)
