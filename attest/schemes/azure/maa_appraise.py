"""Rules for tokens of Microsoft Azure Attestation: which VMs, which hardware, which policy of the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from attest.errors import Mismatch
from attest.rules import Hex32, Hex48, Table, require, require_if_listed, require_one_of
from attest.schemes.azure.maa import VerifiedMaaToken

__all__ = ["ReferenceValues", "Rules", "appraise_maa", "claims_of", "measurement_of", "vm_id"]

COMPLIANT = "azure-compliant-cvm"
Svn = Annotated[int, msgspec.Meta(ge=0, le=255)]
_SVNS = {
    "bootloader": "x-ms-sevsnpvm-bootloader-svn", "tee": "x-ms-sevsnpvm-tee-svn",
    "snp": "x-ms-sevsnpvm-snpfw-svn", "microcode": "x-ms-sevsnpvm-microcode-svn",
    "guest": "x-ms-sevsnpvm-guestsvn",
}  # fmt: skip
# Of an azurevm token: what must be off and on in a VM whose boot nobody steers from outside.
_OFF = ("bootdebug-enabled", "flightsigning-enabled", "hypervisordebug-enabled", "kerneldebug-enabled",
        "testsigning-enabled")  # fmt: skip


class SvnFloor(Table, frozen=True):
    """Least acceptable SVN of each SEV-SNP component."""

    bootloader: Svn = 0
    tee: Svn = 0
    snp: Svn = 0
    microcode: Svn = 0
    guest: Svn = 0


class Rules(Table, frozen=True):
    """``[maa]``. ``issuers``: the attestation providers trusted, exact. ``unsafe_any_measurement`` for a first look.

    Debug, migration, another compliance status than ``azure-compliant-cvm`` and missing secure boot are refused unless
    their ``unsafe_`` form says otherwise.
    """

    issuers: tuple[Annotated[str, msgspec.Meta(pattern=r"^https://[a-z0-9.-]+\Z")], ...] = ()
    types: tuple[Literal["azurevm", "sevsnpvm", "tdxvm"], ...] = ("azurevm", "sevsnpvm", "tdxvm")
    tees: tuple[Literal["sevsnpvm", "tdxvm"], ...] = ("sevsnpvm", "tdxvm")
    min_svn: SvnFloor = SvnFloor()
    tcb_statuses: tuple[str, ...] = ("UpToDate",)
    unsafe_any_issuer: bool = False
    unsafe_any_measurement: bool = False
    unsafe_allow_debug: bool = False
    unsafe_allow_migration: bool = False
    unsafe_allow_not_compliant: bool = False
    unsafe_allow_no_secure_boot: bool = False


class ReferenceValues(Table, frozen=True):
    """``[reference_values.maa]``; a list that is absent is not compared, except that measurements are required.

    ``measurements``: SNP launch measurement or MRTD. ``policy_hashes``: of the service's policy, as in the token.
    """

    measurements: tuple[Hex48, ...] = ()
    policy_hashes: tuple[str, ...] = ()
    id_key_digests: tuple[Hex48, ...] = ()
    host_data: tuple[Hex32, ...] = ()
    vm_ids: tuple[str, ...] = ()


def appraise_maa(verified: VerifiedMaaToken, rules: Rules, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    """Every rule that does not hold. A claim that is absent does not hold."""
    claims, tee = verified.claims, verified.tee
    measurement = measurement_of(verified)
    measurements = (measurement,) if rules.unsafe_any_measurement else reference.measurements
    issuers = (verified.issuer,) if rules.unsafe_any_issuer else rules.issuers
    compliance = _text(tee, "x-ms-compliance-status")
    statuses = (compliance,) if rules.unsafe_allow_not_compliant else (COMPLIANT,)
    return (
        *require_one_of(issuers, "issuer", "maa.iss", verified.issuer),
        *require_one_of(rules.types, "maa_type", "maa.x-ms-attestation-type", verified.type),
        *require_one_of(rules.tees, "maa_tee", "maa.tee", verified.tee_type),
        *require_one_of(statuses, "compliance", "maa.x-ms-compliance-status", compliance),
        *(_snp(tee, rules, reference) if verified.tee_type == "sevsnpvm" else ()),
        *(_tdx(tee, rules) if verified.tee_type == "tdxvm" else ()),
        *require_one_of(measurements, "measurement", "maa.measurement", measurement),
        *(_boot(claims, rules) if verified.type == "azurevm" else ()),
        *require_if_listed(
            reference.policy_hashes, "policy_hash", "maa.x-ms-policy-hash", _text(claims, "x-ms-policy-hash")
        ),
        *require_if_listed(reference.vm_ids, "vm_id", "maa.vm-id", vm_id(verified)),
    )


def _snp(tee: Mapping[str, Any], rules: Rules, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    mismatches: tuple[Mismatch, ...] = ()
    for allowed, code, name in (
        (rules.unsafe_allow_debug, "debug", "x-ms-sevsnpvm-is-debuggable"),
        (rules.unsafe_allow_migration, "migrate_ma", "x-ms-sevsnpvm-migration-allowed"),
    ):
        mismatches += require(allowed or tee.get(name) is False, code, f"maa.{name}", "false", _text(tee, name))
    mismatches += require(
        _level(tee, "x-ms-sevsnpvm-vmpl") == 0, "vmpl", "maa.x-ms-sevsnpvm-vmpl", "0", _text(tee, "x-ms-sevsnpvm-vmpl")
    )
    for field, name in _SVNS.items():
        least, level = getattr(rules.min_svn, field), _level(tee, name)
        mismatches += require(level >= least, "tcb_floor", f"maa.{name}", f"at least {least}", _text(tee, name))
    for values, code, name in (
        (reference.id_key_digests, "id_key", "x-ms-sevsnpvm-idkeydigest"),
        (reference.host_data, "host_data", "x-ms-sevsnpvm-hostdata"),
    ):
        mismatches += require_if_listed(values, code, f"maa.{name}", _text(tee, name))
    return mismatches


def _tdx(tee: Mapping[str, Any], rules: Rules) -> tuple[Mismatch, ...]:
    debug, status = "tdx_td_attributes_debug", "attester_tcb_status"
    off = rules.unsafe_allow_debug or tee.get(debug) is False
    return (
        *require(off, "debug", f"maa.{debug}", "false", _text(tee, debug)),
        *require_one_of(rules.tcb_statuses, "tcb_status", f"maa.{status}", _text(tee, status)),
    )


def _boot(claims: Mapping[str, Any], rules: Rules) -> tuple[Mismatch, ...]:
    secure = rules.unsafe_allow_no_secure_boot or claims.get("secureboot") is True
    mismatches = require(secure, "secure_boot", "maa.secureboot", "true", _text(claims, "secureboot"))
    if not rules.unsafe_allow_debug:
        for short in _OFF:
            name = f"x-ms-azurevm-{short}"
            mismatches += require(claims.get(name) is False, "debug", f"maa.{name}", "false", _text(claims, name))
    return mismatches


def measurement_of(verified: VerifiedMaaToken) -> str:
    """The launch measurement of SEV-SNP or the MRTD, hex; "none" without."""
    return _text(verified.tee, "x-ms-sevsnpvm-launchmeasurement" if verified.tee_type == "sevsnpvm" else "tdx_mrtd")


def vm_id(verified: VerifiedMaaToken) -> str:
    """The VM's id, of the boot claims or of the runtime claims that the hardware names; "none" without."""
    if verified.type == "azurevm":
        return _text(verified.claims, "x-ms-azurevm-vmid")
    runtime = verified.tee.get("x-ms-runtime")
    configuration = runtime.get("vm-configuration") if isinstance(runtime, dict) else None
    return _text(configuration, "vmUniqueId") if isinstance(configuration, dict) else "none"


def _level(claims: Mapping[str, Any], name: str) -> int:
    """A number of at least 0; -1 for anything else, which is below every floor."""
    value = claims.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else -1


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)[:256]


def claims_of(verified: VerifiedMaaToken) -> dict[str, str]:
    """Verified claims as text: every plain value of the token, those about the hardware under ``maa.tee.``."""
    claims = {"maa.iss": verified.issuer, "maa.x-ms-attestation-type": verified.type, "maa.tee": verified.tee_type}
    sources = {"maa.": verified.claims} | ({"maa.tee.": verified.tee} if verified.type == "azurevm" else {})
    for prefix, values in sources.items():
        claims |= {prefix + n: _text(values, n) for n, v in values.items() if isinstance(v, (str, int, bool))}
    return claims
