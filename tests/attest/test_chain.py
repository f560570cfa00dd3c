"""Chains of AK certificates: a small CA of our own, one thing wrong at a time, and a real one of a cloud."""

from __future__ import annotations

import datetime as dt
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type

from attest.chain import (
    MAX_CHAIN,
    MAX_CHAIN_BYTES,
    MAX_CRL_BYTES,
    MAX_REMEMBERED,
    check_crl,
    check_not_revoked,
    common_name,
    forget,
    is_named_by,
    issuer_name,
    load_certificate,
    load_certificates,
    load_chain,
    load_crl,
    remembered,
    verify_chain,
)
from attest.der import der_items
from attest.errors import AttestError, MalformedEvidence
from attest.schemes.vtpm.verify import verify_ak_certificate, verify_quote
from attest.testkit.pki import name
from attest.testkit.tokens import fixed_key
from attest.testkit.tpm import SoftwareTpm

START, END = dt.datetime(2025, 1, 1, tzinfo=dt.UTC), dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC).timestamp()
KEYS = {who: ec.derive_private_key(number, ec.SECP256R1()) for number, who in enumerate(("root", "sub", "ak"), 11)}
USAGE = x509.KeyUsage(False, False, False, False, False, True, True, False, False)


def _certificate(who: str, by: str, *extensions: tuple[x509.ExtensionType, bool], **changes: Any) -> x509.Certificate:
    builder = x509.CertificateBuilder(
        name(changes.get("issuer", by)), name(changes.get("subject", who)), KEYS[who].public_key(),
        x509.random_serial_number(), changes.get("start", START), changes.get("end", END),
    )  # fmt: skip
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(KEYS[changes.get("signer", by)], hashes.SHA256())


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    head = (
        bytes((size,)) if size < 128 else b"\x81" + bytes((size,)) if size < 256 else b"\x82" + size.to_bytes(2, "big")
    )
    return bytes((tag,)) + head + content


def _ca(length: int | None = None, *, ca: bool = True) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    return ((x509.BasicConstraints(ca, length if ca else None), True), (USAGE, True))


ROOT = _certificate("root", "root", *_ca())
SUB = _certificate("sub", "root", *_ca(0))
LEAF = _certificate("ak", "sub")
CRITICAL = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"), True)
FALSE_ROOT = _certificate("sub", "sub", *_ca(), subject="root")
FALSE_SUB = _certificate("sub", "root", *_ca(0), signer="ak")
NO_SIGN = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
IDLE_SUB = _certificate("sub", "root", _ca()[0], (NO_SIGN, True))


def test_chain_of_three_and_of_two() -> None:
    assert verify_chain(LEAF, [SUB], [ROOT], NOW) == END.timestamp()
    early = _certificate("ak", "root", end=dt.datetime(2027, 1, 1, tzinfo=dt.UTC))
    assert verify_chain(early, [], [ROOT], NOW) == dt.datetime(2027, 1, 1, tzinfo=dt.UTC).timestamp()


PAST = {"start": dt.datetime(2020, 1, 1, tzinfo=dt.UTC), "end": dt.datetime(2021, 1, 1, tzinfo=dt.UTC)}
FUTURE = {"start": dt.datetime(2028, 1, 1, tzinfo=dt.UTC)}
REFUSED: dict[str, tuple[x509.Certificate, list[x509.Certificate], list[x509.Certificate], str]] = {
    "no intermediate": (LEAF, [], [ROOT], "untrusted_chain"),
    "no root": (LEAF, [SUB], [], "untrusted_chain"),
    "root only sent along": (LEAF, [SUB, ROOT], [], "untrusted_chain"),
    "other root of the same name": (LEAF, [SUB], [FALSE_ROOT], "untrusted_chain"),
    "leaf signed by another": (_certificate("ak", "sub", signer="ak"), [SUB], [ROOT], "untrusted_chain"),
    "intermediate signed by another": (LEAF, [FALSE_SUB], [ROOT], "untrusted_chain"),
    "issuer's name differs": (_certificate("ak", "sub", issuer="x"), [SUB], [ROOT], "untrusted_chain"),
    "intermediate is no CA": (LEAF, [_certificate("sub", "root", *_ca(ca=False))], [ROOT], "untrusted_chain"),
    "intermediate without constraints": (LEAF, [_certificate("sub", "root", (USAGE, True))], [ROOT], "untrusted_chain"),
    "intermediate without usage": (LEAF, [_certificate("sub", "root", _ca()[0])], [ROOT], "untrusted_chain"),
    "intermediate may not sign": (LEAF, [IDLE_SUB], [ROOT], "untrusted_chain"),
    "path too long": (LEAF, [SUB], [_certificate("root", "root", *_ca(0))], "untrusted_chain"),
    "leaf expired": (_certificate("ak", "sub", **PAST), [SUB], [ROOT], "certificate_expired"),
    "leaf not yet valid": (_certificate("ak", "sub", **FUTURE), [SUB], [ROOT], "certificate_not_yet_valid"),
    "intermediate expired": (LEAF, [_certificate("sub", "root", *_ca(0), **PAST)], [ROOT], "certificate_expired"),
    "root expired": (LEAF, [SUB], [_certificate("root", "root", *_ca(), **PAST)], "certificate_expired"),
    "unknown critical extension, leaf": (_certificate("ak", "sub", CRITICAL), [SUB], [ROOT], "critical_extension"),
    "unknown critical extension, intermediate": (
        LEAF, [_certificate("sub", "root", *_ca(0), CRITICAL)], [ROOT], "critical_extension",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    leaf, intermediates, roots, code = REFUSED[case]
    with pytest.raises(AttestError) as caught:
        verify_chain(leaf, intermediates, roots, NOW)
    assert caught.value.code == code, caught.value


RSA_KEY = fixed_key("vtpm-ak")
RSA_ROOT = (
    x509.CertificateBuilder(name("root"), name("root"), RSA_KEY.public_key(), 1, START, END)
    .add_extension(*_ca()[0]).add_extension(USAGE, True).sign(RSA_KEY, hashes.SHA256())
)  # fmt: skip
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
BY_RSA = x509.CertificateBuilder(name("root"), name("ak"), KEYS["ak"].public_key(), 1, START, END)
PARTS = [
    [item[1] for item in der_items(der_items(BY_RSA.sign(RSA_KEY, hash_).public_bytes(Encoding.DER))[0][1])]
    for hash_ in (hashes.SHA256(), hashes.SHA384())
]


def _by_rsa(content: bytes, algorithm: bytes) -> bytes:
    """What is signed, and beside it an algorithm of one's choice; the signature itself is good by SHA-256."""
    signed = _tlv(0x30, content)
    signature = RSA_KEY.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    return _tlv(0x30, signed + _tlv(0x30, algorithm) + _tlv(0x03, b"\x00" + signature))


SIGNED_BY_RSA = {
    "PKCS #1": (BY_RSA.sign(RSA_KEY, hashes.SHA256()), True),
    "PSS": (BY_RSA.sign(RSA_KEY, hashes.SHA384(), rsa_padding=PSS), True),
    "by hand": (load_certificate(_by_rsa(PARTS[0][0], PARTS[0][1])), True),
    "version 1": (load_certificate(_by_rsa(PARTS[0][0][5:], PARTS[0][1])), True),
    "an algorithm of other keys": (_certificate("ak", "root"), False),
    "another key": (BY_RSA.sign(fixed_key("service"), hashes.SHA256()), False),
}


@pytest.mark.parametrize("case", SIGNED_BY_RSA)
def test_signed_by_an_rsa_key(case: str) -> None:
    """As ``cryptography`` judges, which we do not ask there."""
    leaf, good = SIGNED_BY_RSA[case]
    with nullcontext() if good else pytest.raises((InvalidSignature, ValueError, TypeError)):
        leaf.verify_directly_issued_by(RSA_ROOT)
    with nullcontext() if good else pytest.raises(AttestError, match="no chain"):
        verify_chain(leaf, [], [RSA_ROOT], NOW)


@pytest.mark.parametrize("content", [PARTS[1][0], PARTS[1][0][5:]], ids=["version 3", "version 1"])
def test_a_signature_has_one_algorithm(content: bytes) -> None:
    with pytest.raises(MalformedEvidence, match="two algorithms"):
        load_certificate(_by_rsa(content, PARTS[0][1]))


def test_names_are_compared_byte_for_byte() -> None:
    """The same word as a string of another type is another name: a CA writes its own in one way (RFC 5280 §4.1.2.6)."""
    parts = [x509.NameAttribute(part.oid, part.value, _ASN1Type.PrintableString) for part in RSA_ROOT.subject]
    printable = x509.Name(parts)
    builder = x509.CertificateBuilder(printable, name("ak"), KEYS["ak"].public_key(), 1, START, END)
    leaf = builder.sign(RSA_KEY, hashes.SHA256())
    assert leaf.issuer == RSA_ROOT.subject
    assert not is_named_by(leaf, RSA_ROOT)
    with pytest.raises(AttestError, match="no chain"):
        verify_chain(leaf, [], [RSA_ROOT], NOW)


def test_names_that_cannot_be_read() -> None:
    odd = _by_rsa(PARTS[0][0].replace(b"\x04root", b"\x04ro\xff\xff"), PARTS[0][1])
    with pytest.raises(MalformedEvidence):
        issuer_name(load_certificate(odd))
    with pytest.raises(MalformedEvidence):
        load_certificate(_by_rsa(PARTS[0][0].replace(b"\x02ak", b"\x02\xff\xff"), PARTS[0][1]))
    assert issuer_name(LEAF).endswith("CN=sub")


def test_a_loop_ends() -> None:
    one, two = _certificate("root", "sub", *_ca()), _certificate("sub", "root", *_ca())
    with pytest.raises(AttestError, match="no chain"):
        verify_chain(LEAF, [one, two], [], NOW)


def test_a_signature_has_one_form() -> None:
    """A BIT STRING that says "one bit unused" where that bit is zero: the same signature, another certificate."""
    leaf = next(c for c in (_certificate("ak", "sub") for _ in range(200)) if c.signature[-1] % 2 == 0)
    raw = leaf.public_bytes(Encoding.DER)
    start = len(raw) - len(leaf.signature)
    with pytest.raises(MalformedEvidence, match="whole bytes"):
        load_certificate(raw[: start - 1] + b"\x01" + raw[start:])


CUT = LEAF.public_bytes(Encoding.DER)[:-1]


@pytest.mark.parametrize("raw", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n", CUT])
def test_not_a_certificate(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        load_certificate(raw)


def test_ak_certificate_must_be_of_the_ak_that_signed() -> None:
    verified = verify_quote(SoftwareTpm(key=KEYS["ak"]).quote(bytes(32)), bytes(32))
    assert verify_ak_certificate(verified, [SUB, LEAF], [ROOT], NOW) == END.timestamp()
    other = verify_quote(SoftwareTpm().quote(bytes(32)), bytes(32))
    with pytest.raises(AttestError) as caught:
        verify_ak_certificate(other, [SUB, LEAF], [ROOT], NOW)
    assert caught.value.code == "ak_not_certified"


def test_real_ak_certificate_of_a_cloud(vectors: Path) -> None:
    directory = vectors / "gcp" / "salrashid-vtpm"
    leaf, intermediate = (load_certificate((directory / n).read_bytes()) for n in ("akcert.pem", "ak_intermediate.crt"))
    root = load_certificate((vectors / "gcp" / "roots" / "gcp_ek_ak_ca_root.crt").read_bytes())
    assert verify_chain(leaf, [intermediate], [root], NOW) == leaf.not_valid_after_utc.timestamp()


# -- files of certificates ---------------------------------------------------------------------------------------------


def _der(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in certificates)


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


@pytest.mark.parametrize(
    "raw",
    [_der(LEAF, SUB), _pem(LEAF, SUB), b"text\n" + _pem(LEAF) + b"\nmore\n" + _pem(SUB), _der(LEAF, SUB) + bytes(3),
     _pem(LEAF, SUB) + bytes(3)],
    ids=["DER", "PEM", "text between", "DER and zeros", "PEM and zeros"],
)  # fmt: skip
def test_several_in_one_file(raw: bytes) -> None:
    assert load_certificates(raw) == load_chain(raw) == (LEAF, SUB)


def test_a_chain_that_begins_with_its_root_is_turned() -> None:
    assert load_chain(_pem(ROOT, SUB, LEAF)) == (LEAF, SUB, ROOT) == load_chain(_pem(LEAF, SUB, ROOT))
    assert load_certificates(_pem(ROOT, SUB, LEAF)) == (ROOT, SUB, LEAF)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "malformed_certificate"),
        (_der(LEAF)[:-1], "malformed_certificate"),
        (_der(LEAF) + b"\x30\x03\x02\x01\x00", "malformed_certificate"),
        (_pem(*[LEAF] * (2 * MAX_CHAIN + 1)), "malformed_certificate"),
        (bytes(MAX_CHAIN_BYTES + 1), "oversize"),
    ],
    ids=["none", "cut", "a short sequence", "too many", "too large"],
)
def test_files_that_are_no_certificates(raw: bytes, code: str) -> None:
    with pytest.raises(MalformedEvidence) as caught:
        load_certificates(raw)
    assert caught.value.code == code


def test_one_certificate_has_a_greatest_size() -> None:
    with pytest.raises(MalformedEvidence) as caught:
        load_certificate(_der(LEAF) + bytes(1 << 17))
    assert caught.value.code == "oversize"


def test_names() -> None:
    assert common_name(LEAF) == "ak"
    nobody = x509.CertificateBuilder(name("root"), x509.Name([]), KEYS["ak"].public_key(), 1, START, END)
    assert common_name(nobody.sign(KEYS["root"], hashes.SHA256())) == ""


def test_what_is_remembered_is_forgotten_in_time() -> None:
    """A fact is asked for once for each certificate, and a table of facts never grows above its bound."""
    asked = []

    @remembered
    def subject(certificate: x509.Certificate) -> str:
        asked.append(certificate)
        return certificate.subject.rfc4514_string()

    many = [_certificate("ak", "sub") for _ in range(MAX_REMEMBERED + 1)]
    assert [subject(one) for one in (*many[:2], *many[:2])] == [many[0].subject.rfc4514_string()] * 4
    assert len(asked) == 2
    for one in many:
        subject(one)
    subject(many[0])  # the table was full, so it has been asked for again
    assert len(asked) == MAX_REMEMBERED + 2


def test_what_is_forgotten() -> None:
    """Certificates that were loaded, and what holds between two. What one says of itself cannot be of another."""
    asked = []

    @remembered
    def subject(certificate: x509.Certificate) -> str:
        asked.append(1)
        return certificate.subject.rfc4514_string()

    @remembered
    def issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
        asked.append(2)
        return certificate.issuer == issuer.subject

    raw, root = _certificate("ak", "sub").public_bytes(Encoding.DER), _certificate("root", "root")
    for times in (1, 2):
        certificate = load_certificate(raw)
        for _ in range(2):
            assert subject(certificate) != subject(root)
            assert not issued(certificate, root)
            assert asked.count(2) == times
            assert asked.count(1) == 1 + times
        forget()
        assert load_certificate(raw) is not certificate


# -- revocation lists --------------------------------------------------------------------------------------------------


def _list(*revoked: x509.Certificate, **changes: Any) -> x509.CertificateRevocationList:
    builder = x509.CertificateRevocationListBuilder(
        changes.get("issuer", ROOT.subject), changes.get("start", START), changes.get("end", END)
    )
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder(certificate.serial_number, START)
        builder = builder.add_revoked_certificate(entry.build())
    for extension, critical in changes.get("extensions", ((x509.CRLNumber(1), False),)):
        builder = builder.add_extension(extension, critical)
    return builder.sign(KEYS[changes.get("signer", "root")], hashes.SHA256())


def _endless() -> x509.CertificateRevocationList:
    """A list without nextUpdate, which ``cryptography`` would not write."""
    ((_, outer),) = der_items(_list().public_bytes(Encoding.DER))
    (_, signed), (_, algorithm), _ = der_items(outer)
    signed = _tlv(0x30, b"".join(_tlv(*item) for at, item in enumerate(der_items(signed)) if at != 4))
    signature = KEYS["root"].sign(signed, ec.ECDSA(hashes.SHA256()))
    return load_crl(_tlv(0x30, signed + _tlv(0x30, algorithm) + _tlv(0x03, b"\x00" + signature)))


IDLE_ROOT = _certificate("root", "root", _ca()[0], (NO_SIGN, True))
DUMB_ROOT = _certificate("root", "root", _ca()[0])
ODD_ROOT = x509.CertificateBuilder(
    name("root"), name("root"), x25519.X25519PrivateKey.generate().public_key(), 1, START, END
).add_extension(USAGE, True).sign(KEYS["root"], hashes.SHA256())  # fmt: skip
LISTS: dict[str, tuple[x509.CertificateRevocationList, x509.Certificate, str]] = {
    "of another issuer": (_list(issuer=SUB.subject), ROOT, "crl_issuer"),
    "the issuer may not sign lists": (_list(), IDLE_ROOT, "crl_issuer"),
    "the issuer does not say that it may": (_list(), DUMB_ROOT, "crl_issuer"),
    "critical extension": (_list(extensions=(CRITICAL,)), ROOT, "critical_extension"),
    "signed by another": (_list(signer="sub"), ROOT, "crl_signature"),
    "the issuer's key signs nothing": (_list(), ODD_ROOT, "crl_signature"),
    "expired": (_list(start=PAST["start"], end=PAST["end"]), ROOT, "crl_expired"),
    "not yet valid": (_list(start=FUTURE["start"]), ROOT, "crl_not_yet_valid"),
    "never ends": (_endless(), ROOT, "crl_expired"),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_do_not_count(case: str) -> None:
    crl, issuer, code = LISTS[case]
    with pytest.raises(AttestError) as caught:
        check_crl(crl, issuer, NOW)
    assert caught.value.code == code, caught.value


def test_revoked_or_not() -> None:
    crl = _list(SUB)
    assert check_crl(crl, ROOT, NOW) == END.timestamp()
    check_not_revoked(_certificate("sub", "root", *_ca(0)), crl)
    for certificate, code in ((SUB, "certificate_revoked"), (LEAF, "crl_issuer")):
        with pytest.raises(AttestError) as caught:
            check_not_revoked(certificate, crl)
        assert caught.value.code == code


def test_lists_as_files() -> None:
    crl = _list()
    for encoding in (Encoding.DER, Encoding.PEM):
        assert load_crl(crl.public_bytes(encoding)) == crl
    for raw in (b"", b"junk", crl.public_bytes(Encoding.DER)[:-1], bytes(MAX_CRL_BYTES + 1)):
        with pytest.raises(MalformedEvidence) as caught:
            load_crl(raw)
        assert caught.value.code == "malformed_crl"


@pytest.mark.parametrize(("bits", "exponent"), [(8192, 65_537), (2048, (1 << 2000) + 1)], ids=["long", "exponent"])
def test_keys_that_are_costly_to_use(bits: int, exponent: int) -> None:
    key = rsa.RSAPublicNumbers(exponent, (1 << bits) - 1).public_key()
    builder = x509.CertificateBuilder(name("root"), name("sub"), key, 7, START, END)
    certificate = builder.sign(KEYS["root"], hashes.SHA256()).public_bytes(Encoding.DER)
    with pytest.raises(MalformedEvidence, match="costly"):
        load_certificate(certificate)
