"""A TPM in Python, as far as quotes go: an AK, PCRs, and quotes with any field changed and signed again.

Nothing distinguishes its AK from one in silicon but trust: a policy that pins or certifies this AK accepts it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from attest.evidence import ENDORSEMENTS, TPM2_QUOTE_TYPE, TPM_QUOTE, Part, encode_certificates
from attest.schemes.vtpm.abi import (
    BANK_NAMES,
    DIGEST_BYTES,
    ST_ATTEST_QUOTE,
    TPM_GENERATED,
    Alg,
    QuotePart,
    encode_quote_part,
)

__all__ = ["SoftwareTpm"]

AK_ATTRIBUTES = 0x00050072  # restricted | sign | userWithAuth | sensitiveDataOrigin | fixedParent | fixedTPM
_HASHES: dict[int, hashes.HashAlgorithm] = {
    Alg.SHA1: hashes.SHA1(),  # to mint what must be refused
    Alg.SHA256: hashes.SHA256(),
    Alg.SHA384: hashes.SHA384(),
    Alg.SHA512: hashes.SHA512(),
}
_CURVES = {"secp256r1": (3, 32), "secp384r1": (4, 48)}


class SoftwareTpm:
    """A Collector of scheme "vtpm" with PCRs that tests set freely: ``tpm.pcrs[bank][index] = digest``.

    ``scheme_alg`` is RSASSA or RSAPSS for an RSA key. The default key is a P-256 key that ``seed`` decides.
    """

    scheme = "vtpm"

    def __init__(
        self,
        seed: bytes = b"software tpm",
        *,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
        scheme_alg: int = Alg.RSASSA,
        hash_alg: int = Alg.SHA256,
        pcrs: Mapping[int, Sequence[int]] | None = None,
        certificates: Sequence[bytes] = (),
    ) -> None:
        secret = int.from_bytes(hashlib.sha256(b"cube-mesh/1 simulated ak\x00" + seed).digest()[:31], "big") + 1
        self.key = key or ec.derive_private_key(secret, ec.SECP256R1())
        self.scheme_alg = scheme_alg if isinstance(self.key, rsa.RSAPrivateKey) else int(Alg.ECDSA)
        self.hash_alg = hash_alg
        self.certificates = tuple(certificates)
        selected = pcrs or {Alg.SHA256: range(8)}
        self.pcrs = {bank: {i: bytes(DIGEST_BYTES[bank]) for i in indexes} for bank, indexes in selected.items()}

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        parts = {TPM_QUOTE: Part(TPM2_QUOTE_TYPE, self.quote(data_hash))}
        if self.certificates:
            parts[ENDORSEMENTS] = encode_certificates(self.certificates)
        return parts

    def public(self, attributes: int = AK_ATTRIBUTES, name_alg: int = Alg.SHA256) -> bytes:
        """The AK's TPMT_PUBLIC."""
        numbers = self.key.public_key().public_numbers()
        scheme = _u16(Alg.NULL, self.scheme_alg, self.hash_alg)
        if isinstance(numbers, rsa.RSAPublicNumbers):
            size = (numbers.n.bit_length() + 7) // 8
            kind, rest = Alg.RSA, _u16(8 * size) + bytes(4) + _sized(numbers.n.to_bytes(size, "big"))
        else:
            curve, size = _CURVES[numbers.curve.name]
            kind, rest = Alg.ECC, _u16(curve, Alg.NULL)
            rest += _sized(numbers.x.to_bytes(size, "big")) + _sized(numbers.y.to_bytes(size, "big"))
        return _u16(kind, name_alg) + attributes.to_bytes(4, "big") + _u16(0) + scheme + rest

    def quote(
        self,
        extra_data: bytes,
        *,
        magic: int = TPM_GENERATED,
        attest_type: int = ST_ATTEST_QUOTE,
        selection: Mapping[int, Sequence[int]] | None = None,
        carried: Mapping[int, Mapping[int, bytes]] | None = None,
        pcr_digest: bytes | None = None,
        attributes: int = AK_ATTRIBUTES,
        name_alg: int = Alg.SHA256,
        tail: bytes = b"",
        signer: SoftwareTpm | None = None,
    ) -> bytes:
        """Body of a quote part over the present PCRs; each keyword changes one thing before signing.

        ``selection``: what the quote says is selected. ``carried``: values beside the quote. ``signer``: another TPM.
        """
        selected = selection if selection is not None else {bank: sorted(v) for bank, v in self.pcrs.items()}
        if pcr_digest is None:
            values = b"".join(self.pcrs[bank][index] for bank, indexes in selected.items() for index in indexes)
            pcr_digest = hashlib.new(BANK_NAMES[self.hash_alg], values).digest()
        attest = magic.to_bytes(4, "big") + _u16(attest_type)
        attest += _sized(_u16(Alg.SHA256) + hashlib.sha256(self.public()).digest()) + _sized(extra_data)
        attest += (1234).to_bytes(8, "big") + bytes(8) + b"\x01" + (0x20240125).to_bytes(8, "big")
        attest += _selection(selected) + _sized(pcr_digest) + tail
        values_by_bank = self.pcrs if carried is None else carried
        return encode_quote_part(
            QuotePart(
                attest,
                (signer or self).sign(attest),
                self.public(attributes, name_alg),
                {bank: dict(values) for bank, values in values_by_bank.items()},
            )
        )

    def sign(self, message: bytes, *, hash_alg: int | None = None) -> bytes:
        """A TPMT_SIGNATURE by the AK over any bytes (a real restricted AK would refuse those that imitate TPMs)."""
        chosen = hash_alg or self.hash_alg
        algorithm = _HASHES[chosen]
        head = _u16(self.scheme_alg, chosen)
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(algorithm)))
            size = (self.key.key_size + 7) // 8
            return head + _sized(r.to_bytes(size, "big")) + _sized(s.to_bytes(size, "big"))
        pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH)
        pad = pss if self.scheme_alg == Alg.RSAPSS else padding.PKCS1v15()
        return head + _sized(self.key.sign(message, pad, algorithm))


def _u16(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "big") for value in values)


def _sized(data: bytes) -> bytes:
    return _u16(len(data)) + data


def _selection(selected: Mapping[int, Sequence[int]]) -> bytes:
    out = len(selected).to_bytes(4, "big")
    for bank, indexes in selected.items():
        out += _u16(bank) + b"\x03" + sum(1 << index for index in set(indexes)).to_bytes(3, "little")
    return out
