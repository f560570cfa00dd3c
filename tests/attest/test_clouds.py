"""The whole door for Azure and for tokens: evidence of a channel, through the verifier, with one part wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from attest.attester import evidence_for
from attest.binding import Claims, Expected
from attest.errors import AppraisalFailed, AttestError, PolicyFormatError
from attest.evidence import (
    AZURE_HCL_TYPE,
    ENDORSEMENTS,
    HARDWARE,
    TOKEN,
    TOKEN_TYPE,
    TPM_QUOTE,
    Part,
    encode_certificates,
)
from attest.jws import nonce_forms, parse_jwks
from attest.policy import first_report_policy, parse_policy
from attest.testkit.azure import hcl_report
from attest.testkit.snp import SnpPlatform
from attest.testkit.tokens import MAA_ISSUER, fixed_key, jwks, maa_claims, sign, space_claims
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import Verifier

from .conftest import CLAIMS, NOW

PLATFORM = SnpPlatform(b"azure door")
TPM = SoftwareTpm(key=fixed_key("vtpm-ak"))
AZURE = first_report_policy("azure", "vtpm", "sev-snp")
KEYS = parse_jwks(jwks())


class _Parts:
    """A collector whose parts a test chooses."""

    scheme = "test"

    def __init__(self, make: Any) -> None:
        self._make = make

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        parts: dict[int, Part] = self._make(data_hash)
        return parts


def _appraise(verifier: Verifier, make: Any, claims: Claims = CLAIMS) -> Any:
    expected = Expected(**{name: getattr(CLAIMS, name) for name in Expected.__struct_fields__})
    return verifier.appraise(evidence_for(_Parts(make), claims), expected, now=NOW)


def _azure(data_hash: bytes, *, tpm: SoftwareTpm = TPM, drop: int | None = None, **hcl: Any) -> Mapping[int, Part]:
    parts = tpm.parts(data_hash) | {
        HARDWARE: Part(AZURE_HCL_TYPE, hcl_report(PLATFORM, **hcl)),
        ENDORSEMENTS: encode_certificates(PLATFORM.endorsements),
    }
    return {key: part for key, part in parts.items() if key != drop}


def test_azure() -> None:
    verifier = Verifier(AZURE, allow_simulated=True)
    result = _appraise(verifier, _azure)
    assert result.platform == "azure+simulated-sev-snp+vtpm" and result.simulated and not result.confidential
    assert result.claims["azure.vmUniqueId"] == "VM-1" and result.claims["measurement"]
    for make, code in (
        (lambda h: _azure(h, tpm=SoftwareTpm(key=fixed_key("service-other"))), "ak_mismatch"),
        (lambda h: _azure(h[::-1]), "nonce_mismatch"),
        (lambda h: _azure(h, report_data=bytes(64)), "claims_hash"),
        (lambda h: _azure(h, drop=TPM_QUOTE), "part_missing"),
        (lambda h: _azure(h, drop=HARDWARE), "part_missing"),
        (lambda h: _azure(h) | {TOKEN: Part(TOKEN_TYPE, b"x")}, "part_unknown"),
    ):
        with pytest.raises(AttestError) as caught:
            _appraise(verifier, make)
        assert caught.value.code == code
    with pytest.raises(AttestError) as caught:
        _appraise(Verifier(AZURE), _azure)
    assert caught.value.code == "untrusted_chain"


def test_azure_rules_reach_the_result() -> None:
    text = 'id = "strict"\n[azure]\nrequire_ak_certificate = false\n'
    text += "[vtpm]\npcrs = [0]\nunsafe_any_pcr_values = true\nunsafe_any_ak = true\n"
    text += "[sev-snp]\nunsafe_any_tcb = true\nunsafe_any_measurement = true\n"
    policy = parse_policy(text + '[reference_values.azure]\nvm_unique_ids = ["VM-2"]\n')
    with pytest.raises(AppraisalFailed) as caught:
        _appraise(Verifier(policy, allow_simulated=True), _azure)
    assert [m.code for m in caught.value.mismatches] == ["vm_id"]
    certified = parse_policy(text.replace("require_ak_certificate = false", "require_ak_certificate = true"))
    with pytest.raises(AttestError) as lacking:
        _appraise(Verifier(certified, allow_simulated=True), _azure)
    assert lacking.value.code == "ak_not_certified"


def _maa(data_hash: bytes, changes: dict[str, Any] | None = None) -> dict[int, Part]:
    claims = maa_claims("azurevm", NOW, nonce_forms(data_hash)[1], changes)
    return {TOKEN: Part(TOKEN_TYPE, sign(claims))}


def _space(data_hash: bytes, changes: dict[str, Any] | None = None) -> dict[int, Part]:
    return {TOKEN: Part(TOKEN_TYPE, sign(space_claims(NOW, nonce_forms(data_hash)[1].decode(), changes)))}


MAA_POLICY = parse_policy(f'id = "m"\n[maa]\nissuers = ["{MAA_ISSUER}"]\nunsafe_any_measurement = true\n')
GCP_POLICY = parse_policy('id = "g"\n[gcp]\naudiences = ["https://relying.example"]\nunsafe_any_image = true\n')


@pytest.mark.parametrize(("policy", "make"), [(MAA_POLICY, _maa), (GCP_POLICY, _space)], ids=["maa", "gcp"])
def test_tokens(policy: Any, make: Any) -> None:
    result = _appraise(Verifier(policy, token_keys=KEYS), make)
    assert result.platform == ("maa" if make is _maa else "gcp") and result.confidential and not result.simulated
    for parts, verifier, code in (
        (lambda h: make(h[::-1]), Verifier(policy, token_keys=KEYS), "nonce_mismatch"),
        (lambda h: make(h, {"iss": "https://evil"}), Verifier(policy, token_keys=KEYS), "issuer"),
        (make, Verifier(policy), "kid_unknown"),
        (lambda h: {}, Verifier(policy, token_keys=KEYS), "part_missing"),
        (lambda h: {TOKEN: Part("text/plain", make(h)[TOKEN].body)}, Verifier(policy, token_keys=KEYS), "part_unknown"),
    ):
        with pytest.raises(AttestError) as caught:
            _appraise(verifier, parts)
        assert caught.value.code == code


def test_a_debug_token_is_refused_by_its_rule() -> None:
    with pytest.raises(AppraisalFailed) as caught:
        _appraise(Verifier(GCP_POLICY, token_keys=KEYS), lambda h: _space(h, {"dbgstat": "enabled"}))
    assert caught.value.code == "debug"


@pytest.mark.parametrize(
    "tables",
    [
        "[maa]\nunsafe_any_measurement = true\n",
        "[gcp]\nunsafe_any_image = true\n",
        "[azure]\nrequire_ak_certificate = true\n",
        f'[maa]\nissuers = ["{MAA_ISSUER}"]\n',
        '[gcp]\naudiences = ["a"]\nunsafe_any_audience = true\nunsafe_any_image = true\n',
        '[maa]\nissuers = ["http://x"]\nunsafe_any_measurement = true\n',
        "[maa]\nunsafe_any_issuer = true\nunsafe_any_measurement = true\n"
        "[gcp]\nunsafe_any_audience = true\nunsafe_any_image = true\n",
        '[vtpm]\npcrs = [0]\nunsafe_any_ak = true\npcr_bank = "sha1"\nunsafe_any_pcr_values = true\n',
    ],
)
def test_policies_that_cannot_be(tables: str) -> None:
    with pytest.raises(PolicyFormatError):
        parse_policy('id = "p"\nunsafe_accept_vtpm_only = true\n' + tables)
