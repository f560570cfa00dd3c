"""Google's roots, each matched with a hash pinned here. What chains to which: tokens and vTPM keys never mix."""

from __future__ import annotations

import hashlib
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attest.anchors import gcp_certificates

__all__ = ["confidential_space_roots", "tcb_root_sha256", "vtpm_intermediates", "vtpm_roots"]

# SHA-256 of the DER forms.
_CONFIDENTIAL_SPACE = ("148b293821bb0c6a317f413c8ba475814091cb22d49b9e3c94198db8e8f86c39",)
_VTPM = (
    "594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2",  # EK/AK CA Root
    "9bd5285f8fb18502a7947e621ffd470266f49fcd3b73e19a190f690ad32a7caf",  # tpm_ek_v1_cloud_host_root, older machines
)
# GCE-cc-tcb-root_1 signs launch endorsements. Its certificate is handed in; only its hash is known here.
tcb_root_sha256 = "e876bc6978bf4f3da445f98a0a82363c8c0bae5a1fc033c6df65846a6cb0f18c"


@cache
def _by_hash() -> dict[str, x509.Certificate]:
    return {hashlib.sha256(c.public_bytes(Encoding.DER)).hexdigest(): c for c in gcp_certificates()}


def confidential_space_roots() -> tuple[x509.Certificate, ...]:
    """Roots of PKI tokens of Confidential Space."""
    return tuple(_by_hash()[digest] for digest in _CONFIDENTIAL_SPACE)


def vtpm_roots() -> tuple[x509.Certificate, ...]:
    """Roots of EK and AK certificates of GCE instances."""
    return tuple(_by_hash()[digest] for digest in _VTPM)


def vtpm_intermediates() -> tuple[x509.Certificate, ...]:
    """Intermediates that Google has published, to spare an attester sending them. Not trusted by being here."""
    roots = {*confidential_space_roots(), *vtpm_roots()}
    return tuple(c for c in gcp_certificates() if c not in roots)
