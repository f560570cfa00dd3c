"""Rules for Azure's runtime claims. The hardware and the vTPM have their own tables; compares verified fields only."""

from __future__ import annotations

from attest.errors import Mismatch
from attest.rules import Hex64, Table, require, require_if_listed
from attest.schemes.azure.verify import VerifiedHcl

__all__ = ["ReferenceValues", "Rules", "appraise_hcl", "claims_of"]


class Rules(Table, frozen=True):
    """``[azure]``: the VM as its paravisor describes it. Stands beside ``[sev-snp]`` or ``[tdx]``, and ``[vtpm]``."""

    require_ak_certificate: bool = False
    unsafe_allow_no_secure_boot: bool = False


class ReferenceValues(Table, frozen=True):
    """``[reference_values.azure]``: ids of VMs, and the 64 bytes that the guest wrote; absent is not compared."""

    vm_unique_ids: tuple[str, ...] = ()
    user_data: tuple[Hex64, ...] = ()


def appraise_hcl(verified: VerifiedHcl, rules: Rules, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    """Every rule that does not hold. The AK certificate is the verifier's work."""
    configuration = verified.claims.configuration
    secure = configuration.get("secure-boot") is True
    vm_id = str(configuration.get("vmUniqueId", "none"))
    return (
        *require(configuration.get("tpm-enabled") is True, "tpm_disabled", "azure.tpm-enabled", "true", "false"),
        *require(
            secure or rules.unsafe_allow_no_secure_boot, "secure_boot", "azure.secure-boot", "true", "false",
            "turn secure boot on in the VM's security profile",
        ),
        *require_if_listed(reference.vm_unique_ids, "vm_id", "azure.vmUniqueId", vm_id),
        *require_if_listed(reference.user_data, "user_data", "azure.user-data", verified.claims.user_data.hex()),
    )  # fmt: skip


def claims_of(verified: VerifiedHcl) -> dict[str, str]:
    """Verified claims as text."""
    claims = {"azure.hcl_version": str(verified.hcl.version), "azure.hardware": verified.hcl.kind}
    claims["azure.user-data"] = verified.claims.user_data.hex()
    for name, value in verified.claims.configuration.items():
        if isinstance(value, (bool, int, str)):
            claims[f"azure.{name}"] = str(value).lower() if isinstance(value, bool) else str(value)
    return claims
