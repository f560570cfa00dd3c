"""Tokens of Microsoft Azure Attestation: verification and rules, one thing wrong at a time, and a real token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attest.errors import AttestError, BindingMismatch
from attest.jws import parse_jwks
from attest.schemes.azure.maa import TYPES, VerifiedMaaToken, own_issuer, verify_maa
from attest.schemes.azure.maa_appraise import ReferenceValues, Rules, SvnFloor, appraise_maa, claims_of
from attest.testkit.tokens import MAA_ISSUER, jwks, maa_claims, sign

NOW = 1_800_000_000.0
NONCE = bytes(range(32))
KEYS = parse_jwks(jwks())
RULES = Rules(issuers=(MAA_ISSUER,))
REFERENCE = ReferenceValues(
    measurements=("ab" * 48,),
    policy_hashes=("wm9mHlvTU82e8UqoOy1Yj1FBRSNkfe99-69IYDq9eWs",),
    vm_ids=("VM-1",),
)


def _token(kind: str = "azurevm", changes: dict[str, Any] | None = None, **header: Any) -> bytes:
    return sign(maa_claims(kind, NOW, NONCE, changes), **header)


def _verify(raw: bytes, **changes: Any) -> VerifiedMaaToken:
    arguments: dict[str, Any] = {"issuers": (MAA_ISSUER,), "now": NOW, "nonce": NONCE} | changes
    return verify_maa(raw, KEYS, **arguments)


@pytest.mark.parametrize("kind", TYPES)
def test_accepted(kind: str) -> None:
    verified = _verify(_token(kind, jku=MAA_ISSUER + "/certs"))
    reference = REFERENCE
    if kind == "tdxvm":
        reference = ReferenceValues(measurements=("ab" * 48,), vm_ids=("VM-1",))
    assert appraise_maa(verified, RULES, reference) == ()
    assert claims_of(verified)["maa.tee"] == ("tdxvm" if kind == "tdxvm" else "sevsnpvm")
    assert verified.expires == NOW + 28_740


PAYLOAD = "x-ms-runtime/client-payload"
REFUSED: dict[str, tuple[bytes, str]] = {
    "jku is a number": (_token(jku=1), "jku_foreign"),
    "issuer with a slash": (_token(changes={"iss": MAA_ISSUER + "/"}), "issuer"),
    "issuer is a list": (_token(changes={"iss": [MAA_ISSUER]}), "issuer"),
    "no expiry": (_token(changes={"exp": None}), "malformed_evidence"),
    "type of the hardware unknown": (
        _token(changes={"x-ms-isolation-tee/x-ms-attestation-type": "sgx"}), "maa_type",
    ),
    "hardware is a list": (_token(changes={"x-ms-isolation-tee": []}), "malformed_evidence"),
    "nonce empty": (_token(changes={PAYLOAD + "/nonce": ""}), "nonce_mismatch"),
    "nonce not base64": (_token(changes={PAYLOAD + "/nonce": "%"}), "malformed_evidence"),
    "client payload a list": (_token(changes={PAYLOAD: []}), "nonce_mismatch"),
    "no runtime": (_token(changes={"x-ms-runtime": None}), "nonce_mismatch"),
    "nonce outside of the runtime data": (
        _token("sevsnpvm", {"x-ms-runtime/nonce": None, "nonce": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"}),
        "nonce_mismatch",
    ),
    "payload is no object": (sign(b"[]"), "malformed_evidence"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_one_thing_wrong(name: str) -> None:
    raw, code = REFUSED[name]
    with pytest.raises(AttestError) as caught:
        _verify(raw)
    assert caught.value.code == code, caught.value


SPOKEN = (NONCE + bytes(32)).hex()


@pytest.mark.parametrize("kind", ["sevsnpvm", "tdxvm"])
def test_user_data_of_the_runtime_claims_speaks_as_a_nonce_does(kind: str) -> None:
    for text in (SPOKEN, SPOKEN.upper()):
        assert _verify(_token(kind, {"x-ms-runtime": {"user-data": text}})).type == kind
    for runtime in (
        {"user-data": NONCE.hex()},
        {"user-data": SPOKEN[:-2]},
        {"user-data": SPOKEN[:-1] + "1"},
        {"user-data": SPOKEN + "00"},
        {"user-data": "00" * 64},
        {"user-data": "zz" * 64},
        {"user-data": 7},
        {"user-data": SPOKEN, "nonce": "another"},  # a nonce that is there is the one that counts
        {"user-data": SPOKEN, "nonce": None},
        [SPOKEN],
    ):
        with pytest.raises(BindingMismatch):
            _verify(_token(kind, {"x-ms-runtime": runtime}))
    with pytest.raises(BindingMismatch):  # a digest only: zeros behind a shorter nonce would say two things
        _verify(_token(kind, {"x-ms-runtime": {"user-data": SPOKEN}}), nonce=NONCE[:31])


def test_user_data_outside_of_hardware_claims_does_not_speak() -> None:
    with pytest.raises(BindingMismatch):
        _verify(_token(changes={PAYLOAD: None, "x-ms-runtime/user-data": SPOKEN}))
    with pytest.raises(BindingMismatch):
        _verify(_token("sevsnpvm", {"x-ms-runtime": {}, "user-data": SPOKEN}))


def test_no_issuer_accepts_none_and_an_empty_nonce_never_matches() -> None:
    for changes, code in (({"issuers": ()}, "issuer"), ({"nonce": b""}, "nonce_mismatch")):
        with pytest.raises(AttestError) as caught:
            _verify(_token(changes={PAYLOAD + "/nonce": ""}), **changes)
        assert caught.value.code == code


T = "x-ms-isolation-tee/"
S = "x-ms-sevsnpvm-"
MISMATCHES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "debuggable as text": ("azurevm", {T + S + "is-debuggable": "false"}, ["debug"]),
    "VMPL false": ("azurevm", {T + S + "vmpl": False}, ["vmpl"]),
    "secure boot unsaid": ("azurevm", {"secureboot": None}, ["secure_boot"]),
    "another VM by the runtime claims": ("sevsnpvm", {"x-ms-runtime/vm-configuration": {}}, ["vm_id"]),
    "microcode as text": ("sevsnpvm", {S + "microcode-svn": "219"}, ["tcb_floor"]),
    "trusted launch only": ("azurevm", {"x-ms-isolation-tee": None}, ["maa_tee", "compliance", "measurement"]),
    "TD debug unsaid": ("tdxvm", {"tdx_td_attributes_debug": None}, ["debug"]),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_rules(name: str) -> None:
    kind, changes, codes = MISMATCHES[name]
    rules = Rules(issuers=(MAA_ISSUER,), min_svn=SvnFloor(bootloader=4, snp=24, microcode=219, guest=2))
    assert [m.code for m in appraise_maa(_verify(_token(kind, changes)), rules, REFERENCE)] == codes


def test_rules_that_name_less_or_more() -> None:
    verified = _verify(_token())
    for rules, code in (
        (Rules(issuers=("https://other.attest.azure.net",)), "issuer"),
        (Rules(), "issuer"),
        (Rules(issuers=(MAA_ISSUER,), types=("tdxvm",)), "maa_type"),
        (Rules(issuers=(MAA_ISSUER,), tees=("tdxvm",)), "maa_tee"),
    ):
        assert [m.code for m in appraise_maa(verified, rules, REFERENCE)] == [code]
    for reference, code in (
        (ReferenceValues(), "measurement"),
        (ReferenceValues(measurements=("ab" * 48,), id_key_digests=("00" * 48,)), "id_key"),
        (ReferenceValues(measurements=("ab" * 48,), host_data=("01" * 32,)), "host_data"),
    ):
        assert [m.code for m in appraise_maa(verified, RULES, reference)] == [code]


def test_the_unsafe_forms() -> None:
    changes = {T + S + "is-debuggable": True, T + S + "migration-allowed": True, "secureboot": False,
               T + "x-ms-compliance-status": "none", "x-ms-azurevm-bootdebug-enabled": True}  # fmt: skip
    rules = Rules(
        unsafe_any_issuer=True, unsafe_any_measurement=True, unsafe_allow_debug=True, unsafe_allow_migration=True,
        unsafe_allow_not_compliant=True, unsafe_allow_no_secure_boot=True,
    )  # fmt: skip
    assert appraise_maa(_verify(_token(changes=changes)), rules, ReferenceValues()) == ()


@pytest.mark.parametrize(
    ("issuer", "own"),
    [(MAA_ISSUER, True), ("https://a.attest.azure.net", True), (MAA_ISSUER + ".evil", False), ("http://a", False),
     ("https://evil/.attest.azure.net", False), (1, False), (None, False)],
)  # fmt: skip
def test_a_tokens_own_issuer_is_one_of_the_service(issuer: Any, own: bool) -> None:
    assert own_issuer(_token(changes={"iss": issuer})) == ((issuer,) if own else ())


def test_a_real_token(vectors: Path) -> None:
    keys = parse_jwks((vectors / "azure/maa-thomvanl/jwks.json").read_bytes())
    raw = (vectors / "azure/maa-thomvanl/token.jwt").read_bytes()
    issuer = "https://sharedweu.weu.attest.azure.net"
    arguments: dict[str, Any] = {"issuers": (issuer,), "now": 1_671_840_000.0, "nonce": None}
    verified = verify_maa(raw, keys, **arguments)
    rules = Rules(issuers=(issuer,), unsafe_any_measurement=True)
    assert appraise_maa(verified, rules, ReferenceValues()) == ()
    other = (vectors / "azure/maa-msft/token_1649979780.jwt").read_bytes()
    for token, changes, code in (
        (raw, {"now": 1_795_000_000.0}, "token_expired"),
        (raw, {"nonce": b"x"}, "nonce_mismatch"),
        (raw, {"issuers": (issuer + ".evil",)}, "issuer"),
        (other, {"now": 1_649_980_000.0, "issuers": ("https://sharedeus2.eus2.attest.azure.net",)}, "kid_unknown"),
    ):
        with pytest.raises(AttestError) as caught:
            verify_maa(token, keys, **arguments | changes)
        assert caught.value.code == code
