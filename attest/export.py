"""Attestation results for others: EAR, the EAT Attestation Result (draft-ietf-rats-ear), as JSON claims.

The claims are not signed here: a host that hands them on signs them with its own key and says who it is. A trust vector
is given only as far as the policy really looked; a category that nobody looked at is absent, which EAR reads as "no
claim". Results of simulated platforms never affirm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attest.appraise import AttestationResult
from attest.errors import AppraisalFailed
from attest.policy import EvidencePolicy

__all__ = ["EAR_PROFILE", "ear_claims", "ear_json", "ear_refusal"]

EAR_PROFILE = "tag:github.com,2023:veraison/ear"
_AFFIRMING, _WARNING, _CONTRAINDICATED = 2, 32, 96
_STATUS = {_AFFIRMING: "affirming", _WARNING: "warning", _CONTRAINDICATED: "contraindicated"}
# Codes of mismatches by the category of the trust vector (draft-ietf-rats-ar4si) that they contraindicate.
_CATEGORY = {
    "measurement": "executables", "mr_td": "executables", "image": "executables", "rtmr": "executables",
    "pcr": "executables", "event": "executables",
    "debug": "configuration", "migrate_ma": "configuration", "secure_boot": "configuration", "vmpl": "configuration",
    "tcb_floor": "hardware", "tcb_status": "hardware", "product": "hardware", "hardware": "hardware",
    "ak_not_pinned": "instance-identity", "chip_id": "instance-identity", "vm_id": "instance-identity",
}  # fmt: skip


def ear_claims(
    result: AttestationResult,
    policy: EvidencePolicy,
    *,
    issued_at: float,
    developer: str = "cube-mesh",
    build: str = "",
) -> dict[str, Any]:
    """EAR claims of an accepted result. ``issued_at``: Unix seconds; ``policy`` is the one that it was appraised by.

    A policy with an ``unsafe_`` setting (in a composition: in the branch that accepted) gives ``warning`` instead of
    ``affirming``. Not checked: that ``policy`` is the result's own beyond its digest, which must be equal (ValueError).
    """
    if policy.digest != result.policy_digest:
        raise ValueError("the result was appraised under another policy")
    unsafe = policy.unsafe_of(result.branch)
    status = _WARNING if unsafe or result.simulated or not result.confidential else _AFFIRMING
    vector = {"hardware": _AFFIRMING} if result.confidential else {}
    submod = {
        "ear.status": _STATUS[status],
        "ear.trustworthiness-vector": vector,
        "ear.appraisal-policy-id": f"{result.policy_id}:{result.policy_digest}",
        "cube-mesh.platform": result.platform,
        "cube-mesh.node-id": result.node_id,
        "cube-mesh.confidential": result.confidential,
        "cube-mesh.simulated": result.simulated,
        "cube-mesh.evidence-digest": result.evidence_digest,
        "cube-mesh.branch": result.branch,
        "cube-mesh.reference-values": dict(result.reference_values),
        "cube-mesh.unsafe": list(unsafe),
        "cube-mesh.claims": dict(result.claims),
    }
    head = _head(issued_at, developer, build) | {"exp": int(result.expires), "jti": result.appraisal_id}
    return head | {"submods": {result.platform: submod}}


def ear_refusal(
    error: AppraisalFailed, policy: EvidencePolicy, *, issued_at: float, developer: str = "cube-mesh", build: str = ""
) -> dict[str, Any]:
    """EAR claims of genuine evidence that a policy refused, with every mismatch. Evidence that did not verify has no
    EAR: nothing is known about its maker.
    """
    vector = {_CATEGORY[m.code]: _CONTRAINDICATED for m in error.mismatches if m.code in _CATEGORY}
    mismatches = [{name: getattr(m, name) for name in m.__struct_fields__} for m in error.mismatches]
    submod = {
        "ear.status": _STATUS[_CONTRAINDICATED],
        "ear.trustworthiness-vector": vector,
        "ear.appraisal-policy-id": f"{policy.id}:{policy.digest}",
        "cube-mesh.mismatches": mismatches,
    }
    return _head(issued_at, developer, build) | {"submods": {"evidence": submod}}


def _head(issued_at: float, developer: str, build: str) -> dict[str, Any]:
    verifier = {"developer": developer, "build": build or developer}
    return {"eat_profile": EAR_PROFILE, "iat": int(issued_at), "ear.verifier-id": verifier}


def ear_json(claims: Mapping[str, Any]) -> bytes:
    """The claims as JSON with sorted members, so that equal results give equal bytes."""
    return json.dumps(claims, sort_keys=True, separators=(",", ":")).encode()
