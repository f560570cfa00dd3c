"""Launch endorsements: Google's signed list of the measurements that its firmware gives, by number of vCPUs or size.

A ``VMLaunchEndorsement`` holds a serialized ``VMGoldenMeasurement`` and its signature; the signer's certificate is in
the signed part and leads to a root handed in. Not checked: that the endorsed firmware is a wanted version (``svn``).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from attest.chain import load_certificate, verify_chain
from attest.errors import BindingMismatch, MalformedEvidence, UnsupportedEvidence, VerificationFailed
from attest.schemes.gcp.protobuf import Fields, fields_of, map_of, number, one
from attest.schemes.gcp.roots import tcb_root_sha256

__all__ = [
    "Endorsement",
    "TdxMeasurement",
    "check_snp_measurement",
    "check_tdx_measurement",
    "pinned_root",
    "read_unverified",
    "verify_endorsement",
]

MAX_ENDORSEMENT_BYTES = 65_536
_DIGEST_BYTES = 48


class TdxMeasurement(msgspec.Struct, frozen=True):
    """One MRTD: for machines of ``ram_gib`` (0: any), with or without early acceptance of memory."""

    ram_gib: int
    early_accept: bool
    mrtd: bytes


class Endorsement(msgspec.Struct, frozen=True):
    """A verified endorsement. ``snp``: measurement by number of vCPUs. ``expires``: of the signer's chain, Unix s."""

    timestamp: int  # Unix seconds, when it was signed
    changelist: int
    firmware_digest: bytes  # SHA-384 of the image
    snp_svn: int
    snp: dict[int, bytes]
    snp_policy: int
    tdx_svn: int
    tdx: tuple[TdxMeasurement, ...]
    expires: float


def pinned_root(raw: bytes) -> x509.Certificate:
    """Google's GCE-cc-tcb-root_1 from its bytes, DER or PEM, matched with the hash pinned in ``roots``; else
    VerificationFailed (``untrusted_root``).
    """
    certificate = load_certificate(raw)
    if hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest() != tcb_root_sha256:
        raise VerificationFailed("not Google's TCB root", code="untrusted_root")
    return certificate


def verify_endorsement(raw: bytes, roots: Sequence[x509.Certificate], now: float) -> Endorsement:
    """Verify with ``roots``: [:func:`pinned_root`] for Google's own. Nothing is read from an unsigned golden
    measurement but the signer's certificate. Raises MalformedEvidence, UnsupportedEvidence (``key_strength``),
    VerificationFailed (``untrusted_chain``, ``signature``) or Stale.
    """
    if len(raw) > MAX_ENDORSEMENT_BYTES:
        raise _oversize(raw)
    envelope = fields_of(raw)
    golden, signature = one(envelope, 1), one(envelope, 2)
    fields = fields_of(golden)
    # 1. The signer leads to a root; certificates in the bundle are candidates for the way, no more.
    signer = load_certificate(one(fields, 4))
    expires = verify_chain(signer, _bundle(one(fields, 6, b"")), roots, now)
    # 2. It signed these bytes.
    key = signer.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or not 2048 <= key.key_size <= 4096:
        raise UnsupportedEvidence("the endorsement's key is not RSA of 2048 to 4096 bits", code="key_strength")
    try:
        key.verify(signature, golden, padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO), hashes.SHA256())
    except InvalidSignature:
        raise VerificationFailed("the endorsement's signature does not verify", code="signature") from None
    # 3. Its content.
    return _endorsement(fields, expires)


def read_unverified(raw: bytes) -> Endorsement:
    """The content without any verification, for showing; ``expires`` is 0. Raises MalformedEvidence."""
    if len(raw) > MAX_ENDORSEMENT_BYTES:
        raise _oversize(raw)
    return _endorsement(fields_of(one(fields_of(raw), 1)), 0.0)


def _oversize(raw: bytes) -> MalformedEvidence:
    return MalformedEvidence(f"endorsement of {len(raw)} bytes is above {MAX_ENDORSEMENT_BYTES}", code="oversize")


def _bundle(pem: bytes) -> list[x509.Certificate]:
    end = b"-----END CERTIFICATE-----"
    return [load_certificate(block.lstrip() + end + b"\n") for block in pem.split(end)[:-1]][:8]


def _endorsement(fields: Fields, expires: float) -> Endorsement:
    snp, tdx = fields_of(one(fields, 7, b"")), fields_of(one(fields, 8, b""))
    measurements = map_of(snp, 2)
    entries = tuple(_tdx(raw) for raw in tdx.get(2, []))
    digests = [one(fields, 5), *measurements.values(), *(entry.mrtd for entry in entries)]
    if not (measurements or entries) or any(len(digest) != _DIGEST_BYTES for digest in digests):
        raise MalformedEvidence("endorsement: no measurement, or one that is no SHA-384 digest")
    return Endorsement(
        timestamp=number(fields_of(one(fields, 1, b"")), 1),
        changelist=number(fields, 2),
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


def check_snp_measurement(endorsement: Endorsement, measurement: bytes, vcpus: int | None = None) -> int:
    """The number of vCPUs that Google endorses this launch measurement for, which must be ``vcpus`` when that is known.

    Else BindingMismatch (``measurement_not_endorsed``).
    """
    for count, endorsed in endorsement.snp.items():
        if hmac.compare_digest(endorsed, measurement) and vcpus in (None, count):
            return count
    wanted = "any number of" if vcpus is None else str(vcpus)
    raise BindingMismatch(f"the measurement is not endorsed for {wanted} vCPUs", code="measurement_not_endorsed")


def check_tdx_measurement(endorsement: Endorsement, mrtd: bytes) -> TdxMeasurement:
    """The entry that endorses this MRTD, else BindingMismatch (``measurement_not_endorsed``)."""
    for entry in endorsement.tdx:
        if hmac.compare_digest(entry.mrtd, mrtd):
            return entry
    raise BindingMismatch("the MRTD is not endorsed", code="measurement_not_endorsed")
