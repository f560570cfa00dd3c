"""What a relying party keeps beside evidence, item by item: names, records, times. The format of a collateral cache.

An item is what one vendor's address answers: a VCEK, a revocation list, TCB info, a key set. A record is an item as it
came, with where from and when. Records are not trusted: :func:`check` reads them strictly and says when they may be
used, ``vouch`` (its own module) looks at signatures, and every verifier verifies again. Key sets alone are signed by
nobody: what protects them is TLS on the way and the cache's file modes. Pure: whoever fetches and stores brings bytes
and times.

AMD 57230 §4, Intel PCS API v4, RFC 5280 §5.1.2, OpenID Connect Discovery 1.0.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias

import msgspec
from cryptography import x509

from attest.chain import common_name, load_certificates, load_chain, load_crl
from attest.collateral import thim_chain
from attest.errors import MalformedEvidence
from attest.jws import MAX_JWKS_BYTES, parse_jwks
from attest.schemes.tdx.tcb import decode_qe_identity, decode_tcb_info

__all__ = [
    "KINDS",
    "MAX_RECORD_BYTES",
    "Item",
    "Record",
    "Signed",
    "State",
    "Times",
    "check",
    "decode_record",
    "encode_record",
    "make_record",
    "parse_item",
    "signed_document",
    "thim_certificates",
]

State: TypeAlias = Literal["fresh", "due", "expired", "early"]

MAX_RECORD_BYTES = 8 << 20
MAX_CHAIN_BYTES = 65_536
MAX_CERTIFICATES_BYTES = 65_536
_HOUR, _DAY = 3600.0, 86_400.0
JWKS_REFRESH_S, JWKS_USABLE_S = _HOUR, _DAY
_ISSUER = r"https?://[A-Za-z0-9.-]{1,200}(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]{0,100})?"
_TCB = r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}"  # bootloader, tee, snp, microcode


class Item(msgspec.Struct, frozen=True, order=True):
    """The name of an item: a kind of :data:`KINDS` and a key that fits it. ``str`` gives ``kind:key``."""

    kind: str
    key: str

    def __post_init__(self) -> None:
        kind = KINDS.get(self.kind)
        if kind is None or not re.fullmatch(kind.key, self.key):
            raise ValueError(f"no name of an item: {self.kind}:{self.key}"[:400])

    def __str__(self) -> str:
        return f"{self.kind}:{self.key}"

    @property
    def file_name(self) -> str:
        """The record's file in a cache directory. Keys that no file can be called end in a hash of themselves."""
        plain = re.sub(r"[^A-Za-z0-9.-]", "_", self.key)
        if plain != self.key or len(plain) > 100:
            plain = f"{plain[:60].lstrip('.')}_{hashlib.sha256(self.key.encode()).hexdigest()[:16]}"
        return f"{self.kind}_{plain}.json"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An item as it came. ``body`` is the answer, byte by byte; ``sha256`` (hex) is over it and finds damage, nothing
    else. ``issuer_chain``: PEM, which Intel sends beside the body. ``fetched_at``: Unix seconds.
    """

    format: Literal["cube-mesh-collateral/1"]
    item: str
    url: str
    fetched_at: Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)]
    sha256: str
    issuer_chain: str = ""
    body: bytes


class Times(msgspec.Struct, frozen=True):
    """When a record may be used: from ``start`` to ``end``, Unix seconds. From ``refresh_at`` on a newer one should be
    fetched; until ``end`` the old one serves where that fails, and not a moment longer.
    """

    start: float
    refresh_at: float
    end: float

    def state(self, now: float) -> State:
        if now < self.start:
            return "early"
        if now >= self.end:
            return "expired"
        return "due" if now >= self.refresh_at else "fresh"


class Signed(msgspec.Struct, frozen=True):
    """A document of Intel's: the exact bytes that were signed, and the signature (r and s, 64 bytes)."""

    raw: bytes
    signature: bytes


class _Kind(msgspec.Struct, frozen=True, kw_only=True):
    """``span`` reads a record and gives the time in which it is good; ``refresh_s``: at most this old."""

    source: str
    key: str
    max_bytes: int
    refresh_s: float
    span: Callable[[Record, str], tuple[float, float]]


class _TcbAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    document: msgspec.Raw = msgspec.field(name="tcbInfo")
    signature: str


class _QeAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    document: msgspec.Raw = msgspec.field(name="enclaveIdentity")
    signature: str


def parse_item(text: str) -> Item:
    """The item that ``str`` wrote as ``text``; MalformedEvidence when it is none."""
    kind, _, key = text.partition(":")
    try:
        return Item(kind, key)
    except ValueError as error:
        raise _malformed(str(error)) from None


def make_record(item: Item, *, url: str, fetched_at: float, body: bytes, issuer_chain: str = "") -> Record:
    """The record of an answer, checked: MalformedEvidence unless :func:`check` accepts it."""
    record = Record(
        format="cube-mesh-collateral/1",
        item=str(item),
        url=url,
        fetched_at=fetched_at,
        sha256=hashlib.sha256(body).hexdigest(),
        issuer_chain=issuer_chain,
        body=body,
    )
    check(record)
    return record


def encode_record(record: Record) -> bytes:
    """One JSON object: body and provenance in one file, so that no reader ever sees one without the other."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def decode_record(raw: bytes, item: Item) -> Record:
    """The record of ``item`` in a file's bytes; MalformedEvidence when it is another's, damaged, or none."""
    if len(raw) > MAX_RECORD_BYTES:
        raise _malformed(f"{item}: {len(raw)} bytes are above {MAX_RECORD_BYTES}")
    try:
        record = msgspec.json.decode(raw, type=Record)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"{item}: {error}") from None
    if record.item != str(item):
        raise _malformed(f"{item}: the file is of {record.item[:200]}")
    check(record)
    return record


def check(record: Record) -> Times:
    """Read a record: it is what its name says, undamaged and within bounds. Gives when it may be used.

    Raises MalformedEvidence. Not checked: signatures.
    """
    item = parse_item(record.item)
    kind = KINDS[item.kind]
    if not 0 < len(record.body) <= kind.max_bytes or len(record.issuer_chain) > MAX_CHAIN_BYTES:
        raise _malformed(f"{item}: {len(record.body)} bytes, not 1 to {kind.max_bytes}")
    if hashlib.sha256(record.body).hexdigest() != record.sha256:
        raise _malformed(f"{item}: the content is not what was stored")
    try:
        start, end = kind.span(record, item.key)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"{item}: {error}") from None
    # A date that is far ahead is no reason not to look: at most refresh_s, and half of what is left.
    refresh_at = min(record.fetched_at + kind.refresh_s, (record.fetched_at + end) / 2)
    return Times(start, max(start, refresh_at), end)


def signed_document(record: Record) -> Signed:
    """TCB info or QE identity in a record's body. Raises MalformedEvidence."""
    wanted: type[_TcbAnswer | _QeAnswer] = _TcbAnswer if record.item.startswith("intel-tcb-info:") else _QeAnswer
    try:
        answer = msgspec.json.decode(record.body, type=wanted)
        signature = bytes.fromhex(answer.signature)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"{record.item}: {error}") from None
    if len(signature) != 64:
        raise _malformed(f"{record.item}: a signature of {len(signature)} bytes, not 64")
    return Signed(bytes(answer.document), signature)


def thim_certificates(record: Record) -> bytes:
    """The certificates in Azure's answer, VCEK first, as PEM. Raises MalformedEvidence."""
    return thim_chain(record.body)


# --- what each kind is read as: gives the time in which it is good ---


def _vcek(record: Record, key: str) -> tuple[float, float]:
    (certificate,) = _one(load_certificates(record.body))
    product, hwid, levels = key.split("/")
    fields = {
        extension.oid.dotted_string.removeprefix("1.3.6.1.4.1.3704.1."): extension.value.value
        for extension in certificate.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    names = ("3.9", "3.1", "3.2", "3.3", "3.8") if product == "Turin" else ("3.1", "3.2", "3.3", "3.8")
    certified = [int.from_bytes(fields.get(name, b"\x02\x01\xff")[2:], "big") for name in names]
    if common_name(certificate) != "SEV-VCEK" or fields.get("4") != bytes.fromhex(hwid):
        raise ValueError("not the VCEK of this chip")
    if ".".join(map(str, certified)) != levels:
        raise ValueError(f"the VCEK is of TCB {certified}")
    return _certificates_span((certificate,))


def _one(certificates: tuple[x509.Certificate, ...]) -> tuple[x509.Certificate, ...]:
    if len(certificates) != 1:
        raise ValueError(f"{len(certificates)} certificates, not one")
    return certificates


def _amd_chain(record: Record, key: str) -> tuple[float, float]:
    product, leaf = key.split("/")
    names = [common_name(certificate) for certificate in load_certificates(record.body)]
    if names != [f"SEV-{product}" if leaf == "vcek" else f"SEV-VLEK-{product}", f"ARK-{product}"]:
        raise ValueError(f"certificates of {names}")
    return _certificates_span(load_certificates(record.body))


def _amd_crl(record: Record, key: str) -> tuple[float, float]:
    return _crl_span(record, f"ARK-{key}")


def _thim(record: Record, key: str) -> tuple[float, float]:
    certificates = load_certificates(thim_certificates(record))
    if common_name(certificates[0]) != "SEV-VCEK":
        raise ValueError("no VCEK")
    return _certificates_span(certificates)


def _tcb_info(record: Record, key: str) -> tuple[float, float]:
    info = decode_tcb_info(signed_document(record).raw)
    if info.fmspc.lower() != key:
        raise ValueError(f"TCB info is of {info.fmspc}")
    return _within(info.issue_date.timestamp(), info.next_update.timestamp(), _issuers(record))


def _qe_identity(record: Record, key: str) -> tuple[float, float]:
    identity = decode_qe_identity(signed_document(record).raw)
    return _within(identity.issue_date.timestamp(), identity.next_update.timestamp(), _issuers(record))


def _pck_crl(record: Record, key: str) -> tuple[float, float]:
    return _within(*_crl_span(record, f"Intel SGX PCK {key.capitalize()} CA"), _issuers(record))


def _root_crl(record: Record, key: str) -> tuple[float, float]:
    return _crl_span(record, "Intel SGX Root CA")


def _jwks(record: Record, key: str) -> tuple[float, float]:
    parse_jwks(record.body)
    return -math.inf, record.fetched_at + JWKS_USABLE_S


def _issuers(record: Record) -> tuple[x509.Certificate, ...]:
    chain = load_chain(record.issuer_chain.encode())
    if len(chain) != 2:
        raise ValueError(f"an issuer chain of {len(chain)} certificates, not 2")
    return chain


def _crl_span(record: Record, issuer: str) -> tuple[float, float]:
    crl = load_crl(record.body)
    names = crl.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    if [name.value for name in names] != [issuer]:
        raise ValueError(f"the revocation list is not of {issuer}")
    if crl.next_update_utc is None:
        raise ValueError("a revocation list without an end")
    return crl.last_update_utc.timestamp(), crl.next_update_utc.timestamp()


def _certificates_span(certificates: Sequence[x509.Certificate]) -> tuple[float, float]:
    return _within(-math.inf, math.inf, certificates)


def _within(start: float, end: float, certificates: Sequence[x509.Certificate]) -> tuple[float, float]:
    return (
        max(start, *(certificate.not_valid_before_utc.timestamp() for certificate in certificates)),
        min(end, *(certificate.not_valid_after_utc.timestamp() for certificate in certificates)),
    )


def _malformed(detail: str) -> MalformedEvidence:
    return MalformedEvidence(f"collateral item {detail}", code="malformed_collateral")


def _kind(
    source: str,
    key: str,
    span: Callable[[Record, str], tuple[float, float]],
    *,
    refresh_s: float = _DAY,
    max_bytes: int = 1 << 20,
) -> _Kind:
    return _Kind(source=source, key=key, max_bytes=max_bytes, refresh_s=refresh_s, span=span)


KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        # A chip's key at one TCB never gets another certificate, so that age is no reason to ask.
        "amd-vcek": _kind(
            "amd", rf"(?:Milan|Genoa)/[0-9a-f]{{128}}/{_TCB}|Turin/[0-9a-f]{{16}}/[0-9]{{1,3}}\.{_TCB}", _vcek,
            refresh_s=math.inf, max_bytes=MAX_CERTIFICATES_BYTES,
        ),
        "amd-chain": _kind(
            "amd", r"(?:Milan|Genoa|Turin)/(?:vcek|vlek)", _amd_chain,
            refresh_s=30 * _DAY, max_bytes=MAX_CERTIFICATES_BYTES,
        ),
        "amd-crl": _kind("amd", r"Milan|Genoa|Turin", _amd_crl, max_bytes=4 << 20),
        "azure-thim": _kind("azure", r"local", _thim, max_bytes=MAX_CERTIFICATES_BYTES),
        "intel-tcb-info": _kind("intel", r"[0-9a-f]{12}", _tcb_info),
        "intel-qe-identity": _kind("intel", r"tdx", _qe_identity),
        "intel-pck-crl": _kind("intel", r"platform|processor", _pck_crl, max_bytes=4 << 20),
        "intel-root-crl": _kind("intel", r"root", _root_crl, max_bytes=4 << 20),
        "jwks": _kind("oidc", _ISSUER, _jwks, refresh_s=JWKS_REFRESH_S, max_bytes=MAX_JWKS_BYTES),
    }
)  # fmt: skip
"""Every kind of item: whose it is, the keys that it may have, its bound, how old it may grow before it is looked up."""
