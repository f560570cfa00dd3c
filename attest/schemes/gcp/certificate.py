"""AK and EK certificates of GCE instances: chain to Google's roots, which instance they name, and rules for that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec
from cryptography import x509
from cryptography.x509.oid import ObjectIdentifier

from attest.chain import verify_chain
from attest.der import INTEGER, SEQUENCE, der_items
from attest.errors import MalformedEvidence, Mismatch
from attest.rules import Table, require, require_if_listed
from attest.schemes.gcp.roots import vtpm_intermediates, vtpm_roots
from attest.schemes.vtpm.verify import AkKey, VerifiedQuote, ak_certificate, verify_ak_certificate

__all__ = [
    "INSTANCE_OID",
    "Instance",
    "Instances",
    "appraise_instance",
    "instance_claims",
    "instance_of",
    "verify_ak_instance",
    "verify_vtpm_certificate",
]

INSTANCE_OID = ObjectIdentifier("1.3.6.1.4.1.11129.2.1.21")
_UTF8 = 0x0C
_NUMBER_BYTES = 9  # of a DER INTEGER with 64 bits


class Instance(msgspec.Struct, frozen=True):
    """The instance that a certificate was issued for."""

    zone: str
    project_number: int
    project_id: str
    instance_id: int
    instance_name: str


Number: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,20}\Z")]  # of 64 bits, more than TOML has


class Instances(Table, frozen=True):
    """``[reference_values.vtpm.gce]``: the instances that AK certificates may name; a list that is absent is not
    compared. Numbers are decimal texts.
    """

    zones: tuple[str, ...] = ()
    project_numbers: tuple[Number, ...] = ()
    project_ids: tuple[str, ...] = ()
    instance_ids: tuple[Number, ...] = ()
    instance_names: tuple[str, ...] = ()


def appraise_instance(instance: Instance | None, reference: Instances) -> tuple[Mismatch, ...]:
    """Every list that does not have what the verified certificate says. ``instance``: None when it names none."""
    if reference == Instances():
        return ()
    if instance is None:
        hint = "only AK certificates that Google issues name one"
        return require(False, "gce_instance_missing", "gce", "an AK certificate that names its instance", "none", hint)
    claims = instance_claims(instance)
    mismatches: tuple[Mismatch, ...] = ()
    for name in Instance.__struct_fields__:
        mismatches += require_if_listed(
            getattr(reference, f"{name}s"), f"gce_{name}", f"gce.{name}", claims[f"gce.{name}"]
        )
    return mismatches


def instance_claims(instance: Instance | None) -> dict[str, str]:
    """What the AK's verified certificate says of its instance."""
    if instance is None:
        return {}
    return {f"gce.{name}": str(getattr(instance, name)) for name in instance.__struct_fields__}


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
    leaf = ak_certificate(key, certificates)
    expires = verify_chain(leaf, [*certificates, *vtpm_intermediates()], vtpm_roots() if roots is None else roots, now)
    instance = instance_of(leaf)
    if instance is None:
        raise MalformedEvidence("certificate without instance", code="instance_extension")
    return instance, expires


def verify_ak_instance(
    quote: VerifiedQuote, certificates: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: float
) -> tuple[Instance | None, float]:
    """``verify_ak_certificate`` with Google's intermediates beside ``certificates``: the instance that the AK's
    certificate names, if it names one, and the chain's earliest end (Unix seconds). Raises as that, or as
    :func:`instance_of`.
    """
    expires = verify_ak_certificate(quote, [*certificates, *vtpm_intermediates()], roots, now)
    return instance_of(ak_certificate(quote.key, certificates)), expires


def instance_of(certificate: x509.Certificate) -> Instance | None:
    """The instance extension: SEQUENCE of zone, project number and id, instance id and name, security properties (not
    read). None without one. Unverified; MalformedEvidence (``instance_extension``) when it is built otherwise.
    """
    try:
        value = certificate.extensions.get_extension_for_oid(INSTANCE_OID).value
    except x509.ExtensionNotFound:
        return None
    assert isinstance(value, x509.UnrecognizedExtension)
    outer = der_items(value.value)
    items = der_items(outer[0][1]) if len(outer) == 1 and outer[0][0] == SEQUENCE else []
    if [tag for tag, _ in items[:5]] != [_UTF8, INTEGER, _UTF8, INTEGER, _UTF8]:
        raise MalformedEvidence("certificate: instance has other members", code="instance_extension")
    zone, project_number, project, instance, name = (content for _, content in items[:5])
    if max(len(project_number), len(instance)) > _NUMBER_BYTES:
        raise MalformedEvidence("certificate: a number of more than 64 bits", code="instance_extension")
    numbers = [int.from_bytes(content, "big") for content in (project_number, instance)]
    return Instance(_text(zone), numbers[0], _text(project), numbers[1], _text(name))


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise MalformedEvidence("certificate: instance is not UTF-8", code="instance_extension") from None
