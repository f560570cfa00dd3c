"""What the evidence fuzzer runs: each parser, what it may raise, its seeds, and the forms by which they are mutated.

Seeds are minted by the testkit, and read from the real evidence of CUBE_MESH_VECTORS where that is there. What lies
behind a signature is run with a key that says yes to everything: whoever is attested writes part of what is signed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attest import binding, evidence, items
from attest.attester import evidence_for
from attest.binding import Claims, Phase, Role
from attest.chain import load_certificate, load_certificates, load_crl
from attest.codec import cbor_decode, cbor_encode
from attest.collateral import parse_collateral, window
from attest.corim import import_corim
from attest.cose import Tag, cbor_read, load_trust_key, verify_sign1
from attest.der import der_items, der_unsigned
from attest.errors import AttestError, MalformedEvidence, PolicyFormatError, VerificationFailed
from attest.eventlog import (
    EventLog,
    exited_boot_services,
    parse_event_log,
    prove,
    replay,
    secure_boot,
    separators,
    unmatched_data,
)
from attest.forms import parse_ak, parse_pcrs, sorted_endorsements
from attest.go_check import import_sev_guest, import_tdx_guest
from attest.jws import Jwk, parse_jwks, parse_token, payload_for_display
from attest.needs import needed_items
from attest.policy import first_report_policy, parse_policy
from attest.reference import read_toml
from attest.schemes.azure import appraise as azure_rules
from attest.schemes.azure import maa_appraise
from attest.schemes.azure.abi import parse_claims, parse_hcl
from attest.schemes.azure.maa import verify_maa
from attest.schemes.azure.verify import VerifiedHcl, load_padded_certificate, split_tdx_part, tdx_part
from attest.schemes.gcp import appraise as gcp_rules
from attest.schemes.gcp.attestation import parse_attestation
from attest.schemes.gcp.certificate import instance_of
from attest.schemes.gcp.endorsement import read_unverified, verify_endorsement
from attest.schemes.gcp.token import verify_oidc_token
from attest.schemes.sev_snp.abi import parse_report, product_of, tcb_of
from attest.schemes.sev_snp.certtable import (
    ASK,
    GCE_FIRMWARE,
    VCEK,
    certificates_of,
    encode_table,
    launch_endorsement_of,
)
from attest.schemes.tdx.abi import parse_quote as parse_td_quote
from attest.schemes.tdx.abi import parse_tdreport
from attest.schemes.tdx.pck import pck_info
from attest.schemes.tdx.tcb import decode_qe_identity, decode_tcb_info
from attest.schemes.tdx.verify import needs as tdx_needs
from attest.schemes.vtpm.abi import Alg, decode_quote_part, parse_public, parse_quote, parse_signature
from attest.schemes.vtpm.credential import make_credential, parse_challenge, tools_file
from attest.testkit import azure as fake_azure
from attest.testkit import eventlog as fake_log
from attest.testkit import gcp as fake_google
from attest.testkit import intel, pki, tokens
from attest.testkit.snp import SimulatedSnpCollector, SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tpm import SoftwareTpm
from attest.vouch import Trust, tdx_set, vouch
from tests.fuzz.evidence_mutate import (
    Form,
    cbor_write,
    in_bytes,
    in_cbor,
    in_der,
    in_hex,
    in_json,
    in_pem,
    in_protobuf,
    in_toml,
    pieces,
)

NOW = 1_799_999_000.0  # 2027-01-15
NONCE = b"n" * 32
ROOT = Path(__file__).resolve().parents[2]
VECTORS = Path(os.environ.get("CUBE_MESH_VECTORS", ROOT.parent / "shared" / "vectors"))


@dataclass(frozen=True)
class Target:
    """``parse`` may raise ``allowed`` and nothing else. ``real``: patterns of files under VECTORS."""

    parse: Callable[[bytes], object]
    minted: Callable[[], Iterable[bytes]]
    form: Form | None = None
    real: Sequence[str] = ()
    allowed: tuple[type[Exception], ...] = (MalformedEvidence,)
    cut: Callable[[bytes], bytes] = field(default=lambda raw: raw)  # a real file to what is small enough to be fast

    def seeds(self) -> list[bytes]:
        files = [file for pattern in self.real for file in sorted(VECTORS.glob(pattern))]
        return [*self.minted(), *(self.cut(file.read_bytes()) for file in files)]


# -- SEV-SNP -----------------------------------------------------------------------------------------------------------


def _der(certificate: Any) -> bytes:
    return bytes(certificate.public_bytes(Encoding.DER))


def _reports() -> list[bytes]:
    products = [("Milan", 2, "vcek"), ("Genoa", 3, "vcek"), ("Turin", 5, "vcek"), ("Milan", 5, "vlek")]
    made = [SnpPlatform(b"fuzz", product=p, version=v, signing_key=k) for p, v, k in products]
    return [platform.report(bytes(64)) for platform in made]


def _report(raw: bytes) -> object:
    report = parse_report(raw)
    product = product_of(report.cpuid) or "Milan"
    return [tcb_of(tcb, product) for tcb in (report.reported_tcb, report.launch_tcb)], report.signed


def _table() -> list[bytes]:
    leaf, ask = SnpPlatform(b"fuzz").endorsements
    return [
        encode_table({VCEK: leaf, ASK: ask, GCE_FIRMWARE: b"g", UUID(int=1): b"x"}),
        encode_table({VCEK: leaf}),
        bytes(4096),
    ]


# -- TDX ---------------------------------------------------------------------------------------------------------------


def _quotes() -> list[bytes]:
    four, five = TdxPlatform(b"fuzz"), TdxPlatform(b"fuzz", version=5)
    return [
        four.quote(bytes(64), trailing=bytes(70)),
        five.quote(bytes(64)),
        five.quote(bytes(64), chain=_der(four.pck())),
    ]


def _split_quote(raw: bytes) -> list[bytes]:
    quote = parse_td_quote(raw)
    return [quote.signed, quote.signature + quote.attestation_key, quote.raw_qe_report + quote.qe_report_signature,
            quote.qe_auth_data, quote.certificates]  # fmt: skip


def _join_quote(parts: list[bytes]) -> bytes:
    signed, signature, qe, auth, chain = parts
    inner = qe + _u(len(auth), 2) + auth + _u(5, 2) + _u(len(chain)) + chain
    data = signature + _u(6, 2) + _u(len(inner)) + inner
    return signed + _u(len(data)) + data


def _u(value: int, width: int = 4) -> bytes:
    return (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def _any_chain(seed: bytes) -> Any:
    return in_pem(seed) if b"-----BEGIN" in seed else in_der(seed)


_COLLATERAL = list(json.loads(intel.collateral()))
_HEX_CRL, _HEX = in_hex(in_der), in_hex(in_bytes)


@lru_cache(maxsize=64)
def _quoted(part: bytes) -> bytes:
    return json.dumps(part.decode("latin-1")).encode()


def _join_collateral(parts: list[bytes]) -> bytes:
    pairs = (f'"{name}":'.encode() + _quoted(part) for name, part in zip(_COLLATERAL, parts, strict=True))
    return b"{" + b",".join(pairs) + b"}"


_collateral_form = pieces(
    lambda raw: [str(json.loads(raw)[name]).encode() for name in _COLLATERAL],
    _join_collateral,
    [in_pem, _HEX_CRL, _HEX_CRL, in_pem, in_json, _HEX, in_pem, in_json, _HEX],
)


# -- vTPM and event logs -----------------------------------------------------------------------------------------------


def _tpms() -> list[SoftwareTpm]:
    rsa_key = tokens.fixed_key("vtpm-ak")
    two: dict[int, Sequence[int]] = {Alg.SHA256: range(2), Alg.SHA384: (7,)}
    return [
        SoftwareTpm(),
        SoftwareTpm(key=rsa_key, pcrs=two),
        SoftwareTpm(key=rsa_key, scheme_alg=Alg.RSAPSS, pcrs={Alg.SHA1: (0,)}),
    ]


def _quote_parts() -> list[bytes]:
    return [tpm.quote(NONCE) for tpm in _tpms()]


def _log(raw: bytes) -> object:
    log = parse_event_log(raw)
    for bank in log.algorithms:
        if bank in (Alg.SHA1, Alg.SHA256, Alg.SHA384, Alg.SHA512):
            _proof(log, bank), unmatched_data(log, bank), separators(log, 0, bank), secure_boot(log, 7, bank)
    return exited_boot_services(log)


def _proof(log: EventLog, bank: int) -> None:
    """What a log gives, it proves; or it lies about the data of an event."""
    with contextlib.suppress(VerificationFailed):
        prove(log, bank, replay(log, bank), str)


def _logs() -> list[bytes]:
    several = (Alg.SHA1, Alg.SHA256, Alg.SHA384)
    locality = (0, 3, b"StartupLocality\x00\x03")
    agile = fake_log.agile_log()
    return [agile, fake_log.agile_log((locality, *fake_log.GOOD_BOOT[:4]), several), fake_log.legacy_log(),
            agile + bytes(100), fake_log.ccel(), fake_log.agile_log(()) + b"\xff" * 40]  # fmt: skip


def _events(raw: bytes) -> list[bytes]:
    """The events of a log as they stand, the padding as the last."""
    log, found, at = parse_event_log(raw), [], 0
    agile = raw[32:].startswith(b"Spec ID Event03\x00")
    sizes = [32 + int.from_bytes(raw[28:32], "little")] if agile else []
    for event in log.events:
        digests = sum(2 + len(digest) for digest in event.digests.values()) if agile else 20
        sizes.append((12 if agile else 8) + digests + 4 + len(event.data))
    for size in sizes:
        found.append(raw[at : at + size])
        at += size
    return [*found, raw[at:]]


def _first_events(raw: bytes) -> bytes:
    """Enough for every kind of event, few enough for speed."""
    return b"".join([event for event in _events(raw)[:40] if len(event) < 400][:12])


def _pcrs() -> list[bytes]:
    values = [f"{index:064x}" for index in range(4)]
    forms = [{"sha256": dict(enumerate(values))}, {"pcrs_sha256": {"0": values[0]}}, {"pcrs": values}, values,
             {"sha1": {"0": "00" * 20}, "sha384": {"1": [0] * 48}, "sha512": {}}]  # fmt: skip
    return [json.dumps(form).encode() for form in forms]


def _aks() -> list[bytes]:
    public = [tpm.public() for tpm in _tpms()]
    bare = tokens.fixed_key("vtpm-ak").public_key()
    spki = [bare.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo) for encoding in (Encoding.DER, Encoding.PEM)]
    certificate = fake_google.instance_certificate(tokens.fixed_key("vtpm-ak"))
    return [*public, len(public[0]).to_bytes(2, "big") + public[0], *spki, certificate.public_bytes(Encoding.PEM)]


def _challenges() -> list[bytes]:
    key = tokens.fixed_key("vtpm-ak").public_key()
    return [tools_file(make_credential(key, b"\x00\x0b" + bytes(32), b"secret", seed=bytes(32)))]


# -- Azure -------------------------------------------------------------------------------------------------------------


def _hcls() -> list[bytes]:
    platform = SnpPlatform(b"fuzz")
    td_report = b"\x81" + bytes(1023)
    both = [tokens.jwk(tokens.fixed_key(name), kid) for name, kid in (("vtpm-ak", "HCLAkPub"), ("service", "HCLEkPub"))]
    claims = fake_azure.runtime_claims(keys=both)
    return [fake_azure.hcl_report(platform), fake_azure.hcl_report(platform, claims, hardware=td_report, report_type=4)]


_AZURE = first_report_policy("azure", "vtpm", "sev-snp")


def _hcl(raw: bytes) -> object:
    hcl = parse_hcl(raw)
    verified = VerifiedHcl(hcl, parse_claims(hcl.raw_claims), None)
    assert _AZURE.azure is not None
    mismatches = azure_rules.appraise_hcl(verified, _AZURE.azure, _AZURE.reference_values.azure)
    return json.dumps([azure_rules.claims_of(verified), str(mismatches)]).encode()


def _join_hcl(parts: list[bytes]) -> bytes:
    kind, hardware, claims = parts
    header = b"HCLA" + _u(2) + _u(1236 + len(claims)) + _u(2) + bytes(16)
    sizes = _u(len(claims) + 20) + _u(1) + kind[:4].ljust(4, b"\x00") + _u(1) + _u(len(claims))
    return header + hardware.ljust(1184, b"\x00")[:1184] + sizes + claims + bytes(40)


_hcl_form = pieces(
    lambda raw: [raw[1224:1228], raw[32:1216], parse_hcl(raw).raw_claims], _join_hcl, [in_bytes, in_bytes, in_json]
)


# -- tokens ------------------------------------------------------------------------------------------------------------


class _Yes:
    """A key under which everything is signed."""

    key_size = 2048
    curve = ec.SECP256R1()

    def verify(self, *_: object) -> None:
        return None

    def public_numbers(self) -> Any:
        return SimpleNamespace(e=65537, n=1)


class _YesRsa(_Yes):
    def public_numbers(self) -> Any:
        return tokens.fixed_key().public_key().public_numbers()


class _YesEd(_Yes):
    pass


rsa.RSAPublicKey.register(_YesRsa)
ed25519.Ed25519PublicKey.register(_YesEd)
_KEYS: Any = (Jwk("k1", "", _YesRsa()),)  # type: ignore[arg-type]
_ED: Any = _YesEd()


def _unpadded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


_jws_form = pieces(
    lambda raw: [base64.urlsafe_b64decode(part + b"==") for part in raw.strip().split(b".")],
    lambda parts: b".".join(map(_unpadded, parts)),
    [in_json, in_json, in_bytes],
)


def _maa_tokens() -> list[bytes]:
    return [
        tokens.sign(tokens.maa_claims(kind, NOW, NONCE), jku=tokens.MAA_ISSUER + "/certs")
        for kind in ("azurevm", "sevsnpvm", "tdxvm")
    ]


def _space_tokens() -> list[bytes]:
    nonce = _unpadded(NONCE).decode()
    claims = tokens.space_claims(NOW, nonce)
    chain = [fake_google.signer_certificate(), fake_google.root()]
    return [
        tokens.sign(claims),
        tokens.sign(claims, x5c=tokens.x5c(*chain)),
        tokens.sign(claims, x5c=tokens.x5c(*chain, pem=True)),
    ]


_RULES = parse_policy(
    f'id = "m"\n[maa]\nissuers = ["{tokens.MAA_ISSUER}"]\n[maa.min_svn]\nsnp = 1\n[reference_values.maa]\n'
    f'measurements = ["{"ab" * 48}"]\npolicy_hashes = ["a"]\nid_key_digests = ["{"cd" * 48}"]\nvm_ids = ["VM-1"]\n'
    f'host_data = ["{"00" * 32}"]\n'
)
_SPACE_RULES = parse_policy(
    'id = "g"\n[gcp]\naudiences = ["https://relying.example"]\nmin_swversion = 251001\nenv_override = ["A"]\n'
    'arguments = ["/app"]\nrestart_policies = ["Never"]\n[reference_values.gcp]\nproject_ids = ["p"]\n'
    f'zones = ["us-central1-a"]\ninstance_ids = ["42"]\nservice_accounts = ["w@p.iam.gserviceaccount.com"]\n'
    f'image_digests = ["sha256:{"ab" * 32}"]\n'
)


def _maa(raw: bytes) -> object:
    assert _RULES.maa is not None
    verified = verify_maa(raw, _KEYS, issuers=[tokens.MAA_ISSUER], now=NOW, nonce=NONCE)
    mismatches = maa_appraise.appraise_maa(verified, _RULES.maa, _RULES.reference_values.maa)
    return json.dumps([maa_appraise.claims_of(verified), str(mismatches)]).encode()


def _space(raw: bytes) -> object:
    assert _SPACE_RULES.gcp is not None
    verified = verify_oidc_token(raw, _KEYS, audiences=_SPACE_RULES.gcp.audiences, now=NOW, nonce=NONCE)
    mismatches = gcp_rules.appraise_token(verified, _SPACE_RULES.gcp, _SPACE_RULES.reference_values.gcp)
    return json.dumps([gcp_rules.claims_of(verified), str(mismatches)]).encode()


def _jwks() -> list[bytes]:
    curves = [ec.derive_private_key(7, curve) for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())]
    chain = tokens.x5c(fake_google.signer_certificate())
    keys = [tokens.jwk(), *(tokens.jwk(key, f"e{n}", alg="ES256") for n, key in enumerate(curves))]
    return [
        tokens.jwks(),
        tokens.jwks(*keys),
        tokens.jwks({"kid": "c", "kty": "RSA", "x5c": chain}, {"kid": "o", "kty": "oct"}),
    ]


# -- our own forms -----------------------------------------------------------------------------------------------------

_CLAIMS = Claims(
    role=Role.SERVER, phase=Phase.POST_HANDSHAKE, node_id="spiffe://cube/agent/a1", not_after=1_800_000_000,
    boot_id=b"b" * 16, spki_hash=b"s" * 32, nonce=NONCE, channel_binding=b"c" * 32, peer_spki_hash=b"p" * 32,
)  # fmt: skip


def _collections() -> list[bytes]:
    return [evidence_for(SoftwareTpm(), _CLAIMS), evidence_for(SimulatedSnpCollector(b"fuzz"), _CLAIMS)]


def _same(decode: Callable[[bytes], Any], encode: Callable[[Any], bytes]) -> Callable[[bytes], object]:
    """What is accepted has one encoding: the one that was read."""

    def parse(raw: bytes) -> object:
        value = decode(raw)
        assert encode(value) == raw, "two encodings of one value"
        return value

    return parse


def _extension(raw: bytes) -> object:
    return evidence.decode_evidence(evidence.cmw_from_extension(raw))


def _cbor_seeds() -> list[bytes]:
    values: list[Any] = [0, 24, 256, 1 << 16, 1 << 32, b"bytes", "text", None, [], {}, [1, [2, [None]]]]
    return [cbor_encode(values), cbor_encode({0: "a", 7: b"b", 300: None, "key": {"k": [1]}}), *_collections()]


def _corims() -> list[bytes]:
    snp = [{0: {0: Tag(37, bytes.fromhex("d05e6d1b9f464ae2a610ce3e6ee7e153"))}, 1: Tag(560, b"\x07" * 8)},
           [{0: 0, 1: {2: [[7, b"\x01" * 48], ["sha-384", b"\x02" * 48]], 4: Tag(560, bytes(16)), 0: {0: "04" * 16}}},
            {0: 5, 1: {4: Tag(560, b"\x05" * 48)}}]]  # fmt: skip
    csp = [{0: {0: Tag(37, bytes.fromhex("89a7a1f0e7044faaacbd81c86df8a961"))}, 1: Tag(560, b"cloud")},
           [{0: 0, 1: {2: [[7, b"\x01" * 48]]}}]]  # fmt: skip
    tdx = [{0: {1: "Intel Corporation", 2: "TDX"}}, [{1: {-83: [7, b"\x01" * 48], 14: {0: [[7, b"\x02" * 48]]}}}]]
    header = {
        1: -8,
        3: "application/rim+cbor",
        8: {0: {0: "signer"}, 1: {0: 1, 1: Tag(1, 2_000_000_000)}},
        15: {4: 2_000_000_000},
    }
    found = []
    for triples in ([snp], [csp], [tdx], [snp, tdx]):
        comid = {0: "en", 1: {0: "tag", 1: 0}, 2: [], 4: {0: triples}}
        corim = {0: "corim", 1: [Tag(506, cbor_write(comid))], 3: "p", 4: {0: 1, 1: 2_000_000_000}, 5: []}
        payload = cbor_write(Tag(501, corim))
        found.append(cbor_write(Tag(18, [cbor_write(header), {}, payload, bytes(64)])))
    return found


def _corim(raw: bytes) -> object:
    return read_toml(import_corim(raw, _ED, "file", now=NOW), "corim")


def _trust_keys() -> list[bytes]:
    keys: list[Any] = [tokens.fixed_key().public_key(), ec.derive_private_key(7, ec.SECP384R1()).public_key(),
                       ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()]  # fmt: skip
    pem = [key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in keys]
    return [*pem, fake_google.root().public_bytes(Encoding.PEM)]


def _ders() -> list[bytes]:
    return [
        intel.pck_extension(intel.PLATFORM),
        b"\x30\x03\x02\x01\x05\x04\x81\x80" + bytes(128),
        _der(fake_google.root()),
    ]


def _der_tree(raw: bytes) -> object:
    for tag, content in der_items(raw):
        if tag == 2:
            der_unsigned(content, 65_535)
        elif tag & 0x20:
            _der_tree(content)
    return None


# -- collateral --------------------------------------------------------------------------------------------------------

_TRUST = Trust(pki.simulated_roots(), intel.simulated_intel_roots())


def _records() -> list[bytes]:
    members = {name: value.encode() for name, value in json.loads(intel.collateral()).items()}
    platform = SnpPlatform(b"fuzz")
    levels = ".".join(
        str(level) for level in (platform.tcb.bootloader, platform.tcb.tee, platform.tcb.snp, platform.tcb.microcode)
    )
    leaf = _der(platform.leaf)
    ca = [pki.ca_certificate(kind, "Milan").public_bytes(Encoding.PEM) for kind in ("ask", "ark")]
    thim = {
        "vcekCert": platform.leaf.public_bytes(Encoding.PEM).decode(),
        "certificateChain": b"".join(ca).decode(),
        "tcbm": "0",
    }
    answers: list[tuple[items.Item, bytes, bytes]] = [
        (items.Item("amd-vcek", f"Milan/{platform.hwid.hex()}/{levels}"), leaf, b""),
        (items.Item("amd-chain", "Milan/vcek"), b"".join(ca), b""),
        (items.Item("amd-crl", "Milan"), _der(pki.crl("Milan")), b""),
        (items.Item("azure-thim", "local"), json.dumps(thim).encode(), b""),
        (items.Item("intel-tcb-info", intel.PLATFORM.fmspc.hex()),
         b'{"tcbInfo":%s,"signature":"%s"}' % (members["tcb_info"], members["tcb_info_signature"]),
         members["tcb_info_issuer_chain"]),
        (items.Item("intel-qe-identity", "tdx"),
         b'{"enclaveIdentity":%s,"signature":"%s"}' % (members["qe_identity"], members["qe_identity_signature"]),
         members["qe_identity_issuer_chain"]),
        (items.Item("intel-pck-crl", "platform"), bytes.fromhex(members["pck_crl"].decode()),
         members["pck_crl_issuer_chain"]),
        (items.Item("intel-root-crl", "root"), bytes.fromhex(members["root_ca_crl"].decode()), b""),
        (items.Item("jwks", "https://issuer.example"), tokens.jwks(), b""),
    ]  # fmt: skip
    return [_record_of(str(item).encode(), body, chain) for item, body, chain in answers]


def _record_of(item: bytes, body: bytes, chain: bytes) -> bytes:
    fields = {"format": "cube-mesh-collateral/1", "item": item.decode("latin-1"), "url": "https://x", "fetched_at": NOW,
              "sha256": hashlib.sha256(body).hexdigest(), "issuer_chain": chain.decode("latin-1"),
              "body": base64.b64encode(body).decode()}  # fmt: skip
    return json.dumps(fields).encode()


def _record_form(seed: bytes) -> Any:
    """By what the body is."""
    fields = json.loads(seed)
    body = base64.b64decode(fields["body"])
    chain: Form = in_pem if fields["issuer_chain"] else in_bytes
    inner: Form = in_json if body[:1] == b"{" else _any_chain

    def split(raw: bytes) -> list[bytes]:
        found = json.loads(raw)
        return [found["item"].encode(), base64.b64decode(found["body"]), found["issuer_chain"].encode()]

    return pieces(split, lambda parts: _record_of(*parts), [in_bytes, inner, chain])(seed)


_RECORDS = _records()
_ITEMS = [items.parse_item(json.loads(record)["item"]) for record in _RECORDS]
_QE, _PCK, _ROOT_CRL = (items.decode_record(_RECORDS[at], _ITEMS[at]) for at in (5, 6, 7))


def _record(raw: bytes) -> object:
    item = next((item for item in _ITEMS if str(item).encode() in raw[:300]), _ITEMS[0])
    record = items.decode_record(raw, item)
    vouch(record, NOW, _TRUST)
    if item.kind == "intel-tcb-info":
        return tdx_set(record, _QE, _PCK, _ROOT_CRL)
    return record


# -- policies ----------------------------------------------------------------------------------------------------------


def _policies() -> list[bytes]:
    composed = """
id = "fleet"
[[any_of]]
id = "eu"
[[any_of.all_of]]
id = "hardware"
[any_of.all_of.sev-snp]
unsafe_any_tcb = true
unsafe_any_measurement = true
[[any_of.all_of]]
id = "boot"
[any_of.all_of.vtpm]
pcrs = [0, 7]
unsafe_any_ak = true
unsafe_any_pcr_values = true
[[any_of]]
id = "own"
[any_of.schemes.mine]
level = 7
floor = 1.5
names = ["a", "b"]
"""
    files = [ROOT / "policies" / "evidence" / f"{name}.toml" for name in ("proxies", "agent-vtpm.example")]
    return [composed.encode(), *(file.read_bytes() for file in files)]


def _policy(raw: bytes) -> object:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None  # read_text says so before a policy is parsed
    return parse_policy(text, files={"x.toml": ""}).unsafe


def _go_sev() -> list[bytes]:
    bits = 1 << 17 | 1 << 16 | 1 << 8 | 55
    policy = {"policy": str(bits), "measurement": _b64(1, 48), "minimumTcb": str(0xDB18000000000004), "vmpl": 0,
              "hostData": _b64(2, 32), "chipId": _b64(3, 64), "familyId": _b64(4, 16), "minimum_guest_svn": 1,
              "minimumVersion": "1.55", "platformInfo": "5", "permitProvisionalFirmware": True,
              "trustedIdKeyHashes": [_b64(5, 48)], "product": {"name": "SEV_PRODUCT_MILAN"}}  # fmt: skip
    root = {"checkCrl": True, "productLine": "Milan"}
    pcrs = {"sha256": {"0": "00" * 32}}
    return [json.dumps({"policy": policy, "rootOfTrust": root, "pcr_values": pcrs}).encode()]


def _go_tdx() -> list[bytes]:
    body = {"minimumTeeTcbSvn": _b64(3, 16), "mrSeam": _b64(4, 48), "xfam": _b64(7, 8), "mrTd": _b64(9, 48),
            "rtmrs": [_b64(1, 48), "", _b64(2, 48)], "mrConfigId": _b64(5, 48), "tdattributesDebug": False}  # fmt: skip
    header = {"minimumQeSvn": 5, "minimum_pce_svn": 11, "qeVendorId": "k5pyM/ecTKmUCg2zlX8GBw=="}
    return [
        json.dumps(
            {"policy": {"headerPolicy": header, "tdQuoteBodyPolicy": body}, "rootOfTrust": {"checkCrl": True}}
        ).encode()
    ]


def _b64(byte: int, size: int) -> str:
    return base64.b64encode(bytes((byte,)) * size).decode()


# -- the table ---------------------------------------------------------------------------------------------------------


def _pck(raw: bytes) -> object:
    return pck_info(load_certificate(raw))


def _leaves() -> list[bytes]:
    ca = [pki.ca_certificate(kind, "Milan") for kind in ("ask", "ark")]
    return [_der(SnpPlatform(b"fuzz").leaf), *map(_der, ca), _der(intel.root_certificate()), _der(fake_google.root())]


def _chains() -> list[bytes]:
    chain = TdxPlatform(b"fuzz").chain
    return [intel.pem(*chain).encode(), b"".join(map(_der, chain)), intel.pem(*chain).encode() + bytes(20)]


def _crls() -> list[bytes]:
    return [_der(pki.crl("Milan", ("ask",))), _der(intel.crl("root", (3, 4)))]


def _endorsements(raw: bytes) -> object:
    return sorted_endorsements([raw]), load_certificates(raw)


def _instances() -> list[bytes]:
    return [_der(fake_google.instance_certificate(tokens.fixed_key("vtpm-ak")))]


def _documents() -> list[bytes]:
    info = intel.tcb_info(tcbLevels=[intel.tcb_level(advisories=["INTEL-SA-00001"])])
    return [json.dumps(info).encode()]


def _attestation() -> list[bytes]:
    """Of go-tpm-tools: the AK, one quote with its PCR values, and a log."""
    part, put = decode_quote_part(_quote_parts()[1]), fake_google.field
    pcrs = [put(2, put(1, index) + put(2, value)) for index, value in part.pcrs[Alg.SHA256].items()]
    quote = put(1, part.attest) + put(2, part.signature) + put(3, put(1, Alg.SHA256) + b"".join(pcrs))
    return [put(1, part.ak_public) + put(2, quote) + put(3, b"log")]


_GOOGLE = (fake_google.root(),)
_ANY, _POLICY = (AttestError,), (PolicyFormatError,)
_LOGS = (
    "vtpm/eventlogs/*",
    "tdx/dstack/ccel.bin",
    "tdx/go-tdx-guest-ccel/ccel_data.dat",
    "tdx/trustee-ccel/CCEL_data_grub",
)
_QUOTES = ("tdx/dstack/quote.bin", "tdx/go-tdx-guest/quote_v5_sample.dat", "tdx/trustee/*.dat")

TARGETS: Mapping[str, Target] = {
    "snp-report": Target(_report, _reports, real=("snp/*/*report*.bin", "snp/veraison/outblob.bin")),
    "snp-certificate-table": Target(lambda raw: (certificates_of(raw), launch_endorsement_of(raw)), _table),
    "tdx-quote": Target(
        lambda raw: tdx_needs(parse_td_quote(raw)),
        _quotes,
        pieces(_split_quote, _join_quote, [*[in_bytes] * 4, _any_chain]),
        _QUOTES,
    ),
    "tdx-report": Target(parse_tdreport, lambda: [bytes(1024)], real=("tdx/go-tdx-guest/report.dat",)),
    "tdx-tcb-info": Target(decode_tcb_info, _documents, in_json),
    "tdx-qe-identity": Target(decode_qe_identity, lambda: [json.dumps(intel.qe_identity()).encode()], in_json),
    "tdx-pck-certificate": Target(_pck, lambda: [_der(TdxPlatform(b"fuzz").pck())], in_der),
    "tdx-collateral": Target(
        lambda raw: window(parse_collateral(raw)),
        lambda: [intel.collateral()],
        _collateral_form,
        ("tdx/collateral/90c06f-2026-03/collateral.json",),
    ),
    "tpm-quote": Target(
        parse_quote, lambda: [decode_quote_part(raw).attest for raw in _quote_parts()], real=("vtpm/*/q.msg",)
    ),
    "tpm-public": Target(parse_public, lambda: [tpm.public() for tpm in _tpms()], real=("vtpm/swtpm/ak.pub",)),
    "tpm-signature": Target(parse_signature, lambda: [tpm.sign(b"m") for tpm in _tpms()], real=("vtpm/*/q.sig",)),
    "tpm-quote-part": Target(decode_quote_part, _quote_parts, in_cbor),
    "tpm-ak": Target(parse_ak, _aks, real=("vtpm/*/ak.pub", "vtpm/keylime/akpub.pem"), allowed=_ANY),
    "tpm-pcrs": Target(parse_pcrs, _pcrs, in_json, ("vtpm/swtpm/pcrs.json",)),
    "tpm-challenge": Target(parse_challenge, _challenges),
    "event-log": Target(_log, _logs, pieces(_events, b"".join, [in_bytes]), _LOGS, cut=_first_events),
    "azure-hcl": Target(_hcl, _hcls, _hcl_form, ("azure/*/hcl-report*.bin",)),
    "azure-tdx-part": Target(split_tdx_part, lambda: [tdx_part(b"hcl", b"quote")], in_cbor),
    "azure-ak-certificate": Target(load_padded_certificate, lambda: [_instances()[0].ljust(4096, b"\x00")]),
    "jws": Target(
        lambda raw: payload_for_display(parse_token(raw)),
        lambda: [*_maa_tokens(), *_space_tokens()],
        _jws_form,
        ("azure/*/*.jwt", "gcp/*/*.jwt"),
    ),
    "jwks": Target(parse_jwks, _jwks, in_json, ("gcp/synddb/jwks.json",)),
    "maa-claims": Target(_maa, _maa_tokens, _jws_form, allowed=_ANY),
    "gcp-claims": Target(_space, _space_tokens, _jws_form, allowed=_ANY),
    "gcp-endorsement": Target(
        read_unverified, lambda: [fake_google.endorsement()], in_protobuf, ("gcp/gce-tcb-verifier/*.binarypb",)
    ),
    "gcp-launch": Target(
        lambda raw: verify_endorsement(raw, NOW, roots=_GOOGLE),
        lambda: [fake_google.endorsement()],
        in_protobuf,
        allowed=_ANY,
    ),
    "gcp-attestation": Target(parse_attestation, _attestation, in_protobuf),
    "gcp-instance": Target(
        lambda raw: instance_of(load_certificate(raw)), _instances, _any_chain, ("gcp/salrashid-vtpm/akcert.pem",)
    ),
    "cbor": Target(_same(cbor_decode, cbor_encode), _cbor_seeds, in_cbor),
    "cmw": Target(_same(evidence.decode_evidence, evidence.encode_evidence), _collections, in_cbor),
    "cmw-extension": Target(_extension, lambda: [evidence.extension_value(raw) for raw in _collections()]),
    "cmw-claims": Target(
        _same(binding.decode_claims, binding.encode_claims), lambda: [binding.encode_claims(_CLAIMS)], in_cbor
    ),
    "cmw-endorsements": Target(
        lambda raw: [load_certificate(der) for der in evidence.decode_certificates(raw)],
        lambda: [evidence.encode_certificates(SnpPlatform(b"fuzz").endorsements).body],
        in_cbor,
    ),
    "cose-cbor": Target(cbor_read, lambda: [*_corims(), *_cbor_seeds()], in_cbor),
    "cose-sign1": Target(lambda raw: verify_sign1(raw, _ED), _corims, in_cbor, allowed=_ANY),
    "cose-trust-key": Target(load_trust_key, _trust_keys),
    "corim": Target(_corim, _corims, in_cbor, allowed=_ANY),
    "der": Target(_der_tree, _ders, in_der),
    "certificate": Target(load_certificate, _leaves, in_der),
    "certificates": Target(_endorsements, _chains, _any_chain),
    "revocation-list": Target(load_crl, _crls, in_der, ("tdx/roots/*.der", "tdx/go-tdx-guest/rootcrl.der")),
    "collateral-record": Target(_record, lambda: _RECORDS, _record_form, allowed=_ANY),
    "policy": Target(_policy, _policies, in_toml, allowed=_POLICY),
    "go-sev-guest-config": Target(lambda raw: import_sev_guest(raw, "p"), _go_sev, in_json, allowed=_POLICY),
    "go-tdx-guest-config": Target(lambda raw: import_tdx_guest(raw, "p"), _go_tdx, in_json, allowed=_POLICY),
    "needs": Target(
        needed_items,
        lambda: [*_reports()[1:], *_quotes()[:2], *_hcls()[:1], *_space_tokens(), *_collections()],
        allowed=_ANY,
    ),
}
