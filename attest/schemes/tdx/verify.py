"""Verification of a TDX quote: cryptography and Intel's tables, the steps of Intel's DCAP library, inputs handed in.

In two parts, because one set of collateral serves many quotes: :func:`verify_collateral`, whose value may be kept, and
:func:`verify_quote`, which looks at the time again. Not checked here: which TCB status, measurement or attribute is
wanted (``appraise``), not even debug; whether the quote speaks for this channel (:func:`check_report_data`).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from functools import cache

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from attest.anchors import intel_root
from attest.chain import (
    check_crl,
    check_not_revoked,
    common_name,
    issuer_name,
    load_chain,
    public_key,
    remembered,
    verify_chain,
)
from attest.collateral import TdxCollateral
from attest.errors import BindingMismatch, EndorsementUnavailable, Stale, UnsupportedEvidence, VerificationFailed
from attest.schemes.tdx.abi import INTEL_QE_VENDOR, Quote, parse_quote
from attest.schemes.tdx.pck import PckInfo, pck_info
from attest.schemes.tdx.tcb import (
    QeIdentity,
    TcbInfo,
    TcbState,
    converge,
    current_state,
    decode_qe_identity,
    decode_tcb_info,
    module_state,
    platform_state,
    qe_state,
)

__all__ = [
    "INTEL_ROOT_SHA256",
    "CollateralNeed",
    "Root",
    "VerifiedCollateral",
    "VerifiedQuote",
    "check_report_data",
    "check_signature",
    "intel_roots",
    "needs",
    "verify_collateral",
    "verify_quote",
    "verify_signatures",
]

# SHA-256 of the DER form of the certificate "Intel SGX Root CA".
INTEL_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"

_PCK_NAME, _SIGNER_NAME = "Intel SGX PCK Certificate", "Intel SGX TCB Signing"
_PCK_CA_NAMES = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")
_P256_SHA256 = ec.ECDSA(hashes.SHA256())


class Root(msgspec.Struct, frozen=True):
    """A trusted root, and whether it is a test root."""

    certificate: x509.Certificate
    simulated: bool = False


class VerifiedCollateral(msgspec.Struct, frozen=True, kw_only=True):
    """Collateral that ``root`` vouches for, usable from ``start`` to ``expires`` (Unix seconds)."""

    root: Root
    pck_ca: x509.Certificate
    root_crl: x509.CertificateRevocationList
    pck_crl: x509.CertificateRevocationList
    tcb_info: TcbInfo
    qe_identity: QeIdentity
    start: float
    expires: float
    digest: str


class VerifiedQuote(msgspec.Struct, frozen=True, kw_only=True):
    """A quote of a genuine platform. ``tcb`` is what platform, module and quoting enclave come to; ``expires`` is the
    earliest end of chain and collateral, ``verified_at`` the time of verification (Unix seconds).
    """

    quote: Quote
    pck: PckInfo
    tcb: TcbState
    platform: TcbState
    module: TcbState | None
    qe: TcbState
    tcb_evaluation_data_number: int
    collateral_digest: str
    simulated: bool
    expires: float
    verified_at: float

    @property
    def debug(self) -> bool:
        """Whether the host may read the trust domain's memory for debugging: then nothing is confidential."""
        return bool(self.quote.report.td_attributes[0] & 1)


@cache
def intel_roots() -> tuple[Root, ...]:
    """Intel's root, from ``attest/anchors``, matched with the hash pinned here."""
    certificate = intel_root()
    digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    if digest != INTEL_ROOT_SHA256:
        raise VerificationFailed(f"the packaged Intel root has hash {digest}", code="anchor")
    return (Root(certificate),)


def verify_collateral(collateral: TdxCollateral, now: float, roots: Sequence[Root] | None = None) -> VerifiedCollateral:
    """Verify one set of collateral under ``roots`` (default: Intel's). ``now``: Unix seconds.

    Raises MalformedEvidence, UnsupportedEvidence, VerificationFailed or Stale.
    """
    trusted = intel_roots() if roots is None else roots
    # 1. The root that all its chains must end in, and that root's revocation list.
    root = _root(collateral.tcb_info_issuer_chain, trusted)
    ends = [check_crl(collateral.root_ca_crl, root.certificate, now)]
    # 2. The CA of PCK certificates, and its revocation list.
    pck_ca, end = _under_root(
        collateral.pck_crl_issuer_chain, root, collateral.root_ca_crl, _PCK_CA_NAMES, now, ca=True
    )
    ends += [end, check_crl(collateral.pck_crl, pck_ca, now)]
    # 3. TCB info and QE identity: the signer, the signature over the very bytes, then what they say and their time.
    starts = [collateral.root_ca_crl.last_update_utc.timestamp(), collateral.pck_crl.last_update_utc.timestamp()]
    for chain, raw, signature, what in (
        (collateral.tcb_info_issuer_chain, collateral.tcb_info, collateral.tcb_info_signature, "tcb_info"),
        (collateral.qe_identity_issuer_chain, collateral.qe_identity, collateral.qe_identity_signature, "qe_identity"),
    ):
        signer, end = _under_root(chain, root, collateral.root_ca_crl, (_SIGNER_NAME,), now, ca=False)
        check_signature(public_key(signer), signature, raw, f"{what}_signature")
        ends.append(end)
    tcb_info, qe_identity = decode_tcb_info(collateral.tcb_info), decode_qe_identity(collateral.qe_identity)
    for dated, what in ((tcb_info, "tcb_info"), (qe_identity, "qe_identity")):
        starts.append(dated.issue_date.timestamp())
        ends.append(dated.next_update.timestamp())
        _check_time(starts[-1], ends[-1], now, what)
    return VerifiedCollateral(
        root=root,
        pck_ca=pck_ca,
        root_crl=collateral.root_ca_crl,
        pck_crl=collateral.pck_crl,
        tcb_info=tcb_info,
        qe_identity=qe_identity,
        start=max(starts),
        expires=min(ends),
        digest=collateral.digest,
    )


def verify_quote(raw: bytes, collateral: VerifiedCollateral, now: float) -> VerifiedQuote:
    """Verify a quote under collateral of :func:`verify_collateral`. ``now``: Unix seconds.

    Raises MalformedEvidence, UnsupportedEvidence, EndorsementUnavailable, VerificationFailed or Stale.
    """
    _check_time(collateral.start, collateral.expires, now, "collateral")
    quote = parse_quote(raw)
    # 1. to 5. Chain and signatures, 6. revocation.
    pck, pck_ca, chain_end = verify_signatures(quote, now, (collateral.root,))
    _check_revocation(pck, pck_ca, collateral)
    # 7. The TCB info is of this kind of platform.
    info, platform = collateral.tcb_info, pck_info(pck)
    for name, actual, expected in (("fmspc", platform.fmspc, info.fmspc), ("pce_id", platform.pce_id, info.pce_id)):
        if actual != bytes.fromhex(expected):
            raise EndorsementUnavailable(
                f"TCB info is of {name} {expected}, not {actual.hex()}", code=f"{name}_mismatch"
            )
    # 8. Levels of enclave, module and platform, and what they come to.
    qe = qe_state(quote.qe_report, collateral.qe_identity)
    module = module_state(quote.report, info)
    level = platform_state(platform, quote.report, info)
    launched = converge([level, qe] if module is None else [level, module, qe])
    return VerifiedQuote(
        quote=quote,
        pck=platform,
        tcb=current_state(launched, platform, quote.report, info, module, qe),
        platform=level,
        module=module,
        qe=qe,
        tcb_evaluation_data_number=min(
            info.tcb_evaluation_data_number, collateral.qe_identity.tcb_evaluation_data_number
        ),
        collateral_digest=collateral.digest,
        simulated=collateral.root.simulated,
        expires=min(collateral.expires, chain_end),
        verified_at=now,
    )


def verify_signatures(
    quote: Quote, now: float, roots: Sequence[Root] | None = None
) -> tuple[x509.Certificate, x509.Certificate, float]:
    """The part that needs no collateral: gives the PCK certificate, its CA, and the earliest end of their chain.

    Not checked: revocation, whose quoting enclave signed, any TCB level. Not a verdict; :func:`verify_quote` is one.
    """
    # 1. Intel's kind of quoting enclave (the form is parse_quote's).
    if quote.qe_vendor_id != INTEL_QE_VENDOR:
        raise UnsupportedEvidence(f"quoting enclave of vendor {quote.qe_vendor_id.hex()}", code="qe_vendor")
    # 2. The platform's certificate: its chain to the pinned root, in its time.
    chain = load_chain(quote.certificates)
    if len(chain) != 3:
        raise VerificationFailed(f"a PCK chain of {len(chain)} certificates, not 3", code="pck_chain")
    pck, pck_ca, _ = chain
    root = _root(chain, intel_roots() if roots is None else roots)
    if common_name(pck) != _PCK_NAME or _is_ca(pck):
        raise VerificationFailed(f"{pck.subject.rfc4514_string()} is no {_PCK_NAME}", code="pck_chain")
    end = verify_chain(pck, (pck_ca,), (root.certificate,), now)
    # 3. The platform vouches for the quoting enclave, 4. the enclave for the attestation key, 5. that for the quote.
    check_signature(public_key(pck), quote.qe_report_signature, quote.raw_qe_report, "qe_report_signature")
    vouched = hashlib.sha256(quote.attestation_key + quote.qe_auth_data).digest() + bytes(32)
    if not hmac.compare_digest(quote.qe_report.report_data, vouched):
        raise VerificationFailed("the quoting enclave does not vouch for the attestation key", code="attestation_key")
    check_signature(_attestation_key(quote.attestation_key), quote.signature, quote.signed, "signature")
    return pck, pck_ca, end


class CollateralNeed(msgspec.Struct, frozen=True, kw_only=True):
    """Which collateral a quote calls for: TCB info of ``fmspc`` (hex), revocation list of ``ca``."""

    fmspc: str
    ca: str


def needs(quote: Quote) -> CollateralNeed:
    """What must be fetched for ``quote``, as its PCK certificate says. Unverified. Raises MalformedEvidence."""
    pck = load_chain(quote.certificates)[0]
    issuer = issuer_name(pck)
    return CollateralNeed(fmspc=pck_info(pck).fmspc.hex(), ca="processor" if "Processor" in issuer else "platform")


def check_report_data(quote: Quote, expected: bytes) -> None:
    """REPORT_DATA (64 bytes) is what the relying party computed; constant time, else BindingMismatch."""
    if not hmac.compare_digest(quote.report.report_data, expected):
        raise BindingMismatch("the quote's REPORT_DATA is not that of the claims", code="report_data")


def _root(chain: Sequence[x509.Certificate], trusted: Sequence[Root]) -> Root:
    """The trusted root that ``chain`` ends in: the same certificate, not one that has its name."""
    for root in trusted:
        if chain[-1] == root.certificate:
            return root
    raise VerificationFailed(f"{chain[-1].subject.rfc4514_string()} is not a trusted root", code="untrusted_root")


def _under_root(
    chain: Sequence[x509.Certificate],
    root: Root,
    root_crl: x509.CertificateRevocationList,
    names: Sequence[str],
    now: float,
    *,
    ca: bool,
) -> tuple[x509.Certificate, float]:
    """The certificate that ``root`` issued to one of ``names``, not revoked, and the end of its chain."""
    if len(chain) != 2:
        raise VerificationFailed(f"a chain of {len(chain)} certificates to {names[0]}, not 2", code="collateral_chain")
    _root(chain, (root,))
    certificate = chain[0]
    if common_name(certificate) not in names or _is_ca(certificate) != ca:
        raise VerificationFailed(f"{certificate.subject.rfc4514_string()} is no {names[0]}", code="collateral_signer")
    end = verify_chain(certificate, (), (root.certificate,), now)
    check_not_revoked(certificate, root_crl)
    return certificate, end


def _check_revocation(pck: x509.Certificate, pck_ca: x509.Certificate, collateral: VerifiedCollateral) -> None:
    """The PCK list must be of the CA that issued this certificate: platform and processor CA have one each."""
    if not _same_ca(pck_ca, collateral.pck_ca):
        raise EndorsementUnavailable(
            f"collateral has no revocation list of {pck_ca.subject.rfc4514_string()}", code="pck_crl_missing"
        )
    check_not_revoked(pck_ca, collateral.root_crl)
    check_not_revoked(pck, collateral.pck_crl)


@remembered
def _same_ca(one: x509.Certificate, other: x509.Certificate) -> bool:
    return one == other or (one.subject == other.subject and public_key(one) == public_key(other))


def _check_time(start: float, end: float, now: float, what: str) -> None:
    if now < start:
        raise Stale(f"{what} is of later", code=f"{what}_not_yet_valid")
    if now > end:
        raise Stale(f"{what} has expired", code=f"{what}_expired")


def _attestation_key(raw: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + raw)
    except ValueError:
        raise VerificationFailed("the attestation key is no point of P-256", code="attestation_key") from None


def check_signature(key: object, signature: bytes, data: bytes, code: str) -> None:
    """ECDSA P-256 with SHA-256, r and s big endian (64 bytes); else VerificationFailed with ``code``."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise VerificationFailed("a key that is not P-256", code=code)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), data, _P256_SHA256)
    except InvalidSignature:
        raise VerificationFailed(f"{code.replace('_', ' ')}: does not verify", code=code) from None


@remembered
def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
