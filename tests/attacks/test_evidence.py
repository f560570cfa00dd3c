"""Evidence that is genuine in form and wrong in one thing, from a listener that does everything else right.

Staged with the simulated SEV-SNP machine and the software TPM of ``attest.testkit``, and where swtpm is installed with
a TPM 2.0 implementation behind its real tools.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator

import pytest

from attest import appraise as appraise_module
from attest import verifier as verifier_module
from attest.attester import Collector
from attest.evidence import TPM_QUOTE, Part
from attest.schemes.vtpm import appraise as vtpm_rules
from attest.schemes.vtpm.abi import decode_quote_part, parse_quote
from attest.schemes.vtpm.collect import TpmCollector
from attest.schemes.vtpm.verify import VerifiedQuote, verify_quote
from attest.testkit.snp import SimulatedSnpCollector, SnpPlatform
from attest.testkit.tpm import SoftwareTpm
from tests.attacks.attacker import LEAKED, LyingKeeper, Outcome, fake_agent, victim_proxy
from tests.support.require import require
from tests.support.tpm import software_tpm
from tests.tls.mesh import Mesh

GOOD = Outcome("ok", LEAKED)


async def served_by(mesh: Mesh, passport_by: Collector, phase2_by: Collector | None = None) -> Outcome:
    """An agent whose leaf carries evidence of one collector and whose connections carry that of another."""
    first = mesh.agent_keeper(passport_by)
    await first.start()
    second = mesh.agent_keeper(phase2_by or passport_by)
    try:
        async with fake_agent(LyingKeeper(first.leaf, mesh.roots, second.evidence)) as fake:
            return await victim_proxy(mesh, fake.port, mesh.issue("proxy", "p1"), fake)
    finally:
        await first.close()
        await second.close()


# --- wrong measurement ---


def _snp_policy(mesh: Mesh, platform: SnpPlatform) -> Mesh:
    mesh.policy = f"""
id = "snp"
[sev-snp]
min_tcb = {{ bootloader = 0, tee = 0, snp = 0, microcode = 0 }}
[reference_values.sev-snp]
measurements = ["{platform.measurement.hex()}"]
"""
    return mesh


class OtherGuest(SimulatedSnpCollector):
    """The same chip runs another guest."""

    def __init__(self, seed: bytes, measurement: bytes) -> None:
        super().__init__(seed)
        self.platform.measurement = measurement


SEED = b"machine one"


async def test_the_expected_guest_is_accepted(mesh: Mesh) -> None:
    assert await served_by(_snp_policy(mesh, SnpPlatform(SEED)), SimulatedSnpCollector(SEED)) == GOOD


@pytest.mark.parametrize("measurement", [b"\x01" * 48, bytes(48)], ids=["another", "zero"])
async def test_wrong_measurement(mesh: Mesh, measurement: bytes) -> None:
    refused = await served_by(_snp_policy(mesh, SnpPlatform(SEED)), OtherGuest(SEED, measurement))
    assert refused == Outcome("measurement", 0)


@pytest.mark.parametrize("measurement", [b"\x01" * 48, bytes(48)], ids=["another", "zero"])
async def test_wrong_measurement_without_its_rule(
    mesh: Mesh, measurement: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appraise_module.snp, "appraise_report", lambda *_: ())
    assert await served_by(_snp_policy(mesh, SnpPlatform(SEED)), OtherGuest(SEED, measurement)) == GOOD


# --- wrong AK ---


async def test_wrong_ak(mesh: Mesh) -> None:
    assert await served_by(mesh, SoftwareTpm(b"another")) == Outcome("ak_not_pinned", 0)


async def test_wrong_ak_without_its_rule(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vtpm_rules, "require_if_listed", lambda *_: ())
    assert await served_by(mesh, SoftwareTpm(b"another")) == GOOD


# --- replayed quote ---


class ReplayingTpm:
    """Gives the quote that it was first asked for, whatever it is asked for next; all else is made anew."""

    scheme = "vtpm"

    def __init__(self, tpm: Collector) -> None:
        self._tpm = tpm
        self._first: dict[int, Part] = {}

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        self._first = self._first or self._tpm.parts(data_hash)
        return self._first


def _any_nonce(body: bytes, _hashed: bytes, **rules: bool) -> VerifiedQuote:
    return verify_quote(body, parse_quote(decode_quote_part(body).attest).extra_data, **rules)


async def test_replayed_quote(mesh: Mesh) -> None:
    """The claims are this channel's; the quote under them is the passport's."""
    tpm = ReplayingTpm(mesh.tpm)
    assert await served_by(mesh, tpm, tpm) == Outcome("nonce_mismatch", 0)


async def test_replayed_quote_when_its_nonce_is_not_compared(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier_module, "verify_quote", _any_nonce)
    tpm = ReplayingTpm(mesh.tpm)
    assert await served_by(mesh, tpm, tpm) == GOOD


# --- the same with a real TPM implementation ---


@pytest.fixture
def real_tpm() -> Iterator[TpmCollector]:
    """A software TPM of its own: one test extends a PCR."""
    require("swtpm", "tpm2_quote")
    with software_tpm() as tcti, TpmCollector(tcti, (0, 1)) as tpm:
        yield tpm


def _pin(mesh: Mesh, tpm: TpmCollector) -> Mesh:
    pcrs = quoted_values(tpm)
    mesh.policy = mesh.default_policy(ak=tpm.ak_name, pcrs=pcrs)
    return mesh


def quoted_values(tpm: TpmCollector) -> dict[int, str]:
    part = decode_quote_part(tpm.parts(bytes(32))[TPM_QUOTE].body)
    (values,) = part.pcrs.values()
    return {index: value.hex() for index, value in values.items()}


async def test_real_tpm_is_accepted(mesh: Mesh, real_tpm: TpmCollector) -> None:
    assert await served_by(_pin(mesh, real_tpm), real_tpm) == GOOD


async def test_real_tpm_replayed(mesh: Mesh, real_tpm: TpmCollector) -> None:
    tpm = ReplayingTpm(real_tpm)
    assert await served_by(_pin(mesh, real_tpm), tpm, tpm) == Outcome("nonce_mismatch", 0)


async def test_real_tpm_replayed_when_its_nonce_is_not_compared(
    mesh: Mesh, real_tpm: TpmCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier_module, "verify_quote", _any_nonce)
    tpm = ReplayingTpm(real_tpm)
    assert await served_by(_pin(mesh, real_tpm), tpm, tpm) == GOOD


async def test_real_tpm_that_the_policy_does_not_pin(mesh: Mesh, real_tpm: TpmCollector) -> None:
    assert await served_by(mesh, real_tpm) == Outcome("ak_not_pinned", 0)


async def test_real_tpm_with_another_boot(mesh: Mesh, real_tpm: TpmCollector) -> None:
    """A PCR is extended after the policy was made: another kernel, as far as anyone can tell."""
    _pin(mesh, real_tpm)
    await asyncio.to_thread(_extend, real_tpm)
    assert await served_by(mesh, real_tpm) == Outcome("pcr", 0)


def _extend(tpm: TpmCollector) -> None:
    digest = "11" * 32
    subprocess.run(["tpm2_pcrextend", f"1:sha256={digest}", "-T", tpm.tools.tcti], check=True, capture_output=True)
