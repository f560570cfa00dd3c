"""A fake AMD: ARK, ASK and ASVK for each product, and chip certificates with any field changed.

The keys are fixed files (making RSA-4096 keys takes seconds) and public on purpose. Names say that it is a simulation.
``python -m attest.testkit.pki DIRECTORY`` makes a new set.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from attest.schemes.sev_snp.abi import Tcb
from attest.schemes.sev_snp.verify import PRODUCTS, Root

__all__ = ["ORGANIZATION", "ca_certificate", "ca_key", "chip_certificate", "crl", "simulated_roots"]

ORGANIZATION = "cube-mesh SIMULATION - not AMD"
AMD_OID = "1.3.6.1.4.1.3704.1."
_KINDS = {"ark": "ARK-{}", "ask": "SEV-{}", "asvk": "SEV-VLEK-{}"}
_START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
_ROOT_END = dt.datetime(2049, 1, 1, tzinfo=dt.UTC)
_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)


@cache
def ca_key(kind: str) -> rsa.RSAPrivateKey:
    """The simulation's private key of kind "ark", "ask" or "asvk"."""
    key = load_pem_private_key(files("attest.testkit").joinpath(f"keys/{kind}.key.pem").read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


@cache
def ca_certificate(kind: str, product: str) -> x509.Certificate:
    """The simulation's fixed certificate of kind "ark", "ask" or "asvk"."""
    pem = files("attest.testkit").joinpath(f"keys/{kind}-{product.lower()}.pem").read_bytes()
    return x509.load_pem_x509_certificate(pem)


@cache
def simulated_roots() -> dict[str, tuple[Root, ...]]:
    """What ``Verifier(allow_simulated=True)`` trusts besides AMD's roots, by product."""
    kinds = ("ask", "asvk")
    return {
        product: (Root(ca_certificate("ark", product), tuple(ca_certificate(k, product) for k in kinds), True),)
        for product in PRODUCTS
    }


def name(common_name: str, organization: str = ORGANIZATION) -> x509.Name:
    return x509.Name([
        x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
    ])  # fmt: skip


def chip_certificate(
    public_key: ec.EllipticCurvePublicKey,
    product: str,
    tcb: Tcb,
    *,
    kind: str = "vcek",
    hwid: bytes = b"",
    csp_id: str = "",
    issuer: str = "",
    issuer_name: x509.Name | None = None,
    signer: rsa.RSAPrivateKey | None = None,
    product_name: str = "",
    common_name: str = "",
    not_before: dt.datetime = _START,
    not_after: dt.datetime = dt.datetime(2031, 1, 1, tzinfo=dt.UTC),
    omit: tuple[str, ...] = (),
    raw: Mapping[str, bytes] | None = None,
) -> x509.Certificate:
    """A VCEK or VLEK (AMD 57230, 58369). Each keyword changes one thing; ``omit`` drops extensions by their last arcs,
    ``raw`` gives the bytes of such.

    ``issuer`` is "ask" or "asvk" (default: as ``kind`` wants). The serial number is 1: real ones are 0, which
    ``cryptography`` cannot write.
    """
    issuer = issuer or {"vcek": "ask", "vlek": "asvk"}[kind]
    extensions = {"1": _integer(0), "2": _ia5(product_name or product), **_levels(tcb)}
    if hwid:
        extensions["4"] = hwid
    if csp_id:
        extensions["5"] = _ia5(csp_id)
    extensions |= raw or {}
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(common_name or f"SEV-{kind.upper()}"))
        .issuer_name(issuer_name or ca_certificate(issuer, product).subject)
        .public_key(public_key)
        .serial_number(1)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    for arcs, value in extensions.items():
        if arcs not in omit:
            oid = x509.ObjectIdentifier(AMD_OID + arcs)
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return builder.sign(signer or ca_key(issuer), hashes.SHA384(), rsa_padding=_PSS)


def crl(
    product: str,
    revoked: tuple[str, ...] = (),
    *,
    signer: rsa.RSAPrivateKey | None = None,
    issuer_name: x509.Name | None = None,
    last_update: dt.datetime = _START,
    next_update: dt.datetime = dt.datetime(2031, 1, 1, tzinfo=dt.UTC),
    critical: bool = False,
) -> x509.CertificateRevocationList:
    """The revocation list of the product's ARK with these intermediates ("ask", "asvk") in it.

    ``critical`` adds a critical extension that nobody can know. AMD's own lists are not public enough to compare with.
    """
    subject = issuer_name or ca_certificate("ark", product).subject
    builder = x509.CertificateRevocationListBuilder(subject, last_update, next_update)
    for kind in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(ca_certificate(kind, product).serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(last_update).build())
    if critical:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(AMD_OID + "99"), b"\x05\x00")
        builder = builder.add_extension(unknown, critical=True)
    return builder.sign(signer or ca_key("ark"), hashes.SHA384(), rsa_padding=_PSS)


def _levels(tcb: Tcb) -> dict[str, bytes]:
    levels = {"3.1": tcb.bootloader, "3.2": tcb.tee, "3.3": tcb.snp, "3.8": tcb.microcode}
    if tcb.fmc is not None:
        levels["3.9"] = tcb.fmc
    return {arcs: _integer(level) for arcs, level in levels.items()}


def _integer(value: int) -> bytes:
    body = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes((0x02, len(body))) + body


def _ia5(text: str) -> bytes:
    return bytes((0x16, len(text))) + text.encode("ascii")


def ca_builder(kind: str, product: str, subject: x509.Name, issuer: x509.Name) -> x509.CertificateBuilder:
    """A CA certificate with AMD's extensions, not signed yet."""
    usage = x509.KeyUsage(False, False, False, False, False, True, kind == "ark", False, False)
    constraints = x509.BasicConstraints(ca=True, path_length=None if kind == "ark" else 0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(1 + PRODUCTS.index(product) * 8 + list(_KINDS).index(kind))
        .not_valid_before(_START)
        .not_valid_after(_ROOT_END)
        .add_extension(usage, critical=True)
        .add_extension(constraints, critical=True)
    )


def _make(directory: Path) -> None:
    keys = {kind: rsa.generate_private_key(65537, 4096) for kind in _KINDS}
    for kind, key in keys.items():
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (directory / f"{kind}.key.pem").write_bytes(pem)
        for product in PRODUCTS:
            builder = ca_builder(kind, product, name(_KINDS[kind].format(product)), name(_KINDS["ark"].format(product)))
            certificate = builder.public_key(key.public_key()).sign(keys["ark"], hashes.SHA384(), rsa_padding=_PSS)
            (directory / f"{kind}-{product.lower()}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
