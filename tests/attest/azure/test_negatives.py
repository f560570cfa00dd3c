"""HCL reports, AK certificates and MAA tokens: every negative case, by its name, in which that alone is wrong.

HCL reports go through the whole door, with the quote and the hardware's certificates beside them; tokens as files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cryptography import x509

from attest.attester import evidence_for
from attest.binding import Expected
from attest.chain import load_certificate
from attest.errors import AppraisalFailed, AttestError
from attest.evidence import AZURE_HCL_TYPE, ENDORSEMENTS, HARDWARE, TPM_QUOTE, Part, encode_certificates
from attest.offline import Case, judge
from attest.policy import parse_policy
from attest.schemes.azure.verify import AK_EKU, tdx_part, verify_ak_certificate, verify_hcl_snp
from attest.schemes.vtpm.abi import Alg
from attest.testkit.azure import hcl_report, runtime_claims
from attest.testkit.intel import collateral
from attest.testkit.pki import simulated_roots
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tokens import MAA_ISSUER, certificate, fixed_key, jwks, maa_claims, sign
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import Verifier

from ..conftest import CLAIMS, NOW
from ..token_cases import of_any_token

pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length must be")

PLATFORM, TRUST_DOMAIN = SnpPlatform(b"negatives"), TdxPlatform(b"negatives")
AK, OTHER = fixed_key("vtpm-ak"), fixed_key("service-other")
TPM = SoftwareTpm(key=AK)
RUNTIME = runtime_claims()
DATA = hashlib.sha256(RUNTIME).digest().ljust(64, b"\x00")
EXPECTED = Expected(**{name: getattr(CLAIMS, name) for name in Expected.__struct_fields__})

_AZURE = "[azure]\nrequire_ak_certificate = false\n[vtpm]\npcrs = [0, 7]\n"
_VALUES = (
    f'[reference_values.azure]\nvm_unique_ids = ["VM-1"]\nuser_data = ["{"00" * 64}"]\n'
    f'[reference_values.vtpm.pcr_values]\n0 = ["{"00" * 32}"]\n7 = ["{"00" * 32}"]\n'
)
SNP_POLICY = parse_policy(
    f'id = "snp"\n{_AZURE}[sev-snp]\nunsafe_any_tcb = true\n{_VALUES}'
    f'[reference_values.sev-snp]\nmeasurements = ["{PLATFORM.measurement.hex()}"]\n'
)
TDX_POLICY = parse_policy(f'id = "tdx"\n{_AZURE}[tdx]\nunsafe_any_mr_td = true\nunsafe_any_rtmrs = true\n{_VALUES}')


class _Machine:
    """A collector that gives what a test makes of the data hash."""

    scheme = "azure"

    def __init__(self, parts: Callable[[bytes], dict[int, Part]]) -> None:
        self._parts = parts

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        return self._parts(data_hash)


def _snp(hcl: bytes, tpm: SoftwareTpm = TPM, **quote: Any) -> Callable[[bytes], dict[int, Part]]:
    def make(data_hash: bytes) -> dict[int, Part]:
        extra_data = quote.get("extra_data", data_hash)
        body = tpm.quote(extra_data, **{name: value for name, value in quote.items() if name != "extra_data"})
        quoted = Part(tpm.parts(data_hash)[TPM_QUOTE].media_type, body)
        certificates = encode_certificates(PLATFORM.endorsements)
        return {HARDWARE: Part(AZURE_HCL_TYPE, hcl), TPM_QUOTE: quoted, ENDORSEMENTS: certificates}

    return make


def _tdx(hcl: bytes, quoted: bytes = DATA) -> Callable[[bytes], dict[int, Part]]:
    def make(data_hash: bytes) -> dict[int, Part]:
        body = tdx_part(hcl, TRUST_DOMAIN.quote(quoted))
        return TPM.parts(data_hash) | {HARDWARE: Part(AZURE_HCL_TYPE, body)}

    return make


def _appraise(make: Callable[[bytes], dict[int, Part]], kind: str = "snp") -> None:
    verifier = Verifier(SNP_POLICY if kind == "snp" else TDX_POLICY, allow_simulated=True)
    raw = evidence_for(_Machine(make), CLAIMS)
    verifier.appraise(raw, EXPECTED, now=NOW, endorsements=[collateral()] if kind == "tdx" else [])


def _td_report(report_data: bytes = DATA) -> bytes:
    return bytes(128) + report_data + bytes(1024 - 192)


GOOD = hcl_report(PLATFORM)
GOOD_TDX = hcl_report(PLATFORM, hardware=_td_report(), report_type=4)
_KEY = json.loads(RUNTIME)["keys"][0]
_CLAIMED = {"vm-configuration": {**json.loads(RUNTIME)["vm-configuration"], "secure-boot": False}}

HCL: dict[str, tuple[Callable[[bytes], dict[int, Part]], str]] = {
    "claims byte flipped": (_snp(GOOD.replace(b'"VM-1"', b'"VM-2"')), "claims_hash"),
    "report_data tail non-zero": (_snp(hcl_report(PLATFORM, report_data=DATA[:63] + b"\x01")), "claims_hash"),
    "report_data of other claims": (_snp(hcl_report(PLATFORM, report_data=bytes(64))), "claims_hash"),
    "AK not in claims": (_snp(hcl_report(PLATFORM, runtime_claims(keys=[]))), "ak_missing"),
    "different AK": (_snp(GOOD, SoftwareTpm(key=OTHER)), "ak_mismatch"),
    "quote signature flip": (_snp(GOOD, signer=SoftwareTpm(key=OTHER)), "signature"),
    "other magic": (_snp(GOOD, magic=0xFF544348), "tpm_magic"),
    "other type (certify 8017)": (_snp(GOOD, attest_type=0x8017), "tpm_type"),
    "nonce missing": (_snp(GOOD, extra_data=b""), "nonce_mismatch"),
    "nonce of another channel": (_snp(GOOD, extra_data=bytes(32)), "nonce_mismatch"),
    "PCR value changed": (_snp(GOOD, carried={Alg.SHA256: dict.fromkeys(range(8), b"\x01" * 32)}), "pcr_digest"),
    "PCR selection smaller than policy": (
        _snp(GOOD, SoftwareTpm(key=AK, pcrs={Alg.SHA256: (0,)})), "pcr_selection",
    ),
    "SHA-1 bank only": (_snp(GOOD, SoftwareTpm(key=AK, pcrs={Alg.SHA1: (0, 7)})), "pcr_bank"),
    "HCL length field larger than buffer": (_snp(hcl_report(PLATFORM, words={1232: 5000})), "hcl_size"),
    "HCL length field 2^32-1": (_snp(hcl_report(PLATFORM, words={1232: 0xFFFFFFFF})), "hcl_size"),
    "HCL truncated": (_snp(GOOD[:1300]), "hcl_size"),
    "hash_type unknown": (_snp(hcl_report(PLATFORM, words={1228: 4})), "hcl_hash_type"),
    "report_type unknown": (_snp(hcl_report(PLATFORM, report_type=3)), "hcl_report_type"),
    "report_type TDX in SNP evidence": (_snp(hcl_report(PLATFORM, report_type=4)), "hcl_report_type"),
    "TDREPORT named an SNP report": (_snp(hcl_report(PLATFORM, hardware=_td_report())), "snp_version"),
    "user-data mismatch": (_snp(hcl_report(PLATFORM, runtime_claims(None, **{"user-data": "01" * 64}))), "user_data"),
    "oversize payload": (_snp(GOOD.ljust(4097, b"\x00")), "oversize"),
    "VMPL other than 0": (_snp(hcl_report(PLATFORM, vmpl=2)), "hcl_vmpl"),
    "report signed by another chip": (
        _snp(hcl_report(SnpPlatform(b"other"), chip_id=PLATFORM.hwid)), "signature",
    ),
    "report of another chip": (_snp(hcl_report(SnpPlatform(b"other"))), "hwid_mismatch"),
    "policy DEBUG": (_snp(hcl_report(PLATFORM, policy=0x30000 | 1 << 19)), "debug"),
    "measurement mismatch": (_snp(hcl_report(PLATFORM, measurement=bytes(48))), "measurement"),
    "secure boot off": (_snp(hcl_report(PLATFORM, runtime_claims(None, **_CLAIMED))), "secure_boot"),
}  # fmt: skip
HCL_TDX: dict[str, tuple[Callable[[bytes], dict[int, Part]], str]] = {
    "SNP report inside TDX evidence": (_tdx(GOOD), "hcl_report_type"),
    "SNP report named a TDREPORT": (_tdx(hcl_report(PLATFORM, report_type=4)), "report_data"),
    "quote of another TDREPORT": (_tdx(GOOD_TDX, bytes(64)), "report_data"),
    "claims byte flipped": (_tdx(GOOD_TDX.replace(b'"VM-1"', b'"VM-2"')), "claims_hash"),
    "report without its quote": (
        lambda data_hash: TPM.parts(data_hash) | {HARDWARE: Part(AZURE_HCL_TYPE, GOOD_TDX)}, "malformed_evidence",
    ),
}  # fmt: skip


def _reason(call: Callable[[], object]) -> str:
    with pytest.raises(AttestError) as caught:
        call()
    if isinstance(caught.value, AppraisalFailed):
        assert {mismatch.code for mismatch in caught.value.mismatches} == {caught.value.code}, caught.value
    return caught.value.code


def test_nothing_wrong() -> None:
    _appraise(_snp(GOOD))
    _appraise(_tdx(GOOD_TDX), "tdx")


@pytest.mark.parametrize("name", HCL)
def test_hcl_refused_for_this_alone(name: str) -> None:
    make, code = HCL[name]
    assert _reason(lambda: _appraise(make)) == code


@pytest.mark.parametrize("name", HCL_TDX)
def test_hcl_on_tdx_refused_for_this_alone(name: str) -> None:
    make, code = HCL_TDX[name]
    assert _reason(lambda: _appraise(make, "tdx")) == code


# -- Microsoft's certificate of the AK ---------------------------------------------------------------------------------

ROOT = certificate("root", OTHER, ca=True)
EKU = [(x509.ExtendedKeyUsage([AK_EKU]), False)]


def _certified(**changes: Any) -> None:
    fields: dict[str, Any] = {
        "subject": "ak",
        "key": AK,
        "issuer": "root",
        "signer": OTHER,
        "extensions": EKU,
    } | changes
    endorsements = [load_certificate(der) for der in PLATFORM.endorsements]
    verified = verify_hcl_snp(GOOD, endorsements, NOW, simulated_roots())
    verify_ak_certificate(verified, [certificate(**fields)], NOW, [ROOT])


AK_CERTIFICATES: dict[str, tuple[Mapping[str, Any], str]] = {
    "AK cert key != HCLAkPub": ({"key": OTHER}, "ak_not_certified"),
    "AK cert expired": ({"end": NOW - 1}, "certificate_expired"),
    "AK cert not yet valid": ({"start": NOW + 1}, "certificate_not_yet_valid"),
    "AK cert of other issuer": ({"signer": AK}, "untrusted_chain"),
    "AK cert of other issuer's name": ({"issuer": "other"}, "untrusted_chain"),
    "AK cert for other uses": (
        {"extensions": [(x509.ExtendedKeyUsage([x509.OID_SERVER_AUTH]), False)]}, "ak_certificate_eku",
    ),
    "AK cert without uses": ({"extensions": []}, "ak_certificate_eku"),
}  # fmt: skip


@pytest.mark.parametrize("name", AK_CERTIFICATES)
def test_ak_certificate_refused_for_this_alone(name: str) -> None:
    changes, code = AK_CERTIFICATES[name]
    _certified()
    assert _reason(lambda: _certified(**changes)) == code


# -- tokens ------------------------------------------------------------------------------------------------------------

NONCE = bytes(range(32))
MAA_POLICY = parse_policy(
    f'id = "maa"\n[maa]\nissuers = ["{MAA_ISSUER}"]\nmin_svn = {{ bootloader = 4, snp = 24, microcode = 219 }}\n'
    f'[reference_values.maa]\nmeasurements = ["{"ab" * 48}"]\nid_key_digests = ["{"cd" * 48}"]\n'
    f'host_data = ["{"00" * 32}"]\nvm_ids = ["VM-1"]\n'
    'policy_hashes = ["wm9mHlvTU82e8UqoOy1Yj1FBRSNkfe99-69IYDq9eWs"]\n'
)
TD_POLICY = parse_policy(
    f'id = "td"\n[maa]\nissuers = ["{MAA_ISSUER}"]\n[reference_values.maa]\nmeasurements = ["{"ab" * 48}"]\n'
)
T, S = "x-ms-isolation-tee/", "x-ms-isolation-tee/x-ms-sevsnpvm-"
PAYLOAD = "x-ms-runtime/client-payload"


def _claims(kind: str = "azurevm", /, **changes: Any) -> dict[str, Any]:
    return maa_claims(kind, NOW, NONCE, changes)


def _token(raw: bytes, keys: bytes = b"", policy: Any = MAA_POLICY) -> Case:
    return Case(scheme="maa", evidence=raw, now=NOW, policy=policy, nonce=NONCE, jwks=keys or jwks())


def _changed(kind: str = "azurevm", /, **changes: Any) -> Case:
    return _token(sign(_claims(kind, **changes)), policy=TD_POLICY if kind == "tdxvm" else MAA_POLICY)


TOKENS: dict[str, tuple[Case, str]] = {
    **of_any_token(_claims, _token, issuer=MAA_ISSUER, now=NOW, lifetime_s=28_800),
    "jku with the issuer as a prefix": (_token(sign(_claims(), jku=MAA_ISSUER + ".evil/certs")), "jku_foreign"),
    "nonce absent": (_changed(**{PAYLOAD + "/nonce": None}), "nonce_mismatch"),
    "nonce of another": (_changed(**{PAYLOAD + "/nonce": "AAAA"}), "nonce_mismatch"),
    "attestation type unknown": (_changed(**{"x-ms-attestation-type": "sgx"}), "maa_type"),
    "compliance-status missing": (_changed(**{T + "x-ms-compliance-status": None}), "compliance"),
    "compliance-status other": (_changed(**{T + "x-ms-compliance-status": "none"}), "compliance"),
    "debug true": (_changed(**{S + "is-debuggable": True}), "debug"),
    "debug absent": (_changed(**{S + "is-debuggable": None}), "debug"),
    "debug of the boot": (_changed(**{"x-ms-azurevm-kerneldebug-enabled": True}), "debug"),
    "debug of a trust domain": (_changed("tdxvm", tdx_td_attributes_debug=True), "debug"),
    "migration allowed": (_changed(**{S + "migration-allowed": True}), "migrate_ma"),
    "VMPL other than 0": (_changed(**{S + "vmpl": 1}), "vmpl"),
    "SVN below minimum": (_changed(**{S + "bootloader-svn": 3}), "tcb_floor"),
    "TCB status OutOfDate": (_changed("tdxvm", attester_tcb_status="OutOfDate"), "tcb_status"),
    "measurement mismatch": (_changed(**{S + "launchmeasurement": "00" * 48}), "measurement"),
    "measurement mismatch of a trust domain": (_changed("tdxvm", tdx_mrtd="00" * 48), "measurement"),
    "host_data mismatch": (_changed(**{S + "hostdata": "01" * 32}), "host_data"),
    "id-key mismatch": (_changed(**{S + "idkeydigest": "01" * 48}), "id_key"),
    "secure boot off": (_changed(secureboot=False), "secure_boot"),
    "policy-hash mismatch": (_changed(**{"x-ms-policy-hash": "x"}), "policy_hash"),
    "VM id mismatch": (_changed(**{"x-ms-azurevm-vmid": "VM-2"}), "vm_id"),
}  # fmt: skip


def test_nothing_wrong_with_the_tokens() -> None:
    for case in (_changed(), _changed("tdxvm")):
        assert judge(case).reason == "ok", judge(case)


@pytest.mark.parametrize("name", TOKENS)
def test_token_refused_for_this_alone(name: str) -> None:
    case, code = TOKENS[name]
    verdict = judge(case)
    assert (verdict.verdict, verdict.reason) == ("reject", code), verdict.detail
    assert {mismatch.code for mismatch in verdict.mismatches} <= {code}
