"""Certificate chains to roots that the relying party chose (RFC 5280 §6.1, the part that attestation keys use).

Checked: signatures and names, validity at ``now``, that issuers are CAs that may sign certificates, path length, no
unknown critical extension. Not checked by ``verify_chain``: revocation (``check_crl`` and ``check_not_revoked``, with
lists that are handed in), names of the leaf, name constraints (critical ones are refused).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, Protocol, TypeVar, TypeVarTuple, cast

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from attest.errors import MalformedEvidence, Stale, VerificationFailed

__all__ = [
    "check_crl",
    "check_not_revoked",
    "common_name",
    "forget",
    "is_named_by",
    "issuer_name",
    "load_certificate",
    "load_certificates",
    "load_chain",
    "load_crl",
    "public_key",
    "remembered",
    "verify_chain",
]

MAX_CHAIN = 5
MAX_CERTIFICATE_BYTES = 16_384  # as DER or PEM
MAX_CHAIN_BYTES = 65_536  # of several certificates, and the text between them
MAX_CRL_BYTES = 4 << 20
MAX_RSA_BITS, MAX_RSA_EXPONENT = 4096, 65_537  # a signature by a larger key takes longer than all others together
MAX_REMEMBERED = 256
_VERSION = 0xA0  # [0], of TBSCertificate
T = TypeVar("T")
Certificates = TypeVarTuple("Certificates")
_PEM_END = b"-----END CERTIFICATE-----"
# Every certificate of an AMD chip has serial number 0. cryptography warns of it on each load; we know.
warnings.filterwarnings("ignore", message="Parsed a serial number which wasn't positive")
# Google's older vTPM CAs have common names longer than X.520 allows.
warnings.filterwarnings("ignore", message="Attribute's length must be")
_UNPARSABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_UNDERSTOOD_IN_CRLS = {ExtensionOID.AUTHORITY_KEY_IDENTIFIER, ExtensionOID.CRL_NUMBER}
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,  # critical in TPM certificates whose subject is empty
}


_remembered: list[dict[tuple[int, ...], tuple[object, object]]] = []


class Remembered(Protocol[*Certificates, T]):
    """What :func:`remembered` makes of a function."""

    def __call__(self, *certificates: *Certificates) -> T: ...

    def tell(self, answer: T, *certificates: *Certificates) -> T:
        """Remember ``answer``, which the function would find as well; gives it back."""


def remembered(function: Callable[[*Certificates], T]) -> Remembered[*Certificates, T]:
    """Remember what ``function`` says of the very certificates that it is called with: facts about their bytes, never
    about a time or a revocation list.

    By identity, because hashing a certificate costs more than most of the questions; entries hold their certificates,
    so that an identity cannot come to mean another one. At most 256 entries, then all are forgotten.
    """
    known: dict[tuple[int, ...], tuple[object, T]] = {}
    _remembered.append(known)  # type: ignore[arg-type]  # a T is an object; dicts are invariant

    @wraps(function)
    def ask(*certificates: *Certificates) -> T:
        entry = known.get(tuple(map(id, certificates)))
        return tell(function(*certificates), *certificates) if entry is None else entry[1]

    def tell(answer: T, *certificates: *Certificates) -> T:
        if len(known) >= MAX_REMEMBERED:
            known.clear()
        known[tuple(map(id, certificates))] = (certificates, answer)
        return answer

    ask.tell = tell  # type: ignore[attr-defined]
    return cast("Remembered[*Certificates, T]", ask)


def forget() -> None:
    """Forget every certificate and list that was loaded, and what holds between two of them, as signatures: the next
    verification parses and verifies all. What one says of itself goes with its object; only anchors are met again.
    """
    load_certificate.cache_clear()
    load_crl.cache_clear()
    for known in _remembered:
        for pair in [key for key in known if len(key) > 1]:
            del known[pair]


@lru_cache(maxsize=64)
def load_certificate(raw: bytes) -> x509.Certificate:
    """One DER or PEM certificate, unverified; MalformedEvidence when it is none.

    ``cryptography`` parses on demand; every part that we use is parsed here, so that none can fail later. The issuer's
    name is compared as bytes: whoever wants to read it calls :func:`issuer_name`.
    """
    if len(raw) > MAX_CERTIFICATE_BYTES:
        raise MalformedEvidence(f"certificate of {len(raw)} bytes is above {MAX_CERTIFICATE_BYTES}", code="oversize")
    try:
        pem = raw.startswith(b"-----BEGIN")
        certificate = x509.load_pem_x509_certificate(raw) if pem else x509.load_der_x509_certificate(raw)
        der = certificate.public_bytes(Encoding.DER) if pem else raw
        _ = certificate.subject, certificate.signature_hash_algorithm, _facts.tell(_read(certificate, der), certificate)
        _check_cost(public_key(certificate))
        _check_signature_bits(der, certificate.signature)
    except _UNPARSABLE as error:
        raise MalformedEvidence(f"certificate: {error}", code="malformed_certificate") from None
    return certificate


def _check_cost(key: CertificatePublicKeyTypes) -> None:
    """Whoever sends a chain chooses its keys. Raises ValueError."""
    if isinstance(key, rsa.RSAPublicKey) and (key.key_size > MAX_RSA_BITS or key.public_numbers().e > MAX_RSA_EXPONENT):
        raise ValueError("an RSA key that is costly to use")


def _check_signature_bits(der: bytes, signature: bytes) -> None:
    """A signature is whole bytes. ``cryptography`` lets a BIT STRING say otherwise, so that one signature would have
    several forms of one certificate. Raises ValueError.
    """
    if der[-len(signature) - 1] != 0:  # it stands last, after the number of its unused bits (X.690 §8.6)
        raise ValueError("a signature that is not whole bytes")


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at ``at`` begins and ends."""
    size, start = der[at + 1], at + 2
    if size < 0x80:
        return start, start + size
    start += size & 0x7F
    return start, start + int.from_bytes(der[at + 2 : start], "big")


def load_certificates(raw: bytes) -> tuple[x509.Certificate, ...]:
    """One certificate or more, PEM (text between them is ignored) or DER, in their order; zero bytes may follow."""
    if len(raw) > MAX_CHAIN_BYTES:
        raise MalformedEvidence(f"{len(raw)} bytes of certificates are above {MAX_CHAIN_BYTES}", code="oversize")
    raw = raw.rstrip(b"\x00") if raw.lstrip()[:10] == b"-----BEGIN" else raw
    if raw[:1] == b"\x30":
        blocks = _der_blocks(raw)
    else:
        blocks = [block[block.find(b"-----BEGIN") :] + _PEM_END for block in raw.split(_PEM_END)[:-1]]
    if not 1 <= len(blocks) <= 2 * MAX_CHAIN:
        raise MalformedEvidence(f"{len(blocks)} certificates in a chain", code="malformed_certificate")
    return tuple(load_certificate(block) for block in blocks)


def load_chain(raw: bytes) -> tuple[x509.Certificate, ...]:
    """As :func:`load_certificates`, leaf first: where a self-issued certificate comes first, the order is turned."""
    chain = load_certificates(raw)
    return chain[::-1] if is_named_by(chain[0], chain[0]) else chain


def _der_blocks(raw: bytes) -> list[bytes]:
    """DER SEQUENCEs that stand one after another, cut by their lengths (two length bytes, as certificates have)."""
    blocks = []
    while raw.rstrip(b"\x00"):
        size = 4 + int.from_bytes(raw[2:4], "big")
        if raw[:2] != b"\x30\x82" or size > len(raw):
            raise MalformedEvidence("not DER certificates one after another", code="malformed_certificate")
        blocks.append(raw[:size])
        raw = raw[size:]
    return blocks


@lru_cache(maxsize=32)
def load_crl(raw: bytes) -> x509.CertificateRevocationList:
    """One DER or PEM revocation list, unverified; MalformedEvidence when it is none."""
    if len(raw) > MAX_CRL_BYTES:
        raise MalformedEvidence(f"revocation list of {len(raw)} bytes is above {MAX_CRL_BYTES}", code="malformed_crl")
    try:
        pem = raw.startswith(b"-----BEGIN")
        crl = x509.load_pem_x509_crl(raw) if pem else x509.load_der_x509_crl(raw)
        _ = crl.issuer, crl.extensions, crl.signature_hash_algorithm, crl.last_update_utc, crl.next_update_utc
        _ = len(crl), crl.get_revoked_certificate_by_serial_number(1)
        _check_signature_bits(crl.public_bytes(Encoding.DER) if pem else raw, crl.signature)
    except _UNPARSABLE as error:
        raise MalformedEvidence(f"revocation list: {error}", code="malformed_crl") from None
    return crl


@remembered
def public_key(certificate: x509.Certificate) -> CertificatePublicKeyTypes:
    """The subject's key, as an object that is made once."""
    return certificate.public_key()


@remembered
def common_name(certificate: x509.Certificate) -> str:
    """The subject's one common name; empty when there is none or several."""
    values = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if len(values) == 1 else ""


def is_named_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``certificate`` names ``issuer`` as its issuer: byte for byte, as CAs must write it (RFC 5280 §4.1.2.6).
    Whether it is the issuer is for :func:`verify_chain` to see.
    """
    return _facts(certificate).issuer == _facts(issuer).subject


def issuer_name(certificate: x509.Certificate) -> str:
    """The issuer as text (RFC 4514). Raises MalformedEvidence."""
    try:
        return certificate.issuer.rfc4514_string()
    except _UNPARSABLE as error:
        raise MalformedEvidence(f"certificate: {error}", code="malformed_certificate") from None


def check_crl(crl: x509.CertificateRevocationList, issuer: x509.Certificate, now: float) -> float:
    """The list is ``issuer``'s, by name, key and right to sign lists, and in its time; gives its nextUpdate, Unix s.

    Raises VerificationFailed (``crl_issuer``, ``crl_signature``, ``critical_extension``) or Stale (``crl_expired``,
    ``crl_not_yet_valid``). A list without nextUpdate never ends, and is refused for that (RFC 5280 §5.1.2.5 wants it).
    """
    name = common_name(issuer)
    if not _is_named_as(crl, issuer) or not _facts(issuer).signs_crls:
        raise VerificationFailed(f"the revocation list is not of {name}", code="crl_issuer")
    unknown = [e.oid.dotted_string for e in crl.extensions if e.critical and e.oid not in _UNDERSTOOD_IN_CRLS]
    if unknown:
        raise VerificationFailed(f"revocation list has critical extension {unknown[0]}", code="critical_extension")
    if not _crl_signed(crl, issuer):
        raise VerificationFailed(f"the revocation list is not signed by {name}", code="crl_signature")
    if now < crl.last_update_utc.timestamp():
        raise Stale(f"the revocation list of {name} is of later", code="crl_not_yet_valid")
    if crl.next_update_utc is None or crl.next_update_utc.timestamp() < now:
        raise Stale(f"the revocation list of {name} has expired", code="crl_expired")
    return crl.next_update_utc.timestamp()


def check_not_revoked(certificate: x509.Certificate, crl: x509.CertificateRevocationList) -> None:
    """The serial number is not in the list of the certificate's issuer (``check_crl`` comes first), any reason."""
    if not _have_one_issuer(certificate, crl):
        raise VerificationFailed("the revocation list is of another issuer", code="crl_issuer")
    if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        name = certificate.subject.rfc4514_string()
        raise VerificationFailed(f"certificate {name} is revoked", code="certificate_revoked")


@remembered
def _is_named_as(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    return crl.issuer == issuer.subject


@remembered
def _have_one_issuer(certificate: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    return certificate.issuer == crl.issuer


@remembered
def _crl_signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(public_key(issuer))  # type: ignore[arg-type]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _end(certificate: x509.Certificate, facts: _Facts, now: float) -> float:
    """The end of its validity as Unix seconds, when ``now`` lies inside of it; else Stale."""
    if not facts.start <= now <= facts.end:
        name = certificate.subject.rfc4514_string()
        state = "not yet valid" if now < facts.start else "expired"
        raise Stale(f"certificate {name} is {state}", code=f"certificate_{state.replace(' ', '_')}")
    return facts.end


def verify_chain(
    leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: float
) -> float:
    """Follow the issuers of ``leaf`` to one of ``roots``; gives the earliest end of validity on the way, Unix seconds.

    Raises VerificationFailed (``untrusted_chain``) or Stale. A root is trusted because it was handed in, by its key
    and name; nothing in the evidence can add one. ``intermediates`` beyond the chain's need are ignored. All of them
    come from :func:`load_certificate`.
    """
    facts = _facts(leaf)
    expires = _end(leaf, facts, now)
    _check_extensions(facts)
    current = leaf
    for below in range(MAX_CHAIN):
        found = _issuer_of(current, roots, below)
        if found is not None:
            return min(expires, _end(*found, now))
        found = _issuer_of(current, intermediates, below)
        if found is None:
            break
        expires = min(expires, _end(*found, now))
        current = found[0]
    raise VerificationFailed(
        f"no chain from {leaf.subject.rfc4514_string() or 'the certificate'} to a trusted root", code="untrusted_chain"
    )


def _issuer_of(
    certificate: x509.Certificate, candidates: Sequence[x509.Certificate], below: int
) -> tuple[x509.Certificate, _Facts] | None:
    """The first candidate that signed ``certificate`` and, as a CA, may, with ``below`` intermediates under it."""
    for candidate in candidates:
        if _signed(certificate, candidate):
            facts = _facts(candidate)
            _check_extensions(facts)
            if facts.room_below is not None and facts.room_below >= below:
                return candidate, facts
    return None


@remembered
def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer`` by name and key signed ``certificate``: a fact about these bytes, so it may be remembered."""
    if not is_named_by(certificate, issuer):  # most candidates; to be told so below takes longer
        return False
    key = public_key(issuer)
    try:
        if isinstance(key, rsa.RSAPublicKey):
            _verify_by(key, certificate)
        else:
            certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _verify_by(key: rsa.RSAPublicKey, certificate: x509.Certificate) -> None:
    """As ``verify_directly_issued_by``, which reads an RSA key anew each time: a quarter of what the signature costs.

    Raises InvalidSignature, or what ``cryptography`` has for an algorithm that is not of such keys.
    """
    padding, algorithm = _algorithm(certificate)
    key.verify(certificate.signature, _facts(certificate).signed, padding, algorithm)


@remembered
def _algorithm(certificate: x509.Certificate) -> tuple[Any, Any]:
    """Padding and hash of its signature: ``cryptography`` makes them anew each time."""
    return certificate.signature_algorithm_parameters, certificate.signature_hash_algorithm


class _Facts(msgspec.Struct, frozen=True):
    """What a certificate says of itself and its rights, for :func:`verify_chain` and :func:`check_crl`."""

    start: float  # of its validity, Unix seconds
    end: float
    unknown_critical: str  # the OID of the first critical extension that we do not know; empty for none
    room_below: float | None  # how many intermediates may stand under this CA; None: none, or may not sign certificates
    signs_crls: bool
    signed: bytes  # what the signature covers, as DER
    issuer: bytes  # the two names, as DER
    subject: bytes


def _check_extensions(facts: _Facts) -> None:
    if oid := facts.unknown_critical:
        raise VerificationFailed(f"certificate has unknown critical extension {oid}", code="critical_extension")


@remembered
def _facts(certificate: x509.Certificate) -> _Facts:
    return _read(certificate, certificate.public_bytes(Encoding.DER))


def _read(certificate: x509.Certificate, der: bytes) -> _Facts:
    """``der``: of the certificate. Raises ValueError, or what ``cryptography`` has for extensions that are none."""
    unknown = ""
    values: dict[type[x509.ExtensionType], Any] = {}
    for extension in certificate.extensions:
        values[type(extension.value)] = extension.value
        if extension.critical and extension.oid not in _UNDERSTOOD:
            unknown = unknown or extension.oid.dotted_string
    constraints, usage = values.get(x509.BasicConstraints), values.get(x509.KeyUsage)
    room = None
    if constraints and constraints.ca and usage and usage.key_cert_sign:
        room = math.inf if constraints.path_length is None else constraints.path_length
    signed, issuer, subject = _parts(der)
    return _Facts(
        start=certificate.not_valid_before_utc.timestamp(),
        end=certificate.not_valid_after_utc.timestamp(),
        unknown_critical=unknown,
        room_below=room,
        signs_crls=usage is not None and usage.crl_sign,
        signed=signed,
        issuer=issuer,
        subject=subject,
    )


def _parts(der: bytes) -> tuple[bytes, bytes, bytes]:
    """What is signed, the issuer and the subject of a certificate that ``cryptography`` has parsed.

    Raises ValueError unless the algorithm in the signed part is that beside the signature (RFC 5280 §4.1.1.2), byte for
    byte: ``cryptography`` looks only when it is asked for an issuer.
    """
    start = _content(der, 0)[0]
    at, end = _content(der, start)
    if der[at] == _VERSION:
        at = _content(der, at)[1]
    at = _content(der, at)[1]  # behind the serial number
    issuer = _content(der, at)[1]
    if der[at:issuer] != der[end : _content(der, end)[1]]:
        raise ValueError("two algorithms of one signature")
    validity = _content(der, issuer)[1]
    subject = _content(der, validity)[1]
    return der[start:end], der[issuer:validity], der[subject : _content(der, subject)[1]]
