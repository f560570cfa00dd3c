"""Whether an item of collateral is its vendor's: the signatures over a record, under roots that the caller chose.

For whoever stores records: a wrong answer must not replace a good one. A verifier does not rely on it; it verifies
again, and looks at revocation, which this does not. Also how records become what a verifier takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attest.chain import check_crl, common_name, load_certificates, load_chain, load_crl, verify_chain
from attest.errors import Stale, VerificationFailed
from attest.items import Item, Record, check, parse_item, signed_document, thim_certificates
from attest.schemes.sev_snp.verify import Root as AmdRoot
from attest.schemes.sev_snp.verify import amd_roots
from attest.schemes.tdx.verify import Root as IntelRoot
from attest.schemes.tdx.verify import check_signature, intel_roots

__all__ = ["Trust", "tdx_items", "tdx_set", "vendor_roots", "vouch"]


class Trust(msgspec.Struct, frozen=True):
    """The roots under which records are looked at: AMD's by product, and Intel's."""

    amd: Mapping[str, Sequence[AmdRoot]]
    intel: Sequence[IntelRoot]


def vendor_roots() -> Trust:
    """The vendors' own roots, pinned."""
    return Trust(amd_roots(), intel_roots())


def vouch(record: Record, now: float, trust: Trust) -> None:
    """The record is signed by its vendor and in its time at ``now``, Unix seconds. A key set is signed by nobody, so
    that of such a one only the time is looked at.

    Raises MalformedEvidence, VerificationFailed or Stale.
    """
    state = check(record).state(now)
    if state in ("early", "expired"):
        raise Stale(f"{record.item} is {'of later' if state == 'early' else 'expired'}", code=f"collateral_{state}")
    item = parse_item(record.item)
    match item.kind:
        case "amd-vcek" | "amd-chain":
            _amd_certificates(record.body, trust.amd.get(item.key.partition("/")[0], ()), now)
        case "azure-thim":
            roots = [root for product in trust.amd.values() for root in product]
            _amd_certificates(thim_certificates(record), roots, now)
        case "amd-crl":
            _crl(record, [root.ark for root in trust.amd.get(item.key, ())], now)
        case "intel-root-crl":
            _crl(record, [root.certificate for root in trust.intel], now)
        case "intel-pck-crl":
            _crl(record, [_intel_issuer(record, trust, now)], now)
        case "intel-tcb-info" | "intel-qe-identity":
            signer = _intel_issuer(record, trust, now)
            document = signed_document(record)
            check_signature(signer.public_key(), document.signature, document.raw, "collateral_signature")


def _amd_certificates(raw: bytes, roots: Sequence[AmdRoot], now: float) -> None:
    certificates = load_certificates(raw)
    arks = [root.ark for root in roots]
    known = [certificate for root in roots for certificate in root.intermediates]
    verify_chain(certificates[0], (*certificates[1:], *known), arks, now)


def _crl(record: Record, issuers: Sequence[x509.Certificate], now: float) -> None:
    """One of ``issuers`` signed the list; where none did, the last one's error."""
    crl, error = load_crl(record.body), VerificationFailed("no root that could sign", code="untrusted_root")
    for issuer in issuers:
        try:
            check_crl(crl, issuer, now)
            return
        except VerificationFailed as failed:
            error = failed
    raise error


def _intel_issuer(record: Record, trust: Trust, now: float) -> x509.Certificate:
    """The signer that came with the record, issued by a trusted root to the name that its kind calls for."""
    chain = load_chain(record.issuer_chain.encode())
    wanted = "Intel SGX PCK " if record.item.startswith("intel-pck-crl:") else "Intel SGX TCB Signing"
    if not common_name(chain[0]).startswith(wanted):
        raise VerificationFailed(f"{record.item} is signed by {common_name(chain[0])}", code="collateral_signer")
    verify_chain(chain[0], (), [root.certificate for root in trust.intel], now)
    return chain[0]


def tdx_items(fmspc: str, ca: str) -> tuple[Item, Item, Item, Item]:
    """The items of one set of collateral for TDX, in the order of :func:`tdx_set`; ``ca``: platform or processor."""
    return (
        Item("intel-tcb-info", fmspc.lower()),
        Item("intel-qe-identity", "tdx"),
        Item("intel-pck-crl", ca),
        Item("intel-root-crl", "root"),
    )


def tdx_set(tcb_info: Record, qe_identity: Record, pck_crl: Record, root_crl: Record) -> bytes:
    """One set in the JSON form that ``collateral.parse_collateral`` reads. Raises MalformedEvidence."""
    tcb, qe = signed_document(tcb_info), signed_document(qe_identity)
    members = {
        "pck_crl_issuer_chain": pck_crl.issuer_chain,
        "root_ca_crl": _der(root_crl).hex(),
        "pck_crl": _der(pck_crl).hex(),
        "tcb_info_issuer_chain": tcb_info.issuer_chain,
        "tcb_info": tcb.raw.decode(),
        "tcb_info_signature": tcb.signature.hex(),
        "qe_identity_issuer_chain": qe_identity.issuer_chain,
        "qe_identity": qe.raw.decode(),
        "qe_identity_signature": qe.signature.hex(),
    }
    return msgspec.json.encode(members)


def _der(record: Record) -> bytes:
    return load_crl(record.body).public_bytes(Encoding.DER)
