"""Verification of an Azure confidential VM: hardware report → hash of the runtime claims → AK → vTPM quote.

The hardware report is made at boot and knows no nonce; freshness is the quote's alone. What ties the quote to the
hardware is this chain and nothing else. Not checked here: measurements, TCB, PCR values and configuration (policy).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from functools import cache

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ObjectIdentifier

from attest.anchors import azure_certificates
from attest.chain import load_certificate, verify_chain
from attest.codec import cbor_decode, cbor_encode
from attest.errors import BindingMismatch, MalformedEvidence, UnsupportedEvidence, VerificationFailed
from attest.schemes.azure.abi import TD_REPORT_BYTES, HclReport, RuntimeClaims, parse_claims, parse_hcl
from attest.schemes.sev_snp.verify import Root, VerifiedReport, verify_report
from attest.schemes.vtpm.verify import VerifiedQuote

__all__ = [
    "ROOT_SHA256",
    "VerifiedHcl",
    "azure_roots",
    "check_ak",
    "check_claims_hash",
    "load_padded_certificate",
    "split_tdx_part",
    "tdx_part",
    "verify_ak_certificate",
    "verify_hcl_snp",
    "verify_hcl_tdx",
]

# SHA-256 of the DER form: Azure Virtual TPM Root Certificate Authority 2023, Microsoft RSA Devices Root CA 2021.
ROOT_SHA256 = (
    "e6c596b17f8ffefba5c300f714cfb1260c6028704ecf7becc4ab5018efb00e95",
    "8c2bb9144d4970c94fb8105cc5d860a58e2e675eb360fdd8c14b30833aaaec1d",
)
AK_EKU = ObjectIdentifier("2.23.133.8.3")  # tcg-kp-AIKCertificate
MAX_AK_CERTIFICATE_BYTES = 4096
_PEM_BEGIN, _PEM_END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_TD_REPORT_DATA = slice(128, 192)


class VerifiedHcl(msgspec.Struct, frozen=True):
    """Runtime claims that a hardware report names. ``report`` is the SNP report, None on TDX."""

    hcl: HclReport
    claims: RuntimeClaims
    report: VerifiedReport | None


@cache
def azure_roots() -> tuple[x509.Certificate, ...]:
    """Microsoft's roots of AK certificates, from ``attest/anchors``, each matched with a hash pinned here."""
    found = {hashlib.sha256(c.public_bytes(Encoding.DER)).hexdigest(): c for c in azure_certificates()}
    return tuple(found[digest] for digest in ROOT_SHA256)


def verify_hcl_snp(
    raw_hcl: bytes,
    certificates: Sequence[x509.Certificate],
    now: float,
    roots: Mapping[str, Sequence[Root]] | None = None,
    *,
    crls: Sequence[x509.CertificateRevocationList] = (),
) -> VerifiedHcl:
    """An HCL report whose hardware part is SEV-SNP; arguments as for ``sev_snp.verify.verify_report``.

    Raises what that raises, MalformedEvidence or UnsupportedEvidence for the HCL report, VerificationFailed for a
    report that is not the paravisor's (``hcl_vmpl``), BindingMismatch for other claims (``claims_hash``).
    """
    # 1. Sizes and types.
    hcl = parse_hcl(raw_hcl)
    if hcl.kind != "sev-snp":
        raise UnsupportedEvidence(f"an HCL report of {hcl.kind} where SEV-SNP was expected", code="hcl_report_type")
    # 2. The hardware report, made by the paravisor: a guest at VMPL 1 to 3 could name a key of its own.
    report = verify_report(hcl.hardware, certificates, now, roots, crls=crls)
    if report.report.vmpl != 0:
        raise VerificationFailed(f"the report was asked for at VMPL {report.report.vmpl}", code="hcl_vmpl")
    # 3. It names the claims.
    check_claims_hash(hcl, report.report.report_data)
    return VerifiedHcl(hcl, parse_claims(hcl.raw_claims), report)


def verify_hcl_tdx(raw_hcl: bytes, report_data: bytes) -> VerifiedHcl:
    """An HCL report of a TD whose *verified* quote has ``report_data`` (64 bytes): the TDREPORT inside proves nothing.

    Raises as :func:`verify_hcl_snp` does. The quote's verification is the ``tdx`` scheme's work, before this.
    """
    hcl = parse_hcl(raw_hcl)
    if hcl.kind != "tdx":
        raise UnsupportedEvidence(f"an HCL report of {hcl.kind} where TDX was expected", code="hcl_report_type")
    if any(hcl.hardware[TD_REPORT_BYTES:]):
        raise MalformedEvidence("HCL report: bytes after the TDREPORT")
    if not hmac.compare_digest(hcl.hardware[_TD_REPORT_DATA], report_data):
        raise BindingMismatch("TDREPORT and quote have different REPORTDATA", code="report_data")
    check_claims_hash(hcl, report_data)
    return VerifiedHcl(hcl, parse_claims(hcl.raw_claims), None)


def tdx_part(raw_hcl: bytes, td_quote: bytes) -> bytes:
    """Body of an ``azure-hcl`` part on TDX, where the hardware's word is a quote beside the report: CBOR, the two."""
    return cbor_encode([raw_hcl, td_quote])


def split_tdx_part(body: bytes) -> tuple[bytes, bytes]:
    """The inverse of :func:`tdx_part`, unverified; MalformedEvidence for anything else."""
    items = cbor_decode(body)
    if not isinstance(items, list) or len(items) != 2:
        raise MalformedEvidence("azure-hcl: not an HCL report and a TD quote")
    raw_hcl, td_quote = items
    if not isinstance(raw_hcl, bytes) or not isinstance(td_quote, bytes):
        raise MalformedEvidence("azure-hcl: not an HCL report and a TD quote")
    return raw_hcl, td_quote


def check_claims_hash(hcl: HclReport, report_data: bytes) -> None:
    """REPORT_DATA is the hash of exactly the claims' bytes, then zeros; else BindingMismatch (``claims_hash``)."""
    expected = hashlib.new(hcl.hash_name, hcl.raw_claims).digest().ljust(64, b"\x00")
    if not hmac.compare_digest(expected, report_data):
        raise BindingMismatch("the hardware report names other runtime claims", code="claims_hash")


def check_ak(verified: VerifiedHcl, quote: VerifiedQuote) -> None:
    """Step 4: the key that signed the quote is HCLAkPub; else BindingMismatch (``ak_mismatch``)."""
    if quote.key != verified.claims.ak:
        raise BindingMismatch("the quote's AK is not the one in the runtime claims", code="ak_mismatch")


def load_padded_certificate(raw: bytes) -> x509.Certificate:
    """The certificate at the front of the NV buffer 0x01C101D0, which is filled up with zeros; MalformedEvidence.

    Also that buffer as PEM, which tools write without cutting it.
    """
    text = raw.strip()
    if text.startswith(_PEM_BEGIN) and text.endswith(_PEM_END):
        try:
            raw = base64.b64decode(b"".join(text[len(_PEM_BEGIN) : -len(_PEM_END)].split()), validate=True)
        except ValueError:
            raise MalformedEvidence("AK certificate: not PEM", code="malformed_certificate") from None
    if not 4 < len(raw) <= MAX_AK_CERTIFICATE_BYTES or raw[:2] != b"\x30\x82":
        raise MalformedEvidence("AK certificate: no DER sequence", code="malformed_certificate")
    end = 4 + int.from_bytes(raw[2:4], "big")
    if any(raw[end:]):
        raise MalformedEvidence("AK certificate: bytes after it", code="malformed_certificate")
    return load_certificate(raw[:end])


def verify_ak_certificate(
    verified: VerifiedHcl,
    certificates: Sequence[x509.Certificate],
    now: float,
    roots: Sequence[x509.Certificate] | None = None,
) -> float:
    """Step 7, a second witness beside the hardware: Microsoft's certificate of HCLAkPub, to its roots, for AKs.

    ``certificates``: leaf and intermediates, any order. Gives the earliest end of validity, Unix seconds. Raises
    VerificationFailed (``ak_not_certified``, ``ak_certificate_eku``, ``untrusted_chain``) or Stale.
    """
    leaf = next((c for c in certificates if c.public_key() == verified.claims.ak), None)
    if leaf is None:
        raise VerificationFailed("no certificate is of the AK in the runtime claims", code="ak_not_certified")
    try:
        usages = list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        usages = []
    if AK_EKU not in usages:
        raise VerificationFailed("the certificate is not for attestation keys", code="ak_certificate_eku")
    return verify_chain(leaf, certificates, azure_roots() if roots is None else roots, now)
