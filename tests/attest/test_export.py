"""EAR: what a result says, and that it never says more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from attest.appraise import AttestationResult
from attest.errors import AppraisalFailed, Mismatch
from attest.export import EAR_PROFILE, ear_claims, ear_json, ear_refusal
from attest.policy import parse_policy

POLICY = parse_policy(
    'id = "p"\n[gcp]\naudiences = ["a"]\n[reference_values.gcp]\nimage_digests = ["sha256:' + "ab" * 32 + '"]\n'
)
UNSAFE = parse_policy('id = "p"\n[gcp]\naudiences = ["a"]\nunsafe_any_image = true\n')


def _result(policy: Any = POLICY, **changes: Any) -> AttestationResult:
    fields: dict[str, Any] = {
        "platform": "gcp", "confidential": True, "simulated": False, "claims": {"gcp.aud": "a"},
        "policy_id": policy.id, "policy_digest": policy.digest, "node_id": "spiffe://cube/agent/a",
        "boot_id": b"b" * 16, "expires": 1_800_000_000.5, "evidence_digest": "00" * 32, "appraisal_id": "id",
    }  # fmt: skip
    return AttestationResult(**fields | changes)


def test_an_accepted_result() -> None:
    claims = ear_claims(_result(), POLICY, issued_at=1_799_999_000.9)
    submod = claims["submods"]["gcp"]
    assert claims["eat_profile"] == EAR_PROFILE and claims["iat"] == 1_799_999_000 and claims["exp"] == 1_800_000_000
    assert submod["ear.status"] == "affirming" and submod["ear.trustworthiness-vector"] == {"hardware": 2}
    assert json.loads(ear_json(claims)) == claims
    assert ear_json(claims) == ear_json(dict(reversed(claims.items())))


@pytest.mark.parametrize(
    ("result", "policy"),
    [(_result(UNSAFE), UNSAFE), (_result(simulated=True), POLICY), (_result(confidential=False), POLICY)],
)
def test_less_than_everything_only_warns(result: AttestationResult, policy: Any) -> None:
    submod = ear_claims(result, policy, issued_at=0)["submods"]["gcp"]
    assert submod["ear.status"] == "warning"
    assert ("hardware" in submod["ear.trustworthiness-vector"]) == result.confidential


def test_another_policy_is_an_error() -> None:
    with pytest.raises(ValueError):
        ear_claims(_result(), UNSAFE, issued_at=0)


def test_a_refusal_names_every_mismatch() -> None:
    error = AppraisalFailed((Mismatch("debug", "c", "false", "true"), Mismatch("odd", "d", "x", "y")))
    submod = ear_refusal(error, POLICY, issued_at=0)["submods"]["evidence"]
    assert submod["ear.status"] == "contraindicated"
    assert submod["ear.trustworthiness-vector"] == {"configuration": 96}
    assert [m["code"] for m in submod["cube-mesh.mismatches"]] == ["debug", "odd"]
