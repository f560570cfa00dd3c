"""Evidence of several parts through the door: each is verified, and all must speak of one machine and this channel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest.attester import evidence_for
from attest.binding import Expected, ak_report_data, snp_report_data
from attest.errors import AppraisalFailed, AttestError
from attest.evidence import (
    AZURE_HCL_TYPE,
    ENDORSEMENTS,
    HARDWARE,
    LAUNCH_ENDORSEMENT,
    LAUNCH_ENDORSEMENT_TYPE,
    SNP_REPORT_TYPE,
    TDX_QUOTE_TYPE,
    TOKEN,
    TOKEN_TYPE,
    TPM_QUOTE,
    Part,
    encode_certificates,
)
from attest.jws import nonce_forms, parse_jwks
from attest.policy import EvidencePolicy, first_report_policy, parse_policy
from attest.schemes.azure.verify import tdx_part
from attest.schemes.tdx.abi import parse_quote
from attest.testkit.azure import hcl_report, runtime_claims
from attest.testkit.gcp import endorsement, golden, instance_certificate, root, root_pem, signer_certificate
from attest.testkit.intel import collateral, tcb_info
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tokens import fixed_key, jwks, maa_claims, sign, space_claims, x5c
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import MAX_COLLATERAL, Verifier, policy_from_result

from ..support.example_scheme import attest_example_scheme as example
from .conftest import CLAIMS, NOW

pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length must be")

SNP, TDX, TPM = SnpPlatform(b"together"), TdxPlatform(b"together"), SoftwareTpm(key=fixed_key("vtpm-ak"))
EXPECTED = Expected(**{name: getattr(CLAIMS, name) for name in Expected.__struct_fields__})
KEYS = parse_jwks(jwks())
ENDORSED = encode_certificates(SNP.endorsements)
Make = Callable[[bytes], dict[int, Part]]


class _Machine:
    """Its parts are what a test makes of the data hash."""

    scheme = "test"

    def __init__(self, make: Make) -> None:
        self.parts = make


def _verifier(policy: EvidencePolicy) -> Verifier:
    return Verifier(policy, allow_simulated=True, token_keys=KEYS)


def _appraise(verifier: Verifier, make: Make, sets: tuple[bytes, ...] = (collateral(),)) -> Any:
    return verifier.appraise(evidence_for(_Machine(make), CLAIMS), EXPECTED, now=NOW, endorsements=sets)


def _reason(verifier: Verifier, make: Make, sets: tuple[bytes, ...] = (collateral(),)) -> str:
    with pytest.raises(AttestError) as caught:
        _appraise(verifier, make, sets)
    if isinstance(caught.value, AppraisalFailed):
        assert {mismatch.code for mismatch in caught.value.mismatches} == {caught.value.code}, caught.value
    return caught.value.code


def _snp(report_data: bytes, **fields: Any) -> dict[int, Part]:
    return {HARDWARE: Part(SNP_REPORT_TYPE, SNP.report(report_data, **fields)), ENDORSEMENTS: ENDORSED}


def _tdx(report_data: bytes, **fields: Any) -> dict[int, Part]:
    return {HARDWARE: Part(TDX_QUOTE_TYPE, TDX.quote(report_data, **fields))}


def _maa(data_hash: bytes, kind: str, **changes: Any) -> dict[int, Part]:
    measured = {"sevsnpvm": {"x-ms-sevsnpvm-launchmeasurement": SNP.measurement.hex()}, "tdxvm": {"tdx_mrtd": MR_TD}}
    prefix = {"azurevm": "x-ms-isolation-tee/"}.get(kind, "")
    told = {prefix + name: value for name, value in measured.get(kind, measured["sevsnpvm"]).items()}
    claims = maa_claims(kind, NOW, data_hash, told | changes)
    return {TOKEN: Part(TOKEN_TYPE, sign(claims))}


def _space(data_hash: bytes, **changes: Any) -> dict[int, Part]:
    return {TOKEN: Part(TOKEN_TYPE, sign(space_claims(NOW, nonce_forms(data_hash)[1].decode(), changes)))}


def _azure(data_hash: bytes, claims: bytes | None = None) -> dict[int, Part]:
    hardware = {HARDWARE: Part(AZURE_HCL_TYPE, hcl_report(SNP, claims)), ENDORSEMENTS: ENDORSED}
    return TPM.parts(data_hash) | hardware


MR_TD = parse_quote(TDX.quote(bytes(64))).report.mr_td.hex()
SNP_VTPM, TDX_VTPM = first_report_policy("sev-snp", "vtpm"), first_report_policy("tdx", "vtpm")
SNP_MAA, TDX_MAA = first_report_policy("sev-snp", "maa"), first_report_policy("tdx", "maa")
SNP_GCP, TDX_GCP = first_report_policy("sev-snp", "gcp"), first_report_policy("tdx", "gcp")
AZURE_MAA = first_report_policy("azure", "vtpm", "sev-snp", "maa")


def _named(data_hash: bytes, tpm: SoftwareTpm = TPM) -> bytes:
    return ak_report_data(tpm.public(), data_hash)


GOOD: dict[str, tuple[EvidencePolicy, Make, str]] = {
    "SNP and vTPM": (SNP_VTPM, lambda h: _snp(_named(h)) | TPM.parts(h), "simulated-sev-snp+vtpm"),
    "TDX and vTPM": (TDX_VTPM, lambda h: _tdx(_named(h)) | TPM.parts(h), "simulated-tdx+vtpm"),
    "SNP and MAA": (SNP_MAA, lambda h: _snp(snp_report_data(h)) | _maa(h, "sevsnpvm"), "simulated-sev-snp+maa"),
    "TDX and MAA": (TDX_MAA, lambda h: _tdx(snp_report_data(h)) | _maa(h, "tdxvm"), "simulated-tdx+maa"),
    "SNP and GCP": (SNP_GCP, lambda h: _snp(snp_report_data(h)) | _space(h), "simulated-sev-snp+gcp"),
    "TDX and GCP": (
        TDX_GCP, lambda h: _tdx(snp_report_data(h)) | _space(h, hwmodel="GCP_INTEL_TDX"), "simulated-tdx+gcp",
    ),
    "Azure and MAA": (AZURE_MAA, lambda h: _azure(h) | _maa(h, "azurevm"), "azure+simulated-sev-snp+vtpm+maa"),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_parts_of_one_machine(case: str) -> None:
    policy, make, platform = GOOD[case]
    assert _appraise(_verifier(policy), make).platform == platform


OTHER_TPM = SoftwareTpm(b"another")
APART: dict[str, tuple[EvidencePolicy, Make, str]] = {
    "SNP names no AK": (SNP_VTPM, lambda h: _snp(snp_report_data(h)) | TPM.parts(h), "report_data"),
    "SNP names another AK": (SNP_VTPM, lambda h: _snp(_named(h, OTHER_TPM)) | TPM.parts(h), "report_data"),
    "TDX names another AK": (TDX_VTPM, lambda h: _tdx(_named(h, OTHER_TPM)) | TPM.parts(h), "report_data"),
    "SNP is of another channel": (SNP_VTPM, lambda h: _snp(_named(h[::-1])) | TPM.parts(h), "report_data"),
    "the quote is of another channel": (SNP_VTPM, lambda h: _snp(_named(h)) | TPM.parts(h[::-1]), "nonce_mismatch"),
    "the token is of another channel": (
        SNP_MAA, lambda h: _snp(snp_report_data(h)) | _maa(h[::-1], "sevsnpvm"), "nonce_mismatch",
    ),
    "the token is of other hardware": (
        SNP_MAA, lambda h: _snp(snp_report_data(h)) | _maa(h, "tdxvm"), "token_of_another_machine",
    ),
    "the token is of another image": (
        SNP_MAA,
        lambda h: _snp(snp_report_data(h)) | _maa(h, "sevsnpvm", **{"x-ms-sevsnpvm-launchmeasurement": "00" * 48}),
        "token_of_another_machine",
    ),
    "the token is of another trust domain": (
        TDX_MAA, lambda h: _tdx(snp_report_data(h)) | _maa(h, "tdxvm", tdx_mrtd="ab" * 48), "token_of_another_machine",
    ),
    "Google's token is of other hardware": (
        SNP_GCP, lambda h: _snp(snp_report_data(h)) | _space(h, hwmodel="GCP_INTEL_TDX"), "token_of_another_machine",
    ),
    "Google's token is of no trust domain": (
        TDX_GCP, lambda h: _tdx(snp_report_data(h)) | _space(h), "token_of_another_machine",
    ),
    "the token is of another VM": (
        AZURE_MAA, lambda h: _azure(h) | _maa(h, "azurevm", **{"x-ms-azurevm-vmid": "VM-2"}),
        "token_of_another_machine",
    ),
    "a part is missing": (SNP_MAA, lambda h: _snp(snp_report_data(h)), "part_missing"),
    "a part is unknown": (SNP_VTPM, lambda h: _snp(_named(h)) | TPM.parts(h) | _space(h), "part_unknown"),
    "a part is of another kind": (SNP_VTPM, lambda h: _tdx(_named(h)) | TPM.parts(h), "part_unknown"),
}  # fmt: skip


@pytest.mark.parametrize("case", APART)
def test_refused_for_this_alone(case: str) -> None:
    policy, make, code = APART[case]
    assert _reason(_verifier(policy), make) == code


def test_a_policy_by_hand_that_forgets_the_vtpm_of_azure() -> None:
    policy = msgspec.structs.replace(AZURE_MAA, vtpm=None, maa=None)
    hardware = lambda h: {key: part for key, part in _azure(h).items() if key != TPM_QUOTE}  # noqa: E731
    assert _reason(_verifier(policy), hardware) == "part_missing"


# -- collateral --------------------------------------------------------------------------------------------------------


def _td(data_hash: bytes) -> dict[int, Part]:
    return _tdx(snp_report_data(data_hash))


def test_the_collateral_that_fits_counts() -> None:
    verifier = _verifier(first_report_policy("tdx"))
    other = collateral(tcb=tcb_info(fmspc="00" * 6))
    assert _appraise(verifier, _td, (other, collateral())).platform == "simulated-tdx"
    assert _reason(verifier, _td, (other,)) == "fmspc_mismatch"
    assert _reason(verifier, _td, ()) == "collateral_missing"
    assert _reason(verifier, _td, (collateral(),) * (MAX_COLLATERAL + 1)) == "ambiguous_endorsement"
    for spaces in range(MAX_COLLATERAL + 1):  # as many sets as it remembers, and one more
        _appraise(verifier, _td, (collateral() + b" " * spaces,))


def test_a_policy_from_a_trust_domain_pins_it() -> None:
    result = _appraise(_verifier(first_report_policy("tdx")), _td)
    policy = parse_policy(policy_from_result(result, policy_id="pinned"))
    assert _appraise(_verifier(policy), _td).policy_id == "pinned"
    assert _reason(_verifier(policy), lambda h: _tdx(snp_report_data(h), mr_td=b"\x01" * 48)) == "mr_td"


def _azure_on_tdx(data_hash: bytes, report_data: bytes | None = None) -> dict[int, Part]:
    claims = runtime_claims()
    data = hashlib.sha256(claims).digest().ljust(64, b"\x00")
    hcl = hcl_report(SNP, claims, hardware=bytes(128) + data + bytes(1024 - 192), report_type=4)
    body = tdx_part(hcl, TDX.quote(data if report_data is None else report_data))
    return TPM.parts(data_hash) | {HARDWARE: Part(AZURE_HCL_TYPE, body)}


def test_azure_on_a_trust_domain() -> None:
    verifier = _verifier(first_report_policy("azure", "vtpm", "tdx"))
    assert _appraise(verifier, _azure_on_tdx).platform == "azure+simulated-tdx+vtpm"
    assert _reason(verifier, lambda h: _azure_on_tdx(h, bytes(64))) == "report_data"


def test_intels_own_root_knows_no_simulation() -> None:
    verifier = Verifier(first_report_policy("tdx"))
    assert _reason(verifier, _td) == "untrusted_root"


def test_a_token_that_brings_its_chain_leads_to_googles_root() -> None:
    def make(data_hash: bytes) -> dict[int, Part]:
        claims = space_claims(NOW, nonce_forms(data_hash)[1].decode())
        return {TOKEN: Part(TOKEN_TYPE, sign(claims, x5c=x5c(signer_certificate(), root())))}

    assert _reason(_verifier(first_report_policy("gcp")), make) == "untrusted_chain"


def test_googles_word_for_firmware_and_instance() -> None:
    """Hardware whose measurement Google endorses, beside a vTPM whose certificate names the instance."""
    kinds = {
        "sev-snp": ("unsafe_any_tcb = true\n", golden({4: SNP.measurement}), _snp),
        "tdx": ("unsafe_any_rtmrs = true\n", golden({}, tdx=[(0, 0, bytes.fromhex(MR_TD))]), _tdx),
    }
    certificate = instance_certificate(TPM.key).public_bytes(Encoding.DER)
    pem = json.dumps(root_pem())
    for table, (more, content, hardware) in kinds.items():
        policy = parse_policy(
            f'id = "p"\n[{table}]\n{more}launch_endorsement = {{min_svn = 2}}\n'
            "[vtpm]\npcrs = [0]\nunsafe_any_pcr_values = true\n"
            f"[reference_values.{table}]\nlaunch_roots = [{pem}]\n"
            f"[reference_values.vtpm]\nak_roots = [{pem}]\ngce = {{zones = ['zone-a']}}\n"
        )

        def make(data_hash: bytes, sent: bytes = endorsement(content), hardware: Any = hardware) -> dict[int, Part]:
            parts = hardware(_named(data_hash)) | TPM.parts(data_hash)
            endorsed = encode_certificates((certificate, *SNP.endorsements))
            return parts | {LAUNCH_ENDORSEMENT: Part(LAUNCH_ENDORSEMENT_TYPE, sent), ENDORSEMENTS: endorsed}

        claims = _appraise(_verifier(policy), make).claims
        assert (claims["launch_endorsement.changelist"], claims["gce.zone"]) == ("12345", "zone-a")
        foreign = endorsement(golden({2: b"\x02" * 48}))
        assert _reason(_verifier(policy), partial(make, sent=foreign)) == "measurement_not_endorsed"
    assert _reason(_verifier(first_report_policy("vtpm")), lambda h: {
        **TPM.parts(h), LAUNCH_ENDORSEMENT: Part(LAUNCH_ENDORSEMENT_TYPE, b"x"),
    }) == "part_unknown"  # fmt: skip


# -- compositions and third parties ------------------------------------------------------------------------------------

EXAMPLE = example.ExampleScheme()
RULES = f'[{{}}schemes.example]\nkey = "{example.KEY.hex()}"\nmin_level = 3\n'


def test_a_scheme_of_a_third_party() -> None:
    policy = parse_policy('id = "p"\n' + RULES.format(""))
    result = _appraise(Verifier(policy, schemes=[EXAMPLE]), EXAMPLE.collect)
    assert (result.platform, result.confidential, result.expires) == ("example", False, NOW + 60)
    with pytest.raises(AttestError) as caught:
        Verifier(policy)
    assert caught.value.code == "scheme_not_enabled"


def test_a_scheme_may_vouch_for_confidentiality_and_never_end() -> None:
    class Vouching(example.ExampleScheme):
        def verify(self, *evidence: Any, **arguments: Any) -> Any:
            found = super().verify(*evidence, **arguments)
            return msgspec.structs.replace(found, confidential=True, expires=None)

    result = _appraise(Verifier(parse_policy('id = "p"\n' + RULES.format("")), schemes=[Vouching()]), EXAMPLE.collect)
    assert result.confidential and result.expires == CLAIMS.not_after


def test_any_of_and_all_of() -> None:
    member = '[[{0}]]\nid = "{1}"\n[{0}.sev-snp]\nunsafe_any_tcb = true\nunsafe_any_measurement = true\n{2}\n'
    any_of = parse_policy('id = "p"\n' + member.format("any_of", "a", "vmpl = [1]") + member.format("any_of", "b", ""))
    all_of = parse_policy('id = "p"\n' + member.format("all_of", "a", "vmpl = [1]") + member.format("all_of", "b", ""))

    def snp(data_hash: bytes, **fields: Any) -> dict[int, Part]:
        return _snp(snp_report_data(data_hash), **fields)

    for policy, vmpl, branch in ((any_of, 0, "b"), (any_of, 1, "a")):
        assert _appraise(_verifier(policy), partial(snp, vmpl=vmpl)).branch == branch
    assert _reason(_verifier(any_of), lambda h: snp(h, vmpl=2)) == "vmpl"
    assert _reason(_verifier(all_of), snp) == "vmpl"
    one = parse_policy('id = "p"\n' + member.format("all_of", "a", "") + member.format("all_of", "b", "vmpl = [0, 1]"))
    assert _appraise(_verifier(one), snp).branch == "a+b"


# -- strict policies from results --------------------------------------------------------------------------------------


def test_a_policy_from_both_parts_needs_no_word_for_the_vtpm() -> None:
    result = _appraise(_verifier(SNP_VTPM), GOOD["SNP and vTPM"][1])
    policy = parse_policy(policy_from_result(result, policy_id="both"))
    assert policy.vtpm and policy.sev_snp and not policy.unsafe
    assert _appraise(_verifier(policy), GOOD["SNP and vTPM"][1]).policy_id == "both"


@pytest.mark.parametrize(
    ("policy", "make", "claims", "line"),
    [
        (SNP_VTPM, "SNP and vTPM", {"signing_key": "vlek", "csp_id": "cloud"}, 'csp_ids = ["cloud"]'),
        (SNP_VTPM, "SNP and vTPM", {"firmware.provisional": "true"}, "permit_provisional_firmware = true"),
        (TDX_VTPM, "TDX and vTPM", {"td_attributes.sept_ve_disable": "false"}, "unsafe_allow_sept_ve = true"),
        (TDX_VTPM, "TDX and vTPM", {"mr_service_td": "01" * 48}, f'mr_service_td = ["{"01" * 48}"]'),
    ],
    ids=["VLEK", "firmware on trial", "#VE", "service TD"],
)
def test_what_a_policy_from_a_result_says_besides(
    policy: EvidencePolicy, make: str, claims: dict[str, str], line: str
) -> None:
    result = _appraise(_verifier(policy), GOOD[make][1])
    plain = policy_from_result(result, policy_id="p")
    changed = policy_from_result(msgspec.structs.replace(result, claims=result.claims | claims), policy_id="p")
    assert line not in plain and line in changed
