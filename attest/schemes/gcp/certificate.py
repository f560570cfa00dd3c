"""AK and EK certificates of GCE instances: chain to Google's roots, and which instance they name."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from cryptography import x509
from cryptography.x509.oid import ObjectIdentifier

from attest.chain import verify_chain
from attest.der import INTEGER, SEQUENCE, der_items
from attest.errors import MalformedEvidence, VerificationFailed
from attest.schemes.gcp.roots import vtpm_intermediates, vtpm_roots
from attest.schemes.vtpm.verify import AkKey

__all__ = ["INSTANCE_OID", "Instance", "instance_of", "verify_vtpm_certificate"]

INSTANCE_OID = ObjectIdentifier("1.3.6.1.4.1.11129.2.1.21")
_UTF8 = 0x0C


class Instance(msgspec.Struct, frozen=True):
    """The instance that a certificate was issued for."""

    zone: str
    project_number: int
    project_id: str
    instance_id: int
    instance_name: str


def verify_vtpm_certificate(
    key: AkKey,
    certificates: Sequence[x509.Certificate],
    now: float,
    roots: Sequence[x509.Certificate] | None = None,
) -> tuple[Instance, float]:
    """The instance whose vTPM holds ``key``, and the earliest end of the chain's validity, Unix seconds.

    ``certificates``: the one of the key, and intermediates beside those that Google has published. Certificates of EKs
    and of AKs come from the same roots: what the key is used for must be the caller's own knowledge. Raises
    VerificationFailed (``ak_not_certified``, ``untrusted_chain``), Stale or MalformedEvidence. Not checked: revocation.
    """
    leaf = next((c for c in certificates if c.public_key() == key), None)
    if leaf is None:
        raise VerificationFailed("no certificate for the key was handed in", code="ak_not_certified")
    expires = verify_chain(leaf, [*certificates, *vtpm_intermediates()], vtpm_roots() if roots is None else roots, now)
    return instance_of(leaf), expires


def instance_of(certificate: x509.Certificate) -> Instance:
    """The instance extension: SEQUENCE of zone, project number and id, instance id and name, security properties (not
    read). Unverified by itself; MalformedEvidence (``instance_extension``) when it is absent or otherwise built.
    """
    try:
        value = certificate.extensions.get_extension_for_oid(INSTANCE_OID).value
    except x509.ExtensionNotFound:
        raise MalformedEvidence("certificate without instance", code="instance_extension") from None
    assert isinstance(value, x509.UnrecognizedExtension)
    outer = der_items(value.value)
    items = der_items(outer[0][1]) if len(outer) == 1 and outer[0][0] == SEQUENCE else []
    if [tag for tag, _ in items[:5]] != [_UTF8, INTEGER, _UTF8, INTEGER, _UTF8]:
        raise MalformedEvidence("certificate: instance has other members", code="instance_extension")
    zone, project_number, project, instance, name = (content for _, content in items[:5])
    numbers = [int.from_bytes(content, "big") for content in (project_number, instance)]
    return Instance(_text(zone), numbers[0], _text(project), numbers[1], _text(name))


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise MalformedEvidence("certificate: instance is not UTF-8", code="instance_extension") from None
