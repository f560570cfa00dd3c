"""Quotes and collateral of the simulated Intel with one thing wrong at a time, each signed again, and the reason code.

Shared by the test of the negative cases and by the differential test against dcap-qvl.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from attest.der import der_items
from attest.schemes.tdx.abi import parse_quote
from attest.schemes.tdx.appraise import ReferenceValues, Rules
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
REPORT = parse_quote(V4.quote(DATA)).report  # V5 has the same values
RULES = Rules(rtmrs=(0, 1, 2, 3))
VALUES = ReferenceValues(
    mr_td=(REPORT.mr_td.hex(),),
    rtmr_values={str(n): (getattr(REPORT, f"rtmr{n}").hex(),) for n in range(4)},
)


class Case(NamedTuple):
    """What is judged, and the code of the refusal. Left as it is, each part is right."""

    code: str
    quote: Callable[[], bytes] = lambda: V4.quote(DATA)
    collateral: Callable[[], bytes] = collateral
    now: dt.datetime = NOW
    rules: Rules = RULES
    values: ReferenceValues = VALUES
    data: bytes = DATA
    log: bytes | None = None


def _quote(code: str, **changes: Any) -> Case:
    return Case(code, lambda: V4.quote(DATA, **changes))


def _replaced(raw: bytes, at: int, data: bytes) -> bytes:
    return raw[:at] + data + raw[at + len(data) :]


def _flip(at: int, code: str) -> Case:
    def damaged() -> bytes:
        raw = V4.quote(DATA)
        return _replaced(raw, at, bytes((raw[at] ^ 1,)))

    return Case(code, damaged)


def _resized(by: int, behind: bytes = b"") -> Case:
    def damaged() -> bytes:
        raw = V4.quote(DATA)
        size = int.from_bytes(raw[SIZE : SIZE + 4], "little")
        return _replaced(raw, SIZE, (size + by).to_bytes(4, "little")) + behind

    return Case("malformed_evidence", damaged)


def _flipped(made: x509.Certificate) -> x509.Certificate:
    """With one bit of its signature changed."""
    raw = made.public_bytes(Encoding.DER)
    return x509.load_der_x509_certificate(raw[:-1] + bytes((raw[-1] ^ 1,)))


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
BODY, SIZE, SIGNATURE, KEY, QE_REPORT = 48, 632, 636, 700, 770
QE_SIGNATURE, AUTH = QE_REPORT + 384, QE_REPORT + 384 + 64 + 2
ONES = (bytes(31) + b"\x01") * 2

GOOD = pck_extension(V4.info)
PPID = GOOD[4 : 6 + GOOD[5]]


ARC = bytes.fromhex("2a864886f84d010d01")  # Intel's own, which begins the names in it


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    return bytes((tag, size) if size < 0x80 else (tag, 0x82, *divmod(size, 0x100))) + content


def _extended(pair: bytes) -> bytes:
    """A good extension with one more element in it."""
    ((_, fields),) = der_items(GOOD)
    return _tlv(0x30, fields + pair)


def _without_point() -> bytes:
    """The key's bytes are no point of the curve, and the enclave vouches for exactly them."""
    raw = b"\x01" * 64
    vouched = hashlib.sha256(raw + bytes(range(32))).digest() + bytes(32)
    quote = V4.quote(DATA, qe={"report_data": vouched})
    return quote[:KEY] + raw + quote[KEY + 64 :]


# -- a domain that was launched under an old module: what is changed, and the status -----------------------------------

LATEST, BEFORE = tcb_level(tdx=(5, 0, 9, *(0,) * 13)), tcb_level("OutOfDate")
MODULE_LEVELS = [isv_level(7), isv_level(6, "OutOfDate")]
OLDER, WORSE = ([isv_level(6), isv_level(5, status)] for status in ("OutOfDate", "Revoked"))
RELAUNCH: dict[str, tuple[dict[str, Any], str]] = {
    "all that is old is what it was launched under": ({}, "TDRelaunchAdvised"),
    "only the module is": ({"levels": [tcb_level()]}, "TDRelaunchAdvised"),
    "hardware wants configuration": (
        {"levels": [{**LATEST, "tcbStatus": "ConfigurationNeeded"}, BEFORE]}, "TDRelaunchAdvisedConfigurationNeeded",
    ),
    "the level wants configuration": (
        {"levels": [LATEST, tcb_level("OutOfDateConfigurationNeeded")]}, "TDRelaunchAdvisedConfigurationNeeded",
    ),
    "hardware wants hardened software": (
        {"levels": [{**LATEST, "tcbStatus": "SWHardeningNeeded"}, BEFORE]}, "TDRelaunchAdvised",
    ),
    "by now a module of a later line": (
        {"now": (2, 3, 9), "more": [{**MODULE, "id": "TDX_03", "tcbLevels": [isv_level(2)]}]}, "TDRelaunchAdvised",
    ),
    "by now a module before 1.5": ({"now": (5, 0, 9)}, "TDRelaunchAdvised"),
    "the report does not say": ({"body": "1.0"}, "OutOfDate"),
    "the module is old by now, too": ({"now": (6, 1, 9)}, "OutOfDate"),
    "the microcode is": ({"now": (7, 1, 8)}, "OutOfDate"),
    "older by now than at the launch": ({"levels": [tcb_level()], "module": OLDER, "now": (5, 1, 8)}, "OutOfDate"),
    "revoked by now": ({"levels": [tcb_level()], "module": WORSE, "now": (5, 1, 8)}, "Revoked"),
    "the quoting enclave is old": ({"qe": "OutOfDate"}, "OutOfDate"),
    "the quoting enclave is revoked": ({"qe": "Revoked"}, "Revoked"),
    "the hardware is old": ({"levels": [BEFORE]}, "OutOfDate"),
    "the level of now is revoked": ({"levels": [{**LATEST, "tcbStatus": "Revoked"}, BEFORE]}, "Revoked"),
    "the level is revoked": ({"levels": [LATEST, tcb_level("Revoked")]}, "Revoked"),
    "the module is not old": ({"module": [isv_level(6)]}, "OutOfDate"),
    "the module had no levels of its own": ({"then": (5, 0, 8)}, "OutOfDate"),
    "the module is revoked": ({"module": [isv_level(6, "Revoked")]}, "Revoked"),
}  # fmt: skip


def launched(
    levels: Sequence[dict[str, Any]] = (LATEST, BEFORE),
    module: Sequence[dict[str, Any]] = MODULE_LEVELS,
    more: Sequence[dict[str, Any]] = (),
    now: tuple[int, int, int] = (7, 1, 9),
    qe: str = "UpToDate",
    body: str = "1.5",
    then: tuple[int, int, int] = (6, 1, 8),
) -> tuple[bytes, bytes]:
    """Quote and collateral: launched under module 1.6 and microcode 8; latest are 1.7 and 9; ``now`` runs by now."""
    identities = [{**MODULE, "tcbLevels": list(module)}, *more]
    info = tcb_info(tcbLevels=list(levels), tdxModuleIdentities=identities)
    second = {"tee_tcb_svn2": bytes(now) + bytes(13)} if body == "1.5" else {}
    quote = TdxPlatform(b"a", version=5, body=body).quote(DATA, tee_tcb_svn=bytes(then) + bytes(13), **second)
    return quote, collateral(tcb=info, qe=qe_identity(tcbLevels=[isv_level(4, qe)]))


def _launched(code: str, **changes: Any) -> Case:
    quote, given = launched(**changes)
    return Case(code, lambda: quote, lambda: given)


# -- what is refused ---------------------------------------------------------------------------------------------------

# What a quote and its collateral are refused for, a row an item of the list that the platform is held to, for an
# auditor to tick off; the rows at the end go beyond it. (The rest of the list is policy's: ``test_negatives``.)
ROWS: dict[str, dict[str, Case]] = {
    # -- the quote's form ----------------------------------------------------------------------------------------------
    "version changed": {
        "version 3": _quote("tdx_version", header={"version": 3}),
        "version 6": _quote("tdx_version", header={"version": 6}),
        "version 5 without its body header": _quote("tdx_body_type", header={"version": 5}),
        "body of another size": Case("malformed_evidence", lambda: _replaced(V5.quote(DATA), 50, b"\x49\x02")),
    },
    "tee_type changed": {"TEE is SGX": _quote("tdx_tee_type", header={"tee_type": 0})},
    "attestation key type P-384": {"attestation key on P-384": _quote("tdx_key_type", header={"key_type": 3})},
    "qe_vendor changed": {"QE of another vendor": _quote("qe_vendor", header={"qe_vendor_id": bytes(16)})},
    "truncated": {
        "truncated": Case("malformed_evidence", lambda: V4.quote(DATA)[:-1]),
        "empty": Case("malformed_evidence", lambda: b""),
    },
    "signed-data size wrong": {
        "signed data larger than the quote": _resized(1),
        "signed data smaller than its parts": _resized(-1),
        "signed data with a byte behind its parts": _resized(1, b"\x01"),
    },
    "certification data of type 1 to 3, or no chain": {
        "certification data of type 1": _quote("tdx_certification_type", outer_type=1),
        **{
            f"PCK identifiers of type {n} instead of a chain": _quote("tdx_certification_type", inner_type=n)
            for n in (1, 2, 3)
        },
        "no chain": _quote("malformed_certificate", chain=b""),
        "chain of two": _chain("pck_chain", V4.pck, _platform_ca),
        "chain of four": _chain("pck_chain", V4.pck, _platform_ca, _platform_ca, _root),
    },
    "non-zero trailing bytes": {
        "byte after the end": _quote("tdx_trailing", trailing=b"\x00\x01"),
    },
    # -- the platform's certificates -----------------------------------------------------------------------------------
    "PCK chain: a byte flipped": {
        "leaf flipped": _chain("untrusted_chain", lambda: _flipped(V4.chain[0]), lambda: V4.chain[1], _root),
        "intermediate flipped": _chain("untrusted_chain", V4.pck, lambda: _flipped(V4.chain[1]), _root),
        "root flipped": _chain("untrusted_root", V4.pck, _platform_ca, lambda: _flipped(_root())),
    },
    "chain byte changed": {
        "chain's text changed": Case(
            "malformed_certificate",
            lambda: V4.quote(DATA, chain=pem(*V4.chain).encode().replace(b"BEGIN", b"BEGIM", 1)),
        ),
    },
    "root not Intel's, self-made with its name": {
        "root of somebody else with Intel's name": _chain("untrusted_root", V4.pck, _platform_ca, _made_root),
        "CA of somebody else with Intel's name": _chain(
            "untrusted_chain",
            lambda: V4.pck(signer=STRANGER),
            lambda: _platform_ca(public_key=STRANGER.public_key(), signer=STRANGER),
            _root,
        ),
        "leaf signed by somebody else": _pck("untrusted_chain", signer=STRANGER),
        "CA that is none": _chain("untrusted_chain", V4.pck, lambda: _platform_ca(ca=False), _root),
    },
    "expired now": {
        "in 2053": Case("crl_expired", now=dt.datetime(2053, 1, 1, tzinfo=dt.UTC)),
        "leaf expired": _pck("certificate_expired", not_after=EARLIER),
        "CA expired": _chain("certificate_expired", V4.pck, lambda: _platform_ca(not_after=EARLIER), _root),
    },
    "not yet valid": {
        "in 2023": Case("crl_not_yet_valid", now=dt.datetime(2023, 1, 1, tzinfo=dt.UTC)),
        "leaf not yet valid": _pck("certificate_not_yet_valid", not_before=LATER),
        "CA not yet valid": _chain("certificate_not_yet_valid", V4.pck, lambda: _platform_ca(not_before=LATER), _root),
    },
    # -- the signatures from platform to quote -------------------------------------------------------------------------
    "header flip": {"header flipped": _flip(28, "signature")},
    "body flip": {
        "body flipped": _flip(BODY + 136, "signature"),
        "report data flipped": _flip(BODY + 520, "signature"),
    },
    "quote signature flip": {
        "quote signature flipped": _flip(SIGNATURE, "signature"),
        "quote signed by another key": _quote("signature", quote_signer=STRANGER),
    },
    "r = s = 1": {
        "fake signature of ones": Case("signature", lambda: _replaced(V4.quote(DATA), SIGNATURE, ONES)),
        "fake signature of zeros": Case("signature", lambda: _replaced(V4.quote(DATA), SIGNATURE, bytes(64))),
        "fake signature of the QE report": Case(
            "qe_report_signature", lambda: _replaced(V4.quote(DATA), QE_SIGNATURE, ONES)
        ),
    },
    "QE report signature": {
        "QE report flipped": _flip(QE_REPORT + 64, "qe_report_signature"),
        "QE report signature flipped": _flip(QE_SIGNATURE, "qe_report_signature"),
        "QE report signed by another key": _quote("qe_report_signature", qe_signer=STRANGER),
    },
    "attestation key replaced": {
        "attestation key flipped": _flip(KEY, "attestation_key"),
        "attestation key replaced": _quote("attestation_key", qe={"report_data": bytes(64)}),
        "tail of the QE's report data": _quote("attestation_key", qe={"report_data": b"\x01" * 64}),
        "attestation key is no point": Case("attestation_key", _without_point),
    },
    "authentication data changed": {"authentication data flipped": _flip(AUTH, "attestation_key")},
    # -- revocation ----------------------------------------------------------------------------------------------------
    "PCK CRL": {
        "PCK list signed by somebody else": _crl("pck_crl", "crl_signature", "platform", signer=STRANGER),
        "PCK list expired": _crl("pck_crl", "crl_expired", "platform", next_update=EARLIER),
        "PCK list of later": _crl("pck_crl", "crl_not_yet_valid", "platform", last_update=LATER),
        "PCK list of another CA": _crl("pck_crl", "crl_issuer", "processor"),
        "PCK list's issuer is the signer": _set(
            "collateral_signer", pck_crl_issuer_chain=lambda: pem(certificate("signer"), root_certificate())
        ),
        "PCK of the processor CA": Case("pck_crl_missing", lambda: TdxPlatform(b"a", ca="processor").quote(DATA)),
    },
    "root CRL": {
        "root list signed by somebody else": _crl("root_ca_crl", "crl_signature", "root", signer=STRANGER),
        "root list expired": _crl("root_ca_crl", "crl_expired", "root", next_update=EARLIER),
        "root list of later": _crl("root_ca_crl", "crl_not_yet_valid", "root", last_update=LATER),
        "root list of another CA": _crl("root_ca_crl", "crl_issuer", "platform"),
    },
    "leaf revoked": {"leaf revoked": _crl("pck_crl", "certificate_revoked", "platform", 5)},
    "intermediate revoked": {
        "CA of leaves revoked": _crl("root_ca_crl", "certificate_revoked", "root", 2),
        "signer of collateral revoked": _crl("root_ca_crl", "certificate_revoked", "root", 4),
    },
    "CRL check requested without collateral": {  # none at all: test_appraise.test_collateral_is_needed_and_must_fit
        "no PCK list": _set("malformed_crl", pck_crl=""),
        "no root list": _set("malformed_crl", root_ca_crl=""),
    },
    # -- TCB info ------------------------------------------------------------------------------------------------------
    "TCB info signature": {
        "TCB info signed by somebody else": _set("tcb_info_signature", tcb_signer=lambda: STRANGER),
        "TCB info signature flipped": _set("tcb_info_signature", tcb_info_signature="01" * 64),
        "TCB info changed by a space": _set("tcb_info_signature", tcb_info=lambda: json.dumps(tcb_info()) + " "),
        "root of somebody else signs collateral": _signing(
            "untrusted_root",
            lambda: certificate("signer", signer=STRANGER),
            _made_root,
        ),
        "signer's certificate by somebody else": _signing(
            "untrusted_chain", lambda: certificate("signer", signer=STRANGER), _root
        ),
    },
    "TCB info chain too short": {
        "signer alone": _signing("untrusted_root", lambda: certificate("signer")),
        "root alone": _signing("collateral_chain", _root),
    },
    "CA used as end entity": {
        "PCK CA signs collateral": _signing("collateral_signer", _platform_ca, _root),
        "CA as signer": _signing("collateral_signer", lambda: certificate("signer", ca=True), _root),
        "leaf is a CA": _pck("pck_chain", ca=True),
    },
    "TCB info expired": {
        "TCB info expired": _info("tcb_info_expired", nextUpdate="2026-01-01T00:00:00Z"),
        "signer expired": _signing("certificate_expired", lambda: certificate("signer", not_after=EARLIER), _root),
    },
    "TCB info issueDate in the future": {
        "TCB info of the future": _info("tcb_info_not_yet_valid", issueDate="2027-01-01T00:00:00Z"),
    },
    "TCB info id SGX": {
        "TCB info of SGX": _info("tcb_info_kind", id="SGX"),
        "TCB info of version 2": _info("tcb_info_kind", version=2),
        "TCB info of another type": _info("tcb_info_kind", tcbType=1),
    },
    "fmspc mismatch": {"another FMSPC": _info("fmspc_mismatch", fmspc="00906ED50000")},
    "pceid mismatch": {"another PCE": _info("pce_id_mismatch", pceId="0001")},
    "missing tdxModule": {"no TDX module in TCB info": _info("malformed_collateral", tdxModule=None)},
    # -- the quoting enclave -------------------------------------------------------------------------------------------
    "QE identity signature": {
        "QE identity signed by somebody else": _set("qe_identity_signature", qe_signer=lambda: STRANGER),
    },
    "QE identity expired": {
        "QE identity expired": _qe("qe_identity_expired", nextUpdate="2026-01-01T00:00:00Z"),
    },
    "QE identity of the future": {
        "QE identity of the future": _qe("qe_identity_not_yet_valid", issueDate="2027-01-01T00:00:00Z"),
    },
    "QE identity id": {"QE identity of SGX": _qe("qe_identity_kind", id="QE")},
    "QE identity version": {"QE identity of version 3": _qe("qe_identity_kind", version=3)},
    "QE mrsigner mismatch": {"QE of another signer": _quote("qe_mr_signer", qe={"mr_signer": bytes(32)})},
    "QE isvprodid mismatch": {"QE of another product": _quote("qe_isv_prod_id", qe={"isv_prod_id": 1})},
    "QE miscselect mismatch": {"QE with another misc select": _quote("qe_misc_select", qe={"misc_select": 1})},
    "QE attributes mismatch": {
        "QE with other attributes": _quote("qe_attributes", qe={"attributes": b"\x35" + bytes(15)}),
    },
    "QE debug": {
        "QE in debug mode": _quote("qe_debug", qe={"attributes": b"\x17" + bytes(15)}),
        "QE in debug mode, which its identity does not look at": Case(
            "qe_debug",
            lambda: V4.quote(DATA, qe={"attributes": b"\x17" + bytes(15)}),
            lambda: collateral(qe=qe_identity(attributesMask="F9" + "FF" * 7 + "00" * 8)),
        ),
    },
    # -- levels --------------------------------------------------------------------------------------------------------
    "TDX module mrsignerseam mismatch": {
        "module of another signer": _module("tdx_module_mr_signer", mrsigner="01" * 48),
        "old module of another signer": Case(
            "tdx_module_mr_signer", lambda: V4.quote(DATA, tee_tcb_svn=OLD_MODULE, mr_signer_seam=b"a" * 48)
        ),
    },
    "TDX module attributes mismatch": {
        "module with other attributes": _module("tdx_module_attributes", attributes="01" + "00" * 7),
    },
    "no matching TCB level: sgx components": {
        "SGX component below every level": _info("tcb_level", tcbLevels=[tcb_level(sgx=HIGH)]),
        "last SGX component below": _info("tcb_level", tcbLevels=[tcb_level(sgx=HIGH[::-1])]),
        "no levels": _info("tcb_level", tcbLevels=[]),
    },
    "no matching TCB level: tdx components": {
        "TDX component below every level": _info("tcb_level", tcbLevels=[tcb_level(tdx=(0, 0, 9, *(0,) * 13))]),
    },
    "no matching TCB level: pcesvn": {
        "PCE below every level": _info("tcb_level", tcbLevels=[tcb_level(pcesvn=14)]),
    },
    "status unknown": {"unknown status": _info("tcb_status_unknown", tcbLevels=[tcb_level("Fine")])},
    # -- beyond the list -----------------------------------------------------------------------------------------------
    "form, beyond the list": {
        "authentication data enormous": _quote("oversize", auth_data=bytes(2_000)),
        "chain enormous": _quote("oversize", chain=b"x" * 20_000),
        "padding enormous": _quote("oversize", trailing=bytes(40_000)),
        "15 components": _info("malformed_collateral", tcbLevels=[tcb_level(sgx=(0,) * 15)]),
        "date without a zone": _info("malformed_collateral", issueDate="2024-01-01T00:00:00"),
        "QE identity without a signer": _qe("malformed_collateral", mrsigner=None),
    },
    "certificates, beyond the list": {
        "leaf is not a PCK certificate": _pck("pck_chain", name=subject("Intel SGX PCK")),
        "signer of another name": _signing(
            "collateral_signer", lambda: certificate("signer", name=subject("Intel SGX")), _root
        ),
        "PCK key on P-384": Case(
            "qe_report_signature", lambda: V4.quote(DATA, chain=(V4.pck(public_key=P384.public_key()), *V4.chain[1:]))
        ),
        "leaf without Intel's extension": _pck("pck_extension", extension=None),
        "leaf with an extension of junk": _pck("pck_extension", extension=b"\x30\x01"),
        "leaf without FMSPC": _pck("pck_extension", extension=pck_extension(PLATFORM, omit=("4",))),
        "leaf without TCB": _pck("pck_extension", extension=pck_extension(PLATFORM, omit=("2",))),
        "PPID short": _pck("pck_extension", extension=pck_extension(replace(PLATFORM, ppid=bytes(15)))),
        **{
            f"extension: {what}": _pck("pck_extension", extension=made)
            for what, made in {
                "two elements": GOOD + GOOD,
                "not a SEQUENCE": b"\x31" + GOOD[1:],
                "a field twice": _extended(PPID),
                "a foreign OID": _extended(_tlv(0x30, _tlv(0x06, b"\x2a" + bytes(range(3, 14))) + b"\x05\x00")),
                "a field of three": _extended(_tlv(0x30, _tlv(0x06, ARC + b"\x09") + b"\x05\x00\x05\x00")),
                "a name that is no OID": _extended(_tlv(0x30, _tlv(0x04, ARC + b"\x09") + b"\x05\x00")),
                "a name that is the extension's own": _extended(_tlv(0x30, _tlv(0x06, ARC) + b"\x05\x00")),
                "PPID is an INTEGER": GOOD.replace(PPID, PPID[:-18] + b"\x02" + PPID[-17:], 1),
                "a flag that is no BOOLEAN": GOOD.replace(b"\x01\x01\xff", b"\x01\x01\x01"),
                "SVN negative": GOOD.replace(b"\x02\x01\x0d", b"\x02\x01\xff"),
            }.items()
        },
    },
    "levels, beyond the list": {
        "module unknown": _module("tdx_module_unknown", id="TDX_03"),
        "no modules": _info("tdx_module_unknown", tdxModuleIdentities=[]),
        "module older than every level": _module("tdx_module_level", tcbLevels=[isv_level(7)]),
        "QE older than every level": _quote("qe_tcb_level", qe={"isv_svn": 3}),
        "no levels of the QE": _qe("qe_tcb_level", tcbLevels=[]),
        "module of now unknown": _launched("tdx_module_unknown", now=(7, 4, 9)),
        "module of now without levels": _launched(
            "tdx_module_level", now=(2, 3, 9), more=[{**MODULE, "id": "TDX_03", "tcbLevels": []}]
        ),
        "module of now before 1.5, and old": _launched("tcb_level", now=(4, 0, 9)),
        "microcode of now below every level": _launched("tcb_level", now=(7, 1, 7)),
        "the report does not say what runs now": _launched("tcb_level", now=(0, 0, 0)),
    },
}
CASES: dict[str, Case] = {name: case for row in ROWS.values() for name, case in row.items()}
