"""Vendor roots as package data. ``PROVENANCE.toml`` says where each comes from; verifiers pin the hashes in code."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from cryptography import x509

__all__ = ["amd_certificates"]

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n", re.DOTALL)


@cache
def amd_certificates() -> tuple[x509.Certificate, ...]:
    """AMD's ARK, ASK and ASVK of Milan, Genoa and Turin. Being in this list is not trust: ``sev_snp.verify`` pins."""
    pem = files("attest.anchors").joinpath("amd.pem").read_bytes()
    return tuple(x509.load_pem_x509_certificate(block) for block in _PEM.findall(pem))
