"""TPM quotes: minted, with one thing wrong at a time, and the code that says which."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attest.codec import cbor_decode, cbor_encode
from attest.errors import AttestError, MalformedEvidence
from attest.schemes.vtpm.abi import Alg, QuotePart, decode_quote_part, encode_quote_part
from attest.schemes.vtpm.verify import ak_name, verify_quote
from attest.testkit.tpm import AK_ATTRIBUTES, SoftwareTpm

HASH = bytes(range(32))
TPM = SoftwareTpm(pcrs={Alg.SHA256: (0, 1, 7)})
RSA_KEY = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize(
    "tpm",
    [
        TPM,
        SoftwareTpm(key=ec.derive_private_key(7, ec.SECP384R1()), hash_alg=Alg.SHA384),
        SoftwareTpm(key=RSA_KEY, scheme_alg=Alg.RSASSA),
        SoftwareTpm(key=RSA_KEY, scheme_alg=Alg.RSAPSS, hash_alg=Alg.SHA512),
        SoftwareTpm(pcrs={Alg.SHA256: (0,), Alg.SHA384: (3, 4)}),
    ],
    ids=["ecdsa", "ecdsa-p384", "rsassa", "rsapss", "two banks"],
)
def test_accepted(tpm: SoftwareTpm) -> None:
    verified = verify_quote(tpm.quote(HASH), HASH)
    assert verified.ak_name == ak_name(tpm.public())
    values = {bank: set(digests.values()) for bank, digests in verified.pcrs.items()}
    assert all(digest == "00" * (len(digest) // 2) for digests in values.values() for digest in digests)


def _part(**changes: Any) -> bytes:
    part = decode_quote_part(TPM.quote(HASH))
    return encode_quote_part(QuotePart(**{name: getattr(part, name) for name in part.__struct_fields__} | changes))


def _flip(data: bytes, at: int, mask: int = 1) -> bytes:
    return data[:at] + bytes((data[at] ^ mask,)) + data[at + 1 :]


def _signed(attest: bytes) -> bytes:
    return _part(attest=attest, signature=TPM.sign(attest))


GOOD = decode_quote_part(TPM.quote(HASH))
OTHER = SoftwareTpm(b"another")
VALUES = {0: bytes(32), 1: bytes(32), 7: bytes(32)}

REFUSED: dict[str, tuple[bytes, str]] = {
    "trailing byte, signed": (TPM.quote(HASH, tail=b"\x00"), "malformed_evidence"),
    "not for signing": (TPM.quote(HASH, attributes=AK_ATTRIBUTES & ~(1 << 18)), "ak_attributes"),
    "not fixed to the TPM": (TPM.quote(HASH, attributes=AK_ATTRIBUTES & ~(1 << 1)), "ak_attributes"),
    "not fixed to its parent": (TPM.quote(HASH, attributes=AK_ATTRIBUTES & ~(1 << 4)), "ak_attributes"),
    "decrypts": (TPM.quote(HASH, attributes=AK_ATTRIBUTES | 1 << 17), "ak_attributes"),
    "name by SHA-1": (TPM.quote(HASH, name_alg=Alg.SHA1), "ak_algorithm"),
    "AK of another": (_part(ak_public=OTHER.public()), "signature"),
    "signature says SHA-384": (_part(signature=TPM.sign(GOOD.attest, hash_alg=Alg.SHA384)), "signature_algorithm"),
    "RSAPSS where the AK says RSASSA": (
        _part(
            signature=SoftwareTpm(key=RSA_KEY, scheme_alg=Alg.RSAPSS).sign(GOOD.attest),
            ak_public=SoftwareTpm(key=RSA_KEY).public(),
        ),
        "signature_algorithm",
    ),
    "small RSA key": (SoftwareTpm(key=rsa.generate_private_key(65537, 1024)).quote(HASH), "ak_algorithm"),
    "PCR values swapped": (
        SoftwareTpm(pcrs={Alg.SHA256: (0, 1)}).quote(
            HASH, pcr_digest=bytes(32), carried={Alg.SHA256: {0: bytes(32), 1: b"\x01" * 32}}
        ),
        "pcr_digest",
    ),
    "PCR digest of another": (TPM.quote(HASH, pcr_digest=bytes(32)), "pcr_digest"),
    "PCR digest empty": (TPM.quote(HASH, pcr_digest=b""), "pcr_digest"),
    "PCR carried but not selected": (
        TPM.quote(HASH, selection={Alg.SHA256: (0, 1)}, carried={Alg.SHA256: VALUES}),
        "pcr_selection",
    ),
    "PCR selected but not carried": (TPM.quote(HASH, carried={Alg.SHA256: {0: bytes(32)}}), "pcr_selection"),
    "bank of the values differs": (TPM.quote(HASH, carried={Alg.SHA384: {0: bytes(48)}}), "pcr_selection"),
    "no bank selected": (TPM.quote(HASH, selection={}, carried={}), "pcr_selection"),
    "SHA-1 bank beside SHA-256": (SoftwareTpm(pcrs={Alg.SHA1: (0,), Alg.SHA256: (0,)}).quote(HASH), "pcr_bank"),
    "unknown bank": (_signed(GOOD.attest.replace(b"\x00\x01\x00\x0b\x03", b"\x00\x01\x00\x99\x03")), "pcr_bank"),
    "AK of another type": (_part(ak_public=b"\x00\x08" + GOOD.ak_public[2:]), "malformed_evidence"),
    "AK off its curve": (_part(ak_public=_flip(GOOD.ak_public, len(GOOD.ak_public) - 1)), "malformed_evidence"),
    "AK on an unknown curve": (_part(ak_public=_flip(GOOD.ak_public, 17, 0x10)), "ak_algorithm"),
    "AK with a cipher": (
        _part(ak_public=GOOD.ak_public[:10] + b"\x00\x06\x00\x80\x00\x43" + GOOD.ak_public[12:]),
        "ak_attributes",
    ),
    "AK that derives keys": (
        _part(ak_public=GOOD.ak_public.replace(b"\x00\x03\x00\x10", b"\x00\x03\x00\x20", 1)),
        "malformed_evidence",
    ),
    "part oversize": (bytes(1 << 17), "oversize"),
    "AK with trailing byte": (_part(ak_public=GOOD.ak_public + b"\x00"), "malformed_evidence"),
    "signature with trailing byte": (_part(signature=GOOD.signature + b"\x00"), "malformed_evidence"),
    "HMAC signature": (_part(signature=b"\x00\x05" + GOOD.signature[2:]), "malformed_evidence"),
    "PCR value of a wrong size": (_part(pcrs={Alg.SHA256: VALUES | {0: bytes(31)}}), "malformed_evidence"),
    "PCR index above 31": (_part(pcrs={Alg.SHA256: VALUES | {32: bytes(32)}}), "malformed_evidence"),
    "PCR values of an unknown bank": (_part(pcrs={0x99: {0: bytes(32)}}), "malformed_evidence"),
    "three members": (cbor_encode(cbor_decode(TPM.quote(HASH))[:3]), "malformed_evidence"),  # type: ignore[index]
    "a map": (cbor_encode({0: b""}), "malformed_evidence"),
    "empty": (b"", "malformed_evidence"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_thing_wrong(name: str) -> None:
    body, code = REFUSED[name]
    with pytest.raises(AttestError) as caught:
        verify_quote(body, HASH)
    assert caught.value.code == code, caught.value


def _replaced(data: bytes, old: str, new: str) -> bytes:
    assert data.count(bytes.fromhex(old)) == 1
    return data.replace(bytes.fromhex(old), bytes.fromhex(new))


# Signed by the AK itself, so that only the structure is wrong: count of banks, bitmap sizes, the "safe" flag.
ONE_BANK = "00000001000b03830000"
STRUCTURES = {
    "no bitmap": _replaced(GOOD.attest, ONE_BANK, "00000001000b00"),
    "bitmap of five bytes": _replaced(GOOD.attest, ONE_BANK, "00000001000b058300000000"),
    "nine banks": _replaced(GOOD.attest, ONE_BANK, "00000009" + "".join(f"{bank:04x}03000000" for bank in range(9))),
    "safe is 2": GOOD.attest.replace(bytes(8) + b"\x01", bytes(8) + b"\x02", 1),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_structures_that_no_tpm_writes(case: str) -> None:
    attest = STRUCTURES[case]
    assert attest != GOOD.attest
    with pytest.raises(MalformedEvidence):
        verify_quote(_signed(attest), HASH)


RSA_TPM = SoftwareTpm(key=RSA_KEY)
RSA_PART = decode_quote_part(RSA_TPM.quote(HASH))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("080000000000", "080000010003"),
        ("080000000000", "080000000003"),
        ("080000000000", "100000000000"),
        ("0014000b", "0018000b"),
        ("0014000b", "0010"),
    ],
    ids=["exponent 65539", "exponent 3", "length that is not the modulus's", "scheme of an EC key", "no scheme"],
)
def test_rsa_parameters(old: str, new: str) -> None:
    public = _replaced(RSA_PART.ak_public[:22], old, new) + RSA_PART.ak_public[22:]
    body = encode_quote_part(QuotePart(RSA_PART.attest, RSA_PART.signature, public, RSA_PART.pcrs))
    with pytest.raises(AttestError) as caught:
        verify_quote(body, HASH)
    assert caught.value.code == "ak_algorithm"


def test_every_bit_of_the_quote_is_signed() -> None:
    """A flip anywhere in TPMS_ATTEST is refused: by structure, or by the signature, never later."""
    for at in range(len(GOOD.attest)):
        with pytest.raises(AttestError) as caught:
            verify_quote(_part(attest=_flip(GOOD.attest, at)), HASH)
        assert caught.value.code in ("signature", "malformed_evidence", "tpm_magic", "tpm_type")


@pytest.mark.parametrize("field", ["attest", "signature", "ak_public"])
def test_every_truncation_is_malformed(field: str) -> None:
    whole = getattr(GOOD, field)
    for length in range(len(whole)):
        with pytest.raises(MalformedEvidence):
            verify_quote(_part(**{field: whole[:length]}), HASH)


def test_the_same_bank_twice() -> None:
    selection = GOOD.attest.index(b"\x00\x00\x00\x01\x00\x0b\x03")
    bank = GOOD.attest[selection + 4 : selection + 10]
    twice = GOOD.attest[:selection] + b"\x00\x00\x00\x02" + bank + bank + GOOD.attest[selection + 10 :]
    with pytest.raises(MalformedEvidence, match="twice"):
        verify_quote(_signed(twice), HASH)
