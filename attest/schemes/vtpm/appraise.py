"""Rules for TPM quotes: which PCRs with which values, and whose AK. Compares verified fields only."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from attest.errors import Mismatch
from attest.eventlog import exited_boot_services
from attest.rules import Table, require, require_if_listed, require_one_of
from attest.schemes.gcp.certificate import Instance, Instances, appraise_instance
from attest.schemes.vtpm.eventlog import VerifiedLog
from attest.schemes.vtpm.verify import VerifiedQuote

__all__ = ["ReferenceValues", "Rules", "appraise_quote", "claims_of", "log_claims_of"]

AkName = Annotated[str, msgspec.Meta(pattern=r"^000b[0-9a-f]{64}\Z")]
PcrIndex = Annotated[int, msgspec.Meta(ge=0, le=23)]
PcrKey = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9]|1[0-9]|2[0-3])\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})\Z")]


class Rules(Table, frozen=True):
    """``[vtpm]``: the quote must cover ``pcrs`` of ``pcr_bank``; values and AKs are in the reference values.

    ``require_secure_boot`` and ``require_exit_boot_services`` ask the event log, so they need one, and PCR 7 or 5
    quoted. ``unsafe_any_pcr_values`` and ``unsafe_any_ak`` skip the comparison: for a first look at a machine only.
    ``unsafe_allow_sha1`` accepts SHA-1 banks and signatures; ``unsafe_allow_no_separator`` event logs of old firmware
    that do not say where in one of ``pcrs`` its part ends.
    """

    pcrs: tuple[PcrIndex, ...]
    pcr_bank: Literal["sha1", "sha256", "sha384", "sha512"] = "sha256"
    require_event_log: bool = False
    require_secure_boot: bool = False
    require_exit_boot_services: bool = False
    unsafe_any_pcr_values: bool = False
    unsafe_any_ak: bool = False
    unsafe_allow_sha1: bool = False
    unsafe_allow_no_separator: bool = False

    @property
    def needs_log(self) -> bool:
        """Whether a rule cannot hold without an event log."""
        return self.require_event_log or self.require_secure_boot or self.require_exit_boot_services


class ReferenceValues(Table, frozen=True):
    """``[reference_values.vtpm]``: AK names (``000b`` + SHA-256 of TPMT_PUBLIC), PEM roots of AK certificates, and for
    each PCR of the rules its allowed values, or the digests of which any may have been measured into it
    (``event_digests``, for PCRs whose order or number of events differs between boots). With both names and roots, an
    AK must satisfy both. Roots alone accept every machine whose AK they certify: all of a cloud's customers, told apart
    by PCR values only, on Google Cloud also by ``gce``: the instance that the AK's certificate names.
    """

    ak_names: tuple[AkName, ...] = ()
    ak_roots: tuple[str, ...] = ()
    pcr_values: dict[PcrKey, tuple[Digest, ...]] = msgspec.field(default_factory=dict)
    event_digests: dict[PcrKey, tuple[Digest, ...]] = msgspec.field(default_factory=dict)
    gce: Instances = Instances()


def appraise_quote(
    verified: VerifiedQuote,
    rules: Rules,
    reference: ReferenceValues,
    log: VerifiedLog | None = None,
    *,
    log_comes_later: bool = False,
    instance: Instance | None = None,
) -> tuple[Mismatch, ...]:
    """Every rule that does not hold. AK certificates are the verifier's work, by ``verify_ak_certificate``; of the
    verified one, ``instance`` is what it names.

    ``log_comes_later``: rules that need an event log are left to the evidence that follows this one.
    """
    mismatches = require_if_listed(reference.ak_names, "ak_not_pinned", "ak.name", verified.ak_name)
    mismatches += appraise_instance(instance, reference.gce)
    mismatches += require(rules.unsafe_allow_sha1 or not verified.weak, "sha1", "tpm.sha1", "false", "true")
    values = verified.pcrs.get(rules.pcr_bank, {})
    for index in rules.pcrs:
        claim = f"pcr.{rules.pcr_bank}.{index}"
        if index not in values:
            mismatches += require(False, "pcr_selection", claim, "quoted", "not quoted")
        elif str(index) in reference.event_digests:
            mismatches += () if log_comes_later else _events(index, reference.event_digests[str(index)], rules, log)
        elif not rules.unsafe_any_pcr_values:
            mismatches += require_one_of(reference.pcr_values.get(str(index), ()), "pcr", claim, values[index])
    return mismatches if log_comes_later else mismatches + _log(rules, log)


def _events(index: int, allowed: tuple[str, ...], rules: Rules, log: VerifiedLog | None) -> tuple[Mismatch, ...]:
    claim = f"eventlog.{rules.pcr_bank}.{index}"
    if log is None or log.bank != rules.pcr_bank or index not in log.covered:
        return require(False, "event_log_missing", claim, "an event log of this PCR and bank", "none")
    foreign = [digest for digest in log.digests(index) if digest not in allowed]
    return require(not foreign, "event", claim, "only events of the reference values", ", ".join(foreign))


def _log(rules: Rules, log: VerifiedLog | None) -> tuple[Mismatch, ...]:
    if log is None:
        return require(not rules.needs_log, "event_log_missing", "eventlog", "an event log", "none")
    secure = log.secure_boot
    left = exited_boot_services(log.proven)
    open_ended = [i for i in log.unseparated if i in rules.pcrs and not rules.unsafe_allow_no_separator]
    return (
        *require(
            not open_ended, "event_log_separator", "eventlog.separators", "one in each PCR", f"none in {open_ended}"
        ),
        *require(secure or not rules.require_secure_boot, "secure_boot", "eventlog.secure_boot", "true", "false"),
        *require(
            left or not rules.require_exit_boot_services,
            "exit_boot_services", "eventlog.exit_boot_services", "true", "false",
        ),
    )  # fmt: skip


def claims_of(verified: VerifiedQuote) -> dict[str, str]:
    """Verified claims as text."""
    quote = verified.quote
    claims = {
        "ak.name": verified.ak_name,
        "tpm.clock": str(quote.clock),
        "tpm.reset_count": str(quote.reset_count),
        "tpm.restart_count": str(quote.restart_count),
        "tpm.safe": str(quote.safe).lower(),
        "tpm.firmware_version": f"{quote.firmware_version:016x}",
    }
    for bank, values in verified.pcrs.items():
        claims |= {f"pcr.{bank}.{index}": value for index, value in sorted(values.items())}
    return claims


def log_claims_of(log: VerifiedLog) -> dict[str, str]:
    """Claims that the replayed log adds."""
    claims = {"eventlog.bank": log.bank, "eventlog.pcrs": ", ".join(map(str, log.covered))}
    if 7 in log.covered:
        claims["eventlog.secure_boot"] = str(log.secure_boot).lower()
    return claims | {"eventlog.exit_boot_services": str(exited_boot_services(log.proven)).lower()}
