"""Quotes and collateral of the simulated Intel with one thing wrong at a time, each signed again, and the reason code.

Shared by the test of our verifier and by the differential test against dcap-qvl.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from attest.testkit.intel import (
    PLATFORM,
    certificate,
    collateral,
    crl,
    isv_level,
    key,
    pck_extension,
    pem,
    qe_identity,
    root_certificate,
    subject,
    tcb_info,
    tcb_level,
)
from attest.testkit.tdx import TdxPlatform

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
DATA = bytes(range(64))
V4, V5 = TdxPlatform(b"a"), TdxPlatform(b"a", version=5)
STRANGER = key("somebody else")
MODULE = tcb_info()["tdxModuleIdentities"][0]


class Case(NamedTuple):
    """What is asked, and the code of the refusal."""

    code: str
    quote: Callable[[], bytes] = lambda: V4.quote(DATA)
    collateral: Callable[[], bytes] = collateral
    now: dt.datetime = NOW


def _quote(code: str, **changes: Any) -> Case:
    return Case(code, lambda: V4.quote(DATA, **changes))


def _flip(at: int, code: str) -> Case:
    def damaged() -> bytes:
        raw = bytearray(V4.quote(DATA))
        raw[at] ^= 1
        return bytes(raw)

    return Case(code, damaged)


def _chain(code: str, *chain: Callable[[], x509.Certificate], **more: Any) -> Case:
    return Case(code, lambda: V4.quote(DATA, chain=tuple(make() for make in chain), **more))


def _pck(code: str, now: dt.datetime = NOW, **changes: Any) -> Case:
    return Case(code, lambda: V4.quote(DATA, chain=(V4.pck(**changes), *V4.chain[1:])), now=now)


def _info(code: str, **changes: Any) -> Case:
    return Case(code, collateral=lambda: collateral(tcb=tcb_info(**changes)))


def _qe(code: str, **changes: Any) -> Case:
    return Case(code, collateral=lambda: collateral(qe=qe_identity(**changes)))


def _set(code: str, **changes: Any) -> Case:
    def made() -> bytes:
        members = {name: value() if callable(value) else value for name, value in changes.items()}
        return collateral(**members)

    return Case(code, collateral=made)


def _hex(made: x509.CertificateRevocationList) -> str:
    return made.public_bytes(Encoding.DER).hex()


def _crl(name: str, code: str, issuer: str, *revoked: int, **changes: Any) -> Case:
    return _set(code, **{name: lambda: _hex(crl(issuer, revoked, **changes))})


def _signing(code: str, *chain: Callable[[], x509.Certificate], **changes: Any) -> Case:
    return _set(code, tcb_info_issuer_chain=lambda: pem(*(make() for make in chain)), **changes)


def _module(code: str, **changes: Any) -> Case:
    return _info(code, tdxModuleIdentities=[{**MODULE, **changes}])


def _made_root(**changes: Any) -> x509.Certificate:
    """A root with the right names, made by somebody else."""
    return certificate("root", signer=STRANGER, public_key=STRANGER.public_key(), **changes)


def _root() -> x509.Certificate:
    return root_certificate()


def _platform_ca(**changes: Any) -> x509.Certificate:
    return certificate("platform", **changes)


LATER, EARLIER = dt.datetime(2027, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
P384 = ec.derive_private_key(5, ec.SECP384R1())
OLD_MODULE = bytes((5, 0, 8)) + bytes(13)
HIGH = (255, *(0,) * 15)
# The offsets of a version 4 quote without padding.
BODY, SIGNATURE, KEY, QE_REPORT = 48, 636, 700, 770
QE_SIGNATURE, AUTH = QE_REPORT + 384, QE_REPORT + 384 + 64 + 2

GOOD = pck_extension(V4.info)
PPID = GOOD[4 : 6 + GOOD[5]]


def _extension(body: bytes) -> bytes:
    return b"\x30" + bytes((len(body),)) + body


def _without_point() -> bytes:
    """The key's bytes are no point of the curve, and the enclave vouches for exactly them."""
    raw = b"\x01" * 64
    vouched = hashlib.sha256(raw + bytes(range(32))).digest() + bytes(32)
    quote = V4.quote(DATA, qe={"report_data": vouched})
    return quote[:KEY] + raw + quote[KEY + 64 :]


CASES: dict[str, Case] = {
    # The form.
    "empty": Case("malformed_evidence", lambda: b""),
    "truncated": Case("malformed_evidence", lambda: V4.quote(DATA)[:-1]),
    "version 3": _quote("tdx_version", header={"version": 3}),
    "version 6": _quote("tdx_version", header={"version": 6}),
    "version 5 without its body header": _quote("tdx_body_type", header={"version": 5}),
    "TEE is SGX": _quote("tdx_tee_type", header={"tee_type": 0}),
    "attestation key on P-384": _quote("tdx_key_type", header={"key_type": 3}),
    "QE of another vendor": _quote("qe_vendor", header={"qe_vendor_id": bytes(16)}),
    "signed data larger than the quote": _flip(632 + 1, "malformed_evidence"),
    "certification data of type 1": _quote("tdx_certification_type", outer_type=1),
    "PCK identifiers instead of a chain": _quote("tdx_certification_type", inner_type=3),
    "byte after the end": _quote("tdx_trailing", trailing=b"\x00\x01"),
    "authentication data enormous": _quote("malformed_evidence", auth_data=bytes(2_000)),
    # The platform's certificate.
    "no chain": _quote("malformed_certificate", chain=b""),
    "chain of two": _chain("pck_chain", V4.pck, _platform_ca),
    "chain of four": _chain("pck_chain", V4.pck, _platform_ca, _platform_ca, _root),
    "leaf is not a PCK certificate": _pck("pck_chain", name=subject("Intel SGX PCK")),
    "leaf is a CA": _pck("pck_chain", ca=True),
    "root of somebody else with Intel's name": _chain("untrusted_root", V4.pck, _platform_ca, _made_root),
    "CA of somebody else with Intel's name": _chain(
        "untrusted_chain",
        lambda: V4.pck(signer=STRANGER),
        lambda: _platform_ca(public_key=STRANGER.public_key(), signer=STRANGER),
        _root,
    ),
    "leaf signed by somebody else": _pck("untrusted_chain", signer=STRANGER),
    "CA that is none": _chain("untrusted_chain", V4.pck, lambda: _platform_ca(ca=False), _root),
    "leaf expired": _pck("certificate_expired", not_after=EARLIER),
    "leaf not yet valid": _pck("certificate_not_yet_valid", not_before=LATER),
    "CA expired": _chain("certificate_expired", V4.pck, lambda: _platform_ca(not_after=EARLIER), _root),
    "leaf without Intel's extension": _pck("pck_extension", extension=None),
    "leaf with an extension of junk": _pck("pck_extension", extension=b"\x30\x01"),
    "leaf without FMSPC": _pck("pck_extension", extension=pck_extension(PLATFORM, omit=("4",))),
    "leaf without TCB": _pck("pck_extension", extension=pck_extension(PLATFORM, omit=("2",))),
    "PPID short": _pck("pck_extension", extension=pck_extension(replace(PLATFORM, ppid=bytes(15)))),
    **{
        f"extension: {what}": _pck("pck_extension", extension=made) for what, made in {
            "two elements": GOOD + GOOD,
            "not a SEQUENCE": b"\x31" + GOOD[1:],
            "a field twice": _extension(PPID + PPID),
            "a foreign OID": _extension(bytes.fromhex("300806022a0304020101")),
            "a field of three": _extension(b"\x30" + bytes((PPID[1] + 2,)) + PPID[2:] + b"\x05\x00"),
            "PPID is an INTEGER": GOOD.replace(PPID, PPID[:-18] + b"\x02" + PPID[-17:], 1),
            "a flag that is no BOOLEAN": GOOD.replace(b"\x01\x01\xff", b"\x01\x01\x01"),
            "SVN negative": GOOD.replace(b"\x02\x01\x0d", b"\x02\x01\xff"),
        }.items()
    },
    "PCK key on P-384": Case(
        "qe_report_signature", lambda: V4.quote(DATA, chain=(V4.pck(public_key=P384.public_key()), *V4.chain[1:]))
    ),
    "PCK of the processor CA": Case(
        "pck_crl_missing", lambda: TdxPlatform(b"a", ca="processor").quote(DATA)
    ),
    # The signatures from platform to quote.
    "header flipped": _flip(28, "signature"),
    "body flipped": _flip(BODY + 136, "signature"),
    "report data flipped": _flip(BODY + 520, "signature"),
    "quote signature flipped": _flip(SIGNATURE, "signature"),
    "quote signed by another key": _quote("signature", quote_signer=STRANGER),
    "attestation key flipped": _flip(KEY, "attestation_key"),
    "attestation key replaced": _quote("attestation_key", qe={"report_data": bytes(64)}),
    "tail of the QE's report data": _quote("attestation_key", qe={"report_data": b"\x01" * 64}),
    "QE report flipped": _flip(QE_REPORT + 64, "qe_report_signature"),
    "QE report signature flipped": _flip(QE_SIGNATURE, "qe_report_signature"),
    "QE report signed by another key": _quote("qe_report_signature", qe_signer=STRANGER),
    "attestation key is no point": Case("attestation_key", lambda: _without_point()),
    "authentication data flipped": _flip(AUTH, "attestation_key"),
    # The quoting enclave.
    "QE of another signer": _quote("qe_mr_signer", qe={"mr_signer": bytes(32)}),
    "QE of another product": _quote("qe_isv_prod_id", qe={"isv_prod_id": 1}),
    "QE with another misc select": _quote("qe_misc_select", qe={"misc_select": 1}),
    "QE with other attributes": _quote("qe_attributes", qe={"attributes": b"\x35" + bytes(15)}),
    "QE in debug mode": _quote("qe_attributes", qe={"attributes": b"\x17" + bytes(15)}),
    "QE older than every level": _quote("qe_tcb_level", qe={"isv_svn": 3}),
    # Revocation lists.
    "leaf revoked": _crl("pck_crl", "certificate_revoked", "platform", 5),
    "CA of leaves revoked": _crl("root_ca_crl", "certificate_revoked", "root", 2),
    "signer of collateral revoked": _crl("root_ca_crl", "certificate_revoked", "root", 4),
    "PCK list signed by somebody else": _crl("pck_crl", "crl_signature", "platform", signer=STRANGER),
    "PCK list of another CA": _crl("pck_crl", "crl_issuer", "processor"),
    "PCK list expired": _crl("pck_crl", "crl_expired", "platform", next_update=EARLIER),
    "PCK list of later": _crl("pck_crl", "crl_not_yet_valid", "platform", last_update=LATER),
    "root list signed by somebody else": _crl("root_ca_crl", "crl_signature", "root", signer=STRANGER),
    "root list of another CA": _crl("root_ca_crl", "crl_issuer", "platform"),
    "root list expired": _crl("root_ca_crl", "crl_expired", "root", next_update=EARLIER),
    "root list of later": _crl("root_ca_crl", "crl_not_yet_valid", "root", last_update=LATER),
    "no PCK list": _set("malformed_crl", pck_crl=""),
    # The signer of collateral.
    "signer alone": _signing("untrusted_root", lambda: certificate("signer")),
    "root alone": _signing("collateral_chain", _root),
    "root of somebody else signs collateral": _signing(
        "untrusted_root",
        lambda: certificate("signer", signer=STRANGER),
        _made_root,
    ),
    "PCK CA signs collateral": _signing("collateral_signer", _platform_ca, _root),
    "CA as signer": _signing("collateral_signer", lambda: certificate("signer", ca=True), _root),
    "signer of another name": _signing(
        "collateral_signer", lambda: certificate("signer", name=subject("Intel SGX")), _root
    ),
    "signer's certificate by somebody else": _signing(
        "untrusted_chain", lambda: certificate("signer", signer=STRANGER), _root
    ),
    "signer expired": _signing("certificate_expired", lambda: certificate("signer", not_after=EARLIER), _root),
    "PCK list's issuer is the signer": _set(
        "collateral_signer", pck_crl_issuer_chain=lambda: pem(certificate("signer"), root_certificate())
    ),
    # TCB info.
    "TCB info signed by somebody else": _set("tcb_info_signature", tcb_signer=lambda: STRANGER),
    "TCB info signature flipped": _set("tcb_info_signature", tcb_info_signature="01" * 64),
    "TCB info changed by a space": _set("tcb_info_signature", tcb_info=lambda: json.dumps(tcb_info()) + " "),
    "TCB info expired": _info("tcb_info_expired", nextUpdate="2026-01-01T00:00:00Z"),
    "TCB info of the future": _info("tcb_info_not_yet_valid", issueDate="2027-01-01T00:00:00Z"),
    "TCB info of SGX": _info("tcb_info_kind", id="SGX"),
    "TCB info of version 2": _info("tcb_info_kind", version=2),
    "TCB info of another type": _info("tcb_info_kind", tcbType=1),
    "another FMSPC": _info("fmspc_mismatch", fmspc="00906ED50000"),
    "another PCE": _info("pce_id_mismatch", pceId="0001"),
    "no TDX module in TCB info": _info("malformed_collateral", tdxModule=None),
    "15 components": _info("malformed_collateral", tcbLevels=[tcb_level(sgx=(0,) * 15)]),
    "date without a zone": _info("malformed_collateral", issueDate="2024-01-01T00:00:00"),
    "module of another signer": _module("tdx_module_mr_signer", mrsigner="01" * 48),
    "module with other attributes": _module("tdx_module_attributes", attributes="01" + "00" * 7),
    "module unknown": _module("tdx_module_unknown", id="TDX_03"),
    "no modules": _info("tdx_module_unknown", tdxModuleIdentities=[]),
    "module older than every level": _module("tdx_module_level", tcbLevels=[isv_level(7)]),
    "old module of another signer": Case(
        "tdx_module_mr_signer", lambda: V4.quote(DATA, tee_tcb_svn=OLD_MODULE, mr_signer_seam=b"a" * 48)
    ),
    "SGX component below every level": _info("tcb_level", tcbLevels=[tcb_level(sgx=HIGH)]),
    "last SGX component below": _info("tcb_level", tcbLevels=[tcb_level(sgx=HIGH[::-1])]),
    "PCE below every level": _info("tcb_level", tcbLevels=[tcb_level(pcesvn=14)]),
    "TDX component below every level": _info("tcb_level", tcbLevels=[tcb_level(tdx=(0, 0, 9, *(0,) * 13))]),
    "no levels": _info("tcb_level", tcbLevels=[]),
    "unknown status": _info("tcb_status_unknown", tcbLevels=[tcb_level("Fine")]),
    # QE identity.
    "QE identity signed by somebody else": _set("qe_identity_signature", qe_signer=lambda: STRANGER),
    "QE identity expired": _qe("qe_identity_expired", nextUpdate="2026-01-01T00:00:00Z"),
    "QE identity of the future": _qe("qe_identity_not_yet_valid", issueDate="2027-01-01T00:00:00Z"),
    "QE identity of SGX": _qe("qe_identity_kind", id="QE"),
    "QE identity of version 3": _qe("qe_identity_kind", version=3),
    "QE identity without a signer": _qe("malformed_collateral", mrsigner=None),
    "no levels of the QE": _qe("qe_tcb_level", tcbLevels=[]),
    # Time.
    "in 2053": Case("crl_expired", now=dt.datetime(2053, 1, 1, tzinfo=dt.UTC)),
    "in 2023": Case("crl_not_yet_valid", now=dt.datetime(2023, 1, 1, tzinfo=dt.UTC)),
}  # fmt: skip
