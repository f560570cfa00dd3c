"""Rules for SEV-SNP reports: which guests, which firmware, which machines. Compares verified fields only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from attest.errors import Mismatch
from attest.rules import Hex16, Hex32, Hex48, Hex64, Table, require, require_if_listed, require_one_of
from attest.schemes.gcp import launch as gce
from attest.schemes.sev_snp.abi import PLATFORM_INFO, GuestPolicy, Report, Tcb, Version
from attest.schemes.sev_snp.verify import VerifiedReport

__all__ = ["ReferenceValues", "Rules", "TcbFloor", "appraise_report", "claims_of", "problems"]

Level = Annotated[int, msgspec.Meta(ge=0, le=255)]
BitNumber = Annotated[int, msgspec.Meta(ge=0, le=63)]
PlatformBit = Literal["smt", "tsme", "ecc", "rapl_disabled", "ciphertext_hiding", "alias_check", "tio"]
Vmpl = Annotated[int, msgspec.Meta(ge=0, le=3)]


class TcbFloor(Table, frozen=True):
    """Least acceptable level of each component; ``fmc`` counts on Turin only."""

    bootloader: Level
    tee: Level
    snp: Level
    microcode: Level
    fmc: Level = 0


class VersionFloor(Table, frozen=True):
    """Least acceptable version; ``build`` is the firmware's, and not part of a guest policy's ABI."""

    major: Level
    minor: Level
    build: Level = 0


class Rules(Table, frozen=True):
    """``[sev-snp]``. ``min_tcb`` is compared with the reported TCB, which the chip's key is derived from.

    ``min_policy_abi``: of the guest policy; ``min_firmware``: of the current and of the committed firmware, which must
    be one and the same unless ``permit_provisional_firmware``. ``allow_``: what the guest policy may let the host do;
    ``require_``: what it must demand. ``platform_info_allowed``: the bits (``abi.PLATFORM_INFO``) that may be set, any
    when left out. ``required_*_mitigations``: bit numbers. ``require_revocation_check``: AMD's list must be handed in.
    ``launch_endorsement``: Google must have endorsed the measurement, which then need not be listed.

    Debug, migration agents and masked chip ids are refused unless their ``unsafe_`` form says otherwise.
    ``unsafe_any_tcb`` and ``unsafe_any_measurement`` skip those comparisons: for a first look at a machine only.
    """

    products: tuple[Literal["Milan", "Genoa", "Turin"], ...] = ("Milan", "Genoa", "Turin")
    signing_keys: tuple[Literal["vcek", "vlek"], ...] = ("vcek", "vlek")
    vmpl: tuple[Vmpl, ...] = (0,)
    min_guest_svn: Annotated[int, msgspec.Meta(ge=0)] = 0
    min_tcb: TcbFloor | None = None
    min_launch_tcb: TcbFloor | None = None
    min_policy_abi: VersionFloor | None = None
    min_firmware: VersionFloor | None = None
    permit_provisional_firmware: bool = False
    allow_smt: bool = True
    allow_cxl: bool = True
    require_single_socket: bool = False
    require_aes256_xts: bool = False
    require_rapl_disabled: bool = False
    require_ciphertext_hiding: bool = False
    require_page_swap_disabled: bool = False
    platform_info_allowed: tuple[PlatformBit, ...] | None = None
    platform_info_required: tuple[PlatformBit, ...] = ()
    required_launch_mitigations: tuple[BitNumber, ...] = ()
    required_current_mitigations: tuple[BitNumber, ...] = ()
    require_id_block: bool = False
    require_author_key: bool = False
    require_revocation_check: bool = False
    launch_endorsement: gce.SnpLaunchRules | None = None
    unsafe_allow_debug: bool = False
    unsafe_allow_migration: bool = False
    unsafe_allow_masked_chip_id: bool = False
    unsafe_any_tcb: bool = False
    unsafe_any_measurement: bool = False


class ReferenceValues(Table, frozen=True):
    """``[reference_values.sev-snp]``: allowed values, lower-case hex; a list that is absent is not compared, except
    that measurements are required unless they are endorsed. ``csp_ids`` are the names in VLEKs. ``launch_roots``: PEM,
    where launch endorsements may lead; absent, to Google's root.
    """

    measurements: tuple[Hex48, ...] = ()
    host_data: tuple[Hex32, ...] = ()
    family_ids: tuple[Hex16, ...] = ()
    image_ids: tuple[Hex16, ...] = ()
    id_key_digests: tuple[Hex48, ...] = ()
    author_key_digests: tuple[Hex48, ...] = ()
    report_ids: tuple[Hex32, ...] = ()
    report_ids_ma: tuple[Hex32, ...] = ()
    chip_ids: tuple[Hex64, ...] = ()
    csp_ids: tuple[str, ...] = ()
    launch_roots: tuple[str, ...] = ()


def problems(rules: Rules, reference: ReferenceValues) -> list[str]:
    """What makes these rules unusable, in words: a comparison without values, or with values and told to be skipped."""
    found = []
    if rules.unsafe_any_measurement == bool(reference.measurements or rules.launch_endorsement):
        found.append("sev-snp: give measurements or launch_endorsement, or else unsafe_any_measurement = true")
    if rules.unsafe_any_tcb == (rules.min_tcb is not None):
        found.append("sev-snp: give min_tcb, or unsafe_any_tcb = true, not both")
    found += gce.problems("sev-snp", rules.launch_endorsement, reference.launch_roots)
    if rules.require_id_block and not (reference.id_key_digests or reference.author_key_digests):
        found.append(
            "sev-snp: require_id_block needs id_key_digests or author_key_digests: anybody can make an id block"
        )
    return found


def appraise_report(
    verified: VerifiedReport, rules: Rules, reference: ReferenceValues, launch: gce.Launch | None = None
) -> tuple[Mismatch, ...]:
    """Every rule that does not hold. ``launch``: of the verified endorsement that was handed in for this report."""
    return (
        *gce.appraise_launch(launch, rules.launch_endorsement),
        *_guest_policy(verified.report.policy, rules),
        *_guest(verified.report, rules, reference),
        *_author_key(verified, rules, reference),
        *_origin(verified, rules, reference),
        *_firmware(verified, rules),
        *_platform(verified.report, rules),
    )


def _guest_policy(policy: GuestPolicy, rules: Rules) -> tuple[Mismatch, ...]:
    """What the guest's owner lets the host do, and demands of it."""
    mismatches: tuple[Mismatch, ...] = ()
    for field, code, allowed in (
        ("debug", "debug", rules.unsafe_allow_debug),
        ("migrate_ma", "migrate_ma", rules.unsafe_allow_migration),
        ("smt", "policy_smt", rules.allow_smt),
        ("cxl", "policy_cxl", rules.allow_cxl),
    ):
        mismatches += require(allowed or not getattr(policy, field), code, f"policy.{field}", "false", "true")
    for field in ("single_socket", "aes256_xts", "rapl_disabled", "ciphertext_hiding", "page_swap_disabled"):
        wanted = getattr(rules, f"require_{field}")
        mismatches += require(getattr(policy, field) or not wanted, field, f"policy.{field}", "true", "false")
    if (floor := rules.min_policy_abi) is not None:
        actual, least = (policy.abi_major, policy.abi_minor), (floor.major, floor.minor)
        mismatches += require(
            actual >= least, "policy_abi", "policy.abi", f"at least {_dotted(*least)}", _dotted(*actual)
        )
    return mismatches


def _origin(verified: VerifiedReport, rules: Rules, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    """Whose chip, and by which key it speaks."""
    report = verified.report
    return (
        *require_one_of(rules.products, "product", "product", verified.product),
        *require_one_of(rules.signing_keys, "signing_key", "signing_key", report.signing_key),
        *require_if_listed(reference.chip_ids, "chip_id", "chip_id", report.chip_id.hex()),
        *require_if_listed(reference.csp_ids, "csp_id", "csp_id", verified.csp_id),
        *require(
            verified.revocation_checked or not rules.require_revocation_check,
            "revocation_unchecked", "revocation", "looked up in AMD's list", "no list was handed in",
            "hand in the revocation list of the ARK among the endorsements",
        ),
    )  # fmt: skip


def _guest(report: Report, rules: Rules, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    """What was launched, and who says so."""
    measurement = report.measurement.hex()
    endorsed = rules.launch_endorsement is not None and not reference.measurements  # by a rule of its own
    measurements = (measurement,) if rules.unsafe_any_measurement or endorsed else reference.measurements
    id_block = any(report.id_key_digest) or not rules.require_id_block
    return (
        *require_one_of([str(level) for level in rules.vmpl], "vmpl", "vmpl", str(report.vmpl)),
        *require_one_of(measurements, "measurement", "measurement", measurement),
        *require_if_listed(reference.host_data, "host_data", "host_data", report.host_data.hex()),
        *require_if_listed(reference.family_ids, "family_id", "family_id", report.family_id.hex()),
        *require_if_listed(reference.image_ids, "image_id", "image_id", report.image_id.hex()),
        *require_if_listed(reference.report_ids, "report_id", "report_id", report.report_id.hex()),
        *require_if_listed(reference.report_ids_ma, "report_id_ma", "report_id_ma", report.report_id_ma.hex()),
        *require(id_block, "id_block", "id_key_digest", "an id block", "none"),
        *require_if_listed(reference.id_key_digests, "id_key", "id_key_digest", report.id_key_digest.hex()),
        *require(
            report.guest_svn >= rules.min_guest_svn,
            "guest_svn", "guest_svn", f"at least {rules.min_guest_svn}", str(report.guest_svn),
        ),
    )  # fmt: skip


def _author_key(verified: VerifiedReport, rules: Rules, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    """The digest counts only when the report says that an author key was there."""
    report = verified.report
    actual = report.author_key_digest.hex() if report.author_key_en else "none"
    if rules.require_author_key and not report.author_key_en:
        return require(False, "author_key", "author_key_digest", "an author key", "none")
    return require_if_listed(reference.author_key_digests, "author_key", "author_key_digest", actual)


def _firmware(verified: VerifiedReport, rules: Rules) -> tuple[Mismatch, ...]:
    report, floor = verified.report, rules.min_firmware
    mismatches = (
        *require(
            rules.min_tcb is not None or rules.unsafe_any_tcb,
            "tcb_floor", "tcb", "a floor", "none in the policy",
        ),
        *_floor(verified.reported_tcb, rules.min_tcb, "tcb_floor", "tcb"),
        *_floor(verified.launch_tcb, rules.min_launch_tcb, "launch_tcb_floor", "launch_tcb"),
    )  # fmt: skip
    for name, version in (("current", report.current_version), ("committed", report.committed_version)):
        if floor is not None:
            holds = version >= Version(floor.major, floor.minor, floor.build)
            least, actual = _dotted(floor.major, floor.minor, floor.build), _text(version)
            mismatches += require(holds, "firmware_version", f"firmware.{name}", f"at least {least}", actual)
    return mismatches + require(
        rules.permit_provisional_firmware or not _provisional(report),
        "provisional_firmware", "firmware.provisional", "false", "true",
        "the host can still go back to the committed firmware; permit_provisional_firmware accepts that",
    )  # fmt: skip


def _provisional(report: Report) -> bool:
    """The current firmware is not committed yet, so that the host may return to the one before."""
    versions_differ = report.current_version != report.committed_version
    return versions_differ or report.current_tcb != report.committed_tcb


def _platform(report: Report, rules: Rules) -> tuple[Mismatch, ...]:
    mismatches: tuple[Mismatch, ...] = ()
    if rules.platform_info_allowed is not None:
        excess = report.platform_info & ~_mask(rules.platform_info_allowed)
        allowed = ", ".join(rules.platform_info_allowed)
        mismatches += require(not excess, "platform_info", "platform_info", allowed, f"also {excess:#x}")
    for name in rules.platform_info_required:
        there = report.platform_info >> PLATFORM_INFO[name] & 1
        mismatches += require(bool(there), "platform_info", f"platform_info.{name}", "true", "false")
    for when, vector, bits in (
        ("launch", report.launch_mitigations, rules.required_launch_mitigations),
        ("current", report.current_mitigations, rules.required_current_mitigations),
    ):
        missing = [bit for bit in bits if vector is None or not vector >> bit & 1]
        mismatches += require(
            not missing, "mitigation", f"{when}_mitigations", f"bits {list(bits)}", f"without bits {missing}"
        )
    return mismatches


def _mask(names: Iterable[str]) -> int:
    return sum(1 << PLATFORM_INFO[name] for name in set(names))


def _dotted(*numbers: int) -> str:
    return ".".join(str(number) for number in numbers)


def _text(version: Version) -> str:
    return _dotted(version.major, version.minor, version.build)


def _floor(actual: Tcb, floor: TcbFloor | None, code: str, claim: str) -> tuple[Mismatch, ...]:
    if floor is None:
        return ()
    mismatches: tuple[Mismatch, ...] = ()
    for name in TcbFloor.__struct_fields__:
        level, least = getattr(actual, name), getattr(floor, name)
        if level is not None:
            mismatches += require(level >= least, code, f"{claim}.{name}", f"at least {least}", str(level))
    return mismatches


def claims_of(verified: VerifiedReport) -> dict[str, str]:
    """Verified claims as text."""
    report = verified.report
    claims = {
        "product": verified.product,
        "signing_key": report.signing_key,
        "report.version": str(report.version),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "guest_svn": str(report.guest_svn),
        "vmpl": str(report.vmpl),
        "policy.abi": _dotted(report.policy.abi_major, report.policy.abi_minor),
        "platform_info": f"{report.platform_info:x}",
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "author_key": str(report.author_key_en).lower(),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "firmware.current": _text(report.current_version),
        "firmware.committed": _text(report.committed_version),
        "firmware.provisional": str(_provisional(report)).lower(),
        "revocation_checked": str(verified.revocation_checked).lower(),
        "chip_id": report.chip_id.hex(),
    }
    flags = {name: getattr(report.policy, name) for name in GuestPolicy.__struct_fields__}
    claims |= {f"policy.{name}": str(flag).lower() for name, flag in flags.items() if isinstance(flag, bool)}
    for name, vector in (("launch", report.launch_mitigations), ("current", report.current_mitigations)):
        if vector is not None:
            claims[f"{name}_mitigations"] = f"{vector:x}"
    if verified.csp_id:
        claims["csp_id"] = verified.csp_id
    return claims | _tcb_claims("tcb", verified.reported_tcb) | _tcb_claims("launch_tcb", verified.launch_tcb)


def _tcb_claims(prefix: str, tcb: Tcb) -> dict[str, str]:
    levels = {name: getattr(tcb, name) for name in Tcb.__struct_fields__}
    return {f"{prefix}.{name}": str(level) for name, level in levels.items() if level is not None}
