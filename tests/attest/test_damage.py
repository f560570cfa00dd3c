"""Damage: one bit of anything signed differs, or its end is missing, and it is refused; whatever bytes arrive, parsers
raise MalformedEvidence. ``CUBE_MESH_DAMAGE=all`` tries all eight bits of every byte, otherwise one.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from attest.appraise import AttestationResult
from attest.attester import evidence_for
from attest.binding import Expected, ak_report_data, snp_report_data
from attest.chain import check_crl, load_certificate, load_chain, load_crl
from attest.collateral import parse_collateral
from attest.corim import import_corim
from attest.cose import Tag
from attest.errors import AttestError
from attest.evidence import (
    AZURE_HCL_TYPE,
    ENDORSEMENTS,
    HARDWARE,
    SNP_REPORT_TYPE,
    TDX_QUOTE_TYPE,
    TOKEN,
    TOKEN_TYPE,
    Part,
    encode_certificates,
)
from attest.jws import nonce_forms, parse_jwks
from attest.policy import parse_policy
from attest.schemes.azure.maa import verify_maa
from attest.schemes.azure.verify import AK_EKU, verify_hcl_snp, verify_hcl_tdx
from attest.schemes.azure.verify import verify_ak_certificate as verify_azure_ak
from attest.schemes.gcp.certificate import verify_vtpm_certificate
from attest.schemes.gcp.endorsement import verify_endorsement
from attest.schemes.gcp.token import verify_oidc_token, verify_pki_token
from attest.schemes.sev_snp.verify import Root, verify_report
from attest.schemes.tdx.abi import parse_quote as parse_td_quote
from attest.schemes.tdx.verify import VerifiedCollateral, VerifiedQuote, verify_collateral, verify_quote
from attest.schemes.vtpm.abi import Alg, decode_quote_part, encode_quote_part
from attest.schemes.vtpm.verify import ak_name
from attest.schemes.vtpm.verify import verify_quote as verify_tpm_quote
from attest.testkit import azure, gcp, intel, tokens
from attest.testkit.pki import ca_certificate, crl, simulated_roots
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import Verifier
from tests.fuzz.evidence_mutate import cbor_write
from tests.fuzz.evidence_targets import TARGETS
from tests.support import require

from .conftest import CLAIMS, NOW

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Attribute's length must be"),
    pytest.mark.filterwarnings("ignore:Parsed a serial number"),
]
EVERY_BIT = os.environ.get("CUBE_MESH_DAMAGE") == "all"
DATA = bytes(64)
Verify = Callable[[bytes], object]


@dataclass(frozen=True)
class Signed:
    """Bytes and their verification. ``unsigned``: what of a result must be the same where a byte is nobody's."""

    raw: bytes
    verify: Verify
    unsigned: Callable[[Any], object] | None = None


def _der(certificate: Any) -> bytes:
    return bytes(certificate.public_bytes(Encoding.DER))


# -- hardware ----------------------------------------------------------------------------------------------------------


def _snp() -> Mapping[str, Signed]:
    found: dict[str, Signed] = {}
    for product, version, kind in (("Milan", 3, "vcek"), ("Genoa", 2, "vlek"), ("Turin", 5, "vcek")):
        platform = SnpPlatform(b"damage", product=product, version=version, signing_key=kind)
        report, leaf = platform.report(DATA), platform.leaf
        name = f"{product}, {kind}"

        def by_report(raw: bytes, leaf: Any = leaf) -> object:
            return verify_report(raw, [leaf], NOW, simulated_roots())

        def by_leaf(raw: bytes, report: bytes = report) -> object:
            return verify_report(report, [load_certificate(raw)], NOW, simulated_roots())

        found |= {f"report of {name}": Signed(report, by_report), f"leaf of {name}": Signed(_der(leaf), by_leaf)}
    milan = SnpPlatform(b"damage")
    bare = {"Milan": (Root(ca_certificate("ark", "Milan"), (), True),)}
    report = milan.report(DATA)
    found["ASK"] = Signed(
        _der(ca_certificate("ask", "Milan")),
        lambda raw: verify_report(report, [milan.leaf, load_certificate(raw)], NOW, bare),
    )
    found["AMD's revocation list"] = Signed(
        _der(crl("Milan", ("asvk",))), lambda raw: check_crl(load_crl(raw), ca_certificate("ark", "Milan"), NOW)
    )
    return found


def _collateral() -> VerifiedCollateral:
    return verify_collateral(parse_collateral(intel.collateral()), NOW, intel.simulated_intel_roots())


def _signed_of_quote(verified: VerifiedQuote) -> object:
    return verified.quote.signed, verified.quote.raw_qe_report, load_chain(verified.quote.certificates)


def _tdx() -> Mapping[str, Signed]:
    four, five = TdxPlatform(b"damage"), TdxPlatform(b"damage", version=5)
    known = _collateral()
    found = {}
    for name, platform, chain in (("4", four, None), ("5, chain in DER", five, b"".join(map(_der, five.chain)))):
        # PEM has line breaks and dashes that nobody signs: then the certificates must be the same.
        found[f"quote version {name}"] = Signed(
            platform.quote(DATA, chain=chain),
            lambda raw: verify_quote(raw, known, NOW),
            None if chain else _signed_of_quote,
        )
    members = json.loads(intel.collateral())

    def by_member(name: str, text: Callable[[bytes], str]) -> Verify:
        def verify(raw: bytes) -> object:
            changed = json.dumps(members | {name: text(raw)}).encode()
            return verify_collateral(parse_collateral(changed), NOW, intel.simulated_intel_roots())

        return verify

    for name in ("tcb_info", "qe_identity"):
        found[name] = Signed(members[name].encode(), by_member(name, lambda raw: raw.decode("latin-1")))
        signature = f"{name}_signature"
        found[signature] = Signed(bytes.fromhex(members[signature]), by_member(signature, lambda raw: raw.hex()))
    for name in ("root_ca_crl", "pck_crl"):
        found[name] = Signed(bytes.fromhex(members[name]), by_member(name, lambda raw: raw.hex()))
    root = intel.pem(intel.root_certificate())
    for name, kind in (("pck_crl_issuer_chain", "platform"), ("tcb_info_issuer_chain", "signer")):
        found[name] = Signed(
            _der(intel.certificate(kind)), by_member(name, lambda raw: intel.pem(load_certificate(raw)) + root)
        )
    return found


# -- vTPM, Azure, Google -----------------------------------------------------------------------------------------------


def _vtpm() -> Mapping[str, Signed]:
    rsa_key = tokens.fixed_key("vtpm-ak")
    tpms = {
        "P-256": SoftwareTpm(),
        "P-384": SoftwareTpm(key=ec.derive_private_key(7, ec.SECP384R1()), hash_alg=Alg.SHA384),
        "RSASSA": SoftwareTpm(key=rsa_key),
        "RSAPSS": SoftwareTpm(key=rsa_key, scheme_alg=Alg.RSAPSS),
    }
    found = {}
    for name, tpm in tpms.items():
        part = decode_quote_part(tpm.quote(bytes(32)))
        for field in ("attest", "signature"):

            def verify(raw: bytes, part: Any = part, field: str = field) -> object:
                return verify_tpm_quote(encode_quote_part(replace(part, **{field: raw})), bytes(32))

            found[f"{field} by {name}"] = Signed(getattr(part, field), verify)
    certificate = _der(gcp.instance_certificate(rsa_key))
    found["certificate of an AK"] = Signed(
        certificate,
        lambda raw: verify_vtpm_certificate(rsa_key.public_key(), [load_certificate(raw)], NOW, [gcp.root()]),
    )
    return found


def _azure() -> Mapping[str, Signed]:
    platform, claims = SnpPlatform(b"damage"), azure.runtime_claims()
    report = azure.hcl_report(platform, length=0)
    data = hashlib.sha256(claims).digest().ljust(64, b"\x00")
    td_report = (b"\x81" + bytes(127) + data).ljust(1024, b"\x00")
    of_td = azure.hcl_report(platform, claims, hardware=td_report, report_type=4, length=0)
    ak = tokens.fixed_key("vtpm-ak")
    verified = verify_hcl_snp(report, [platform.leaf], NOW, simulated_roots())
    eku = gcp.instance_certificate(ak, b"", extensions=[(x509.ExtendedKeyUsage([AK_EKU]), False)])
    maa = tokens.sign(tokens.maa_claims("sevsnpvm", NOW, bytes(32)))
    keys = parse_jwks(tokens.jwks())
    return {
        "HCL report of SNP": Signed(report, lambda raw: verify_hcl_snp(raw, [platform.leaf], NOW, simulated_roots())),
        # Its TDREPORT is for its own machine alone: the TD quote, which names the same data, is what proves.
        "HCL report of TDX": Signed(of_td, lambda raw: verify_hcl_tdx(raw, data), lambda v: v.hcl.raw_claims),
        "certificate of HCLAkPub": Signed(
            _der(eku), lambda raw: verify_azure_ak(verified, [load_certificate(raw)], NOW, [gcp.root()])
        ),
        "MAA token": Signed(
            maa, lambda raw: verify_maa(raw, keys, issuers=[tokens.MAA_ISSUER], now=NOW, nonce=bytes(32))
        ),
    }


def _gcp() -> Mapping[str, Signed]:
    claims = tokens.space_claims(NOW, "nonce")
    root, keys = gcp.root(), parse_jwks(tokens.jwks())
    chain = [gcp.signer_certificate(), root]
    audience = ("https://relying.example",)

    def pki(raw: bytes) -> object:
        return verify_pki_token(raw, audiences=audience, now=NOW, nonce=b"nonce", roots=[root])

    return {
        "OIDC token": Signed(
            tokens.sign(claims), lambda raw: verify_oidc_token(raw, keys, audiences=audience, now=NOW, nonce=b"nonce")
        ),
        "PKI token, DER": Signed(tokens.sign(claims, x5c=tokens.x5c(*chain)), pki),
        "PKI token, PEM": Signed(tokens.sign(claims, x5c=tokens.x5c(*chain, pem=True)), pki),
        "launch endorsement": Signed(gcp.endorsement(), lambda raw: verify_endorsement(raw, NOW, roots=[root])),
    }


def _corim() -> Mapping[str, Signed]:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
    environment = {0: {0: cbor2.CBORTag(37, bytes.fromhex("d05e6d1b9f464ae2a610ce3e6ee7e153"))}}
    comid = {1: {0: "tag", 1: 0}, 4: {0: [[environment, [{0: 0, 1: {2: [[7, b"\x01" * 48]]}}]]]}}
    payload = cbor2.dumps(cbor2.CBORTag(501, {0: "corim", 1: [cbor2.CBORTag(506, cbor2.dumps(comid))]}))
    protected = cbor2.dumps({1: -8, 3: "application/rim+cbor"})
    signature = key.sign(cbor2.dumps(["Signature1", protected, b"", payload]))
    raw = cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, signature]))
    return {"CoRIM": Signed(raw, lambda raw: import_corim(raw, key.public_key(), "f", now=NOW))}


# -- real evidence -----------------------------------------------------------------------------------------------------


def _real() -> Mapping[str, Signed]:
    files = require.vectors()

    def read(name: str) -> bytes:
        return (files / name).read_bytes()

    def at(text: str) -> float:
        return dt.datetime.fromisoformat(text).timestamp()

    vcek, vlek = (load_certificate(read(f"snp/{name}.der")) for name in ("virtee-sev/vcek_milan", "trustee/test-vlek"))
    vlek_time, td_time, maa_time = at("2025-06-01T00:00Z"), at("2026-04-01T00:00Z"), at("2022-12-24T00:00Z")
    known = verify_collateral(parse_collateral(read("tdx/collateral/90c06f-2026-03/collateral.json")), td_time)
    keys, issuer = parse_jwks(read("azure/maa-thomvanl/jwks.json")), "https://sharedweu.weu.attest.azure.net"
    quotes = ("tdx/dstack/quote.bin", "tdx/go-tdx-guest/quote_v5_sample.dat")
    return {
        "SNP report": Signed(read("snp/virtee-sev/report_milan.bin"), lambda raw: verify_report(raw, [vcek], NOW)),
        "VLEK report": Signed(
            read("snp/trustee/test-vlek-report.bin"), lambda raw: verify_report(raw, [vlek], vlek_time)
        ),
        **{
            name: Signed(_unpadded(read(name)), lambda raw: verify_quote(raw, known, td_time), _signed_of_quote)
            for name in quotes
        },
        "MAA token": Signed(
            read("azure/maa-thomvanl/token.jwt").strip(),
            lambda raw: verify_maa(raw, keys, issuers=[issuer], now=maa_time, nonce=None),
        ),
        "PKI token": Signed(
            read("gcp/flare/cs_pki_token.jwt").strip(),
            lambda raw: verify_pki_token(raw, audiences=None, now=at("2024-11-04T00:00Z"), nonce=None),
        ),
    }


def _unpadded(quote: bytes) -> bytes:
    return quote[: parse_td_quote(quote).size]


# -- whole collections, as nodes send them -----------------------------------------------------------------------------


class _Parts:
    scheme = "test"

    def __init__(self, make: Callable[[bytes], dict[int, Part]]) -> None:
        self.parts = make


def _collections() -> Mapping[str, Signed]:
    expected = Expected(**{name: getattr(CLAIMS, name) for name in Expected.__struct_fields__})
    snp, td, tpm = SnpPlatform(b"damage"), TdxPlatform(b"damage"), SoftwareTpm()
    azure_tpm = SoftwareTpm(key=tokens.fixed_key("vtpm-ak"))
    leaf, keys, collateral = encode_certificates(snp.endorsements[:1]), parse_jwks(tokens.jwks()), intel.collateral()
    td_chain = b"".join(map(_der, td.chain))

    def by_snp(report_data: bytes) -> dict[int, Part]:
        return {HARDWARE: Part(SNP_REPORT_TYPE, snp.report(report_data)), ENDORSEMENTS: leaf}

    snp_rules = "[sev-snp]\nunsafe_any_tcb = true\nunsafe_any_measurement = true\n"

    def vtpm_rules(tpm: SoftwareTpm) -> str:
        """With the AK's name: nobody signs the AK's lesser attributes, but they are part of it."""
        rules = "[vtpm]\npcrs = [0]\nunsafe_any_pcr_values = true\n"
        return rules + f'[reference_values.vtpm]\nak_names = ["{ak_name(tpm.public())}"]\n'

    made: dict[str, tuple[str, Callable[[bytes], dict[int, Part]]]] = {
        "SNP": (
            snp_rules,
            lambda h: by_snp(snp_report_data(h)),
        ),
        "TDX": (
            "[tdx]\nunsafe_any_mr_td = true\nunsafe_any_rtmrs = true\n",
            lambda h: {HARDWARE: Part(TDX_QUOTE_TYPE, td.quote(snp_report_data(h), chain=td_chain))},
        ),
        "vTPM": ("unsafe_accept_vtpm_only = true\n" + vtpm_rules(tpm), tpm.parts),
        "SNP and vTPM": (
            snp_rules + vtpm_rules(tpm),
            lambda h: (
                tpm.parts(h)
                | {HARDWARE: Part(SNP_REPORT_TYPE, snp.report(ak_report_data(tpm.public(), h))), ENDORSEMENTS: leaf}
            ),
        ),
        "Azure": (
            "[azure]\nunsafe_allow_no_secure_boot = true\n" + snp_rules + vtpm_rules(azure_tpm),
            lambda h: (
                azure_tpm.parts(h)
                | {HARDWARE: Part(AZURE_HCL_TYPE, azure.hcl_report(snp, length=0)), ENDORSEMENTS: leaf}
            ),
        ),
        "MAA": (
            f'[maa]\nissuers = ["{tokens.MAA_ISSUER}"]\nunsafe_any_measurement = true\n',
            lambda h: {TOKEN: Part(TOKEN_TYPE, tokens.sign(tokens.maa_claims("sevsnpvm", NOW, h)))},
        ),
        "Confidential Space": (
            '[gcp]\naudiences = ["https://relying.example"]\nunsafe_any_image = true\n',
            lambda h: {TOKEN: Part(TOKEN_TYPE, tokens.sign(tokens.space_claims(NOW, nonce_forms(h)[1].decode())))},
        ),
    }
    found = {}
    for name, (tables, make) in made.items():
        verifier = Verifier(parse_policy('id = "p"\n' + tables), allow_simulated=True, token_keys=keys)

        def appraise(raw: bytes, verifier: Verifier = verifier) -> AttestationResult:
            return verifier.appraise(raw, expected, now=NOW, endorsements=[collateral])

        found[f"collection of {name}"] = Signed(evidence_for(_Parts(make), CLAIMS), appraise)
    return found


GROUPS: Mapping[str, Callable[[], Mapping[str, Signed]]] = {
    "sev-snp": _snp, "tdx": _tdx, "vtpm": _vtpm, "azure": _azure, "gcp": _gcp, "corim": _corim, "real": _real,
    "collections": _collections,
}  # fmt: skip


def _survives(signed: Signed, damaged: bytes, whole: object) -> bool:
    """Accepted, and not because every signed field is as it was: only a byte that nobody signs can leave them so."""
    try:
        result = signed.verify(damaged)
    except AttestError:
        return False
    return signed.unsigned is None or signed.unsigned(result) != signed.unsigned(whole)


@pytest.mark.parametrize("group", GROUPS)
def test_a_flipped_bit_is_refused(group: str) -> None:
    for name, signed in GROUPS[group]().items():
        whole, size = signed.verify(signed.raw), len(signed.raw)
        flips = [(at, 1 << bit) for at in range(size) for bit in (range(8) if EVERY_BIT else (at % 8,))]
        for at, mask in flips:
            damaged = signed.raw[:at] + bytes((signed.raw[at] ^ mask,)) + signed.raw[at + 1 :]
            assert not _survives(signed, damaged, whole), f"{name}: byte {at} of {size}, mask {mask:#x}"
        print(f"{name}: {len(flips)} flips of {size} bytes refused")


@pytest.mark.parametrize("group", GROUPS)
def test_a_missing_end_is_refused(group: str) -> None:
    for signed in GROUPS[group]().values():
        for length in range(len(signed.raw)):
            with pytest.raises(AttestError):
                signed.verify(signed.raw[:length])


# -- parsers -----------------------------------------------------------------------------------------------------------

# Forms of which a prefix can be whole: what is missing is for the signature, the replay or the hash to notice.
SHORTER = {
    "snp-certificate-table": "padding, and what no entry points to",
    "tdx-quote": "padding",
    "tpm-ak": "the line break after PEM",
    "event-log": "whole events, and padding",
    "azure-hcl": "padding",
    "azure-ak-certificate": "padding",
    "jws": "a signature, whose length its algorithm knows",
    "maa-claims": "the same, and the key here says yes",
    "gcp-claims": "the same",
    "gcp-endorsement": "read without its signature",
    "gcp-attestation": "the log, which need not be there",
    "cose-trust-key": "the line break after PEM",
    "certificates": "padding, and the line break after PEM",
    "der": "whole elements",
    "policy": "whole lines",
    "needs": "padding and signatures",
}


@pytest.mark.parametrize("name", TARGETS)
def test_parsers_at_every_length(name: str) -> None:
    target, whole = TARGETS[name], []
    for seed in target.minted():
        target.parse(seed)
        for length in range(len(seed)):
            try:
                target.parse(seed[:length])
            except target.allowed:
                continue
            whole.append(length)
    assert bool(whole) == (name in SHORTER), whole


def _corim_with(key: Any) -> bytes:
    environment = {0: {0: Tag(37, bytes.fromhex("d05e6d1b9f464ae2a610ce3e6ee7e153"))}}
    comid = {1: {0: "tag"}, 4: {0: [[environment, [{0: key, 1: {4: Tag(560, bytes(16))}}]]]}}
    payload = cbor_write({0: "corim", 1: [Tag(506, cbor_write(comid))]})
    return _sign1(cbor_write({1: -8}), payload)


def _sign1(protected: bytes, payload: bytes) -> bytes:
    return cbor_write(Tag(18, [protected, {}, payload, bytes(64)]))


def _nonce(text: str) -> bytes:
    return tokens.sign(tokens.maa_claims("sevsnpvm", NOW, bytes(32), {"x-ms-runtime/nonce": text}))


def _version_10() -> bytes:
    """A certificate of a version that there is not."""
    root = _der(gcp.root())
    at = root.index(b"\xa0\x03\x02\x01\x02") + 4
    der = base64.encodebytes(root[:at] + b"\x09" + root[at + 1 :])
    return b"-----BEGIN CERTIFICATE-----\n" + der + b"-----END CERTIFICATE-----\n"


_UNKNOWN_KEY = b"-----BEGIN PUBLIC KEY-----\nMAkwBwYDZW1wAwA=\n-----END PUBLIC KEY-----\n"
_SPACE = tokens.space_claims(NOW, nonce_forms(b"n" * 32)[1].decode(), {"swversion": ["9" * 5000]})
# What the fuzzer has found, made small: parser and input.
FOUND: Mapping[str, tuple[str, bytes]] = {
    "a curve that is a list": ("jwks", b'{"keys":[{"kid":"a","kty":"EC","crv":[],"x":"AQ","y":"AQ"}]}'),
    "half a surrogate pair": ("jws", _nonce("\ud800")),
    "half a surrogate pair, signed": ("maa-claims", _nonce("\ud800")),
    "a trust key of an unknown kind": ("cose-trust-key", _UNKNOWN_KEY),
    "a certificate of version 10": ("cose-trust-key", _version_10()),
    "an algorithm that is a list": ("cose-sign1", _sign1(cbor_write({1: []}), b"")),
    "a measurement key that is a list": ("corim", _corim_with([])),
    "a record that is no UTF-8": ("collateral-record", b'{"format":"\xff"}'),
    "a number of 5,000 digits": ("policy", b"id = " + b"9" * 5000),
    "brackets in an unknown member": ("tdx-tcb-info", b'{"a":' + b"[" * 3000),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_the_fuzzer_found(what: str) -> None:
    name, raw = FOUND[what]
    with pytest.raises(TARGETS[name].allowed):
        TARGETS[name].parse(raw)


def test_a_version_of_five_thousand_digits_is_no_version() -> None:
    """Found by the fuzzer too: a claim, so that a rule refuses it."""
    mismatches = TARGETS["gcp-claims"].parse(tokens.sign(_SPACE))
    assert isinstance(mismatches, bytes) and b"swversion" in mismatches
