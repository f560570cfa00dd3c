"""The appraisal policy: a TOML file that says which evidence a relying party accepts. One schema for all platforms.

A table per kind of evidence (``[vtpm]``, ``[sev-snp]``, ``[tdx]``, ``[azure]``, ``[maa]``, ``[gcp]``, ``[none]``,
``[schemes.NAME]``) asks for that evidence: every one named must be there, and none other may be. Instead of tables a
policy may have ``[[any_of]]`` or ``[[all_of]]``, whose members are named and are again tables or compositions
(``composition``). Rules say how to compare; what to compare with stands apart (``reference``). An unknown key, an empty
list or table, a rule without reference values: errors. What skips a check is called ``unsafe_``, and
:attr:`EvidencePolicy.unsafe` lists it for the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from attest import policy_check
from attest.composition import ways_of
from attest.errors import PolicyFormatError
from attest.reference import ReferenceFile, ReferenceValues, read_text, read_toml, with_values
from attest.rules import Id, NoneRules, Table
from attest.schemes.azure import appraise as azure_scheme
from attest.schemes.azure import maa_appraise as maa_scheme
from attest.schemes.gcp import appraise as gcp_scheme
from attest.schemes.sev_snp import appraise as snp_scheme
from attest.schemes.tdx import appraise as tdx_scheme
from attest.schemes.vtpm import appraise as vtpm_scheme

__all__ = [
    "Branch",
    "EvidencePolicy",
    "NoneRules",
    "ReferenceValues",
    "first_report_policy",
    "load_policy",
    "parse_policy",
]


class _Member(Table, frozen=True, rename={"sev_snp": "sev-snp"}):
    """What a policy and a member of a composition have in common."""

    id: Id
    unsafe_accept_vtpm_only: bool = False
    vtpm: vtpm_scheme.Rules | None = None
    sev_snp: snp_scheme.Rules | None = None
    tdx: tdx_scheme.Rules | None = None
    azure: azure_scheme.Rules | None = None
    maa: maa_scheme.Rules | None = None
    gcp: gcp_scheme.Rules | None = None
    none: NoneRules | None = None
    schemes: dict[Id, dict[str, Any]] | None = None
    any_of: tuple[_Member, ...] | None = None
    all_of: tuple[_Member, ...] | None = None
    reference_values: ReferenceValues | None = None


class _PolicyFile(_Member, frozen=True, rename={"sev_snp": "sev-snp"}):
    max_lifetime_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 7200.0


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """One way to satisfy a composition. ``id``: the members on the way, as "eu/milan" or, for all of several,
    "eu+boot". ``views``: policies without composition that must all accept; more than one where two members have
    rules for the same kind of evidence.
    """

    id: str
    views: tuple[EvidencePolicy, ...]


class EvidencePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A checked policy. ``digest`` is SHA-256 (hex) over its content in canonical form: rules and reference values, not
    comments, order or white space. ``max_lifetime_s`` bounds how far ahead the claims' not-after may lie.

    With ``branches`` (any of which must accept) the tables are None: the branches' views have them, under the id and
    digest of the whole. ``reference_files``: id → SHA-256 (hex) of each file of reference values.
    """

    id: str
    digest: str
    max_lifetime_s: float
    unsafe_accept_vtpm_only: bool = False
    vtpm: vtpm_scheme.Rules | None = None
    sev_snp: snp_scheme.Rules | None = None
    tdx: tdx_scheme.Rules | None = None
    azure: azure_scheme.Rules | None = None
    maa: maa_scheme.Rules | None = None
    gcp: gcp_scheme.Rules | None = None
    none: NoneRules | None = None
    schemes: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    reference_values: ReferenceValues = ReferenceValues()
    reference_files: dict[str, str] = msgspec.field(default_factory=dict)
    branches: tuple[Branch, ...] = ()

    @property
    def unsafe(self) -> tuple[str, ...]:
        """The ``unsafe_`` settings that are on, as "table.key", in a composition "branch: table.key"."""
        if self.branches:
            return tuple(f"{branch.id}: {name}" for branch in self.branches for name in self.unsafe_of(branch.id))
        return self._unsafe()

    def unsafe_of(self, branch: str) -> tuple[str, ...]:
        """The same of one branch alone; ``branch`` "" is a policy without any."""
        if not branch:
            return self._unsafe()
        views = [view for known in self.branches if known.id == branch for view in known.views]
        return tuple(dict.fromkeys(name for view in views for name in view._unsafe()))

    def _unsafe(self) -> tuple[str, ...]:
        tables: tuple[tuple[str, Any], ...] = (
            ("", self), ("vtpm.", self.vtpm), ("sev-snp.", self.sev_snp), ("tdx.", self.tdx),
            ("azure.", self.azure), ("maa.", self.maa), ("gcp.", self.gcp),
        )  # fmt: skip
        named = [
            prefix + name
            for prefix, table in tables
            if table is not None
            for name in table.__struct_fields__
            if name.startswith("unsafe_") and getattr(table, name)
        ]
        for scheme, rules in self.schemes.items():
            named += [f"schemes.{scheme}.{name}" for name in rules if name.startswith("unsafe_") and rules[name]]
        return tuple(named)


def load_policy(path: str | Path) -> EvidencePolicy:
    """Read a policy file, and the files of reference values that it names (relative to it). PolicyFormatError."""
    path = Path(path)
    text = read_text(path)
    names = reference_file_names(read_toml(text, str(path)))
    return _parse(text, {name: read_text(path.parent / name) for name in names}, str(path))


def parse_policy(
    text: str,
    reference_values: str | None = None,
    *,
    files: Mapping[str, str] | None = None,
    where: str = "policy",
) -> EvidencePolicy:
    """The policy in ``text``. ``files``: the text of each file of reference values, by the name that the policy gives
    it; ``reference_values`` is that text where there is one file. Raises PolicyFormatError.
    """
    given = dict(files or {})
    if reference_values is not None:
        names = reference_file_names(read_toml(text, where))
        if len(names) != 1:
            raise PolicyFormatError(f"{where}: reference values stand in the policy or in the file that it names")
        given[names[0]] = reference_values
    return _parse(text, given, where)


def reference_file_names(document: Mapping[str, Any]) -> list[str]:
    """The files that a policy's unchecked document names, each once."""
    names = [document["reference_values_file"]] if "reference_values_file" in document else []
    listed = document.get("reference_values_files")
    names += [entry.get("file") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    for key in ("any_of", "all_of"):
        members = document.get(key)
        for member in members if isinstance(members, list) else ():
            names += reference_file_names(member) if isinstance(member, dict) else []
    return list(dict.fromkeys(name for name in names if isinstance(name, str)))


def _parse(text: str, files: Mapping[str, str], where: str) -> EvidencePolicy:
    document, used = with_values(read_toml(text, where), files, where)
    try:
        content = msgspec.convert(document, _PolicyFile)
    except msgspec.ValidationError as error:
        raise PolicyFormatError(f"{where}: {error}") from None
    return _policy(content, used, where)


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
        '"ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded", "TDRelaunchAdvised", '
        '"TDRelaunchAdvisedConfigurationNeeded"]\n'
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


def _policy(content: _PolicyFile, used: tuple[ReferenceFile, ...], where: str) -> EvidencePolicy:
    encoded = msgspec.json.encode(content, order="deterministic")
    whole = EvidencePolicy(
        id=content.id,
        digest=hashlib.sha256(b"cube-mesh/1 policy\x00" + encoded).hexdigest(),
        max_lifetime_s=content.max_lifetime_s,
        reference_files={file.id: file.digest for file in used},
    )
    ways = ways_of(content, where)
    branches = tuple(Branch(id=name, views=tuple(_view(whole, way) for way in views)) for name, views in ways.items())
    for branch in branches:
        for view in branch.views:
            policy_check.check(view, f"{where}: {branch.id}" if branch.id else where)
    if list(ways) == [""]:
        return branches[0].views[0]
    return msgspec.structs.replace(whole, branches=branches)


def _view(whole: EvidencePolicy, tables: Mapping[str, Any]) -> EvidencePolicy:
    return msgspec.structs.replace(whole, **tables)
