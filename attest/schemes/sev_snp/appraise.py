"""Rules for SEV-SNP reports: which guests, which firmware, which machines. Compares verified fields only."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from attest.errors import Mismatch
from attest.rules import Hex32, Hex48, Hex64, Table, require, require_if_listed, require_one_of
from attest.schemes.sev_snp.abi import Tcb
from attest.schemes.sev_snp.verify import VerifiedReport

__all__ = ["ReferenceValues", "Rules", "TcbFloor", "appraise_report", "claims_of", "problems"]

Level = Annotated[int, msgspec.Meta(ge=0, le=255)]
Vmpl = Annotated[int, msgspec.Meta(ge=0, le=3)]


class TcbFloor(Table, frozen=True):
    """Least acceptable level of each component; ``fmc`` counts on Turin only."""

    bootloader: Level
    tee: Level
    snp: Level
    microcode: Level
    fmc: Level = 0


class Rules(Table, frozen=True):
    """``[sev-snp]``. ``min_tcb`` is compared with the reported TCB, which the chip's key is derived from.

    Debug and migration agents are refused unless their ``unsafe_`` form says otherwise. ``unsafe_any_tcb`` and
    ``unsafe_any_measurement`` skip those comparisons: for a first look at a machine only.
    """

    products: tuple[Literal["Milan", "Genoa", "Turin"], ...] = ("Milan", "Genoa", "Turin")
    signing_keys: tuple[Literal["vcek", "vlek"], ...] = ("vcek", "vlek")
    vmpl: tuple[Vmpl, ...] = (0,)
    min_guest_svn: Annotated[int, msgspec.Meta(ge=0)] = 0
    min_tcb: TcbFloor | None = None
    min_launch_tcb: TcbFloor | None = None
    require_single_socket: bool = False
    unsafe_allow_debug: bool = False
    unsafe_allow_migration: bool = False
    unsafe_allow_masked_chip_id: bool = False
    unsafe_any_tcb: bool = False
    unsafe_any_measurement: bool = False


class ReferenceValues(Table, frozen=True):
    """``[reference_values.sev-snp]``: allowed values, lower-case hex; a list that is absent is not compared, except
    that measurements are required. ``csp_ids`` are the names in VLEKs.
    """

    measurements: tuple[Hex48, ...] = ()
    host_data: tuple[Hex32, ...] = ()
    id_key_digests: tuple[Hex48, ...] = ()
    author_key_digests: tuple[Hex48, ...] = ()
    chip_ids: tuple[Hex64, ...] = ()
    csp_ids: tuple[str, ...] = ()


def problems(rules: Rules, reference: ReferenceValues) -> list[str]:
    """What makes these rules unusable, in words: a comparison without values, or with values and told to be skipped."""
    found = []
    if rules.unsafe_any_measurement == bool(reference.measurements):
        found.append("sev-snp: give measurements, or unsafe_any_measurement = true, not both")
    if rules.unsafe_any_tcb == (rules.min_tcb is not None):
        found.append("sev-snp: give min_tcb, or unsafe_any_tcb = true, not both")
    return found


def appraise_report(verified: VerifiedReport, rules: Rules, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    """Every rule that does not hold."""
    report, policy = verified.report, verified.report.policy
    measurement = report.measurement.hex()
    measurements = (measurement,) if rules.unsafe_any_measurement else reference.measurements
    migrates = policy.migrate_ma and not rules.unsafe_allow_migration
    return (
        *require(rules.unsafe_allow_debug or not policy.debug, "debug", "policy.debug", "false", "true"),
        *require(not migrates, "migrate_ma", "policy.migrate_ma", "false", "true"),
        *require(
            policy.single_socket or not rules.require_single_socket,
            "single_socket", "policy.single_socket", "true", "false",
        ),
        *require_one_of(rules.products, "product", "product", verified.product),
        *require_one_of(rules.signing_keys, "signing_key", "signing_key", report.signing_key),
        *require_one_of([str(level) for level in rules.vmpl], "vmpl", "vmpl", str(report.vmpl)),
        *require_one_of(measurements, "measurement", "measurement", measurement),
        *require_if_listed(reference.host_data, "host_data", "host_data", report.host_data.hex()),
        *require_if_listed(reference.id_key_digests, "id_key", "id_key_digest", report.id_key_digest.hex()),
        *_author_key(verified, reference),
        *require_if_listed(reference.chip_ids, "chip_id", "chip_id", report.chip_id.hex()),
        *require_if_listed(reference.csp_ids, "csp_id", "csp_id", verified.csp_id),
        *require(
            report.guest_svn >= rules.min_guest_svn,
            "guest_svn", "guest_svn", f"at least {rules.min_guest_svn}", str(report.guest_svn),
        ),
        *require(
            rules.min_tcb is not None or rules.unsafe_any_tcb,
            "tcb_floor", "tcb", "a floor", "none in the policy",
        ),
        *_floor(verified.reported_tcb, rules.min_tcb, "tcb_floor", "tcb"),
        *_floor(verified.launch_tcb, rules.min_launch_tcb, "launch_tcb_floor", "launch_tcb"),
    )  # fmt: skip


def _author_key(verified: VerifiedReport, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    """The digest counts only when the report says that an author key was there."""
    report = verified.report
    actual = report.author_key_digest.hex() if report.author_key_en else "none"
    return require_if_listed(reference.author_key_digests, "author_key", "author_key_digest", actual)


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
        "policy.debug": str(report.policy.debug).lower(),
        "policy.migrate_ma": str(report.policy.migrate_ma).lower(),
        "policy.smt": str(report.policy.smt).lower(),
        "policy.single_socket": str(report.policy.single_socket).lower(),
        "platform_info": f"{report.platform_info:x}",
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "report_id": report.report_id.hex(),
        "chip_id": report.chip_id.hex(),
    }
    if verified.csp_id:
        claims["csp_id"] = verified.csp_id
    return claims | _tcb_claims("tcb", verified.reported_tcb) | _tcb_claims("launch_tcb", verified.launch_tcb)


def _tcb_claims(prefix: str, tcb: Tcb) -> dict[str, str]:
    levels = {name: getattr(tcb, name) for name in Tcb.__struct_fields__}
    return {f"{prefix}.{name}": str(level) for name, level in levels.items() if level is not None}
