"""What makes a well-formed policy unusable: rules without values, values without rules, contradictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attest.chain import load_certificate
from attest.errors import MalformedEvidence, PolicyFormatError
from attest.reference import ReferenceValues
from attest.schemes.gcp.certificate import Instances
from attest.schemes.sev_snp import appraise as snp_scheme
from attest.schemes.tdx import appraise as tdx_scheme
from attest.schemes.vtpm import appraise as vtpm_scheme

if TYPE_CHECKING:
    from attest.policy import EvidencePolicy

__all__ = ["check"]


def check(policy: EvidencePolicy, where: str) -> None:
    """All problems of a policy without composition at once, as one PolicyFormatError."""
    problems = _table_problems(policy)
    if policy.vtpm is not None:
        named = policy.sev_snp is not None or policy.tdx is not None
        problems += _vtpm_problems(policy.vtpm, policy.reference_values.vtpm, named_by_hardware=named)
    if policy.sev_snp is not None:
        problems += snp_scheme.problems(policy.sev_snp, policy.reference_values.sev_snp)
    if policy.tdx is not None:
        problems += tdx_scheme.problems(policy.tdx, policy.reference_values.tdx)
    problems += _token_problems(policy)
    if problems:
        raise PolicyFormatError(f"{where}: {'; '.join(problems)}")


def _table_problems(policy: EvidencePolicy) -> list[str]:
    problems = []
    tables = {
        name: (getattr(policy, name), getattr(policy.reference_values, name))
        for name in ReferenceValues.__struct_fields__
    }
    asked = [name for name, (rules, _) in tables.items() if rules is not None]
    if not asked and policy.none is None and not policy.schemes:
        kinds = ", ".join(f"[{name.replace('_', '-')}]" for name in (*tables, "none"))
        problems.append(f"asks for no evidence: one of {kinds} is required")
    if (asked or policy.schemes) and policy.none is not None:
        problems.append("[none] beside another kind of evidence")
    hardware = policy.sev_snp or policy.tdx
    if policy.sev_snp is not None and policy.tdx is not None:
        problems.append("[sev-snp] and [tdx]: evidence has room for one kind of hardware")
    if policy.azure is not None and (policy.vtpm is None or hardware is None):
        problems.append("[azure] says how hardware and vTPM hang together: it needs [vtpm] and the hardware's table")
    if policy.azure is not None and hardware is not None and hardware.launch_endorsement is not None:
        problems.append("[azure] and launch_endorsement: Google endorses its own firmware only")
    if policy.schemes and (hardware or policy.azure is not None or len(policy.schemes) > 1):
        problems.append("[schemes.*]: evidence has room for one kind of hardware")
    asks_ccel = policy.tdx is not None and (policy.tdx.needs_log or policy.reference_values.tdx.event_digests)
    if asks_ccel and policy.vtpm is not None:
        problems.append("[tdx] beside [vtpm]: the event log is the TPM's, so rules that ask one belong in [vtpm]")
    if policy.maa is not None and policy.gcp is not None:
        problems.append("[maa] and [gcp]: evidence has room for one token")
    for field, (rules, values) in tables.items():
        name = field.replace("_", "-")
        if rules is None and values != type(values)():
            problems.append(f"reference values for [{name}], which is not asked for")
    return problems


def _vtpm_problems(
    rules: vtpm_scheme.Rules, values: vtpm_scheme.ReferenceValues, *, named_by_hardware: bool
) -> list[str]:
    problems = []
    pinned = bool(values.ak_names or values.ak_roots)
    if not pinned and not rules.unsafe_any_ak and not named_by_hardware:
        problems.append("reference_values.vtpm: no AK is pinned (ak_names) or certified (ak_roots)")
    if pinned and rules.unsafe_any_ak:
        problems.append("vtpm.unsafe_any_ak contradicts the AKs in the reference values")
    if values.gce != Instances() and not values.ak_roots:
        problems.append("reference_values.vtpm.gce: what a certificate says counts only with ak_roots")
    wanted, given = {str(index) for index in rules.pcrs}, set(values.pcr_values)
    if rules.unsafe_any_pcr_values and given:
        problems.append("vtpm.unsafe_any_pcr_values contradicts the PCR values")
    given |= set(values.event_digests)
    if set(values.pcr_values) & set(values.event_digests):
        problems.append("reference_values.vtpm: pcr_values and event_digests of the same PCR")
    if rules.pcr_bank == "sha1" and not rules.unsafe_allow_sha1:
        problems.append("vtpm.pcr_bank is sha1: only with unsafe_allow_sha1 = true")
    if not rules.unsafe_any_pcr_values and wanted != given:
        lone = ", ".join(sorted(wanted ^ given, key=int))
        problems.append(f"reference_values.vtpm.pcr_values: rule or value missing for PCR {lone}")
    for pem in values.ak_roots:
        try:
            load_certificate(pem.encode())
        except MalformedEvidence:
            problems.append("reference_values.vtpm.ak_roots: not a PEM certificate")
    return problems


def _token_problems(policy: EvidencePolicy) -> list[str]:
    problems = []
    if policy.maa is not None:
        maa, values = policy.maa, policy.reference_values.maa
        if maa.unsafe_any_issuer == bool(maa.issuers):
            problems.append("maa: give issuers, or unsafe_any_issuer = true, not both")
        if maa.unsafe_any_measurement == bool(values.measurements):
            problems.append("maa: give measurements, or unsafe_any_measurement = true, not both")
    if policy.gcp is not None:
        if policy.gcp.unsafe_any_audience == bool(policy.gcp.audiences):
            problems.append("gcp: give audiences, or unsafe_any_audience = true, not both")
        if policy.gcp.unsafe_any_image == bool(policy.reference_values.gcp.image_digests):
            problems.append("gcp: give image_digests, or unsafe_any_image = true, not both")
    return problems
