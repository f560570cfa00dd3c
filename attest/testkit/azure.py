"""HCL reports of a fake Azure: a simulated SNP machine whose paravisor names a vTPM key, any field changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from attest.schemes.azure.abi import AK, CLAIMS_OFFSET, HARDWARE_BYTES
from attest.testkit.snp import SnpPlatform
from attest.testkit.tokens import SigningKey, fixed_key, jwk

__all__ = ["hcl_report", "runtime_claims"]

HCL_BYTES = 2600


def runtime_claims(ak: SigningKey | None = None, **changes: Any) -> bytes:
    """Runtime claims as the paravisor writes them; a change of None takes a member out."""
    key = jwk(ak or fixed_key("vtpm-ak"), AK)
    del key["use"]
    claims: dict[str, Any] = {
        "keys": [key | {"key_ops": ["sign"]}],
        "vm-configuration": {"console-enabled": True, "secure-boot": True, "tpm-enabled": True, "vmUniqueId": "VM-1"},
        "user-data": "00" * 64,
    }
    claims |= changes
    return json.dumps({k: v for k, v in claims.items() if v is not None}, separators=(",", ":")).encode()


def hcl_report(
    platform: SnpPlatform,
    claims: bytes | None = None,
    *,
    report_data: bytes | None = None,
    hardware: bytes | None = None,
    words: Mapping[int, int] | None = None,
    report_type: int = 2,
    tail: bytes = b"",
    length: int = HCL_BYTES,
    **fields: int | bytes,
) -> bytes:
    """A report of ``length`` bytes. ``fields`` change the SNP report before it is signed; ``words`` write 32-bit
    numbers by offset, ``tail`` bytes behind the claims.
    """
    claims = runtime_claims() if claims is None else claims
    data = hashlib.sha256(claims).digest().ljust(64, b"\x00") if report_data is None else report_data
    raw = hardware if hardware is not None else platform.report(data, None, **fields)
    header = b"HCLA" + b"".join(n.to_bytes(4, "little") for n in (2, CLAIMS_OFFSET + len(claims), 2, 0)) + bytes(12)
    numbers = (len(claims) + 20, 1, report_type, 1, len(claims))
    whole = bytearray(
        header + raw.ljust(HARDWARE_BYTES, b"\x00") + b"".join(n.to_bytes(4, "little") for n in numbers) + claims + tail
    )
    for offset, number in (words or {}).items():
        whole[offset : offset + 4] = number.to_bytes(4, "little")
    return bytes(whole).ljust(length, b"\x00")
