"""Launch endorsements: Google's signed list of the measurements that its firmware gives, by number of vCPUs or size.

A ``VMLaunchEndorsement`` holds a serialized ``VMGoldenMeasurement`` and its signature; the signer's certificate is in
the signed part and leads to a root that is known by its hash. Not checked: which measurement was launched, and that
the endorsed firmware is a wanted version (both ``launch``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from attest.chain import load_certificate, verify_chain
from attest.errors import EndorsementUnavailable, MalformedEvidence, UnsupportedEvidence, VerificationFailed
from attest.schemes.gcp.protobuf import Fields, fields_of, map_of, number, one
from attest.schemes.gcp.roots import tcb_root_sha256

__all__ = ["Endorsement", "TdxMeasurement", "read_unverified", "verify_endorsement"]

MAX_ENDORSEMENT_BYTES = 65_536
_DIGEST_BYTES = 48
_MAX_COMMIT_BYTES = 64
_MAX_BUNDLE = 8


class TdxMeasurement(msgspec.Struct, frozen=True):
    """One MRTD: for machines of ``ram_gib`` (0: any), with or without early acceptance of memory."""

    ram_gib: int
    early_accept: bool
    mrtd: bytes


class Endorsement(msgspec.Struct, frozen=True):
    """A verified endorsement. ``snp``: measurement by number of vCPUs. ``expires``: of the signer's chain, Unix s.
    ``digest``: SHA-256 (hex) of the whole endorsement as it came.
    """

    digest: str
    timestamp: int  # Unix seconds, when it was signed
    changelist: int
    commit: bytes  # of the firmware's source, empty where Google leaves it out
    firmware_digest: bytes  # SHA-384 of the image
    snp_svn: int
    snp: dict[int, bytes]
    snp_policy: int
    tdx_svn: int
    tdx: tuple[TdxMeasurement, ...]
    expires: float


def verify_endorsement(
    raw: bytes,
    now: float,
    *,
    roots: Sequence[x509.Certificate] = (),
    certificates: Sequence[x509.Certificate] = (),
) -> Endorsement:
    """Verify to one of ``roots``; without any, to Google's, which is known by its hash alone. Who hands that in does
    not matter: it is looked for among ``certificates`` and in the endorsement's own bundle.

    Nothing is read from an unsigned golden measurement but certificates. Raises MalformedEvidence, UnsupportedEvidence
    (``key_strength``), EndorsementUnavailable (``launch_root_missing``), VerificationFailed (``untrusted_chain``,
    ``signature``) or Stale.
    """
    if len(raw) > MAX_ENDORSEMENT_BYTES:
        raise _oversize(raw)
    envelope = fields_of(raw)
    golden, signature = one(envelope, 1), one(envelope, 2)
    fields = fields_of(golden)
    # 1. The signer leads to a root.
    signer = load_certificate(one(fields, 4))
    bundle = _bundle(one(fields, 6, b""))
    trusted = roots or [c for c in (*certificates, *bundle) if c.fingerprint(hashes.SHA256()).hex() == tcb_root_sha256]
    if not trusted:
        raise EndorsementUnavailable("Google's root of endorsements was not handed in", code="launch_root_missing")
    expires = verify_chain(signer, bundle, trusted, now)
    # 2. It signed these bytes.
    key = signer.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or not 2048 <= key.key_size <= 4096:
        raise UnsupportedEvidence("the endorsement's key is not RSA of 2048 to 4096 bits", code="key_strength")
    try:
        key.verify(signature, golden, padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO), hashes.SHA256())
    except InvalidSignature:
        raise VerificationFailed("the endorsement's signature does not verify", code="signature") from None
    # 3. Its content.
    return _endorsement(raw, fields, expires)


def read_unverified(raw: bytes) -> Endorsement:
    """The content without any verification, for showing; ``expires`` is 0. Raises MalformedEvidence."""
    if len(raw) > MAX_ENDORSEMENT_BYTES:
        raise _oversize(raw)
    return _endorsement(raw, fields_of(one(fields_of(raw), 1)), 0.0)


def _oversize(raw: bytes) -> MalformedEvidence:
    return MalformedEvidence(f"endorsement of {len(raw)} bytes is above {MAX_ENDORSEMENT_BYTES}", code="oversize")


def _bundle(pem: bytes) -> list[x509.Certificate]:
    end = b"-----END CERTIFICATE-----"
    blocks = pem.split(end)[:-1]
    if len(blocks) > _MAX_BUNDLE:
        raise MalformedEvidence(f"endorsement: a bundle of {len(blocks)} certificates, above {_MAX_BUNDLE}")
    return [load_certificate(block.lstrip() + end + b"\n") for block in blocks]


def _endorsement(raw: bytes, fields: Fields, expires: float) -> Endorsement:
    snp, tdx = fields_of(one(fields, 7, b"")), fields_of(one(fields, 8, b""))
    measurements = map_of(snp, 2)
    entries = tuple(_tdx(raw) for raw in tdx.get(2, []))
    digests = [one(fields, 5), *measurements.values(), *(entry.mrtd for entry in entries)]
    if not (measurements or entries) or any(len(digest) != _DIGEST_BYTES for digest in digests):
        raise MalformedEvidence("endorsement: no measurement, or one that is no SHA-384 digest")
    commit = one(fields, 3, b"")
    if len(commit) > _MAX_COMMIT_BYTES:
        raise MalformedEvidence(f"endorsement: a commit of {len(commit)} bytes")
    return Endorsement(
        digest=hashlib.sha256(raw).hexdigest(),
        timestamp=number(fields_of(one(fields, 1, b"")), 1),
        changelist=number(fields, 2),
        commit=commit,
        firmware_digest=digests[0],
        snp_svn=number(snp, 1),
        snp=measurements,
        snp_policy=number(snp, 5),
        tdx_svn=number(tdx, 1),
        tdx=entries,
        expires=expires,
    )


def _tdx(raw: int | bytes) -> TdxMeasurement:
    if not isinstance(raw, bytes):
        raise MalformedEvidence("endorsement: a TDX measurement is no message")
    fields = fields_of(raw)
    return TdxMeasurement(number(fields, 1), bool(number(fields, 2)), one(fields, 3))
