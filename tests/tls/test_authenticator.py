"""RFC 9261 against an independent construction, and one change at a time: each byte of an authenticator matters."""

import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attest.binding import Role
from cube_mesh.tls.authenticator import (
    AuthenticatorError,
    build_authenticator,
    build_request,
    exported_keys,
    parse_request,
    validate_authenticator,
)

NONCE = bytes(range(32))
KEY = ec.derive_private_key(7, ec.SECP256R1())
OTHER_KEY = ec.derive_private_key(8, ec.SECP256R1())
SUITE = "TLS_AES_256_GCM_SHA384"


def _certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    name, start = x509.Name([]), datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


LEAF = _certificate(KEY)


def exporter(label: bytes, context: bytes, size: int) -> bytes:
    """Stands for one TLS connection: as with TLS, another label, context or connection gives another value."""
    return hashlib.shake_256(b"connection 1" + label + b"|" + context).digest(size)


def other_exporter(label: bytes, context: bytes, size: int) -> bytes:
    return hashlib.shake_256(b"connection 2" + label + b"|" + context).digest(size)


def sign(message: bytes) -> bytes:
    return KEY.sign(message, ec.ECDSA(hashes.SHA256()))


SERVER = exported_keys(exporter, SUITE, Role.SERVER)
REQUEST = build_request(Role.CLIENT, NONCE)
GOOD = build_authenticator(SERVER, REQUEST, LEAF, b"evidence", sign)


def test_the_request_is_this() -> None:
    assert (
        bytes.fromhex(
            "11 00002f"  # ClientCertificateRequest
            "20" + NONCE.hex() + "000c"  # context, extensions
            "000d 0004 0002 0403"  # signature_algorithms: ecdsa_secp256r1_sha256
            "ff00 0000"  # evidence is wanted
        )
        == REQUEST
    )
    assert build_request(Role.SERVER, NONCE) == b"\x0d" + REQUEST[1:]
    assert parse_request(Role.CLIENT, REQUEST) == NONCE


def test_an_independent_reading_of_rfc_9261_agrees() -> None:
    context = exporter(b"EXPORTER-server authenticator handshake context", b"", 48)
    finished_key = exporter(b"EXPORTER-server authenticator finished key", b"", 48)
    size = 4 + int.from_bytes(GOOD[1:4], "big")
    certificate, rest = GOOD[:size], GOOD[size:]
    assert certificate[0] == 11
    assert certificate[4:37] == b"\x20" + NONCE
    assert certificate[40:43] == len(LEAF).to_bytes(3, "big")
    assert certificate[43 : 43 + len(LEAF)] == LEAF
    assert certificate[43 + len(LEAF) :] == bytes.fromhex("000c ff00 0008") + b"evidence"
    size = 4 + int.from_bytes(rest[1:4], "big")
    verify, finished = rest[:size], rest[size:]
    signed = b" " * 64 + b"Exported Authenticator\x00" + hashlib.sha384(context + REQUEST + certificate).digest()
    assert verify[0] == 15 and verify[4:6] == b"\x04\x03"
    KEY.public_key().verify(verify[8:], signed, ec.ECDSA(hashes.SHA256()))
    mac = hmac.new(finished_key, hashlib.sha384(context + REQUEST + certificate + verify).digest(), "sha384").digest()
    assert finished == b"\x14\x00\x00\x30" + mac


@pytest.mark.parametrize("suite", ["TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256", SUITE])
@pytest.mark.parametrize("sender", list(Role))
def test_round_trip(suite: str, sender: Role) -> None:
    keys = exported_keys(exporter, suite, sender)
    other_end = Role.CLIENT if sender is Role.SERVER else Role.SERVER
    request = build_request(other_end, NONCE)
    raw = build_authenticator(keys, request, LEAF, b"e" * 65_531, sign)
    assert validate_authenticator(keys, request, LEAF, raw) == (LEAF, b"e" * 65_531)


def _refused(
    code: str, raw: bytes = GOOD, *, keys: object = SERVER, request: bytes = REQUEST, leaf: bytes = LEAF
) -> None:
    with pytest.raises(AuthenticatorError) as caught:
        validate_authenticator(keys, request, leaf, raw)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_every_changed_byte_is_noticed() -> None:
    for position in range(len(GOOD)):
        changed = GOOD[:position] + bytes((GOOD[position] ^ 1,)) + GOOD[position + 1 :]
        with pytest.raises(AuthenticatorError):
            validate_authenticator(SERVER, REQUEST, LEAF, changed)


def test_every_truncation_and_any_trailing_byte_is_malformed() -> None:
    for size in range(len(GOOD)):
        _refused("authenticator_malformed", GOOD[:size])
    _refused("authenticator_malformed", GOOD + b"\x00")


def test_wrong_only_in_the_connection() -> None:
    """The signature covers the connection as well; re-signed, the Finished still does not fit."""
    elsewhere = exported_keys(other_exporter, SUITE, Role.SERVER)
    _refused("authenticator_signature", keys=elsewhere)
    half = elsewhere._replace(handshake_context=SERVER.handshake_context)
    _refused("authenticator_finished", keys=half)


def test_wrong_only_in_the_direction() -> None:
    _refused("authenticator_signature", keys=exported_keys(exporter, SUITE, Role.CLIENT))


def test_wrong_only_in_the_request() -> None:
    _refused("authenticator_context", request=build_request(Role.CLIENT, bytes(32)))
    _refused("authenticator_signature", request=build_request(Role.SERVER, NONCE))


def test_wrong_only_in_the_key() -> None:
    other = _certificate(OTHER_KEY)
    raw = build_authenticator(SERVER, REQUEST, other, b"evidence", sign)
    _refused("authenticator_leaf", raw)
    _refused("authenticator_signature", raw, leaf=other)


def test_a_bare_finished_is_refused() -> None:
    size = 4 + 48
    _refused("authenticator_malformed", GOOD[-size:])


def _rebuilt(old: bytes, new: bytes) -> bytes:
    """GOOD with a changed Certificate, signed and finished again: only the shape is wrong."""
    size = 4 + int.from_bytes(GOOD[1:4], "big")
    body = GOOD[4:size].replace(old, new)
    inner = body[36:]
    body = body[:33] + len(inner).to_bytes(3, "big") + inner
    message = b"\x0b" + len(body).to_bytes(3, "big") + body
    context, key = SERVER.handshake_context, SERVER.finished_key
    signature = sign(b" " * 64 + b"Exported Authenticator\x00" + hashlib.sha384(context + REQUEST + message).digest())
    verify_body = b"\x04\x03" + len(signature).to_bytes(2, "big") + signature
    message += b"\x0f" + len(verify_body).to_bytes(3, "big") + verify_body
    return (
        message + b"\x14\x00\x00\x30" + hmac.digest(key, hashlib.sha384(context + REQUEST + message).digest(), "sha384")
    )


EXTENSION = bytes.fromhex("000c ff00 0008") + b"evidence"


def test_rebuilding_unchanged_is_accepted() -> None:
    assert validate_authenticator(SERVER, REQUEST, LEAF, _rebuilt(b"", b"")).evidence == b"evidence"


@pytest.mark.parametrize(
    "extensions",
    [
        b"\x00\x00",  # none
        bytes.fromhex("0004 ff00 0000"),  # empty evidence
        bytes.fromhex("000c fe00 0008") + b"evidence",  # another type
        bytes.fromhex("0018") + EXTENSION[2:] * 2,  # twice
        bytes.fromhex("000d ff00 0008") + b"evidence\x00",  # trailing byte
        EXTENSION + len(LEAF).to_bytes(3, "big") + LEAF + b"\x00\x00",  # a second certificate
    ],
)
def test_wrong_only_in_the_shape(extensions: bytes) -> None:
    _refused("authenticator_malformed", _rebuilt(EXTENSION, extensions))


def test_evidence_that_does_not_fit_is_refused_by_its_sender() -> None:
    with pytest.raises(AuthenticatorError) as caught:
        build_authenticator(SERVER, REQUEST, LEAF, bytes(65_532), sign)
    assert caught.value.code == "evidence_too_large"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        REQUEST[:-1],
        REQUEST + b"\x00",
        b"\x0d" + REQUEST[1:],  # the other side's type
        REQUEST.replace(b"\x04\x03", b"\x08\x04"),  # another algorithm
        REQUEST.replace(b"\xff\x00\x00\x00", b"\xff\x01\x00\x00"),
        bytes.fromhex("11 00000f 00 000c 000d 0004 0002 0403 ff00 0000"),  # empty context
    ],
)
def test_requests_outside_the_profile(raw: bytes) -> None:
    with pytest.raises(AuthenticatorError) as caught:
        parse_request(Role.CLIENT, raw)
    assert caught.value.code == "authenticator_malformed"


def test_an_unknown_suite_has_no_hash() -> None:
    with pytest.raises(AuthenticatorError):
        exported_keys(exporter, "TLS_SM4_GCM_SM3", Role.CLIENT)
