"""Evidence in files, scheme by scheme: minted under the testkit's roots, with each thing to compare given or left out.

Tokens, policies and compositions are in test_offline.py, and the real files in tests/test_attest_cli.py.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from attest.attester import evidence_for
from attest.cases import platforms_of
from attest.evidence import (
    AZURE_HCL_TYPE,
    HARDWARE,
    LAUNCH_ENDORSEMENT,
    LAUNCH_ENDORSEMENT_TYPE,
    SNP_REPORT_TYPE,
    TDX_QUOTE_TYPE,
    TOKEN,
    TOKEN_TYPE,
    Part,
)
from attest.offline import Case, Verdict, judge
from attest.policy import parse_policy
from attest.schemes.azure.verify import AK_EKU
from attest.schemes.tdx.abi import parse_quote
from attest.schemes.vtpm.abi import BANK_NAMES, Alg, decode_quote_part
from attest.testkit import gcp
from attest.testkit.azure import hcl_report, runtime_claims
from attest.testkit.eventlog import GOOD_BOOT, agile_log, ccel
from attest.testkit.intel import collateral, simulated_intel_roots
from attest.testkit.pki import simulated_roots
from attest.testkit.snp import SimulatedSnpCollector, SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tokens import MAA_ISSUER, certificate, fixed_key, jwks, maa_claims, sign, space_claims, x5c
from attest.testkit.tpm import SoftwareTpm

from .conftest import CLAIMS, NOW
from .vtpm.test_negatives import _tpm

LOG, TD_LOG, COLLATERAL = agile_log(GOOD_BOOT), ccel(), collateral()
SNP, TD = SnpPlatform(b"cases"), TdxPlatform(b"cases", event_log=TD_LOG)
AK, CA = fixed_key("vtpm-ak"), fixed_key("service-other")
TPM = _tpm(LOG, key=AK)
ROOT = certificate("root", CA, ca=True)
EKU = [(x509.ExtendedKeyUsage([AK_EKU]), False)]
DATA, NONCE = bytes(range(64)), bytes(range(32))
NOT_FRESH = "nonce: whether the quote is fresh (--nonce)"


@pytest.fixture(autouse=True)
def _roots_of_the_testkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attest.schemes.sev_snp.verify.amd_roots", simulated_roots)
    monkeypatch.setattr("attest.schemes.tdx.verify.intel_roots", simulated_intel_roots)
    monkeypatch.setattr("attest.schemes.azure.verify.azure_roots", lambda: (ROOT,))
    monkeypatch.setattr("attest.schemes.gcp.certificate.vtpm_roots", lambda: (gcp.root(),))
    fingerprint = gcp.root().fingerprint(hashes.SHA256()).hex()
    monkeypatch.setattr("attest.schemes.gcp.endorsement.tcb_root_sha256", fingerprint)
    monkeypatch.setattr("attest.schemes.gcp.token.confidential_space_roots", lambda: (gcp.root(),))


def _policy(tables: str) -> Any:
    return parse_policy(f'id = "p"\n{tables}')


def _der(subject: x509.Certificate) -> bytes:
    return subject.public_bytes(Encoding.DER)


def _reasons(case: Case) -> list[str]:
    verdict = judge(case)
    assert verdict.verdict == "reject"
    return [mismatch.code for mismatch in verdict.mismatches] or [verdict.reason]


def _accepted(case: Case) -> Verdict:
    verdict = judge(case)
    assert (verdict.verdict, verdict.reason) == ("accept", "ok"), verdict
    return verdict


# -- hardware ----------------------------------------------------------------------------------------------------------


def _snp(data: bytes = DATA, **fields: Any) -> Case:
    whole: dict[str, Any] = {"evidence": SNP.report(data), "endorsements": SNP.endorsements} | fields
    return Case(scheme="sev-snp", now=NOW, **whole)


def _tdx(**fields: Any) -> Case:
    whole: dict[str, Any] = {"evidence": TD.quote(DATA), "endorsements": (COLLATERAL,)} | fields
    return Case(scheme="tdx", now=NOW, **whole)


NO_TABLE = _policy('[gcp]\naudiences = ["a"]\nunsafe_any_image = true\n')


@pytest.mark.parametrize("make", [_snp, _tdx])
def test_hardware_speaks_for_its_report_data(make: Any) -> None:
    verdict = _accepted(make(report_data=DATA))
    assert verdict.confidential and verdict.claims["report_data"] == DATA.hex() and verdict.expires is not None
    assert not [text for text in verdict.unchecked if text.startswith("report data")]
    assert [text for text in _accepted(make()).unchecked if text.startswith("report data")]
    assert _reasons(make(report_data=DATA[::-1])) == ["report_data"]
    assert _reasons(make(policy=NO_TABLE)) == ["part_unknown"]


def test_a_masked_chip_is_for_the_policy_to_allow() -> None:
    masked = SNP.report(DATA, chip_id=bytes(64))
    rules = "[sev-snp]\nunsafe_any_tcb = true\nunsafe_any_measurement = true\n"
    assert _reasons(_snp(evidence=masked, policy=_policy(rules))) == ["chip_id_masked"]
    allowed = _policy(rules + "unsafe_allow_masked_chip_id = true\n")
    assert _accepted(_snp(evidence=masked, policy=allowed)).claims["report_data"] == DATA.hex()


def test_collateral_is_one_set() -> None:
    for files in ((), (COLLATERAL, collateral())):
        assert _reasons(_tdx(endorsements=files)) == ["collateral_missing"]


def test_the_log_of_a_trust_domain() -> None:
    verdict = _accepted(_tdx(event_log=TD_LOG))
    assert verdict.claims.items() > _accepted(_tdx()).claims.items()
    assert _reasons(_tdx(event_log=TD_LOG, evidence=TdxPlatform(b"cases").quote(DATA))) == ["event_log_replay"]
    rules = _policy("[tdx]\nunsafe_any_mr_td = true\nunsafe_any_rtmrs = true\n")
    assert _accepted(_tdx(event_log=TD_LOG, policy=rules)).policy_id == "p"


MR_TD = parse_quote(TD.quote(DATA)).report.mr_td
ANY_LAUNCH = {
    _snp: "[sev-snp]\nunsafe_any_tcb = true\nunsafe_any_measurement = true\n",
    _tdx: "[tdx]\nunsafe_any_mr_td = true\nunsafe_any_rtmrs = true\n",
}


def _golden(**changes: Any) -> bytes:
    return gcp.golden({4: SNP.measurement}, tdx=[(0, 1, MR_TD)], **changes)


@pytest.mark.parametrize("make", [_snp, _tdx])
def test_a_launch_endorsement_that_is_handed_in(make: Any) -> None:
    """The built-in policy looks at it; a policy of one's own that does not ask is not silent about it."""
    files = make().endorsements
    ours, others = gcp.endorsement(_golden()), gcp.endorsement(gcp.golden())
    assert "launch_endorsement.svn" in _accepted(make(endorsements=(*files, ours))).claims
    assert _reasons(make(endorsements=(*files, others))) == ["measurement_not_endorsed"]
    ends = gcp.endorsement(_golden(signer=gcp.signer_certificate(end=NOW + 5)))
    assert _accepted(make(endorsements=(*files, ends))).expires == NOW + 5
    verdict = _accepted(make(endorsements=(*files, others), policy=_policy(ANY_LAUNCH[make])))
    assert "launch endorsement: no rule of the policy asks for one" in verdict.unchecked


def test_an_endorsement_that_a_collection_carries_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attest.verifier._snp_roots", lambda _: simulated_roots())

    class Machine:
        scheme = "sev-snp"

        def parts(self, data_hash: bytes) -> dict[int, Part]:
            sent = Part(LAUNCH_ENDORSEMENT_TYPE, gcp.endorsement())
            return SimulatedSnpCollector(b"cases").parts(data_hash) | {LAUNCH_ENDORSEMENT: sent}

    verdict = _accepted(Case(scheme="bundle", now=NOW, evidence=evidence_for(Machine(), CLAIMS)))
    assert "launch endorsement: no rule of the policy asks for one" in verdict.unchecked


# -- vTPM --------------------------------------------------------------------------------------------------------------


def _quote(tpm: SoftwareTpm = TPM, **fields: Any) -> dict[str, Any]:
    part = decode_quote_part(tpm.quote(NONCE))
    pcrs = {BANK_NAMES[bank]: {i: v.hex() for i, v in values.items()} for bank, values in part.pcrs.items()}
    return {"signature": part.signature, "ak": part.ak_public, "pcrs": json.dumps(pcrs).encode()} | fields


def _vtpm(tpm: SoftwareTpm = TPM, **fields: Any) -> Case:
    evidence = decode_quote_part(tpm.quote(NONCE)).attest
    return Case(scheme="vtpm", now=NOW, evidence=evidence, **_quote(tpm, **fields))


VTPM = "[vtpm]\npcrs = [0]\nunsafe_any_pcr_values = true\nunsafe_any_ak = true\n"


def test_a_quote_needs_what_belongs_to_it() -> None:
    for name in ("signature", "ak", "pcrs"):
        assert _reasons(_vtpm(TPM, **{name: None})) == ["part_missing"]
    assert _reasons(_vtpm(policy=NO_TABLE)) == ["part_unknown"]


def test_a_quote_and_its_nonce() -> None:
    assert NOT_FRESH in _accepted(_vtpm()).unchecked
    assert NOT_FRESH not in _accepted(_vtpm(nonce=NONCE)).unchecked
    assert _reasons(_vtpm(nonce=NONCE[::-1])) == ["nonce_mismatch"]


def test_a_quote_and_its_log() -> None:
    assert _accepted(_vtpm(event_log=LOG)).claims.items() > _accepted(_vtpm()).claims.items()
    assert _reasons(_vtpm(SoftwareTpm(), event_log=LOG)) == ["event_log_replay"]


def test_the_bank_of_the_quote_is_that_of_the_built_in_policy() -> None:
    for bank in (Alg.SHA256, Alg.SHA384):
        assert _accepted(_vtpm(SoftwareTpm(pcrs={bank: (0, 4)}))).claims
    assert _reasons(_vtpm(SoftwareTpm(pcrs={Alg.SHA384: (0, 4)}), policy=_policy(VTPM))) == ["pcr_selection"]


def test_a_bare_key_does_not_say_what_it_is() -> None:
    bare = AK.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    unchecked = _accepted(_vtpm(ak=bare)).unchecked
    assert [text for text in unchecked if text.startswith("AK attributes")]
    assert not [text for text in _accepted(_vtpm()).unchecked if text.startswith("AK attributes")]
    assert _reasons(_vtpm(ak=bare, signature=bytes(256))) == ["signature"]


def test_who_vouches_for_the_key() -> None:
    """Nobody, its name in the policy, a CA of the policy's, or Google."""
    nobody = "AK: nothing says that this key lives in a TPM of yours"
    assert nobody in _accepted(_vtpm()).unchecked
    rules = VTPM.replace("unsafe_any_ak = true\n", "")
    name = "000b" + hashlib.sha256(TPM.public()).hexdigest()
    named = _policy(f'{rules}[reference_values.vtpm]\nak_names = ["{name}"]\n')
    assert nobody not in _accepted(_vtpm(policy=named)).unchecked
    pem = ROOT.public_bytes(Encoding.PEM).decode()
    certified = _policy(f"{rules}[reference_values.vtpm]\nak_roots = ['''{pem}''']\n")
    issued = certificate("ak", AK, issuer="root", signer=CA, end=NOW + 9)
    assert _accepted(_vtpm(policy=certified, endorsements=(_der(issued),))).expires == NOW + 9
    assert _reasons(_vtpm(policy=certified)) == ["ak_not_certified"]
    google = _accepted(_vtpm(endorsements=(_der(gcp.instance_certificate(AK, end=NOW + 9)),)))
    assert google.expires == NOW + 9 and google.claims["gce.project_id"] == "project"
    assert _reasons(_vtpm(endorsements=(_der(gcp.instance_certificate(CA)),))) == ["ak_not_certified"]


# -- Azure -------------------------------------------------------------------------------------------------------------

HCL = hcl_report(SNP)
AZURE = (
    "[azure]\nrequire_ak_certificate = false\n"
    f'[reference_values.azure]\nvm_unique_ids = ["VM-1"]\nuser_data = ["{"00" * 64}"]\n'
)
SEV = "[sev-snp]\nunsafe_any_tcb = true\nunsafe_any_measurement = true\n"


def _azure(evidence: bytes = HCL, *more: bytes, **fields: Any) -> Case:
    whole: dict[str, Any] = {"endorsements": (*SNP.endorsements, *more)} | fields
    return Case(scheme="azure", now=NOW, evidence=evidence, **whole)


def _azure_quote(tpm: SoftwareTpm = TPM, **fields: Any) -> dict[str, Any]:
    return _quote(tpm, **{"quote": decode_quote_part(tpm.quote(NONCE)).attest} | fields)


def test_an_hcl_report_alone_is_not_fresh() -> None:
    verdict = _accepted(_azure())
    assert verdict.confidential
    assert [text.partition(":")[0] for text in verdict.unchecked[:2]] == ["AK certificate", "vTPM quote"]
    assert _reasons(_azure(policy=_policy(AZURE + SEV + VTPM))) == ["part_missing"]


def test_an_hcl_report_and_its_quote() -> None:
    policy = _policy(AZURE + SEV + VTPM)
    for ak in (TPM.public(), None):  # None: the report names the key
        verdict = _accepted(_azure(policy=policy, **_azure_quote(ak=ak, nonce=NONCE)))
        assert verdict.claims["nonce"] == NONCE.hex() and NOT_FRESH not in verdict.unchecked
    assert _reasons(_azure(**_azure_quote(SoftwareTpm(b"another")))) == ["ak_mismatch"]
    assert "part_unknown" in _reasons(_azure(policy=NO_TABLE, **_azure_quote()))


def test_microsofts_word_for_the_key() -> None:
    issued = _der(certificate("ak", AK, issuer="root", signer=CA, extensions=EKU, end=NOW + 9))
    verdict = _accepted(_azure(HCL, issued))
    assert verdict.claims["azure.ak_certificate"] == "true" and verdict.expires == NOW + 9
    foreign = _der(certificate("ak", AK, extensions=EKU))
    assert _reasons(_azure(HCL, foreign)) == ["untrusted_chain"]
    wanted = _policy(AZURE.replace("false", "true") + SEV + VTPM)
    assert _reasons(_azure(policy=wanted, **_azure_quote())) == ["ak_certificate"]
    assert _accepted(_azure(HCL, issued, policy=wanted, **_azure_quote()))


def test_the_policys_own_ca_for_the_key() -> None:
    pem = ROOT.public_bytes(Encoding.PEM).decode()
    rules = AZURE + SEV + VTPM.replace("unsafe_any_ak = true\n", "")
    policy = _policy(f"{rules}[reference_values.vtpm]\nak_roots = ['''{pem}''']\n")
    issued = certificate("ak", AK, issuer="root", signer=CA, extensions=EKU, end=NOW + 9)
    assert _accepted(_azure(HCL, _der(issued), policy=policy, **_azure_quote())).expires == NOW + 9
    assert _reasons(_azure(policy=policy, **_azure_quote())) == ["ak_not_certified"]


def test_an_hcl_report_on_tdx() -> None:
    data = hashlib.sha256(runtime_claims()).digest().ljust(64, b"\x00")
    hcl, td_quote = hcl_report(SNP, hardware=bytes(128) + data + bytes(832), report_type=4), TD.quote(data)
    case = _azure(hcl, endorsements=(COLLATERAL,), td_quote=td_quote)
    assert _accepted(case).confidential
    assert _reasons(_azure(hcl)) == ["part_missing"]


# -- tokens and collections --------------------------------------------------------------------------------------------


def test_a_token_that_carries_its_chain() -> None:
    claims = space_claims(NOW, NONCE[:16].hex())
    signed = sign(claims, x5c=x5c(gcp.signer_certificate()))
    assert _accepted(Case(scheme="gcp", now=NOW, evidence=signed)).claims
    assert _reasons(Case(scheme="gcp", now=NOW, evidence=sign(claims))) == ["keys_missing"]


PARTS = {
    "sev-snp": Part(SNP_REPORT_TYPE, b"r"),
    "tdx": Part(TDX_QUOTE_TYPE, b"q"),
    "azure+sev-snp": Part(AZURE_HCL_TYPE, HCL),
    "azure+tdx": Part(AZURE_HCL_TYPE, b"\xa2"),
}
TOKENS = {"maa": sign(maa_claims("azurevm", NOW, NONCE)), "gcp": sign(space_claims(NOW, NONCE.hex()))}


def test_the_policy_names_the_provider() -> None:
    def case(issuer: str) -> Case:
        policy = _policy(f'[maa]\nissuers = ["{issuer}"]\nunsafe_any_measurement = true\n')
        return Case(scheme="maa", now=NOW, evidence=TOKENS["maa"], jwks=jwks(), policy=policy)

    assert not [text for text in _accepted(case(MAA_ISSUER)).unchecked if text.startswith("issuer")]
    assert _reasons(case("https://other.weu.attest.azure.net")) == ["issuer"]


class _Carrying:
    scheme = "any"

    def __init__(self, parts: dict[int, Part]) -> None:
        self._parts = parts

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        return self._parts


@pytest.mark.parametrize("hardware", PARTS)
@pytest.mark.parametrize("token", TOKENS)
def test_the_tables_that_a_collection_calls_for(hardware: str, token: str) -> None:
    parts = {HARDWARE: PARTS[hardware], TOKEN: Part(TOKEN_TYPE, TOKENS[token])}
    assert platforms_of(evidence_for(_Carrying(parts), CLAIMS)) == (*hardware.split("+"), token)
    assert platforms_of(evidence_for(_Carrying({}), CLAIMS)) == ()


def test_a_collection_is_of_the_callers_nonce() -> None:
    case = Case(scheme="bundle", now=NOW, evidence=evidence_for(SoftwareTpm(), CLAIMS))
    assert _accepted(case).claims["node_id"] == CLAIMS.node_id
    assert _accepted(replace(case, nonce=CLAIMS.nonce)).claims["platform"]
    assert _reasons(replace(case, nonce=bytes(32))) == ["binding_mismatch"]


def test_what_a_policy_says_of_a_collection() -> None:
    rules = VTPM.replace("unsafe_any_pcr_values = true\n", "") + "[reference_values.vtpm.pcr_values]\n"

    def case(value: str) -> Case:
        policy = _policy(f'unsafe_accept_vtpm_only = true\n{rules}0 = ["{value * 32}"]\n')
        return Case(scheme="bundle", now=NOW, evidence=evidence_for(SoftwareTpm(), CLAIMS), policy=policy)

    assert _accepted(case("00")).claims
    assert _reasons(case("01")) == ["pcr"] and not judge(case("01")).claims
