"""A scheme "example": HMAC-SHA-256 over the bound hash and a level, under a key that policy and attester share.

Evidence: 1 byte level, 32 bytes bound hash, 32 bytes MAC. Rules: ``key`` (hex), ``min_level``. It shows the form of a
scheme and is worth nothing as evidence: whoever holds the policy can make it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any

from attest.errors import MalformedEvidence, Mismatch, PolicyFormatError, VerificationFailed
from attest.evidence import HARDWARE, Part
from attest.plugins import SchemeResult

KEY = bytes(range(32))


class ExampleScheme:
    """See the module."""

    name = "example"
    media_type = "application/vnd.example.evidence"

    def collect(self, data_hash: bytes) -> dict[int, Part]:
        return {HARDWARE: Part(self.media_type, evidence(data_hash))}

    def needs(self, evidence: bytes) -> tuple[str, ...]:
        return ()

    def verify(
        self,
        evidence: bytes,
        *,
        bound: bytes | None,
        rules: Mapping[str, Any] | None,
        endorsements: Sequence[bytes],
        now: float,
    ) -> SchemeResult:
        if len(evidence) != 65:
            raise MalformedEvidence(f"example evidence has 65 bytes, not {len(evidence)}")
        key, least = _rules(rules)
        if not hmac.compare_digest(evidence[33:], _mac(key, evidence[:33])):
            raise VerificationFailed("example: the MAC does not hold", code="example_mac")
        if bound is not None and evidence[1:33] != bound:
            raise VerificationFailed("example: speaks for another hash", code="example_bound")
        level = evidence[0]
        mismatches = () if level >= least else (Mismatch("level", "example.level", f"at least {least}", str(level)),)
        return SchemeResult(claims={"level": str(level)}, mismatches=mismatches, expires=now + 60)


def evidence(bound: bytes, level: int = 3, key: bytes = KEY) -> bytes:
    body = bytes((level,)) + bound
    return body + _mac(key, body)


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)


def _rules(rules: Mapping[str, Any] | None) -> tuple[bytes, int]:
    if rules is None:
        return KEY, 0
    if set(rules) != {"key", "min_level"}:
        raise PolicyFormatError("schemes.example: key and min_level, and nothing else")
    return bytes.fromhex(rules["key"]), int(rules["min_level"])
