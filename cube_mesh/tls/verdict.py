"""The RESULT frame: what one end decided about the other (attested-TLS protocol §4)."""

from __future__ import annotations

import msgspec

from attest.codec import cbor_decode, cbor_encode
from attest.errors import AttestError

ACCEPT, REFUSE = 0, 1
_VERSION = 1


class Result(msgspec.Struct, frozen=True):
    """``code`` 0 accepts, anything else refuses. ``expires`` is Unix seconds, 0 in a refusal."""

    code: int
    reason: str
    appraisal_id: str
    policy_digest: str
    expires: int


def encode_result(result: Result) -> bytes:
    """Deterministic CBOR ``[1, code, reason, appraisal id, policy digest, expires]``."""
    return cbor_encode(
        [_VERSION, result.code, result.reason, result.appraisal_id, result.policy_digest, result.expires]
    )


def decode_result(raw: bytes) -> Result:
    """The peer's RESULT, strictly; ValueError for anything that encode_result would not write."""
    try:
        fields = cbor_decode(raw)
        if not isinstance(fields, list) or len(fields) != 6 or fields[0] != _VERSION:
            raise ValueError("not a RESULT of version 1")
        result = msgspec.convert(fields[1:], _AsArray)
    except (AttestError, msgspec.ValidationError) as error:
        raise ValueError(str(error)) from error
    if (result.code == ACCEPT) != (result.expires > 0):
        raise ValueError("a RESULT accepts with an expiry or refuses without")
    return Result(result.code, result.reason, result.appraisal_id, result.policy_digest, result.expires)


class _AsArray(msgspec.Struct, array_like=True):
    code: int
    reason: str
    appraisal_id: str
    policy_digest: str
    expires: int
