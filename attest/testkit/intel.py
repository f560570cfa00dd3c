"""A fake Intel: root, PCK and signing CAs, revocation lists, TCB info and QE identity, with anything changed.

Keys are made from fixed labels, so they are public; names say that it is a simulation. The root's certificate is a file
(a root is trusted as the very certificate), the rest is minted on demand.
``python -m attest.testkit.intel DIRECTORY`` writes a new root certificate.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from attest.schemes.tdx.pck import SGX_EXTENSION, PckInfo
from attest.schemes.tdx.verify import Root

__all__ = [
    "INTEL_ORGANIZATION",
    "PLATFORM",
    "certificate",
    "collateral",
    "crl",
    "key",
    "pck_extension",
    "qe_identity",
    "raw_signature",
    "simulated_intel_roots",
    "standing_certificate",
    "tcb_info",
    "tcb_level",
]

INTEL_ORGANIZATION = "cube-mesh SIMULATION - not Intel"
START, END = dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(2049, 1, 1, tzinfo=dt.UTC)
NAMES = {
    "root": "Intel SGX Root CA", "platform": "Intel SGX PCK Platform CA", "processor": "Intel SGX PCK Processor CA",
    "signer": "Intel SGX TCB Signing", "pck": "Intel SGX PCK Certificate",
}  # fmt: skip
_SERIALS = {kind: number for number, kind in enumerate(NAMES, 1)}
_SGX_TYPES = ("standard", "scalable", "scalable-with-integrity")
QE_SIGNER = hashlib.sha256(b"cube-mesh/1 simulated quoting enclave").digest()
PLATFORM = PckInfo(
    ppid=bytes(16), component_svns=(8, 8, 2, 2, 4, 1, 0, 6, *(0,) * 8), pce_svn=13, pce_id=bytes(2),
    fmspc=bytes.fromhex("c0be00000000"), sgx_type="scalable", platform_instance_id=bytes(16),
    dynamic_platform=False, cached_keys=False, smt=True,
)  # fmt: skip


@cache
def key(label: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key that ``label`` decides: of a CA by its kind in ``NAMES``, of anything else by any text."""
    secret = int.from_bytes(hashlib.sha256(b"cube-mesh/1 simulated intel " + label.encode()).digest()[:31], "big")
    return ec.derive_private_key(secret + 1, ec.SECP256R1())


def subject(kind: str, organization: str = INTEL_ORGANIZATION) -> x509.Name:
    return x509.Name([
        x509.NameAttribute(NameOID.COMMON_NAME, NAMES.get(kind, kind)),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
    ])  # fmt: skip


@cache
def root_certificate() -> x509.Certificate:
    """The simulation's fixed root."""
    return x509.load_pem_x509_certificate(files("attest.testkit").joinpath("keys/intel-root.pem").read_bytes())


@cache
def simulated_intel_roots() -> tuple[Root, ...]:
    """What ``Verifier(allow_simulated=True)`` trusts besides Intel's root."""
    return (Root(root_certificate(), True),)


def certificate(
    kind: str,
    *,
    issuer: str = "root",
    public_key: ec.EllipticCurvePublicKey | None = None,
    signer: ec.EllipticCurvePrivateKey | None = None,
    name: x509.Name | None = None,
    issuer_name: x509.Name | None = None,
    ca: bool | None = None,
    serial: int | None = None,
    not_before: dt.datetime = START,
    not_after: dt.datetime = END,
    extension: bytes | None = None,
) -> x509.Certificate:
    """A certificate of ``kind`` in ``NAMES``; each keyword changes one thing. ``extension``: Intel's, in PCK ones."""
    is_ca = kind in ("root", "platform", "processor") if ca is None else ca
    length = {"root": 1}.get(kind, 0) if is_ca else None
    usage = x509.KeyUsage(not is_ca, not is_ca, False, False, False, is_ca, is_ca, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name or subject(kind))
        .issuer_name(issuer_name or subject(issuer))
        .public_key(public_key or key(kind).public_key())
        .serial_number(serial or _SERIALS[kind])
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(usage, critical=True)
        .add_extension(x509.BasicConstraints(is_ca, length), critical=True)
    )
    if extension is not None:
        value = x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_EXTENSION), extension)
        builder = builder.add_extension(value, critical=False)
    return builder.sign(signer or key(issuer), hashes.SHA256())


@cache
def standing_certificate(kind: str) -> x509.Certificate:
    """A CA's or signer's certificate with nothing changed: one and the same in quotes and collateral, as with Intel."""
    return certificate(kind)


def pck_extension(info: PckInfo, *, omit: Sequence[str] = ()) -> bytes:
    """Intel's extension of a PCK certificate that says ``info``; ``omit`` drops fields by their last arcs ("4")."""
    levels = [_pair(f"2.{n}", _integer(svn)) for n, svn in enumerate((*info.component_svns, info.pce_svn), 1)]
    levels.append(_pair("2.18", _tlv(0x04, bytes(min(svn, 255) for svn in info.component_svns))))
    fields = {
        "1": _tlv(0x04, info.ppid), "2": _tlv(0x30, b"".join(levels)), "3": _tlv(0x04, info.pce_id),
        "4": _tlv(0x04, info.fmspc), "5": _tlv(0x0A, bytes((_SGX_TYPES.index(info.sgx_type),))),
    }  # fmt: skip
    if info.platform_instance_id is not None:
        fields["6"] = _tlv(0x04, info.platform_instance_id)
    flags = [(1, info.dynamic_platform), (2, info.cached_keys), (3, info.smt)]
    configuration = [_pair(f"7.{n}", _tlv(0x01, b"\xff" if on else b"\x00")) for n, on in flags if on is not None]
    if configuration:
        fields["7"] = _tlv(0x30, b"".join(configuration))
    return _tlv(0x30, b"".join(_pair(arc, value) for arc, value in fields.items() if arc not in omit))


def crl(
    issuer: str,
    revoked: Sequence[int] = (),
    *,
    signer: ec.EllipticCurvePrivateKey | None = None,
    name: x509.Name | None = None,
    last_update: dt.datetime = START,
    next_update: dt.datetime = END,
) -> x509.CertificateRevocationList:
    """The revocation list of CA ``issuer`` with these serial numbers in it."""
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key(issuer).public_key())
    builder = (
        x509.CertificateRevocationListBuilder(name or subject(issuer), last_update, next_update)
        .add_extension(identifier, critical=False)
        .add_extension(x509.CRLNumber(1), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(last_update).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(signer or key(issuer), hashes.SHA256())


def tcb_level(status: str = "UpToDate", **changes: Any) -> dict[str, Any]:
    """One level of TCB info. ``sgx``, ``tdx``: 16 components; ``pcesvn``; ``date``; ``advisories``."""
    sgx, tdx = changes.get("sgx", PLATFORM.component_svns), changes.get("tdx", (5, 0, 8, *(0,) * 13))
    level = {
        "tcb": {
            "sgxtcbcomponents": [{"svn": svn} for svn in sgx],
            "pcesvn": changes.get("pcesvn", 13),
            "tdxtcbcomponents": [{"svn": svn} for svn in tdx],
        },
        "tcbDate": changes.get("date", "2024-03-13T00:00:00Z"),
        "tcbStatus": status,
    }
    return level | ({"advisoryIDs": list(changes["advisories"])} if "advisories" in changes else {})


def isv_level(svn: int, status: str = "UpToDate", date: str = "2024-03-13T00:00:00Z") -> dict[str, Any]:
    """One level of the quoting enclave or of a TDX module."""
    return {"tcb": {"isvsvn": svn}, "tcbDate": date, "tcbStatus": status}


def tcb_info(**changes: Any) -> dict[str, Any]:
    """TCB info of the simulated platforms, members replaced by their JSON names; None drops one."""
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    return _changed(
        {
            "id": "TDX", "version": 3, "issueDate": _time(START), "nextUpdate": _time(END),
            "fmspc": PLATFORM.fmspc.hex().upper(), "pceId": PLATFORM.pce_id.hex(), "tcbType": 0,
            "tcbEvaluationDataNumber": 18, "tdxModule": module,
            "tdxModuleIdentities": [{"id": "TDX_01", **module, "tcbLevels": [isv_level(6)]}],
            "tcbLevels": [tcb_level()],
        },
        changes,
    )  # fmt: skip


def qe_identity(**changes: Any) -> dict[str, Any]:
    """Identity of the simulated quoting enclave, members replaced by their JSON names; None drops one."""
    return _changed(
        {
            "id": "TD_QE", "version": 2, "issueDate": _time(START), "nextUpdate": _time(END),
            "tcbEvaluationDataNumber": 18, "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
            "attributes": "11" + "00" * 15, "attributesMask": "FB" + "FF" * 7 + "00" * 8,
            "mrsigner": QE_SIGNER.hex().upper(), "isvprodid": 2, "tcbLevels": [isv_level(4)],
        },
        changes,
    )  # fmt: skip


def collateral(
    *,
    tcb: Mapping[str, Any] | None = None,
    qe: Mapping[str, Any] | None = None,
    ca: str = "platform",
    tcb_signer: ec.EllipticCurvePrivateKey | None = None,
    qe_signer: ec.EllipticCurvePrivateKey | None = None,
    **changes: str,
) -> bytes:
    """A set in dcap-qvl's JSON form; ``tcb``, ``qe``: the documents; ``changes`` replace members as they stand."""
    tcb_text, qe_text = (json.dumps(document) for document in (tcb or tcb_info(), qe or qe_identity()))
    signing_chain = pem(standing_certificate("signer"), root_certificate())
    members = {
        "pck_crl_issuer_chain": pem(standing_certificate(ca), root_certificate()),
        "root_ca_crl": crl("root").public_bytes(Encoding.DER).hex(),
        "pck_crl": crl(ca).public_bytes(Encoding.DER).hex(),
        "tcb_info_issuer_chain": signing_chain,
        "tcb_info": tcb_text,
        "tcb_info_signature": raw_signature(tcb_signer or key("signer"), tcb_text.encode()).hex(),
        "qe_identity_issuer_chain": signing_chain,
        "qe_identity": qe_text,
        "qe_identity_signature": raw_signature(qe_signer or key("signer"), qe_text.encode()).hex(),
    }
    return json.dumps(members | changes).encode()


def raw_signature(signer: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA P-256 with SHA-256 as Intel writes it: r and s, 32 bytes each, big endian."""
    r, s = decode_dss_signature(signer.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def pem(*certificates: x509.Certificate) -> str:
    return "".join(c.public_bytes(Encoding.PEM).decode() for c in certificates)


def _changed(document: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**document, **changes}.items() if value is not None}


def _time(when: dt.datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _pair(arcs: str, value: bytes) -> bytes:
    oid = x509.ObjectIdentifier(f"{SGX_EXTENSION}.{arcs}")
    return _tlv(0x30, _tlv(0x06, _oid(oid.dotted_string)) + value)


def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    out = b""
    for arc in (first * 40 + second, *rest):
        digits = [arc & 0x7F]
        while arc := arc >> 7:
            digits.insert(0, 0x80 | arc & 0x7F)
        out += bytes(digits)
    return out


def _integer(value: int) -> bytes:
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes((size,)) if size < 0x80 else b"\x81" + bytes((size,)) if size < 0x100 else b"\x82" + _u16(size)
    return bytes((tag,)) + length + content


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


if __name__ == "__main__":
    path = Path(sys.argv[1]) / "intel-root.pem"
    path.write_bytes(certificate("root").public_bytes(Encoding.PEM))
