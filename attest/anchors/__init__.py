"""Vendor roots as package data. ``PROVENANCE.toml`` says where each comes from; verifiers pin the hashes in code."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from cryptography import x509

__all__ = ["amd_certificates", "azure_certificates", "gcp_certificates", "intel_root"]

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", re.DOTALL)


def amd_certificates() -> tuple[x509.Certificate, ...]:
    """AMD's ARK, ASK and ASVK of Milan, Genoa and Turin. Being in this list is not trust: ``sev_snp.verify`` pins."""
    return _certificates("amd.pem")


def azure_certificates() -> tuple[x509.Certificate, ...]:
    """Microsoft's roots of Azure vTPM certificates; ``azure.verify`` pins."""
    return _certificates("azure.pem")


def gcp_certificates() -> tuple[x509.Certificate, ...]:
    """Google's roots and intermediates of Confidential Space tokens and of GCE vTPMs; ``gcp.roots`` pins."""
    return _certificates("gcp.pem")


def intel_root() -> x509.Certificate:
    """Intel SGX Root CA, which TDX quotes and their collateral end in; ``tdx.verify`` pins."""
    (root,) = _certificates("intel.pem")
    return root


@cache
def _certificates(name: str) -> tuple[x509.Certificate, ...]:
    pem = files("attest.anchors").joinpath(name).read_bytes()
    return tuple(x509.load_pem_x509_certificate(block) for block in _PEM.findall(pem))
