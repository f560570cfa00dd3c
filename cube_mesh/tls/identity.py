"""Identities: SPIFFE ids with a role, leaf certificates, and the checks of a peer's leaf (attested-TLS protocol §2).

Pure functions over bytes, names and a time. Each check is one function that returns nothing or raises Refusal; the gate
calls them in order. A valid identity says who, not what runs there: that is the evidence's part.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Literal, NamedTuple, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

from attest.binding import Role
from attest.errors import MalformedEvidence
from attest.evidence import CMW_OID, cmw_from_extension, extension_value
from cube_mesh.tls.reasons import Refusal

NodeRole: TypeAlias = Literal["agent", "proxy"]
TLS_ROLE: dict[str, Role] = {"proxy": Role.CLIENT, "agent": Role.SERVER}  # of the path's role
EKU = {Role.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH, Role.SERVER: ExtendedKeyUsageOID.SERVER_AUTH}
MAX_AGENT_LEAF_S = 86_400
CLOCK_SKEW_S = 60
_MAX_KNOWN, _MAX_CHAIN = 256, 8  # leaves of one listener or connector; certificates beside one
_CMW = x509.ObjectIdentifier(CMW_OID)
_SPIFFE = re.compile(r"spiffe://([a-z0-9][a-z0-9._-]{0,254})/(agent|proxy)/([A-Za-z0-9][A-Za-z0-9._-]{0,127})")


class SpiffeId(NamedTuple):
    """``spiffe://<trust-domain>/<role>/<name>``"""

    trust_domain: str
    role: NodeRole
    name: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/{self.role}/{self.name}"


def parse_spiffe_id(text: str) -> SpiffeId:
    """A node's id from its one spelling; ValueError for anything else (other roles, empty or further segments)."""
    match = _SPIFFE.fullmatch(text)
    if match is None:
        raise ValueError(f"not spiffe://<trust-domain>/agent|proxy/<id>: {text!r}")
    role: NodeRole = "agent" if match[2] == "agent" else "proxy"
    return SpiffeId(match[1], role, match[3])


class Leaf(NamedTuple):
    """This node's certificate and key. The key of an agent exists in memory only. ``not_after`` is Unix time."""

    cert_der: bytes
    key: ec.EllipticCurvePrivateKey
    chain_der: tuple[bytes, ...]
    spki_hash: bytes
    not_after: float
    key_id: str  # hex, for logs

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 SHA-256, DER."""
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))


class PeerLeaf(NamedTuple):
    """What a peer's certificate says. Nothing in it is checked yet; ``spiffe_id`` is well formed, once, and no more."""

    der: bytes
    certificate: x509.Certificate
    spiffe_id: SpiffeId
    spki_hash: bytes
    leaf_hash: bytes
    not_before: float
    not_after: float
    usages: frozenset[x509.ObjectIdentifier]


def spki_hash(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 of the DER SubjectPublicKeyInfo."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).digest()


def load_leaf(cert_der: bytes, key: ec.EllipticCurvePrivateKey, chain_der: tuple[bytes, ...] = ()) -> Leaf:
    """Pair a certificate with its key; ValueError when they do not belong together or the key is not P-256."""
    certificate = x509.load_der_x509_certificate(cert_der)
    public = key.public_key()
    if not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the leaf key is not P-256")
    if certificate.public_key() != public:
        raise ValueError("the certificate is for another key")
    digest = spki_hash(public)
    return Leaf(cert_der, key, chain_der, digest, certificate.not_valid_after_utc.timestamp(), digest[:8].hex())


def self_signed_leaf(
    node_id: SpiffeId,
    key: ec.EllipticCurvePrivateKey,
    passport: bytes,
    *,
    serial: int,
    not_before: float,
    not_after: float,
) -> Leaf:
    """An agent's leaf: its id as the only name, its role's EKU, its passport as id-pe-cmw (non-critical)."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id.name[:64])])
    usage = EKU[TLS_ROLE[node_id.role]]
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), serial)
        .not_valid_before(datetime.fromtimestamp(int(not_before), UTC))
        .not_valid_after(datetime.fromtimestamp(int(not_after), UTC))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(node_id))]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(LEAF_KEY_USAGE, critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.UnrecognizedExtension(_CMW, extension_value(passport)), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    return load_leaf(certificate.public_bytes(serialization.Encoding.DER), key)


LEAF_KEY_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


# --- a peer's leaf ---

_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def parse_peer_leaf(der: bytes) -> PeerLeaf:
    """Read a peer's certificate; Refusal ``leaf_malformed`` or ``leaf_key``. See PeerLeaf for what is not checked."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions  # refuses duplicates
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        if len(names) != 1 or len(uris) != 1:
            raise ValueError("not exactly one name")
        if certificate.serial_number <= 0:
            raise ValueError("serial number not positive")
        spiffe_id = parse_spiffe_id(uris[0])
        public = certificate.public_key()
    except _UNREADABLE as error:
        raise Refusal("leaf_malformed", str(error)) from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise Refusal("leaf_key", type(public).__name__)
    return PeerLeaf(
        der=der,
        certificate=certificate,
        spiffe_id=spiffe_id,
        spki_hash=spki_hash(public),
        leaf_hash=hashlib.sha256(der).digest(),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        usages=frozenset(usages),
    )


def check_role(peer: PeerLeaf, role: Role) -> None:
    """The role in the SPIFFE path and the extended key usage are those of the peer's end of the connection."""
    if TLS_ROLE[peer.spiffe_id.role] is not role:
        raise Refusal("wrong_role", f"{peer.spiffe_id} as TLS {role.name.lower()}")
    if EKU[role] not in peer.usages:
        raise Refusal("wrong_role", f"{peer.spiffe_id} without the extended key usage of a TLS {role.name.lower()}")


def check_trust_domain(peer: PeerLeaf, trust_domain: str) -> None:
    if peer.spiffe_id.trust_domain != trust_domain:
        raise Refusal("trust_domain", str(peer.spiffe_id))


def check_expected(peer: PeerLeaf, allowed: frozenset[str]) -> None:
    """The peer is one that configuration names: the agent that is expected, or a proxy of the allow-list."""
    if str(peer.spiffe_id) not in allowed:
        raise Refusal("not_allowed", str(peer.spiffe_id))


def check_validity(peer: PeerLeaf, now: float) -> None:
    """Valid now (60 s of skew before, none after), and an agent's leaf for at most 24 h."""
    if not peer.not_before - CLOCK_SKEW_S <= now < peer.not_after:
        raise Refusal("leaf_expired", f"valid {peer.not_before:.0f} to {peer.not_after:.0f}, now {now:.0f}")
    if peer.spiffe_id.role == "agent" and peer.not_after - peer.not_before > MAX_AGENT_LEAF_S + CLOCK_SKEW_S:
        raise Refusal("leaf_expired", "an agent's leaf that is valid for more than 24 h")


def check_chain(peer: PeerLeaf, chain: tuple[bytes, ...], roots: tuple[bytes, ...], now: float) -> None:
    """The peer's leaf ends in one of the mesh CAs (RFC 5280 path validation by OpenSSL, strict). No root: refused.

    Not checked: revocation (the mesh CA issues no CRL; the allow-list is the list), extended key usage (check_role).
    """
    store = crypto.X509Store()
    store.set_flags(crypto.X509StoreFlags.X509_STRICT)
    store.set_time(datetime.fromtimestamp(now, UTC))
    for root in roots:
        store.add_cert(_openssl(root))
    context = crypto.X509StoreContext(store, _openssl(peer.der), [_openssl(der) for der in chain if der != peer.der])
    try:
        context.verify_certificate()
    except crypto.X509StoreContextError as error:
        raise Refusal("chain", str(error)) from error


class KnownLeaves:
    """Leaves that have passed ``gate.check_handshake`` at one listener or connector, by their bytes: read once, and
    their chains verified once.

    What is refused takes no room. What depends on the time, the connection or the plan is checked each time. A chain
    holds while none of its certificates, nor of the roots, has ended, and not before the time at which it was verified:
    a clock that was set back verifies again.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, tuple[bytes, ...]], tuple[PeerLeaf, float, float]] = {}

    def get(self, der: bytes, chain: tuple[bytes, ...], now: float) -> PeerLeaf | None:
        """The leaf, when these very bytes have been accepted with this very chain, and that still holds."""
        found = self._known.get((der, chain))
        return found[0] if found is not None and found[1] <= now < found[2] else None

    def remember(self, peer: PeerLeaf, chain: tuple[bytes, ...], roots: tuple[bytes, ...], now: float) -> None:
        """``peer`` has passed, at ``now``."""
        if len(chain) > _MAX_CHAIN:
            return
        try:
            ends = [x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp() for der in (*chain, *roots)]
        except _UNREADABLE:  # a certificate beside the chain that OpenSSL had no need of
            return
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[peer.der, chain] = peer, now, min((peer.not_after, *ends))


def passport_of(peer: PeerLeaf) -> bytes:
    """The CMW of the leaf's one id-pe-cmw extension, unverified. Refusal ``evidence_missing`` when there is none."""
    found = [ext for ext in peer.certificate.extensions if ext.oid == _CMW]
    if len(found) != 1 or not isinstance(found[0].value, x509.UnrecognizedExtension):
        raise Refusal("evidence_missing", f"{len(found)} evidence extensions")
    try:
        return cmw_from_extension(found[0].value.value)
    except MalformedEvidence as error:
        raise Refusal(error.code, str(error)) from error


def _openssl(der: bytes) -> crypto.X509:
    return crypto.load_certificate(crypto.FILETYPE_ASN1, der)


def validity_window(now: float, lifetime_s: float) -> tuple[float, float]:
    """notBefore and notAfter of a leaf made now, with the skew that check_validity grants."""
    return now - CLOCK_SKEW_S, now + lifetime_s
