"""Leaves: who a certificate may be, one wrong thing at a time; and the mesh CA that signs them."""

import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from attest.binding import Role
from attest.evidence import CMW_OID, extension_value
from cube_mesh.errors import ConfigError
from cube_mesh.tls import ca
from cube_mesh.tls.identity import (
    PeerLeaf,
    check_chain,
    check_expected,
    check_role,
    check_trust_domain,
    check_validity,
    load_leaf,
    parse_peer_leaf,
    parse_spiffe_id,
    passport_of,
    self_signed_leaf,
)
from cube_mesh.tls.reasons import REASONS, Refusal

NOW = datetime(2026, 6, 1, tzinfo=UTC)
KEY = ec.derive_private_key(7, ec.SECP256R1())
AGENT = "spiffe://cube/agent/a1"
SERVER_AUTH, CLIENT_AUTH = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def certificate(
    names: list[x509.GeneralName] | None = None,
    *,
    usages: list[x509.ObjectIdentifier] | None = None,
    key: Any = KEY,
    lifetime: timedelta = timedelta(hours=1),
    extensions: tuple[bytes, ...] = (b"passport",),
) -> bytes:
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + lifetime)
    san = [uri(AGENT)] if names is None else names
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=True)
    if usages != []:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages or [SERVER_AUTH]), critical=False)
    for value in extensions:
        cmw = x509.UnrecognizedExtension(x509.ObjectIdentifier(CMW_OID), extension_value(value))
        builder = builder.add_extension(cmw, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def refused(reason: str, check: Callable[[], object]) -> None:
    assert reason in REASONS
    with pytest.raises(Refusal) as caught:
        check()
    assert caught.value.reason == reason


def peer(*args: Any, **kwargs: Any) -> PeerLeaf:
    return parse_peer_leaf(certificate(*args, **kwargs))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://cube/agent/",
        "spiffe://cube/agent",
        "spiffe://cube/agent/a/b",
        "spiffe://cube/model/a1",
        "spiffe://CUBE/agent/a1",
        "spiffe:///agent/a1",
        "spiffe://cube/agent/a1\n",
        "spiffe://cube/agent/..",
        "spiffe://cube:80/agent/a1",
        "spiffe://user@cube/agent/a1",
        "spiffe://cube/agent/a%31",
        "SPIFFE://cube/agent/a1",
        "https://cube/agent/a1",
        "spiffe://cube/agent/" + "a" * 129,
    ],
)
def test_ids_have_one_spelling(text: str) -> None:
    with pytest.raises(ValueError, match="not spiffe"):
        parse_spiffe_id(text)


def test_an_id_round_trips() -> None:
    assert str(parse_spiffe_id(AGENT)) == AGENT
    assert parse_spiffe_id("spiffe://a-b.c_d/proxy/P.1_x").name == "P.1_x"


def test_the_agents_own_leaf_passes_every_check_of_an_agent() -> None:
    spiffe_id = parse_spiffe_id(AGENT)
    leaf = self_signed_leaf(spiffe_id, KEY, b"cmw", serial=5, not_before=1000, not_after=4000.7)
    seen = parse_peer_leaf(leaf.cert_der)
    check_role(seen, Role.SERVER)
    check_trust_domain(seen, "cube")
    check_validity(seen, 2000)
    check_expected(seen, frozenset({AGENT}))
    assert passport_of(seen) == b"cmw"
    assert (seen.not_after, leaf.not_after) == (4000, 4000)
    assert seen.spki_hash == leaf.spki_hash


@pytest.mark.parametrize(
    "names",
    [
        [],
        [uri("spiffe://cube/agent/")],
        [uri("https://cube/agent/a1")],
        [uri(AGENT), uri(AGENT)],
        [uri(AGENT), uri("spiffe://cube/proxy/p1")],
        [uri(AGENT), x509.DNSName("a1")],
        [x509.DNSName("cube")],
        [x509.IPAddress(ip_address("127.0.0.1"))],
    ],
)
def test_exactly_one_name(names: list[x509.GeneralName]) -> None:
    refused("leaf_malformed", lambda: peer(names))


def test_no_extended_key_usage() -> None:
    refused("leaf_malformed", lambda: peer(usages=[]))


@pytest.mark.parametrize("key", [ec.derive_private_key(7, ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()])
def test_other_keys(key: Any) -> None:
    refused("leaf_key", lambda: peer(key=key))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_no_changed_byte_of_a_leaf_raises_anything_but_a_refusal() -> None:
    good = certificate()
    for position in range(len(good)):
        for flip in (0x01, 0x80, 0xFF):
            changed = good[:position] + bytes((good[position] ^ flip,)) + good[position + 1 :]
            try:
                passport_of(parse_peer_leaf(changed))
            except Refusal:
                continue


@pytest.mark.parametrize(
    ("name", "usages", "role", "accepted"),
    [
        (AGENT, [SERVER_AUTH], Role.SERVER, True),
        (AGENT, [SERVER_AUTH, CLIENT_AUTH], Role.SERVER, True),
        (AGENT, [CLIENT_AUTH], Role.SERVER, False),
        (AGENT, [SERVER_AUTH, CLIENT_AUTH], Role.CLIENT, False),
        ("spiffe://cube/proxy/p1", [CLIENT_AUTH], Role.CLIENT, True),
        ("spiffe://cube/proxy/p1", [SERVER_AUTH], Role.CLIENT, False),
        ("spiffe://cube/proxy/p1", [CLIENT_AUTH, SERVER_AUTH], Role.SERVER, False),
        ("spiffe://cube/proxy/p1", [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], Role.CLIENT, False),
    ],
)
def test_roles(name: str, usages: list[x509.ObjectIdentifier], role: Role, accepted: bool) -> None:
    seen = peer([uri(name)], usages=usages)
    if accepted:
        check_role(seen, role)
    else:
        refused("wrong_role", lambda: check_role(seen, role))


def test_expected_and_trust_domain() -> None:
    refused("not_allowed", lambda: check_expected(peer(), frozenset({"spiffe://cube/agent/a10"})))
    refused("not_allowed", lambda: check_expected(peer(), frozenset()))
    refused("trust_domain", lambda: check_trust_domain(peer(), "cube2"))


@pytest.mark.parametrize(("offset", "accepted"), [(-61, False), (-60, True), (3599, True), (3600, False)])
def test_validity(offset: int, accepted: bool) -> None:
    if accepted:
        check_validity(peer(), NOW.timestamp() + offset)
    else:
        refused("leaf_expired", lambda: check_validity(peer(), NOW.timestamp() + offset))


def test_an_agents_leaf_may_not_live_long() -> None:
    refused("leaf_expired", lambda: check_validity(peer(lifetime=timedelta(days=1, seconds=61)), NOW.timestamp() + 1))
    proxy = peer([uri("spiffe://cube/proxy/p1")], usages=[CLIENT_AUTH], lifetime=timedelta(days=90))
    check_validity(proxy, NOW.timestamp() + 1)


def test_the_passport_is_there_once() -> None:
    assert passport_of(peer()) == b"passport"
    refused("evidence_missing", lambda: passport_of(peer(extensions=())))


def test_two_passports_are_refused() -> None:
    refused("leaf_malformed", lambda: parse_peer_leaf(_with_duplicate_extension()))


def _with_duplicate_extension() -> bytes:
    """Two evidence extensions: built with two OIDs of one length that are then made equal (it need not be signed)."""
    twin = "1.3.6.1.5.5.7.1.36"
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), 1, NOW, NOW + timedelta(hours=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([uri(AGENT)]), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([SERVER_AUTH]), critical=False)
    for oid in (CMW_OID, twin):
        cmw = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), extension_value(b"passport"))
        builder = builder.add_extension(cmw, critical=False)
    der = builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    parse_peer_leaf(der)  # fine until they are equal
    return der.replace(bytes.fromhex("2b06010505070124"), bytes.fromhex("2b06010505070123"))


# --- the mesh CA ---


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    ca.init_ca(tmp_path / "ca", "cube", now=NOW)
    return tmp_path / "ca"


def _issued(mesh: Path, out: Path, role: Any = "proxy", node_id: str = "p1", days: int = 90) -> PeerLeaf:
    files = ca.issue_leaf(mesh, role, node_id, out, days, now=NOW)
    load_leaf(ca.load_certificates(files.cert_file)[0], ca.load_key(files.key_file))
    return parse_peer_leaf(ca.load_certificates(files.cert_file)[0])


def test_what_the_ca_issues_ends_in_it(mesh: Path, tmp_path: Path) -> None:
    roots = ca.load_certificates(mesh / "ca.crt")
    seen = _issued(mesh, tmp_path)
    assert str(seen.spiffe_id) == "spiffe://cube/proxy/p1"
    check_role(seen, Role.CLIENT)
    check_chain(seen, (), roots, NOW.timestamp() + 1)
    check_role(_issued(mesh, tmp_path, "agent", "a1", days=1), Role.SERVER)


def test_old_and_new_root_side_by_side(mesh: Path, tmp_path: Path) -> None:
    ca.init_ca(tmp_path / "new", "cube", now=NOW)
    roots = ca.load_certificates(mesh / "ca.crt") + ca.load_certificates(tmp_path / "new" / "ca.crt")
    for directory in (mesh, tmp_path / "new"):
        check_chain(_issued(directory, directory), (), roots, NOW.timestamp() + 1)


def test_chains_that_do_not_hold(mesh: Path, tmp_path: Path) -> None:
    roots = ca.load_certificates(mesh / "ca.crt")
    ca.init_ca(tmp_path / "other", "cube", now=NOW)
    foreign = _issued(tmp_path / "other", tmp_path)
    at = NOW.timestamp() + 1
    refused("chain", lambda: check_chain(foreign, (), roots, at))
    refused("chain", lambda: check_chain(foreign, ca.load_certificates(tmp_path / "other" / "ca.crt"), roots, at))
    refused("chain", lambda: check_chain(peer(), (), roots, at))  # self-signed
    good = _issued(mesh, mesh)
    refused("chain", lambda: check_chain(good, (), (), at))
    refused("chain", lambda: check_chain(good, (), roots, at + 91 * 86_400))


def test_the_ca_cannot_certify_other_domains_or_other_names(mesh: Path) -> None:
    """Signed with the CA's own key, outside its name constraints."""
    root = x509.load_der_x509_certificate(ca.load_certificates(mesh / "ca.crt")[0])
    key = ca.load_key(mesh / "ca.key")
    roots = ca.load_certificates(mesh / "ca.crt")

    def signed(*names: x509.GeneralName) -> PeerLeaf:
        builder = x509.CertificateBuilder(
            root.subject, x509.Name([]), KEY.public_key(), 9, NOW, NOW + timedelta(days=1)
        )
        builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        ski = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        builder = builder.add_extension(ski, critical=False)
        der = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
        return peer()._replace(der=der)

    at = NOW.timestamp() + 1
    check_chain(signed(uri(AGENT)), (), roots, at)
    refused("chain", lambda: check_chain(signed(uri("spiffe://evil/agent/a1")), (), roots, at))
    refused("chain", lambda: check_chain(signed(uri(AGENT), x509.DNSName("example.org")), (), roots, at))
    refused("chain", lambda: check_chain(signed(x509.IPAddress(ip_address("10.0.0.1"))), (), roots, at))


def test_modes_and_nothing_overwritten(mesh: Path, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        files = ca.issue_leaf(mesh, "proxy", "p9", tmp_path / "out", 1, now=NOW)
    finally:
        os.umask(old)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in (files.cert_file, files.key_file, mesh / "ca.key")
    }
    assert modes == {"proxy-p9.crt": 0o644, "proxy-p9.key": 0o600, "ca.key": 0o600}
    before = files.key_file.read_bytes()
    with pytest.raises(ConfigError, match="overwritten"):
        ca.issue_leaf(mesh, "proxy", "p9", tmp_path / "out", 1, now=NOW)
    with pytest.raises(ConfigError, match="overwritten"):
        ca.init_ca(mesh, "cube")
    assert files.key_file.read_bytes() == before


@pytest.mark.parametrize(
    ("role", "node_id", "days"),
    [("proxy", "a/b", 1), ("proxy", "", 1), ("proxy", "p1", 0), ("proxy", "p1", 398), ("agent", "a1", 2)],
)
def test_what_the_ca_does_not_issue(mesh: Path, tmp_path: Path, role: Any, node_id: str, days: int) -> None:
    with pytest.raises(ConfigError):
        ca.issue_leaf(mesh, role, node_id, tmp_path, days)


def test_keys_that_others_can_read_are_refused(mesh: Path) -> None:
    (mesh / "ca.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        ca.issue_leaf(mesh, "proxy", "p1", mesh, 1)


@pytest.mark.parametrize("domain", ["", "Cube", "a/b", "cube:1"])
def test_trust_domains_that_ids_cannot_carry(tmp_path: Path, domain: str) -> None:
    with pytest.raises(ConfigError):
        ca.init_ca(tmp_path / "x", domain)


def test_a_leaf_and_its_key_belong_together() -> None:
    with pytest.raises(ValueError, match="another key"):
        load_leaf(certificate(), ec.derive_private_key(8, ec.SECP256R1()))
