"""Verification of a TPM quote: cryptography only, steps numbered, all inputs handed in.

:func:`verify_quote` takes the evidence part, whose AK is a TPMT_PUBLIC; :func:`verify_quote_by_key` takes the pieces,
for platforms that name the AK as a bare key (Azure's runtime claims, a certificate). Not checked here: whether the PCR
values or the AK are the wanted ones (``appraise``), and the AK's qualified name, whose parents a relying party cannot
know. A restricted AK signs only what its TPM made or hashed, so that signature, magic and type together say: these
PCRs, in that TPM, for this nonce.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attest.chain import verify_chain
from attest.errors import BindingMismatch, MalformedEvidence, UnsupportedEvidence, VerificationFailed
from attest.schemes.vtpm.abi import (
    BANK_NAMES,
    Alg,
    Attribute,
    Public,
    Quote,
    Signature,
    decode_quote_part,
    parse_public,
    parse_quote,
    parse_signature,
)

__all__ = [
    "AkKey",
    "VerifiedQuote",
    "ak_certificate",
    "ak_name",
    "load_ak",
    "verify_ak_certificate",
    "verify_quote",
    "verify_quote_by_key",
]

AkKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_HASHES: dict[int, hashes.HashAlgorithm] = {
    Alg.SHA256: hashes.SHA256(),
    Alg.SHA384: hashes.SHA384(),
    Alg.SHA512: hashes.SHA512(),
}
_WEAK_HASHES: dict[int, hashes.HashAlgorithm] = {Alg.SHA1: hashes.SHA1()}  # refused unless a policy says otherwise
_CURVES: dict[int, ec.EllipticCurve] = {3: ec.SECP256R1(), 4: ec.SECP384R1(), 5: ec.SECP521R1()}  # §6.4
_AK_ATTRIBUTES = {
    "restricted": Attribute.RESTRICTED,
    "sign": Attribute.SIGN,
    "fixedTPM": Attribute.FIXED_TPM,
    "fixedParent": Attribute.FIXED_PARENT,
}


class VerifiedQuote(msgspec.Struct, frozen=True):
    """A quote whose AK signature, nonce and PCR values hold together. ``pcrs`` is ``{bank name: {index: hex}}``.

    ``ak_public`` (TPMT_PUBLIC) and ``ak_name`` are empty when the AK was known as a bare ``key``. ``weak``: SHA-1 was
    met and the caller had allowed it.
    """

    quote: Quote
    ak_public: bytes
    ak_name: str
    pcrs: dict[str, dict[int, str]]
    key: AkKey
    weak: bool = False


def verify_quote(body: bytes, data_hash: bytes, *, unsafe_allow_sha1: bool = False) -> VerifiedQuote:
    """Verify the body of a ``tpm2-quote+cbor`` part against the hash of the claims that it must speak for.

    ``unsafe_allow_sha1`` accepts SHA-1 banks and signatures, for machines that have nothing else. Raises
    MalformedEvidence, UnsupportedEvidence, VerificationFailed or BindingMismatch, each with its own code.
    """
    part = decode_quote_part(body)
    # 1. The AK is one that its TPM will not let sign anything else, or let go; signature and quote are well formed.
    quote, signature = parse_quote(part.attest), parse_signature(part.signature)
    public, key = load_ak(part.ak_public)
    if (public.scheme, public.scheme_hash) != (signature.alg, signature.hash):
        raise VerificationFailed("the signature is not of the AK's own scheme", code="signature_algorithm")
    weak = _check(quote, part.attest, signature, key, part.pcrs, data_hash, unsafe_allow_sha1)
    return VerifiedQuote(quote, part.ak_public, ak_name(part.ak_public), _values(part.pcrs), key, weak)


def verify_quote_by_key(
    attest: bytes,
    signature: Signature,
    key: AkKey,
    pcrs: Mapping[int, Mapping[int, bytes]],
    extra_data: bytes,
    *,
    unsafe_allow_sha1: bool = False,
) -> VerifiedQuote:
    """The same for an AK known as a bare public key, which something else must vouch for.

    That the key is a restricted one of a TPM cannot be seen here: whoever names the key answers for it. ``pcrs`` is
    ``{bank: {index: digest}}``, all that the quote selects.
    """
    quote = parse_quote(attest)
    _check_strength(key)
    weak = _check(quote, attest, signature, key, pcrs, extra_data, unsafe_allow_sha1)
    return VerifiedQuote(quote, b"", "", _values(pcrs), key, weak)


def _check(
    quote: Quote,
    attest: bytes,
    signature: Signature,
    key: AkKey,
    pcrs: Mapping[int, Mapping[int, bytes]],
    extra_data: bytes,
    allow_sha1: bool,
) -> bool:
    algorithms = _HASHES | _WEAK_HASHES if allow_sha1 else _HASHES
    # 2. The AK's signature over the quote.
    _check_signature(key, signature, attest, algorithms)
    # 3. The quote was made for these claims.
    if not hmac.compare_digest(quote.extra_data, extra_data):
        raise BindingMismatch("the quote's extraData is not the hash of the claims", code="nonce_mismatch")
    # 4. The PCR values carried are those quoted, in banks that can be trusted.
    _check_pcrs(quote, pcrs, signature.hash, algorithms)
    return signature.hash in _WEAK_HASHES or any(bank in _WEAK_HASHES for bank in pcrs)


def _values(pcrs: Mapping[int, Mapping[int, bytes]]) -> dict[str, dict[int, str]]:
    return {_bank_name(bank): {i: v.hex() for i, v in digests.items()} for bank, digests in pcrs.items()}


@lru_cache(maxsize=256)
def ak_name(ak_public: bytes) -> str:
    """The TPM name of a key with nameAlg SHA-256, hex: ``000b`` and SHA-256 of its TPMT_PUBLIC (part 1 §16)."""
    return "000b" + hashlib.sha256(ak_public).hexdigest()


def verify_ak_certificate(
    verified: VerifiedQuote,
    certificates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    now: float,
) -> float:
    """Find the certificate of the quote's AK among ``certificates`` and follow it to ``roots``.

    Gives the earliest end of validity, Unix seconds. Proves that the roots' owner vouches for this AK; *which* machine
    it is in is not checked. Raises VerificationFailed (``ak_not_certified``, ``untrusted_chain``) or Stale.
    """
    return verify_chain(ak_certificate(verified.key, certificates), certificates, roots, now)


def ak_certificate(key: AkKey, certificates: Sequence[x509.Certificate]) -> x509.Certificate:
    """The first certificate of ``key``, unverified; VerificationFailed (``ak_not_certified``) when there is none."""
    for certificate in certificates:
        if certificate.public_key() == key:
            return certificate
    raise VerificationFailed("no certificate for the AK was handed in", code="ak_not_certified")


@lru_cache(maxsize=256)
def load_ak(ak_public: bytes) -> tuple[Public, AkKey]:
    """A TPMT_PUBLIC as fields and key, when it is a restricted signing key that cannot leave its TPM. Unverified: who
    vouches for it is another matter. Remembered, as a fact about these bytes.
    """
    public = parse_public(ak_public)
    missing = [name for name, bit in _AK_ATTRIBUTES.items() if not public.attributes & bit]
    if public.attributes & Attribute.DECRYPT:
        missing.append("not decrypt")
    if missing:
        raise VerificationFailed(f"the AK lacks: {', '.join(missing)}", code="ak_attributes")
    if public.name_alg != Alg.SHA256:
        raise UnsupportedEvidence(f"AK name algorithm {public.name_alg:#06x}", code="ak_algorithm")
    return public, _load_key(public)


def _check_strength(key: AkKey) -> None:
    if isinstance(key, rsa.RSAPublicKey):
        good = 2048 <= key.key_size <= 4096 and key.public_numbers().e == 65537
    else:
        good = key.curve.name in {curve.name for curve in _CURVES.values()}
    if not good:
        raise UnsupportedEvidence(f"AK of {key.key_size} bits", code="ak_algorithm")


def _check_signature(
    key: AkKey, signature: Signature, signed: bytes, algorithms: Mapping[int, hashes.HashAlgorithm]
) -> None:
    algorithm = algorithms.get(signature.hash)
    if algorithm is None:
        raise UnsupportedEvidence(f"signature hash {signature.hash:#06x}", code="signature_algorithm")
    is_ecdsa = isinstance(key, ec.EllipticCurvePublicKey)
    if is_ecdsa != (signature.alg == Alg.ECDSA):
        raise VerificationFailed("the signature is not of the AK's kind", code="signature_algorithm")
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            r, s = (int.from_bytes(value, "big") for value in signature.values)
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(algorithm))
        else:
            key.verify(signature.values[0], signed, _rsa_padding(signature.alg, algorithm), algorithm)
    except InvalidSignature:
        raise VerificationFailed("the AK's signature does not verify", code="signature") from None


def _rsa_padding(alg: int, algorithm: hashes.HashAlgorithm) -> padding.AsymmetricPadding:
    if alg == Alg.RSAPSS:
        # TPMs differ in the salt length that they use (part 1 B.7); the length does not matter for security.
        return padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
    return padding.PKCS1v15()


def _load_key(public: Public) -> AkKey:
    schemes = (Alg.ECDSA,) if public.type == Alg.ECC else (Alg.RSASSA, Alg.RSAPSS)
    if public.scheme not in schemes:
        raise UnsupportedEvidence(f"AK scheme {public.scheme:#06x}", code="ak_algorithm")
    if public.type == Alg.ECC:
        return _load_ec(public)
    modulus = int.from_bytes(public.unique[0], "big")
    if public.exponent != 65537 or modulus.bit_length() != public.key_bits or not 2048 <= public.key_bits <= 4096:
        raise UnsupportedEvidence(f"RSA AK of {modulus.bit_length()} bits", code="ak_algorithm")
    return rsa.RSAPublicNumbers(public.exponent, modulus).public_key()


def _load_ec(public: Public) -> ec.EllipticCurvePublicKey:
    curve = _CURVES.get(public.curve)
    if curve is None:
        raise UnsupportedEvidence(f"AK curve {public.curve:#06x}", code="ak_algorithm")
    x, y = (int.from_bytes(value, "big") for value in public.unique)
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except ValueError:
        raise MalformedEvidence("the AK is not a point of its curve") from None


def _check_pcrs(
    quote: Quote, pcrs: Mapping[int, Mapping[int, bytes]], hash_alg: int, algorithms: Mapping[int, hashes.HashAlgorithm]
) -> None:
    selected = {selection.bank: set(selection.indexes) for selection in quote.selections if selection.indexes}
    if not selected:
        raise VerificationFailed("the quote selects no PCR", code="pcr_selection")
    for selection in quote.selections:
        if selection.bank not in algorithms:
            raise UnsupportedEvidence(f"PCR bank {_bank_name(selection.bank)} is not accepted", code="pcr_bank")
    if selected != {bank: set(values) for bank, values in pcrs.items()}:
        raise VerificationFailed("the PCR values carried are not those selected", code="pcr_selection")
    quoted = b"".join([pcrs[s.bank][index] for s in quote.selections for index in s.indexes])
    digest = hashlib.new(BANK_NAMES[hash_alg], quoted).digest()
    if not hmac.compare_digest(digest, quote.pcr_digest):
        raise VerificationFailed("the PCR values carried do not give the quoted digest", code="pcr_digest")


def _bank_name(bank: int) -> str:
    return BANK_NAMES.get(bank, f"{bank:#06x}")
