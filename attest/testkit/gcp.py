"""Launch endorsements and vTPM certificates of a fake Google, any field changed and signed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from attest.schemes.gcp.certificate import INSTANCE_OID
from attest.testkit.tokens import SigningKey, certificate, fixed_key

__all__ = ["endorsement", "field", "golden", "instance_certificate", "root", "root_pem", "signer_certificate"]

ROOT_NAME = "cube-mesh SIMULATION - not Google"


def root(key: SigningKey | None = None) -> x509.Certificate:
    """The fake Google's root."""
    return certificate(ROOT_NAME, key or fixed_key("service-other"), ca=True)


def root_pem() -> str:
    """The same as policies have it."""
    return root().public_bytes(Encoding.PEM).decode()


def signer_certificate(key: SigningKey | None = None, **changes: Any) -> x509.Certificate:
    """The certificate of the key that signs endorsements or tokens."""
    arguments: dict[str, Any] = {"issuer": ROOT_NAME, "signer": fixed_key("service-other")} | changes
    return certificate("signer", key or fixed_key(), **arguments)


def field(number: int, value: int | bytes) -> bytes:
    """One protobuf field."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def golden(
    snp: Mapping[int, bytes] | Sequence[tuple[int, bytes]] = ((2, b"\x02" * 48), (4, b"\x04" * 48)),
    *,
    signer: x509.Certificate | None = None,
    tdx: Sequence[tuple[int, int, bytes]] = ((0, 1, b"\x0d" * 48),),
    digest: bytes = b"\x0f" * 48,
    bundle: bytes | None = None,
    svn: int = 3,
    commit: bytes = b"",
    extra: bytes = b"",
) -> bytes:
    """A serialized VMGoldenMeasurement. ``snp``: vCPUs and measurement; ``tdx``: RAM, early acceptance, MRTD; ``svn``:
    of the firmware on SEV-SNP, on TDX it is one less.
    """
    pairs = list(snp.items()) if isinstance(snp, Mapping) else list(snp)
    levels = field(1, svn) + b"".join(field(2, field(1, n) + field(2, m)) for n, m in pairs) + field(5, 0x70000)
    sizes = field(1, svn - 1) + b"".join(field(2, field(1, r) + field(2, e) + field(3, m)) for r, e, m in tdx)
    out = field(1, field(1, 1_760_000_000)) + field(2, 12345) + (field(3, commit) if commit else b"")
    out += field(4, (signer or signer_certificate()).public_bytes(Encoding.DER)) + field(5, digest)
    out += field(6, root().public_bytes(Encoding.PEM) if bundle is None else bundle)
    return out + field(7, levels) + (field(8, sizes) if tdx else b"") + extra


def endorsement(content: bytes | None = None, key: rsa.RSAPrivateKey | None = None) -> bytes:
    """A VMLaunchEndorsement over ``content``."""
    content = golden() if content is None else content
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    return field(1, content) + field(2, (key or fixed_key()).sign(content, pss, hashes.SHA256()))


def instance_certificate(key: SigningKey, value: bytes | None = None, **changes: Any) -> x509.Certificate:
    """An AK or EK certificate of a GCE instance. ``value``: the extension's DER; empty leaves it out."""
    if value is None:
        value = _der(0x30, _der(0x0C, b"zone-a") + _der(2, b"\x07") + _der(0x0C, b"project") + _der(2, b"\x2a")
                     + _der(0x0C, b"vm-1") + _der(0xA0, b""))  # fmt: skip
    extensions = [(x509.UnrecognizedExtension(INSTANCE_OID, value), False)] if value else []
    arguments: dict[str, Any] = {"issuer": ROOT_NAME, "signer": fixed_key("service-other"), "extensions": extensions}
    return certificate("instance", key, **arguments | changes)


def _der(tag: int, content: bytes) -> bytes:
    return bytes((tag, len(content))) + content
