"""What is handed in beside evidence: certificates, revocation lists, Intel's collateral for TDX. Parsed, not verified.

Collateral is one value in the JSON form that dcap-qvl calls QuoteCollateralV3: whoever fetches writes it, whoever
verifies reads it, and ``schemes.tdx.verify.verify_collateral`` checks signatures and chains. TCB info and QE identity
stay the exact bytes that Intel signed. Intel PCS API v4.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from collections.abc import Sequence
from typing import Annotated

import msgspec
from cryptography import x509

from attest.chain import MAX_CHAIN_BYTES, load_certificates, load_chain, load_crl
from attest.der import INTEGER, der_items
from attest.errors import MalformedEvidence

__all__ = [
    "MAX_COLLATERAL_BYTES",
    "Endorsements",
    "TdxCollateral",
    "Window",
    "parse_collateral",
    "sort_endorsements",
    "thim_chain",
    "window",
]

MAX_COLLATERAL_BYTES = 8 << 20  # a revocation list may grow; today's sets have about 20 KiB


class _Json(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str
    pck_certificate_chain: str | None = None  # newer writers add it; a quote carries its own, so it is not used


class _Dates(msgspec.Struct, frozen=True, rename="camel"):
    issue_date: Annotated[dt.datetime, msgspec.Meta(tz=True)]
    next_update: Annotated[dt.datetime, msgspec.Meta(tz=True)]


class TdxCollateral(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed set, unverified. ``digest`` is SHA-256 (hex) over it as it came. Signatures are r and s, 64 bytes."""

    pck_crl_issuer_chain: tuple[x509.Certificate, ...]
    root_ca_crl: x509.CertificateRevocationList
    pck_crl: x509.CertificateRevocationList
    tcb_info_issuer_chain: tuple[x509.Certificate, ...]
    tcb_info: bytes
    tcb_info_signature: bytes
    qe_identity_issuer_chain: tuple[x509.Certificate, ...]
    qe_identity: bytes
    qe_identity_signature: bytes
    digest: str


class _Thim(msgspec.Struct, frozen=True, rename="camel"):
    vcek_cert: str
    certificate_chain: str


class Endorsements(msgspec.Struct, frozen=True):
    """Endorsements by kind, in the order in which they came. ``collateral`` is still JSON, ``launch`` (Google's, of
    launch measurements) still protobuf.
    """

    certificates: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...]
    collateral: tuple[bytes, ...]
    launch: tuple[bytes, ...] = ()


class Window(msgspec.Struct, frozen=True):
    """When every part of a set is in its time, Unix seconds. ``refresh_at`` is when half of it has passed."""

    start: float
    end: float

    @property
    def refresh_at(self) -> float:
        return (self.start + self.end) / 2


def parse_collateral(raw: bytes) -> TdxCollateral:
    """The set in ``raw`` (JSON; revocation lists and signatures in hex, chains in PEM). Raises MalformedEvidence."""
    if len(raw) > MAX_COLLATERAL_BYTES:
        raise _malformed(f"{len(raw)} bytes are above {MAX_COLLATERAL_BYTES}")
    try:
        fields = msgspec.json.decode(raw, type=_Json)
        return TdxCollateral(
            pck_crl_issuer_chain=load_chain(fields.pck_crl_issuer_chain.encode()),
            root_ca_crl=load_crl(bytes.fromhex(fields.root_ca_crl)),
            pck_crl=load_crl(bytes.fromhex(fields.pck_crl)),
            tcb_info_issuer_chain=load_chain(fields.tcb_info_issuer_chain.encode()),
            tcb_info=fields.tcb_info.encode(),
            tcb_info_signature=_signature(fields.tcb_info_signature),
            qe_identity_issuer_chain=load_chain(fields.qe_identity_issuer_chain.encode()),
            qe_identity=fields.qe_identity.encode(),
            qe_identity_signature=_signature(fields.qe_identity_signature),
            digest=hashlib.sha256(raw).hexdigest(),
        )
    except (ValueError, RecursionError) as error:
        raise _malformed(str(error)) from None


def sort_endorsements(files: Sequence[bytes]) -> Endorsements:
    """Each of ``files`` by what it is: JSON is collateral, protobuf a launch endorsement, the rest certificates (one or
    several) or a revocation list, PEM or DER. Raises MalformedEvidence for anything else.
    """
    launch: list[bytes] = []
    certificates: list[x509.Certificate] = []
    crls: list[x509.CertificateRevocationList] = []
    collateral: list[bytes] = []
    for raw in files:
        if raw.lstrip()[:1] == b"{":
            if b'"vcekCert"' in raw:  # as Azure's THIM answers
                certificates += load_certificates(thim_chain(raw))
            else:
                collateral.append(raw)
        elif raw[:1] == b"\n" and raw[1:2] >= b"\x80":  # a first field of 128 bytes or more: no text begins so
            launch.append(raw)
        elif b"-----BEGIN X509 CRL-----" in raw[:200] or _is_der_crl(raw):
            crls.append(load_crl(raw))
        else:
            certificates += load_certificates(raw)
    return Endorsements(tuple(certificates), tuple(crls), tuple(collateral), tuple(launch))


def _is_der_crl(raw: bytes) -> bool:
    """Within its outer two SEQUENCEs a list starts with version 2 (INTEGER 1), a certificate with a context tag."""
    try:
        ((_, outer),) = der_items(raw)
        return der_items(der_items(outer)[0][1])[0] == (INTEGER, b"\x01")
    except (ValueError, IndexError, MalformedEvidence):
        return False


def _signature(text: str) -> bytes:
    signature = bytes.fromhex(text)
    if len(signature) != 64:
        raise ValueError(f"a signature of {len(signature)} bytes, not 64")
    return signature


def _malformed(detail: str) -> MalformedEvidence:
    return MalformedEvidence(f"TDX collateral: {detail}", code="malformed_collateral")


def window(collateral: TdxCollateral) -> Window:
    """The time in which the whole set is usable, as its parts say (nobody has verified them): for caches and operators.

    Raises MalformedEvidence when a part has no dates.
    """
    certificates = (
        *collateral.pck_crl_issuer_chain, *collateral.tcb_info_issuer_chain, *collateral.qe_identity_issuer_chain,
    )  # fmt: skip
    spans = [(c.not_valid_before_utc.timestamp(), c.not_valid_after_utc.timestamp()) for c in certificates]
    for crl in (collateral.root_ca_crl, collateral.pck_crl):
        end = crl.next_update_utc
        spans.append((crl.last_update_utc.timestamp(), end.timestamp() if end else -math.inf))
    for raw in (collateral.tcb_info, collateral.qe_identity):
        try:
            dates = msgspec.json.decode(raw, type=_Dates)
        except (ValueError, RecursionError) as error:
            raise _malformed(str(error)) from None
        spans.append((dates.issue_date.timestamp(), dates.next_update.timestamp()))
    return Window(max(start for start, _ in spans), min(end for _, end in spans))


def thim_chain(raw: bytes) -> bytes:
    """The certificates in an answer of Azure's THIM (JSON: ``vcekCert``, ``certificateChain``), VCEK first, as PEM.

    Raises MalformedEvidence. Nothing is verified.
    """
    if len(raw) > MAX_CHAIN_BYTES:
        raise MalformedEvidence(f"THIM: {len(raw)} bytes are above {MAX_CHAIN_BYTES}", code="oversize")
    try:
        answer = msgspec.json.decode(raw, type=_Thim)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"THIM: {error}") from None
    return (answer.vcek_cert.strip() + "\n" + answer.certificate_chain).encode()
