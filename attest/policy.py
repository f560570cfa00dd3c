"""The appraisal policy: a TOML file that says which evidence a relying party accepts. One schema for all platforms.

A table per kind of evidence (``[vtpm]``, ``[sev-snp]``, ``[tdx]``, ``[azure]``, ``[maa]``, ``[gcp]``, ``[none]``) asks
for that evidence: every one named must be there, and none other may be. Rules say how to compare; what to compare with
stands apart, in ``[reference_values.*]`` or in the file that ``reference_values_file`` names. An unknown key, an empty
list or table, a rule without reference values: errors. What skips a check is called ``unsafe_``, and
:attr:`EvidencePolicy.unsafe` lists it for the log.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from attest.chain import load_certificate
from attest.errors import MalformedEvidence, PolicyFormatError
from attest.rules import Table
from attest.schemes.azure import appraise as azure_scheme
from attest.schemes.azure import maa_appraise as maa_scheme
from attest.schemes.gcp import appraise as gcp_scheme
from attest.schemes.sev_snp import appraise as snp_scheme
from attest.schemes.tdx import appraise as tdx_scheme
from attest.schemes.vtpm import appraise as vtpm_scheme

__all__ = ["EvidencePolicy", "NoneRules", "ReferenceValues", "first_report_policy", "load_policy", "parse_policy"]

MAX_POLICY_BYTES = 262_144


class NoneRules(Table, frozen=True):
    """``[none]``: accept TLS clients that send claims only (attester "none"). Servers are never accepted so."""

    accept_unattested_clients: Literal[True]


class ReferenceValues(Table, frozen=True, rename={"sev_snp": "sev-snp"}):
    """Reference values by platform."""

    vtpm: vtpm_scheme.ReferenceValues = vtpm_scheme.ReferenceValues()
    sev_snp: snp_scheme.ReferenceValues = snp_scheme.ReferenceValues()
    tdx: tdx_scheme.ReferenceValues = tdx_scheme.ReferenceValues()
    azure: azure_scheme.ReferenceValues = azure_scheme.ReferenceValues()
    maa: maa_scheme.ReferenceValues = maa_scheme.ReferenceValues()
    gcp: gcp_scheme.ReferenceValues = gcp_scheme.ReferenceValues()


class _PolicyFile(Table, frozen=True, rename={"sev_snp": "sev-snp"}):
    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
    max_lifetime_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 7200.0
    unsafe_accept_vtpm_only: bool = False
    vtpm: vtpm_scheme.Rules | None = None
    sev_snp: snp_scheme.Rules | None = None
    tdx: tdx_scheme.Rules | None = None
    azure: azure_scheme.Rules | None = None
    maa: maa_scheme.Rules | None = None
    gcp: gcp_scheme.Rules | None = None
    none: NoneRules | None = None
    reference_values: ReferenceValues | None = None
    reference_values_file: str | None = None


class EvidencePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A checked policy. ``digest`` is SHA-256 (hex) over its content in canonical form: rules and reference values, not
    comments, order or white space. ``max_lifetime_s`` bounds how far ahead the claims' not-after may lie.
    """

    id: str
    digest: str
    max_lifetime_s: float
    unsafe_accept_vtpm_only: bool
    vtpm: vtpm_scheme.Rules | None
    sev_snp: snp_scheme.Rules | None
    tdx: tdx_scheme.Rules | None
    azure: azure_scheme.Rules | None
    maa: maa_scheme.Rules | None
    gcp: gcp_scheme.Rules | None
    none: NoneRules | None
    reference_values: ReferenceValues

    @property
    def unsafe(self) -> tuple[str, ...]:
        """The ``unsafe_`` settings that are on, as "table.key"."""
        tables: tuple[tuple[str, Any], ...] = (
            ("", self), ("vtpm.", self.vtpm), ("sev-snp.", self.sev_snp), ("tdx.", self.tdx),
            ("azure.", self.azure), ("maa.", self.maa), ("gcp.", self.gcp),
        )  # fmt: skip
        return tuple(
            prefix + name
            for prefix, table in tables
            if table is not None
            for name in table.__struct_fields__
            if name.startswith("unsafe_") and getattr(table, name)
        )


def load_policy(path: str | Path) -> EvidencePolicy:
    """Read a policy file, and its reference values' file if it names one (relative to it). PolicyFormatError."""
    path = Path(path)
    text = _read(path)
    document = _toml(text, str(path))
    name = document.get("reference_values_file")
    reference = _read(path.parent / name) if isinstance(name, str) else None
    return parse_policy(text, reference, where=str(path))


def parse_policy(text: str, reference_values: str | None = None, *, where: str = "policy") -> EvidencePolicy:
    """The policy in ``text``; ``reference_values`` is the text of the file that it names. Raises PolicyFormatError."""
    document = _toml(text, where)
    has_file = "reference_values_file" in document
    if has_file != (reference_values is not None) or (has_file and "reference_values" in document):
        raise PolicyFormatError(f"{where}: reference values stand in the policy or in the file that it names")
    if reference_values is not None:
        document["reference_values"] = _toml(reference_values, f"{where}: reference values")
    try:
        content = msgspec.convert(document, _PolicyFile)
    except msgspec.ValidationError as error:
        raise PolicyFormatError(f"{where}: {error}") from None
    policy = _policy(content)
    _check(policy, where)
    return policy


Platform = Literal["vtpm", "sev-snp", "tdx", "azure", "maa", "gcp"]
# What accepts any genuine evidence of a platform and pins nothing: each skipped comparison by its own name.
_FIRST_REPORT: dict[Platform, str] = {
    "vtpm": "[vtpm]\npcrs = [0]\nunsafe_any_pcr_values = true\nunsafe_any_ak = true\n",
    "sev-snp": (
        "[sev-snp]\nvmpl = [0, 1, 2, 3]\npermit_provisional_firmware = true\n"
        "unsafe_any_tcb = true\nunsafe_any_measurement = true\n"
    ),
    "tdx": (
        '[tdx]\ntcb_statuses = ["UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", '
        '"ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"]\n'
        "unsafe_allow_sept_ve = true\nunsafe_any_service_td = true\nunsafe_any_mr_td = true\nunsafe_any_rtmrs = true\n"
    ),
    "azure": "[azure]\nunsafe_allow_no_secure_boot = true\n",
    "maa": "[maa]\nunsafe_any_issuer = true\nunsafe_any_measurement = true\n",
    "gcp": (
        '[gcp]\nhardware = ["GCP_AMD_SEV", "GCP_AMD_SEV_ES", "GCP_AMD_SEV_SNP", "GCP_INTEL_TDX"]\n'
        "unsafe_any_audience = true\nunsafe_any_image = true\nunsafe_any_support = true\n"
    ),
}


def first_report_policy(*platforms: Platform) -> EvidencePolicy:
    """Accepts any genuine evidence of these platforms, pins nothing, and says so in ``unsafe``: for the first look at a
    machine, whose result ``verifier.policy_from_result`` turns into a strict policy. Never for traffic.
    """
    alone = set(platforms) == {"vtpm"}
    text = 'id = "first-report"\n' + ("unsafe_accept_vtpm_only = true\n" if alone else "")
    return parse_policy(text + "".join(_FIRST_REPORT[name] for name in _FIRST_REPORT if name in platforms))


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PolicyFormatError(f"{path}: {error.strerror}") from None
    if len(raw) > MAX_POLICY_BYTES:
        raise PolicyFormatError(f"{path}: above {MAX_POLICY_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise PolicyFormatError(f"{path}: not UTF-8") from None


def _toml(text: str, where: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyFormatError(f"{where}: {error}") from None
    _refuse_empty(document, where)
    return document


def _refuse_empty(value: object, where: str) -> None:
    """An empty list, table or text would read as "nothing to check": whoever means that leaves the key out."""
    if value in ({}, [], ""):
        raise PolicyFormatError(f"{where}: is empty")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_empty(item, f"{where}: {key}")
    elif isinstance(value, list):
        for item in value:
            _refuse_empty(item, where)


def _policy(content: _PolicyFile) -> EvidencePolicy:
    canonical = msgspec.structs.replace(content, reference_values_file=None)
    encoded = msgspec.json.encode(canonical, order="deterministic")
    return EvidencePolicy(
        id=content.id,
        digest=hashlib.sha256(b"cube-mesh/1 policy\x00" + encoded).hexdigest(),
        max_lifetime_s=content.max_lifetime_s,
        unsafe_accept_vtpm_only=content.unsafe_accept_vtpm_only,
        vtpm=content.vtpm,
        sev_snp=content.sev_snp,
        tdx=content.tdx,
        azure=content.azure,
        maa=content.maa,
        gcp=content.gcp,
        none=content.none,
        reference_values=content.reference_values or ReferenceValues(),
    )


def _check(policy: EvidencePolicy, where: str) -> None:
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
    if not asked and policy.none is None:
        kinds = ", ".join(f"[{name.replace('_', '-')}]" for name in (*tables, "none"))
        problems.append(f"asks for no evidence: one of {kinds} is required")
    if asked and policy.none is not None:
        problems.append("[none] beside another kind of evidence")
    hardware = policy.sev_snp or policy.tdx
    if policy.sev_snp is not None and policy.tdx is not None:
        problems.append("[sev-snp] and [tdx]: evidence has room for one kind of hardware")
    if policy.azure is not None and (policy.vtpm is None or hardware is None):
        problems.append("[azure] says how hardware and vTPM hang together: it needs [vtpm] and the hardware's table")
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
