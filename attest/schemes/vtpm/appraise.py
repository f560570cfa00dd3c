"""Rules for TPM quotes: which PCRs with which values, and whose AK. Compares verified fields only."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from attest.errors import Mismatch
from attest.rules import Table, require, require_if_listed, require_one_of
from attest.schemes.vtpm.verify import VerifiedQuote

__all__ = ["ReferenceValues", "Rules", "appraise_quote", "claims_of"]

AkName = Annotated[str, msgspec.Meta(pattern=r"^000b[0-9a-f]{64}\Z")]
PcrIndex = Annotated[int, msgspec.Meta(ge=0, le=23)]
PcrKey = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9]|1[0-9]|2[0-3])\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})\Z")]


class Rules(Table, frozen=True):
    """``[vtpm]``: the quote must cover ``pcrs`` of ``pcr_bank``; values and AKs are in the reference values.

    ``unsafe_any_pcr_values`` and ``unsafe_any_ak`` skip the comparison: for a first look at a machine only.
    """

    pcrs: tuple[PcrIndex, ...]
    pcr_bank: Literal["sha256", "sha384", "sha512"] = "sha256"
    unsafe_any_pcr_values: bool = False
    unsafe_any_ak: bool = False


class ReferenceValues(Table, frozen=True):
    """``[reference_values.vtpm]``: AK names (``000b`` + SHA-256 of TPMT_PUBLIC), PEM roots of AK certificates, and for
    each PCR of the rules its allowed values. With both names and roots, an AK must satisfy both. Roots alone accept
    every machine whose AK they certify: all of a cloud's customers, told apart by PCR values only.
    """

    ak_names: tuple[AkName, ...] = ()
    ak_roots: tuple[str, ...] = ()
    pcr_values: dict[PcrKey, tuple[Digest, ...]] = msgspec.field(default_factory=dict)


def appraise_quote(verified: VerifiedQuote, rules: Rules, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    """Every rule that does not hold. AK certificates are the verifier's work, by ``verify_ak_certificate``."""
    mismatches = require_if_listed(reference.ak_names, "ak_not_pinned", "ak.name", verified.ak_name)
    values = verified.pcrs.get(rules.pcr_bank, {})
    for index in rules.pcrs:
        claim = f"pcr.{rules.pcr_bank}.{index}"
        if index not in values:
            mismatches += require(False, "pcr_selection", claim, "quoted", "not quoted")
        elif not rules.unsafe_any_pcr_values:
            mismatches += require_one_of(reference.pcr_values.get(str(index), ()), "pcr", claim, values[index])
    return mismatches


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
