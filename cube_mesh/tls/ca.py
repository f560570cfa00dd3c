"""The mesh CA as files: what ``cube-mesh ca init`` and ``cube-mesh ca issue`` do.

One P-256 root per trust domain, constrained by name to SPIFFE ids of that domain, signing leaves directly. Private keys
are created with mode 0600 and nothing is ever overwritten. The CA key belongs on an operator's machine, not on a node.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cube_mesh.errors import ConfigError
from cube_mesh.tls.identity import CLOCK_SKEW_S, EKU, LEAF_KEY_USAGE, TLS_ROLE, NodeRole, SpiffeId, parse_spiffe_id

CA_CERT, CA_KEY = "ca.crt", "ca.key"
MAX_DAYS: dict[NodeRole, int] = {"proxy": 397, "agent": 1}  # peers refuse an agent's leaf of more than 24 h


class IssuedFiles(NamedTuple):
    cert_file: Path
    key_file: Path
    spiffe_id: str = ""


def init_ca(directory: Path | str, trust_domain: str, *, days: int = 3650, now: datetime | None = None) -> IssuedFiles:
    """Make a mesh CA in ``directory``: ``ca.crt`` (0644) and ``ca.key`` (0600); ConfigError when one is there."""
    _spiffe_id(trust_domain, "proxy", "x")  # refuses a domain that ids could not carry
    start = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain} mesh CA"[:64])])
    builder = _builder(name, name, key.public_key(), start, days)
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_CA_KEY_USAGE, critical=True)
        .add_extension(_name_constraints(trust_domain), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = IssuedFiles(Path(directory) / CA_CERT, Path(directory) / CA_KEY)
    _write_pair(files, key, certificate)
    return files


def issue_leaf(
    ca_dir: Path | str,
    role: NodeRole,
    node_id: str,
    out_dir: Path | str,
    days: int = 90,
    *,
    now: datetime | None = None,
) -> IssuedFiles:
    """Issue ``spiffe://<trust-domain>/<role>/<node_id>`` with a new key as ``<role>-<node_id>.crt`` and ``.key``.

    The trust domain is the CA's. ``days`` is 1 to 397 (agent: 1), the CA's own end the latest. Raises ConfigError.
    """
    longest = MAX_DAYS[role]
    if not 1 <= days <= longest:
        raise ConfigError(f"the leaf of a role {role} node is valid for 1 to {longest} days, not {days}", key="days")
    ca_certificate, ca_key = _load_ca(Path(ca_dir))
    spiffe_id = _spiffe_id(_trust_domain_of(ca_certificate), role, node_id)
    key = ec.generate_private_key(ec.SECP256R1())
    start = now or datetime.now(UTC)
    builder = _builder(
        x509.Name([]), ca_certificate.subject, key.public_key(), start, days, ca_certificate.not_valid_after_utc
    )
    certificate = (
        builder.add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))]), critical=True
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(LEAF_KEY_USAGE, critical=True)
        .add_extension(x509.ExtendedKeyUsage([EKU[TLS_ROLE[role]]]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    stem = Path(out_dir) / f"{role}-{node_id}"
    files = IssuedFiles(stem.with_name(stem.name + ".crt"), stem.with_name(stem.name + ".key"), str(spiffe_id))
    _write_pair(files, key, certificate)
    return files


def load_certificates(path: Path | str) -> tuple[bytes, ...]:
    """Every certificate of a PEM file, as DER; ConfigError when it is missing, empty or unreadable."""
    try:
        certificates = x509.load_pem_x509_certificates(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"no usable certificate: {error}", where=str(path)) from error
    return tuple(cert.public_bytes(serialization.Encoding.DER) for cert in certificates)


def load_key(path: Path | str) -> ec.EllipticCurvePrivateKey:
    """An unencrypted P-256 key in PEM that only its owner may read; ConfigError otherwise."""
    try:
        if Path(path).stat().st_mode & 0o077:
            raise ConfigError("the private key may be read by others: chmod 600", where=str(path))
        key = serialization.load_pem_private_key(Path(path).read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"no usable private key: {error}", where=str(path)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError("the private key is not P-256", where=str(path))
    return key


_CA_KEY_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def _name_constraints(trust_domain: str) -> x509.NameConstraints:
    """Only URIs of the trust domain; DNS names and IP addresses are excluded whole (RFC 5280 §4.2.1.10)."""
    everything: list[x509.GeneralName] = [
        x509.DNSName(""),
        x509.IPAddress(ip_network("0.0.0.0/0")),
        x509.IPAddress(ip_network("::/0")),
    ]
    return x509.NameConstraints([x509.UniformResourceIdentifier(trust_domain)], everything)


def _trust_domain_of(certificate: x509.Certificate) -> str:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        raise ConfigError("the CA certificate names no trust domain", key="ca") from None
    names = [
        name.value for name in constraints.permitted_subtrees or () if isinstance(name, x509.UniformResourceIdentifier)
    ]
    if len(names) != 1:
        raise ConfigError("the CA certificate does not name exactly one trust domain", key="ca")
    return names[0]


def _spiffe_id(trust_domain: str, role: NodeRole, node_id: str) -> SpiffeId:
    try:
        return parse_spiffe_id(f"spiffe://{trust_domain}/{role}/{node_id}")
    except ValueError as error:
        raise ConfigError(str(error), key="node_id") from None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    start: datetime,
    days: int,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    end = start + timedelta(days=days)
    return x509.CertificateBuilder(
        issuer,
        subject,
        public,
        x509.random_serial_number(),
        start - timedelta(seconds=CLOCK_SKEW_S),
        min(end, latest) if latest else end,
    )


def _load_ca(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificates = load_certificates(directory / CA_CERT)
    return x509.load_der_x509_certificate(certificates[0]), load_key(directory / CA_KEY)


def _write_pair(files: IssuedFiles, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    for path in (files.cert_file, files.key_file):
        if path.exists():
            raise ConfigError("is there already; nothing is overwritten", where=str(path))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        files.key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_new(files.key_file, private, 0o600)
        _write_new(files.cert_file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    except OSError as error:
        raise ConfigError(f"cannot write: {error}", where=str(error.filename)) from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(data)
