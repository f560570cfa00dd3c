"""Certificate chains to roots that the relying party chose (RFC 5280 §6.1, the part that attestation keys use).

Checked: signatures and names, validity at ``now``, that issuers are CAs that may sign certificates, path length, no
unknown critical extension. Not checked: revocation, names of the leaf, name constraints (critical ones are refused).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtensionOID

from attest.errors import MalformedEvidence, Stale, VerificationFailed

__all__ = ["check_validity", "load_certificate", "verify_chain"]

MAX_CHAIN = 5
# Every certificate of an AMD chip has serial number 0. cryptography warns of it on each load; we know.
warnings.filterwarnings("ignore", message="Parsed a serial number which wasn't positive")
_UNPARSABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,  # critical in TPM certificates whose subject is empty
}


@lru_cache(maxsize=64)
def load_certificate(raw: bytes) -> x509.Certificate:
    """One DER or PEM certificate, unverified; MalformedEvidence when it is none.

    ``cryptography`` parses on demand; every part that we use is parsed here, so that none can fail later.
    """
    try:
        pem = raw.startswith(b"-----BEGIN")
        certificate = x509.load_pem_x509_certificate(raw) if pem else x509.load_der_x509_certificate(raw)
        _ = certificate.subject, certificate.issuer, certificate.extensions, certificate.signature_hash_algorithm
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.public_key()
    except _UNPARSABLE as error:
        raise MalformedEvidence(f"certificate: {error}", code="malformed_certificate") from None
    return certificate


def check_validity(certificate: x509.Certificate, now: float) -> float:
    """The certificate's end as Unix seconds, when ``now`` lies inside of its validity; else Stale."""
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if not start <= now <= end:
        name = certificate.subject.rfc4514_string()
        state = "not yet valid" if now < start else "expired"
        raise Stale(f"certificate {name} is {state}", code=f"certificate_{state.replace(' ', '_')}")
    return end


def verify_chain(
    leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: float
) -> float:
    """Follow the issuers of ``leaf`` to one of ``roots``; gives the earliest end of validity on the way, Unix seconds.

    Raises VerificationFailed (``untrusted_chain``) or Stale. A root is trusted because it was handed in, by its key
    and name; nothing in the evidence can add one. ``intermediates`` beyond the chain's need are ignored.
    """
    expires = check_validity(leaf, now)
    _check_extensions(leaf)
    current = leaf
    for below in range(MAX_CHAIN):
        root = _issuer_of(current, roots, below)
        if root is not None:
            return min(expires, check_validity(root, now))
        issuer = _issuer_of(current, intermediates, below)
        if issuer is None:
            break
        expires = min(expires, check_validity(issuer, now))
        current = issuer
    raise VerificationFailed(
        f"no chain from {leaf.subject.rfc4514_string() or 'the certificate'} to a trusted root", code="untrusted_chain"
    )


def _issuer_of(
    certificate: x509.Certificate, candidates: Sequence[x509.Certificate], below: int
) -> x509.Certificate | None:
    for candidate in candidates:
        if _signed(certificate, candidate) and _may_issue(candidate, below):
            return candidate
    return None


@lru_cache(maxsize=256)
def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer`` by name and key signed ``certificate``: a fact about these bytes, so it may be remembered."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _may_issue(certificate: x509.Certificate, below: int) -> bool:
    """A CA that may sign certificates and has room for ``below`` intermediates under it."""
    _check_extensions(certificate)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    room = constraints.path_length is None or constraints.path_length >= below
    return constraints.ca and usage.key_cert_sign and room


def _check_extensions(certificate: x509.Certificate) -> None:
    unknown = [e.oid.dotted_string for e in certificate.extensions if e.critical and e.oid not in _UNDERSTOOD]
    if unknown:
        raise VerificationFailed(f"certificate has unknown critical extension {unknown[0]}", code="critical_extension")
