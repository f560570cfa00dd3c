"""Evidence in files: one verdict for each scheme and way to ask, never an exception, nothing unverified in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from attest.attester import NoEvidence, evidence_for
from attest.offline import SCHEMES, Case, judge
from attest.policy import parse_policy
from attest.schemes.vtpm.abi import BANK_NAMES, decode_quote_part
from attest.testkit.tokens import MAA_ISSUER, jwks, maa_claims, sign, space_claims
from attest.testkit.tpm import SoftwareTpm

from ..support.example_scheme import attest_example_scheme as example
from .conftest import CLAIMS, NOW

TPM = SoftwareTpm()
NONCE = bytes(range(32))
VTPM = "[{0}vtpm]\npcrs = [0]\nunsafe_any_pcr_values = true\nunsafe_any_ak = true\n"
SPACE = "[{0}gcp]\naudiences = ['https://relying.example']\nunsafe_any_image = true\n"


def _vtpm(**changes: Any) -> Case:
    part = decode_quote_part(TPM.quote(NONCE))
    pcrs = {BANK_NAMES[bank]: {i: v.hex() for i, v in values.items()} for bank, values in part.pcrs.items()}
    fields: dict[str, Any] = {
        "scheme": "vtpm", "now": NOW, "evidence": part.attest, "signature": part.signature, "ak": part.ak_public,
        "pcrs": json.dumps(pcrs).encode(),
    }  # fmt: skip
    return Case(**fields | changes)


def _space(changes: dict[str, Any] | None = None, **fields: Any) -> Case:
    raw = sign(space_claims(NOW, NONCE[:16].hex(), changes))
    return Case(**{"scheme": "gcp", "now": NOW, "evidence": raw, "jwks": jwks()} | fields)


def _maa(**fields: Any) -> Case:
    raw = sign(maa_claims("azurevm", NOW, NONCE))
    return Case(**{"scheme": "maa", "now": NOW, "evidence": raw, "jwks": jwks()} | fields)


def _bundle(collector: Any = TPM, **fields: Any) -> Case:
    return Case(**{"scheme": "bundle", "now": NOW, "evidence": evidence_for(collector, CLAIMS)} | fields)


def test_without_a_policy_the_built_in_one_pins_nothing_and_says_so() -> None:
    for case in (_vtpm(), _space(), _maa(), _bundle()):
        verdict = judge(case)
        assert (verdict.verdict, verdict.reason, verdict.policy_id) == ("accept", "ok", "default"), verdict
        assert "reference values: the built-in policy pins nothing" in verdict.unchecked and verdict.unsafe
        assert verdict.scheme == case.scheme and verdict.claims and verdict.detail == "verified and appraised"


def test_verified_only() -> None:
    debug = {"dbgstat": "enabled"}
    assert judge(_space(debug)).reason == "debug"
    verdict = judge(_space(debug, verify_only=True))
    assert (verdict.verdict, verdict.detail, verdict.policy_id) == ("accept", "verified", "")
    assert "policy: --verify-only stops before appraisal" in verdict.unchecked and not verdict.confidential


def test_a_policy_of_ones_own() -> None:
    policy = parse_policy('id = "mine"\n' + SPACE.format(""))
    verdict = judge(_space(policy=policy))
    assert (verdict.policy_id, verdict.policy_digest) == ("mine", policy.digest) and verdict.confidential
    assert verdict.unsafe == ("gcp.unsafe_any_image",) and verdict.expires == NOW + 3540
    refused = judge(_space({"dbgstat": "enabled"}, policy=policy))
    assert [m.code for m in refused.mismatches] == ["debug"] and refused.claims and not refused.confidential


def test_what_is_no_evidence_is_malformed() -> None:
    for scheme in SCHEMES:
        verdict = judge(Case(scheme=scheme, evidence=b"no evidence", now=NOW, jwks=jwks(), td_quote=b""))
        assert verdict.verdict == "reject" and not verdict.claims and verdict.expires is None
    assert judge(Case(scheme="azure", evidence=b"x", now=NOW)).malformed
    assert not judge(_maa(jwks=None)).malformed


def test_a_collection_of_nothing() -> None:
    assert judge(_bundle(NoEvidence())).reason == "part_missing"


def _composed(*members: str, at: str = "any_of") -> Any:
    tables = "".join(
        f'[[{at}]]\nid = "{name}"\n' + text.format(f"{at}.") for name, text in zip("abc", members, strict=False)
    )
    return parse_policy('id = "fleet"\n' + tables)


def test_compositions() -> None:
    newer = SPACE + "min_swversion = 260000\n"
    verdict = judge(_space(policy=_composed(newer, SPACE)))
    assert (verdict.verdict, verdict.branch, verdict.policy_id) == ("accept", "b", "fleet") and verdict.confidential
    assert verdict.unsafe == ("gcp.unsafe_any_image",) and verdict.expires == NOW + 3540
    both = judge(_space(policy=_composed(SPACE, SPACE + "min_swversion = 1\n", at="all_of")))
    assert (both.verdict, both.branch) == ("accept", "a+b")
    refused = judge(_space(policy=_composed(newer, newer)))
    assert [(m.branch, m.code) for m in refused.mismatches] == [("a", "swversion"), ("b", "swversion")]
    assert judge(_vtpm(policy=_composed(VTPM, VTPM), nonce=NONCE)).expires is None
    only = judge(_space(policy=_composed(newer, newer), verify_only=True))
    assert (only.verdict, only.branch, only.policy_id) == ("accept", "", "")


SCHEME = example.ExampleScheme()
EXAMPLE = f'[schemes.example]\nkey = "{example.KEY.hex()}"\nmin_level = 3\n'


def _example(**fields: Any) -> Case:
    whole = {"scheme": "example", "now": NOW, "evidence": example.evidence(NONCE), "schemes": (SCHEME,)} | fields
    return Case(**whole)


def test_a_scheme_of_a_third_party() -> None:
    verdict = judge(_example(policy=parse_policy('id = "p"\n' + EXAMPLE)))
    assert verdict.verdict == "accept" and "the scheme: its code is a third party's" in verdict.unchecked
    assert judge(_example(policy=parse_policy('id = "p"\n' + SPACE.format("")))).reason == "part_unknown"
    table = EXAMPLE.replace("[schemes", "[any_of.schemes")
    composed = parse_policy(f'id = "p"\n[[any_of]]\nid = "m"\n{table}')
    assert judge(_example(policy=composed)).branch == "m"
    with pytest.raises(KeyError):
        judge(_example(schemes=()))


def test_a_scheme_of_a_third_party_without_a_policy() -> None:
    verdict = judge(_example(verify_only=True))
    assert (verdict.verdict, verdict.policy_id) == ("accept", ""), verdict
    assert judge(_example(evidence=b"x", verify_only=True)).verdict == "reject"


def test_the_issuer_is_the_callers_or_named_as_unchecked() -> None:
    assert judge(_maa(issuer=MAA_ISSUER + ".evil")).reason == "issuer"
    assert any(text.startswith("issuer") for text in judge(_maa()).unchecked)
