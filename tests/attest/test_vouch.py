"""Whether a record is its vendor's: a record of every kind, and each with a signer of somebody else."""

from __future__ import annotations

import json

import pytest
from cryptography import x509

from attest.collateral import parse_collateral
from attest.errors import AttestError, VerificationFailed
from attest.items import Record, parse_item
from attest.schemes.sev_snp.verify import amd_roots
from attest.schemes.tdx.verify import intel_roots, verify_collateral
from attest.testkit import intel, pki
from attest.testkit.intel import simulated_intel_roots
from attest.testkit.pki import simulated_roots
from attest.vouch import Trust, tdx_items, tdx_set, vendor_roots, vouch

from .records import BODIES, FMSPC, MILAN, NOW, PCK_ISSUER, SET, SIGNER, TCB, VCEK, der, document, record, thim

TRUST = Trust(simulated_roots(), simulated_intel_roots())
STRANGER = intel.key("somebody else")
FOREIGN = MILAN.certificate(signer=pki.ca_key("asvk"))
# Of two roots for one product, either may have signed.
TWO = Trust({"Milan": (*amd_roots()["Milan"], *simulated_roots()["Milan"])}, (*intel_roots(), *simulated_intel_roots()))


@pytest.mark.parametrize("trust", [TRUST, TWO], ids=["simulation", "vendors and simulation"])
@pytest.mark.parametrize("name", [name for name in BODIES if "Turin" not in name])
def test_the_vendors_own(name: str, trust: Trust) -> None:
    vouch(record(name), NOW, trust)


def _chain(signer: x509.Certificate) -> str:
    return intel.pem(signer, intel.root_certificate())


FORGED = document("tcbInfo", SET["tcb_info"], SET["qe_identity_signature"])
CASES: dict[str, tuple[Record, str]] = {
    "VCEK by somebody else": (record(VCEK, der(FOREIGN)), "untrusted_chain"),
    "THIM by somebody else": (record("azure-thim:local", thim(FOREIGN)), "untrusted_chain"),
    "AMD's list by another key": (
        record("amd-crl:Milan", der(pki.crl("Milan", signer=pki.ca_key("ask")))), "crl_signature",
    ),
    "Intel's root list by another key": (
        record("intel-root-crl:root", der(intel.crl("root", signer=STRANGER))), "crl_signature",
    ),
    "PCK list by another key": (
        record("intel-pck-crl:platform", der(intel.crl("platform", signer=STRANGER))), "crl_signature",
    ),
    "PCK list whose issuer is the signer of TCB info": (
        record("intel-pck-crl:platform", issuer_chain=SIGNER), "collateral_signer",
    ),
    "TCB info signed by a PCK CA": (record(TCB, issuer_chain=PCK_ISSUER), "collateral_signer"),
    "TCB info by somebody else with the signer's name": (
        record(TCB, issuer_chain=_chain(intel.certificate("signer", signer=STRANGER))), "untrusted_chain",
    ),
    "TCB info under the signature of something else": (record(TCB, FORGED), "collateral_signature"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_of_somebody_else(case: str) -> None:
    kept, code = CASES[case]
    with pytest.raises(AttestError) as caught:
        vouch(kept, NOW, TRUST)
    assert caught.value.code == code


def test_by_the_roots_of_its_own_product() -> None:
    crossed = Trust({"Milan": simulated_roots()["Genoa"]}, ())
    for name in (VCEK, "amd-chain:Milan/vcek", "amd-crl:Milan"):
        with pytest.raises(VerificationFailed):
            vouch(record(name), NOW, crossed)


@pytest.mark.parametrize("name", [name for name in BODIES if not name.startswith("jwks")])
def test_under_the_vendors_roots_the_simulation_is_nobodys(name: str) -> None:
    with pytest.raises(VerificationFailed):
        vouch(record(name), NOW, vendor_roots())


@pytest.mark.parametrize("name", [name for name in BODIES if not name.startswith("jwks")])
def test_without_roots_everything_is_nobodys(name: str) -> None:
    with pytest.raises(VerificationFailed):
        vouch(record(name), NOW, Trust({}, ()))


@pytest.mark.parametrize("name", BODIES)
def test_out_of_its_time(name: str) -> None:
    times = [("collateral_expired", 3e9)] + ([] if name.startswith("jwks") else [("collateral_early", 1e9)])
    for code, now in times:
        with pytest.raises(AttestError) as caught:
            vouch(record(name), now, TRUST)
        assert caught.value.code == code


def test_a_set_of_records_is_what_a_verifier_takes() -> None:
    items = tdx_items(FMSPC.upper(), "platform")
    names = (TCB, "intel-qe-identity:tdx", "intel-pck-crl:platform", "intel-root-crl:root")
    assert items == tuple(map(parse_item, names))
    made = tdx_set(*(record(str(item)) for item in items))
    assert json.loads(made)["tcb_info"] == SET["tcb_info"]
    assert verify_collateral(parse_collateral(made), NOW, simulated_intel_roots()).tcb_info.fmspc.lower() == FMSPC
