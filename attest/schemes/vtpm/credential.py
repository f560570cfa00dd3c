"""Credential activation: proof that an AK lives in the TPM whose EK a certificate names. TPM 2.0 Library part 1 §24.

The relying party makes a challenge for (EK, name of the AK) with :func:`make_credential`; only the TPM that holds both
gives back its secret (TPM2_ActivateCredential). Checked by comparing secrets, constant time, where it was made. Nothing
here is random except the padding of RSA-OAEP, which the library draws itself: ``secret``, ``seed`` and the ephemeral
key are arguments, and must come from a good source, fresh for each challenge.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from attest.errors import MalformedEvidence, UnsupportedEvidence, VerificationFailed

__all__ = ["Challenge", "activate_credential", "make_credential", "parse_challenge", "tools_file"]

SEED_BYTES = 32
MAX_SECRET_BYTES = 32
_LABEL = b"IDENTITY"
_TOOLS_HEADER = b"\xba\xdc\xc0\xde\x00\x00\x00\x01"  # what tpm2-tools put in front
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), _LABEL + b"\x00")

EkKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class Challenge(msgspec.Struct, frozen=True):
    """``id_object``: contents of a TPM2B_ID_OBJECT. ``encrypted_seed``: contents of a TPM2B_ENCRYPTED_SECRET."""

    id_object: bytes
    encrypted_seed: bytes


def make_credential(
    ek: EkKey,
    ak_name: bytes,
    secret: bytes,
    *,
    seed: bytes | None = None,
    ephemeral: ec.EllipticCurvePrivateKey | None = None,
) -> Challenge:
    """A challenge that only the TPM with this EK and an object of this name can answer with ``secret``.

    ``ek``: RSA 2048 or more (then ``seed`` is 32 random bytes) or P-256 (then ``ephemeral`` is a new key), with the EK
    profile's nameAlg SHA-256 and AES-128. ``ak_name``: ``000b`` and 32 bytes. ``secret``: 1 to 32 bytes. Raises
    ValueError for arguments that do not fit, UnsupportedEvidence (``ek_algorithm``) for another EK.
    """
    if not 1 <= len(secret) <= MAX_SECRET_BYTES or len(ak_name) != 34 or ak_name[:2] != b"\x00\x0b":
        raise ValueError("a secret of 1 to 32 bytes and a SHA-256 name are required")
    seed, encrypted = _seal(ek, seed, ephemeral)
    storage_key = _kdfa(seed, b"STORAGE", ak_name, 128)
    identity = _cfb(storage_key, _sized(secret))
    return Challenge(_integrity(seed, identity, ak_name) + identity, encrypted)


def activate_credential(
    ek: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, ak_name: bytes, challenge: Challenge
) -> bytes:
    """What a TPM does: the secret, when EK and name are those of the challenge; else VerificationFailed.

    For tests and software TPMs; a real TPM does this inside. Raises MalformedEvidence for broken structures.
    """
    seed = _unseal(ek, challenge.encrypted_seed)
    tag, identity = challenge.id_object[:34], challenge.id_object[34:]
    if not hmac.compare_digest(tag, _integrity(seed, identity, ak_name)):
        raise VerificationFailed("the challenge is for another object", code="credential")
    plain = _cfb(_kdfa(seed, b"STORAGE", ak_name, 128), identity, decrypt=True)
    size = int.from_bytes(plain[:2], "big")
    if len(plain) != size + 2:
        raise MalformedEvidence("TPM2B_DIGEST of a wrong length")
    return plain[2:]


def _seal(ek: EkKey, seed: bytes | None, ephemeral: ec.EllipticCurvePrivateKey | None) -> tuple[bytes, bytes]:
    if isinstance(ek, rsa.RSAPublicKey):
        if not 2048 <= ek.key_size <= 4096:
            raise UnsupportedEvidence(f"RSA EK of {ek.key_size} bits", code="ek_algorithm")
        if seed is None or len(seed) != SEED_BYTES:
            raise ValueError("an RSA EK needs a seed of 32 random bytes")
        return seed, ek.encrypt(seed, _OAEP)
    if ek.curve.name != "secp256r1":
        raise UnsupportedEvidence(f"EK on {ek.curve.name}", code="ek_algorithm")
    if ephemeral is None:
        raise ValueError("an EC EK needs an ephemeral key")
    point = ephemeral.public_key().public_numbers()
    shared = ephemeral.exchange(ec.ECDH(), ek)
    x, y = point.x.to_bytes(32, "big"), point.y.to_bytes(32, "big")
    return _kdfe(shared, x, ek.public_numbers().x.to_bytes(32, "big")), _sized(x) + _sized(y)


def _unseal(ek: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, encrypted: bytes) -> bytes:
    try:
        if isinstance(ek, rsa.RSAPrivateKey):
            return ek.decrypt(encrypted, _OAEP)
        if len(encrypted) != 68 or encrypted[:2] != encrypted[34:36] or encrypted[:2] != b"\x00\x20":
            raise MalformedEvidence("TPMS_ECC_POINT of a wrong length")
        x, y = encrypted[2:34], encrypted[36:]
        point = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        shared = ek.exchange(ec.ECDH(), point.public_key())
    except ValueError:
        raise VerificationFailed("the challenge is for another EK", code="credential") from None
    return _kdfe(shared, x, ek.public_key().public_numbers().x.to_bytes(32, "big"))


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """Part 1 §11.4.10.2, one block: counter, label with its zero, context, length."""
    message = (1).to_bytes(4, "big") + label + b"\x00" + context + bits.to_bytes(4, "big")
    return hmac.new(key, message, hashlib.sha256).digest()[: bits // 8]


def _kdfe(shared: bytes, party_u: bytes, party_v: bytes) -> bytes:
    """Part 1 §11.4.10.3, one block of SHA-256."""
    return hashlib.sha256((1).to_bytes(4, "big") + shared + _LABEL + b"\x00" + party_u + party_v).digest()


def _integrity(seed: bytes, identity: bytes, ak_name: bytes) -> bytes:
    """The HMAC as a TPM2B_DIGEST."""
    return _sized(hmac.new(_kdfa(seed, b"INTEGRITY", b"", 256), identity + ak_name, hashlib.sha256).digest())


def _cfb(key: bytes, data: bytes, *, decrypt: bool = False) -> bytes:
    """AES-CFB128 from a zero IV, by blocks: ``cryptography`` moves its own CFB from one release to the next."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    out, register = b"", bytes(16)
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        result = bytes(a ^ b for a, b in zip(piece, block.update(register), strict=False))
        out += result
        register = piece if decrypt else result
    return out


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def tools_file(challenge: Challenge) -> bytes:
    """The challenge as tpm2-tools read it (``tpm2_activatecredential -i``)."""
    return _TOOLS_HEADER + _sized(challenge.id_object) + _sized(challenge.encrypted_seed)


def parse_challenge(raw: bytes) -> Challenge:
    """The inverse of :func:`tools_file`; MalformedEvidence for anything else."""
    if not raw.startswith(_TOOLS_HEADER):
        raise MalformedEvidence("credential file: unknown header")
    at, fields = len(_TOOLS_HEADER), []
    for _ in range(2):
        size = int.from_bytes(raw[at : at + 2], "big")
        fields.append(raw[at + 2 : at + 2 + size])
        at += 2 + size
    if at != len(raw):
        raise MalformedEvidence("credential file: truncated or trailing bytes")
    return Challenge(*fields)
