"""Hardware evidence beside a vTPM's quote, as one attester: the two bind each other, and nothing else fits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from attest.attester import Closing, Collector, HardwareCollector, NoEvidence, WithTpm, evidence_for
from attest.binding import Expected, decode_claims
from attest.errors import AttestError, CollectionFailed
from attest.evidence import (
    ENDORSEMENTS,
    HARDWARE,
    TPM_QUOTE,
    Part,
    decode_certificates,
    decode_evidence,
    encode_evidence,
)
from attest.policy import first_report_policy
from attest.schemes.sev_snp.collect import SnpCollector
from attest.schemes.tdx.collect import TdxCollector
from attest.testkit.intel import collateral
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tokens import certificate, fixed_key
from attest.testkit.tpm import SoftwareTpm
from attest.testkit.tsm import TsmDirectory, snp_responder, tdx_responder
from attest.verifier import Verifier

from .conftest import CLAIMS, NOW

AK_CERTIFICATE = certificate("AK", fixed_key("vtpm-ak")).public_bytes(Encoding.DER)


class Machine:
    """A guest with hardware of ``scheme`` behind a look-alike of configfs-tsm."""

    def __init__(self, scheme: str, directory: Path) -> None:
        self.scheme = scheme
        respond = snp_responder(SnpPlatform(b"m")) if scheme == "sev-snp" else tdx_responder(TdxPlatform(b"m"))
        self.tsm = TsmDirectory(directory, {"sev-snp": "sev_guest", "tdx": "tdx_guest"}[scheme], respond)
        make = SnpCollector if scheme == "sev-snp" else TdxCollector
        self.hardware: HardwareCollector = make(directory=directory)
        self.endorsements = (collateral(),) if scheme == "tdx" else ()

    def verifier(self) -> Verifier:
        return Verifier(first_report_policy(self.scheme, "vtpm"), allow_simulated=True)  # type: ignore[arg-type]


@pytest.fixture(params=["sev-snp", "tdx"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    made = Machine(request.param, tmp_path / "report")
    with ExitStack() as stack:
        stack.enter_context(made.tsm)
        request.addfinalizer(stack.pop_all().close)
    return made


def test_both_parts_are_accepted_together(machine: Machine, expected: Expected) -> None:
    collector = WithTpm(machine.hardware, SoftwareTpm(certificates=(AK_CERTIFICATE,)))
    raw = evidence_for(collector, CLAIMS)
    result = machine.verifier().appraise(raw, expected, now=NOW, endorsements=machine.endorsements)
    assert collector.scheme == f"{machine.scheme}+vtpm" and result.platform == f"simulated-{machine.scheme}+vtpm"
    assert "ak.name" in result.claims and ("measurement" in result.claims or "mr_td" in result.claims)
    sent = decode_certificates(decode_evidence(raw).parts[ENDORSEMENTS].body)
    assert sent[-1] == AK_CERTIFICATE and len(sent) == (3 if machine.scheme == "sev-snp" else 1)


def test_a_quote_of_another_machine_does_not_fit(machine: Machine, expected: Expected) -> None:
    ours = decode_evidence(evidence_for(WithTpm(machine.hardware, SoftwareTpm()), CLAIMS))
    theirs = decode_evidence(evidence_for(SoftwareTpm(b"another machine"), CLAIMS))
    mixed = replace(ours, parts={**ours.parts, TPM_QUOTE: theirs.parts[TPM_QUOTE]})
    with pytest.raises(AttestError) as caught:
        machine.verifier().appraise(encode_evidence(mixed), expected, now=NOW, endorsements=machine.endorsements)
    assert caught.value.code == "report_data"


def test_a_report_that_does_not_name_the_key_does_not_fit(machine: Machine, expected: Expected) -> None:
    alone = decode_evidence(evidence_for(machine.hardware, CLAIMS))
    quoted = decode_evidence(evidence_for(SoftwareTpm(), CLAIMS))
    mixed = replace(alone, parts={**alone.parts, TPM_QUOTE: quoted.parts[TPM_QUOTE]})
    with pytest.raises(AttestError) as caught:
        machine.verifier().appraise(encode_evidence(mixed), expected, now=NOW, endorsements=machine.endorsements)
    assert caught.value.code == "report_data"


def test_claims_alone() -> None:
    alone = decode_evidence(evidence_for(NoEvidence(), CLAIMS))
    assert decode_claims(alone.claims) == CLAIMS and alone.parts == {}


def test_what_is_held_is_let_go() -> None:
    class Held(SoftwareTpm):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    held = Held()
    both = WithTpm(SnpCollector(), held)
    both.close()
    assert held.closed == 1 and isinstance(both, Closing) and not isinstance(NoEvidence(), Closing)


def test_evidence_that_no_channel_holds(evidence: Callable[[Collector], bytes]) -> None:
    class Large:
        scheme = "large"

        def parts(self, data_hash: bytes) -> dict[int, Part]:
            return {HARDWARE: Part("application/x", bytes(70_000))}

    with pytest.raises(CollectionFailed, match="is above") as caught:
        evidence(Large())
    assert caught.value.code == "evidence_too_large"
