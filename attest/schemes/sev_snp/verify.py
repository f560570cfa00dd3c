"""Verification of a SEV-SNP report: cryptography only, the steps of AMD 57230 and 58369, all inputs handed in.

Not checked here: measurement, TCB floor, debug and every other wish (``appraise``). ASK and ASVK are looked up in AMD's
revocation list where it is handed in; the result says whether it was. VCEKs have no list: AMD raises TCB levels.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence
from functools import cache

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import SignatureAlgorithmOID

from attest.anchors import amd_certificates
from attest.chain import check_crl, check_not_revoked, common_name, is_named_by, public_key, remembered, verify_chain
from attest.errors import BindingMismatch, EndorsementUnavailable, UnsupportedEvidence, VerificationFailed
from attest.schemes.sev_snp.abi import Report, Tcb, parse_report, product_of, tcb_of

__all__ = [
    "PRODUCTS",
    "LeafNeed",
    "Root",
    "VerifiedReport",
    "amd_roots",
    "check_report_data",
    "needs",
    "verify_report",
]

PRODUCTS = ("Milan", "Genoa", "Turin")

# SHA-256 of the DER form of AMD's root keys' certificates.
ARK_SHA256 = {
    "Milan": "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
    "Genoa": "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
    "Turin": "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
}

_P384_SHA384 = ec.ECDSA(hashes.SHA384())
_OID = "1.3.6.1.4.1.3704.1."
_PRODUCT_NAME, _HWID, _CSP_ID = (x509.ObjectIdentifier(_OID + arcs) for arcs in ("2", "4", "5"))
_SPL = tuple(  # bootloader, tee, snp, microcode
    x509.ObjectIdentifier(_OID + arcs) for arcs in ("3.1", "3.2", "3.3", "3.8")
)
_SPL_FMC = x509.ObjectIdentifier(_OID + "3.9")
_LEAF_NAMES = {"vcek": "SEV-VCEK", "vlek": "SEV-VLEK"}
_INTERMEDIATE_NAMES = {"vcek": "SEV-{}", "vlek": "SEV-VLEK-{}"}
_Fields = Mapping[x509.ObjectIdentifier, bytes]


class Root(msgspec.Struct, frozen=True):
    """One product's trusted ARK, intermediates that spare the attester sending them, and whether it is a test root."""

    ark: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    simulated: bool = False


class VerifiedReport(msgspec.Struct, frozen=True):
    """A report signed by a chip of ``product``, for its reported TCB. ``expires``: the earliest end of chain and list.

    ``chip_id_masked``: the host hides the chip (only when the caller allowed that); the key alone then names it.
    """

    report: Report
    product: str
    reported_tcb: Tcb
    current_tcb: Tcb
    committed_tcb: Tcb
    launch_tcb: Tcb
    csp_id: str  # of a VLEK: whose fleet it is; empty for a VCEK
    chip_id_masked: bool
    revocation_checked: bool
    simulated: bool
    expires: float

    @property
    def debug(self) -> bool:
        """Whether the host may read the guest's memory for debugging: then nothing is confidential."""
        return self.report.policy.debug


@cache
def amd_roots() -> Mapping[str, tuple[Root, ...]]:
    """AMD's own roots by product, from ``attest/anchors``, each matched with the hash pinned here."""
    certificates = amd_certificates()
    by_hash = {hashlib.sha256(c.public_bytes(Encoding.DER)).hexdigest(): c for c in certificates}
    below = {p: {name.format(p) for name in _INTERMEDIATE_NAMES.values()} for p in PRODUCTS}
    return {
        p: (Root(by_hash[ARK_SHA256[p]], tuple(c for c in certificates if common_name(c) in below[p])),)
        for p in PRODUCTS
    }


def verify_report(
    raw_report: bytes,
    certificates: Sequence[x509.Certificate],
    now: float,
    roots: Mapping[str, Sequence[Root]] | None = None,
    *,
    crls: Sequence[x509.CertificateRevocationList] = (),
    allow_masked_chip_id: bool = False,
) -> VerifiedReport:
    """Verify a report with the certificates handed in, in any order: a VCEK or VLEK, ASK or ASVK if not AMD's current.

    ``certificates`` come from ``chain.load_certificate``; ``roots`` (by product) defaults to AMD's. ``crls``: lists
    of ARKs; those of other products are passed over. ``allow_masked_chip_id``: accept a VCEK's report whose chip id is
    zero, so that signature and TCB alone tie the two. Whether the report speaks for this channel is the matter of
    :func:`check_report_data`. Raises MalformedEvidence, UnsupportedEvidence, EndorsementUnavailable,
    VerificationFailed or Stale.
    """
    # 1. Length, version, algorithm, reserved bytes, policy bits.
    report = parse_report(raw_report)
    leaf = _leaf(report, certificates)
    # 2. The product, by CPUID (version 2: by certificate), and the root that it must end in.
    fields = _amd_extensions(leaf)
    product = _product(report, fields)
    # 3. Chain: pinned ARK, then ASK for a VCEK or ASVK for a VLEK, then the leaf; validity now, revocation.
    trusted = amd_roots() if roots is None else roots
    root, candidates = _issuers(report, leaf, certificates, trusted.get(product, ()), product)
    candidates, crl_end = _not_revoked(candidates, root, crls, now)
    expires = min(verify_chain(leaf, candidates, (root.ark,), now), crl_end)
    # 4. The leaf is of this chip and this TCB.
    reported = tcb_of(report.reported_tcb, product)
    _check_tcb(fields, product, reported)
    csp_id = _check_owner(report, fields, masked_too=allow_masked_chip_id)
    # 5. The report's signature.
    _check_signature(report, leaf)
    return VerifiedReport(
        report=report,
        product=product,
        reported_tcb=reported,
        current_tcb=tcb_of(report.current_tcb, product),
        committed_tcb=tcb_of(report.committed_tcb, product),
        launch_tcb=tcb_of(report.launch_tcb, product),
        csp_id=csp_id,
        chip_id_masked=report.signing_key == "vcek" and not any(report.chip_id),
        revocation_checked=crl_end != math.inf,
        simulated=root.simulated,
        expires=expires,
    )


class LeafNeed(msgspec.Struct, frozen=True, kw_only=True):
    """Which VCEK a report calls for; a VLEK is the cloud's to hand out, so that only ``signing_key`` says something."""

    signing_key: str
    product: str
    hwid: str
    tcb: Tcb

    @property
    def kds_path(self) -> str:
        """Path and query at AMD's Key Distribution Service (57230 §4.1). Raises ValueError for a VLEK."""
        if self.signing_key != "vcek":
            raise ValueError("AMD hands out VCEKs only")
        levels = {"blSPL": self.tcb.bootloader, "teeSPL": self.tcb.tee, "snpSPL": self.tcb.snp}
        if self.tcb.fmc is not None:
            levels = {"fmcSPL": self.tcb.fmc, **levels}
        query = "&".join(f"{name}={level:02d}" for name, level in (levels | {"ucodeSPL": self.tcb.microcode}).items())
        return f"/vcek/v1/{self.product}/{self.hwid}?{query}"


def needs(report: Report, product: str = "") -> LeafNeed:
    """What must be fetched for ``report``; nothing in it is verified. ``product``: of a version 2 report, which does
    not say. Raises UnsupportedEvidence without a product, or when the chip id is masked.
    """
    named = product_of(report.cpuid) if report.version > 2 else product
    if named not in PRODUCTS:
        raise UnsupportedEvidence("the report does not say its product", code="snp_product_unknown")
    if report.signing_key == "vcek" and not any(report.chip_id):
        raise UnsupportedEvidence("the report's chip id is masked", code="chip_id_masked")
    hwid = report.chip_id[: 8 if named == "Turin" else 64].hex()
    return LeafNeed(signing_key=report.signing_key, product=named, hwid=hwid, tcb=tcb_of(report.reported_tcb, named))


def check_report_data(report: Report, expected: bytes) -> None:
    """Step 7: REPORT_DATA (64 bytes) is what the relying party computed; constant time, else BindingMismatch."""
    if not hmac.compare_digest(report.report_data, expected):
        raise BindingMismatch("the report's REPORT_DATA is not that of the claims", code="report_data")


def _leaf(report: Report, certificates: Sequence[x509.Certificate]) -> x509.Certificate:
    wanted = _LEAF_NAMES[report.signing_key]
    leaves = [c for c in certificates if common_name(c) == wanted]
    if not leaves:
        raise EndorsementUnavailable(f"no {wanted} certificate was handed in", code=f"{report.signing_key}_missing")
    if len(leaves) > 1:
        raise UnsupportedEvidence(f"{len(leaves)} {wanted} certificates were handed in", code="ambiguous_endorsement")
    return leaves[0]


@remembered
def _amd_extensions(leaf: x509.Certificate) -> _Fields:
    return {
        value.oid: value.value
        for extension in leaf.extensions
        if isinstance(value := extension.value, x509.UnrecognizedExtension)
    }


def _product(report: Report, fields: _Fields) -> str:
    certified = _ia5(fields, _PRODUCT_NAME).partition("-")[0]  # "Milan-B0" carries the stepping
    product = certified if report.version == 2 else product_of(report.cpuid)
    if product not in PRODUCTS:
        raise UnsupportedEvidence(f"unknown product {product or report.cpuid}", code="snp_product_unknown")
    if product != certified:
        raise VerificationFailed(f"a {product} report with a {certified} certificate", code="snp_product_mismatch")
    return product


def _issuers(
    report: Report,
    leaf: x509.Certificate,
    certificates: Sequence[x509.Certificate],
    roots: Sequence[Root],
    product: str,
) -> tuple[Root, list[x509.Certificate]]:
    """Intermediates of the kind that the report's key calls for, and their root: no ASVK can vouch for a VCEK."""
    name = _INTERMEDIATE_NAMES[report.signing_key].format(product)
    for root in roots:
        given = (*certificates, *root.intermediates)
        candidates = [c for c in given if common_name(c) == name and _stands_between(c, leaf, root.ark)]
        if candidates:
            return root, candidates
    raise VerificationFailed(f"the leaf's issuer is no {name} that leads to a trusted root", code="untrusted_chain")


@remembered
def _stands_between(certificate: x509.Certificate, leaf: x509.Certificate, ark: x509.Certificate) -> bool:
    """By the names, and by the kind of signature that AMD makes; whether they hold is for the chain to see."""
    named = is_named_by(leaf, certificate) and is_named_by(certificate, ark)
    return named and _is_pss_sha384(leaf) and _is_pss_sha384(certificate)


def _key(leaf: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = public_key(leaf)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise VerificationFailed("the leaf's key is not P-384", code="leaf_key")
    return key


def _not_revoked(
    candidates: Sequence[x509.Certificate], root: Root, crls: Sequence[x509.CertificateRevocationList], now: float
) -> tuple[list[x509.Certificate], float]:
    """The intermediates that the ARK's list does not name, and the list's end; without a list, all and no end."""
    mine = [crl for crl in crls if crl.issuer == root.ark.subject]
    if not mine:
        return list(candidates), math.inf
    if len(mine) > 1:
        raise UnsupportedEvidence(f"{len(mine)} revocation lists of one ARK were handed in", code="ambiguous_crl")
    end = check_crl(mine[0], root.ark, now)
    revoked = [c for c in candidates if mine[0].get_revoked_certificate_by_serial_number(c.serial_number) is not None]
    if len(revoked) == len(candidates):
        check_not_revoked(revoked[0], mine[0])
    return [c for c in candidates if c not in revoked], end


def _is_pss_sha384(certificate: x509.Certificate) -> bool:
    pss = certificate.signature_algorithm_oid == SignatureAlgorithmOID.RSASSA_PSS
    return pss and isinstance(certificate.signature_hash_algorithm, hashes.SHA384)


def _check_tcb(fields: _Fields, product: str, reported: Tcb) -> None:
    bootloader, tee, snp, microcode = (_integer(fields, oid) for oid in _SPL)
    fmc = _integer(fields, _SPL_FMC) if product == "Turin" else None
    certified = Tcb(bootloader, tee, snp, microcode, fmc)
    if certified != reported:
        names = Tcb.__struct_fields__
        name = next(name for name in names if getattr(reported, name) != getattr(certified, name))
        level, there = getattr(reported, name), getattr(certified, name)
        raise VerificationFailed(f"{name} is {level} in the report, {there} in the leaf", code=f"spl_{name}")


def _check_owner(report: Report, fields: _Fields, *, masked_too: bool) -> str:
    """VCEK: its hardware id is the report's chip. VLEK: it names a cloud provider and no chip. Gives the provider."""
    if report.signing_key == "vlek":
        if _HWID in fields:
            raise VerificationFailed("a VLEK with a hardware id", code="leaf_kind")
        return _ia5(fields, _CSP_ID)
    if _CSP_ID in fields:
        raise VerificationFailed("a VCEK that names a cloud provider", code="leaf_kind")
    hwid = fields.get(_HWID)
    if not hwid:
        raise VerificationFailed("a VCEK without a hardware id", code="hwid_missing")
    if not any(report.chip_id):
        if masked_too:
            return ""
        raise UnsupportedEvidence("the report's chip id is masked", code="chip_id_masked")
    if report.chip_id != hwid.ljust(len(report.chip_id), b"\x00"):
        raise VerificationFailed("the VCEK is of another chip", code="hwid_mismatch")
    return ""


def _check_signature(report: Report, leaf: x509.Certificate) -> None:
    try:
        _key(leaf).verify(encode_dss_signature(*report.signature), report.signed, _P384_SHA384)
    except InvalidSignature:
        raise VerificationFailed("the report's signature does not verify", code="signature") from None


def _integer(fields: _Fields, oid: x509.ObjectIdentifier) -> int:
    """A DER INTEGER from 0 to 255."""
    value = fields.get(oid, b"")
    if len(value) == 3 and value[:2] == b"\x02\x01" and value[2] < 0x80:
        return value[2]
    if len(value) == 4 and value[:3] == b"\x02\x02\x00" and value[3] >= 0x80:
        return value[3]
    raise VerificationFailed(f"leaf extension {oid.dotted_string} is not a small INTEGER", code="leaf_extensions")


def _ia5(fields: _Fields, oid: x509.ObjectIdentifier) -> str:
    value = fields.get(oid, b"")
    if len(value) > 2 and value[0] == 0x16 and value[1] == len(value) - 2 < 0x80 and value[2:].isascii():
        return value[2:].decode("ascii")
    raise VerificationFailed(f"leaf extension {oid.dotted_string} is not an IA5String", code="leaf_extensions")
