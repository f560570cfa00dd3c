"""A fake attestation service: MAA and Confidential Space tokens with any header or claim changed, signed again.

Its keys are fixed files, public on purpose.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

__all__ = [
    "MAA_ISSUER",
    "certificate",
    "fixed_key",
    "jwk",
    "jwks",
    "maa_claims",
    "sign",
    "space_claims",
    "x5c",
]

MAA_ISSUER = "https://simulated.weu.attest.azure.net"
SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


@cache
def fixed_key(name: str = "service") -> rsa.RSAPrivateKey:
    """One of the testkit's fixed RSA keys: "service", "service-other", "vtpm-ak" (2048 bits), "weak" (1024)."""
    key = load_pem_private_key(files("attest.testkit").joinpath(f"keys/{name}.key.pem").read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def sign(
    claims: Mapping[str, Any] | bytes,
    key: SigningKey | None = None,
    *,
    alg: str = "RS256",
    kid: str | None = "k1",
    signature: bytes | None = None,
    **header: Any,
) -> bytes:
    """A compact JWS. ``claims`` as bytes go in as they are; ``signature`` replaces the real one."""
    head = {"alg": alg, "typ": "JWT"} | ({"kid": kid} if kid is not None else {}) | header
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    signed = _encode(json.dumps(head).encode()) + b"." + _encode(payload)
    return signed + b"." + _encode(_signature(signed, key or fixed_key(), alg) if signature is None else signature)


def _signature(signed: bytes, key: SigningKey, alg: str) -> bytes:
    algorithm = _HASHES.get(alg[2:], hashes.SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(algorithm)))
        size = (key.key_size + 7) // 8
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if alg.startswith("PS"):
        return key.sign(signed, padding.PSS(padding.MGF1(algorithm), algorithm.digest_size), algorithm)
    return key.sign(signed, padding.PKCS1v15(), algorithm)


def jwk(key: SigningKey | None = None, kid: str = "k1", **members: Any) -> dict[str, Any]:
    """The public part of a key."""
    numbers = (key or fixed_key()).public_key().public_numbers()
    if isinstance(numbers, rsa.RSAPublicNumbers):
        parts = {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}
    else:
        size = (numbers.curve.key_size + 7) // 8
        curve = {256: "P-256", 384: "P-384", 521: "P-521"}[numbers.curve.key_size]
        parts = {"kty": "EC", "crv": curve, "x": _number(numbers.x, size), "y": _number(numbers.y, size)}
    return parts | {"kid": kid, "use": "sig"} | members


def _number(value: int, size: int | None = None) -> str:
    return _encode(value.to_bytes(size or (value.bit_length() + 7) // 8, "big")).decode()


def jwks(*keys: Mapping[str, Any]) -> bytes:
    """A key set, by default of the service's key."""
    return json.dumps({"keys": list(keys) or [jwk()]}).encode()


def certificate(
    subject: str,
    key: SigningKey,
    issuer: str | None = None,
    signer: SigningKey | None = None,
    *,
    ca: bool = False,
    start: float = 1_700_000_000,
    end: float = 1_900_000_000,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> x509.Certificate:
    """A certificate of the fake service's PKI; self-signed without ``issuer``. Times are Unix seconds."""
    name, by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (subject, issuer or subject))
    usage = x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)
    builder = x509.CertificateBuilder(by, name, key.public_key(), 7)
    builder = builder.not_valid_before(dt.datetime.fromtimestamp(start, dt.UTC))
    builder = builder.not_valid_after(dt.datetime.fromtimestamp(end, dt.UTC))
    builder = builder.add_extension(x509.BasicConstraints(ca, None), True).add_extension(usage, True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer or key, hashes.SHA256())


def x5c(*certificates: x509.Certificate, pem: bool = False) -> list[str]:
    """Certificates as a header carries them: base64 DER, or PEM text as Google's real tokens do."""
    if pem:
        return [c.public_bytes(Encoding.PEM).decode() for c in certificates]
    return [base64.b64encode(c.public_bytes(Encoding.DER)).decode() for c in certificates]


def _changed(claims: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``a/b`` changes a member of a member; None takes a member out."""
    for path, value in changes.items():
        *parents, last = path.split("/")
        target = claims
        for name in parents:
            target = target[name]
        if value is None:
            target.pop(last, None)
        else:
            target[last] = value
    return claims


def maa_claims(kind: str, now: float, nonce: bytes, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Claims of a good "azurevm", "sevsnpvm" or "tdxvm" token (sections 4.4 of the facts that the tests go by)."""
    tee = _tdx_claims() if kind == "tdxvm" else _snp_claims()
    claims: dict[str, Any] = {"iss": MAA_ISSUER, "nbf": int(now) - 60, "iat": int(now) - 60, "exp": int(now) + 28_740}
    claims |= {"x-ms-policy-hash": "wm9mHlvTU82e8UqoOy1Yj1FBRSNkfe99-69IYDq9eWs", "x-ms-ver": "1.0"}
    if kind == "azurevm":
        off = ("bootdebug", "flightsigning", "hypervisordebug", "kerneldebug", "testsigning")
        claims |= {f"x-ms-azurevm-{name}-enabled": False for name in off}
        claims |= {"secureboot": True, "x-ms-azurevm-vmid": "VM-1", "x-ms-isolation-tee": tee}
        claims["x-ms-runtime"] = {"client-payload": {"nonce": base64.b64encode(nonce).decode()}}
    else:
        claims |= tee
        claims["x-ms-runtime"] = {"nonce": _encode(nonce).decode(), "vm-configuration": {"vmUniqueId": "VM-1"}}
    return _changed(claims | {"x-ms-attestation-type": kind}, changes or {})


def _snp_claims() -> dict[str, Any]:
    levels = {"bootloader": 4, "tee": 0, "snpfw": 24, "microcode": 219}
    return {f"x-ms-sevsnpvm-{name}-svn": level for name, level in levels.items()} | {
        "x-ms-attestation-type": "sevsnpvm", "x-ms-compliance-status": "azure-compliant-cvm",
        "x-ms-sevsnpvm-is-debuggable": False, "x-ms-sevsnpvm-migration-allowed": False, "x-ms-sevsnpvm-vmpl": 0,
        "x-ms-sevsnpvm-guestsvn": 2, "x-ms-sevsnpvm-launchmeasurement": "ab" * 48,
        "x-ms-sevsnpvm-hostdata": "00" * 32, "x-ms-sevsnpvm-idkeydigest": "cd" * 48,
    }  # fmt: skip


def _tdx_claims() -> dict[str, Any]:
    return {
        "x-ms-attestation-type": "tdxvm", "x-ms-compliance-status": "azure-compliant-cvm",
        "tdx_td_attributes_debug": False, "attester_tcb_status": "UpToDate", "tdx_mrtd": "ab" * 48,
    }  # fmt: skip


def space_claims(now: float, nonce: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Claims of a good Confidential Space token, of a production image on SEV-SNP."""
    claims: dict[str, Any] = {
        "iss": "https://confidentialcomputing.googleapis.com", "aud": "https://relying.example",
        "nbf": int(now) - 60, "iat": int(now) - 60, "exp": int(now) + 3540, "eat_nonce": nonce, "secboot": True,
        "hwmodel": "GCP_AMD_SEV_SNP", "swname": "CONFIDENTIAL_SPACE", "swversion": ["251001"],
        "dbgstat": "disabled-since-boot", "google_service_accounts": ["w@p.iam.gserviceaccount.com"],
        "submods": {
            "confidential_space": {"support_attributes": ["LATEST", "STABLE", "USABLE"]},
            "container": {
                "image_digest": "sha256:" + "ab" * 32, "restart_policy": "Never", "args": ["/app"],
                "env_override": {"A": "1"},
            },
            "gce": {"zone": "us-central1-a", "project_id": "p", "instance_id": "42"},
        },
    }  # fmt: skip
    return _changed(claims, changes or {})
