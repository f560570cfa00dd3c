"""Chains of AK certificates: a small CA of our own, one thing wrong at a time, and a real one of a cloud."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attest.chain import load_certificate, verify_chain
from attest.errors import AttestError, MalformedEvidence
from attest.schemes.vtpm.verify import verify_ak_certificate, verify_quote
from attest.testkit.pki import name
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
