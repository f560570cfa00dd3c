"""Launch endorsements, vTPM certificates and go-tpm-tools' messages: minted, wrong in one thing, and real."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from attest.chain import load_certificate
from attest.errors import AttestError, EndorsementUnavailable, MalformedEvidence
from attest.eventlog import parse_event_log, replay
from attest.schemes.gcp.attestation import parse_attestation
from attest.schemes.gcp.certificate import instance_of, verify_vtpm_certificate
from attest.schemes.gcp.endorsement import read_unverified, verify_endorsement
from attest.schemes.gcp.protobuf import fields_of, map_of, number, one
from attest.schemes.sev_snp.abi import parse_report
from attest.schemes.vtpm.abi import encode_quote_part
from attest.schemes.vtpm.eventlog import verify_event_log
from attest.schemes.vtpm.verify import verify_quote
from attest.testkit.gcp import ROOT_NAME, endorsement, field, golden, instance_certificate, root, signer_certificate
from attest.testkit.tokens import certificate, fixed_key

pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length must be")
NOW = 1_800_000_000.0
ROOTS = (root(),)
GOOD = endorsement()
WEAK, OTHER, AK_KEY = fixed_key("weak"), fixed_key("service-other"), fixed_key("vtpm-ak")


def test_accepted() -> None:
    verified = verify_endorsement(GOOD, NOW, roots=ROOTS)
    assert (verified.snp[4], verified.tdx[0].mrtd) == (b"\x04" * 48, b"\x0d" * 48)
    assert (verified.snp_svn, verified.tdx_svn, verified.timestamp) == (3, 2, 1_760_000_000)
    assert (verified.digest, verified.commit) == (hashlib.sha256(GOOD).hexdigest(), b"")
    assert verify_endorsement(endorsement(golden(tdx=())), NOW, roots=ROOTS).tdx == ()
    assert verify_endorsement(endorsement(golden(bundle=b"")), NOW, roots=ROOTS).snp == verified.snp
    assert verify_endorsement(endorsement(golden(commit=b"c" * 20)), NOW, roots=ROOTS).commit == b"c" * 20
    assert read_unverified(GOOD).snp == verified.snp


def test_a_signer_under_an_intermediate_of_the_bundle() -> None:
    between = certificate("between", AK_KEY, ROOT_NAME, OTHER, ca=True)
    content = golden(
        signer=certificate("signer", fixed_key(), "between", AK_KEY), bundle=between.public_bytes(Encoding.PEM)
    )
    assert verify_endorsement(endorsement(content), NOW, roots=ROOTS).snp_svn == 3


def test_googles_root_is_known_by_its_hash_whoever_hands_it_in(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = endorsement(golden(bundle=b""))
    for raw, certificates in ((GOOD, ROOTS), (bare, ROOTS), (bare, ())):
        with pytest.raises(EndorsementUnavailable) as caught:
            verify_endorsement(raw, NOW, certificates=certificates)
        assert caught.value.code == "launch_root_missing"
    monkeypatch.setattr("attest.schemes.gcp.endorsement.tcb_root_sha256", root().fingerprint(hashes.SHA256()).hex())
    assert verify_endorsement(GOOD, NOW) and verify_endorsement(bare, NOW, certificates=ROOTS)


REFUSED: dict[str, tuple[bytes, str]] = {
    "a root of its own in the bundle": (
        endorsement(golden(signer=certificate("signer", fixed_key()), bundle=b"")), "untrusted_chain",
    ),
    "EC signer": (
        field(1, golden(signer=signer_certificate(ec.derive_private_key(7, ec.SECP256R1())))) + field(2, b"x"),
        "key_strength",
    ),
    "measurement short": (endorsement(golden({4: b"\x04" * 47})), "malformed_evidence"),
    "vCPU count twice": (endorsement(golden([(4, b"\x04" * 48), (4, b"\x05" * 48)])), "malformed_evidence"),
    "no measurement": (endorsement(golden({}, tdx=())), "malformed_evidence"),
    "firmware digest short": (endorsement(golden(digest=b"x")), "malformed_evidence"),
    "long commit": (endorsement(golden(commit=bytes(65))), "malformed_evidence"),
    "bundle of nine": (
        endorsement(golden(bundle=root().public_bytes(Encoding.PEM) * 9)), "malformed_evidence",
    ),
    "certificate twice": (endorsement(golden(extra=field(4, b"x"))), "malformed_evidence"),
    "TDX entry is a number": (endorsement(golden(tdx=(), extra=field(8, field(2, 1)))), "malformed_evidence"),
    "no signature": (field(1, golden()), "malformed_evidence"),
    "signature twice": (GOOD + field(2, b"x"), "malformed_evidence"),
    "certificate is none": (field(1, field(4, b"x")) + field(2, b"x"), "malformed_certificate"),
    "empty": (b"", "malformed_evidence"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_one_thing_wrong(name: str) -> None:
    raw, code = REFUSED[name]
    with pytest.raises(AttestError) as caught:
        verify_endorsement(raw, NOW, roots=ROOTS)
    assert caught.value.code == code, caught.value


def test_a_bundle_is_counted_before_it_is_read() -> None:
    junk = b"x-----END CERTIFICATE-----" * 9
    with pytest.raises(MalformedEvidence, match="bundle of 9"):
        verify_endorsement(endorsement(golden(bundle=junk)), NOW, roots=ROOTS)
    with pytest.raises(MalformedEvidence):
        read_unverified(bytes(70_000))


def test_every_byte_of_an_endorsement_counts() -> None:
    for at in range(0, len(GOOD), 5):
        with pytest.raises(AttestError):
            verify_endorsement(GOOD[:at] + bytes((GOOD[at] ^ 4,)) + GOOD[at + 1 :], NOW, roots=ROOTS)
    for length in range(len(GOOD)):
        with pytest.raises(AttestError):
            verify_endorsement(GOOD[:length], NOW, roots=ROOTS)


@pytest.mark.parametrize(
    "raw", [b"\x00\x00", b"\x09" + bytes(8), b"\x0d" + bytes(4), b"\x0a\x02a", b"\x08", b"\x08" + b"\xff" * 9 + b"\x01"]
)
def test_protobuf_that_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        fields_of(raw)


def test_protobuf_fields() -> None:
    fields = fields_of(field(1, 300) + field(2, b"x") + field(2, b"y") + field(3, field(1, 7)))
    assert number(fields, 1) == 300 and number(fields, 9) == 0 and map_of(fields, 3) == {7: b""}
    assert one(fields, 9, b"d") == b"d"
    for call in (
        lambda: one(fields, 2),
        lambda: one(fields, 1),
        lambda: one(fields, 9),
        lambda: number(fields, 2),
        lambda: map_of(fields, 1),
        lambda: fields_of(field(1, 1) * 4097),
    ):
        with pytest.raises(MalformedEvidence):
            call()


@given(st.binary(max_size=80), st.integers(0, 400))
def test_any_bytes(raw: bytes, at: int) -> None:
    parsers: tuple[Any, ...] = (fields_of, parse_attestation, read_unverified)
    for parse in parsers:
        for candidate in (raw, GOOD[:at] + raw + GOOD[at:]):
            try:
                parse(candidate)
            except AttestError:
                continue


# -- certificates of instances -----------------------------------------------------------------------------------------

AK: Any = fixed_key("vtpm-ak")


def test_the_instance_of_a_certificate() -> None:
    instance, expires = verify_vtpm_certificate(AK.public_key(), [instance_certificate(AK)], NOW, ROOTS)
    assert (instance.zone, instance.project_number, instance.project_id) == ("zone-a", 7, "project")
    assert (instance.instance_id, instance.instance_name, expires) == (42, "vm-1", 1_900_000_000)
    with pytest.raises(AttestError) as caught:
        verify_vtpm_certificate(AK.public_key(), [instance_certificate(AK)], NOW)
    assert caught.value.code == "untrusted_chain"


@pytest.mark.parametrize(
    "value",
    [b"\x30\x18\x0c\x01a\x02\x0a\x01" + bytes(9) + b"\x0c\x01a\x02\x01\x01\x0c\x01a",
     b"\x05\x00", b"\x30\x00", b"\x30\x01", b"\x30\x03\x0c\x01a", b"\x30\x00\x30\x00",
     b"\x30\x0f\x0c\x01\xff\x02\x01\x01\x0c\x01a\x02\x01\x01\x0c\x01a"],
)  # fmt: skip
def test_instances_that_are_none(value: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        instance_of(instance_certificate(AK, value))
    assert instance_of(instance_certificate(AK, b"")) is None


@pytest.mark.parametrize("name", ["akcert.pem", "ekcert.pem"])
def test_real_certificates(vectors: Path, name: str) -> None:
    leaf = load_certificate((vectors / "gcp/salrashid-vtpm" / name).read_bytes())
    key: Any = leaf.public_key()
    instance, _ = verify_vtpm_certificate(key, [leaf], 1_795_000_000.0)
    assert (instance.project_id, instance.instance_id) == ("core-eso", 6524697943022743941)


# -- go-tpm-tools ------------------------------------------------------------------------------------------------------


def test_the_real_attestation_of_a_gce_machine(vectors: Path) -> None:
    found = parse_attestation((vectors / "gcp/go-tpm-tools/gce-cos-85-nonce9009.pb").read_bytes())
    nonce = bytes.fromhex("9009")
    strong = [quote for quote in found.quotes if 4 not in quote.pcrs]
    assert len(found.quotes) == 3 and len(strong) == 2
    for part in strong:
        quote = verify_quote(encode_quote_part(part), nonce)
        log = verify_event_log(found.event_log, quote)
        assert log.covered == tuple(range(10))
    (weak,) = (quote for quote in found.quotes if 4 in quote.pcrs)
    with pytest.raises(AttestError) as caught:
        verify_quote(encode_quote_part(weak), nonce)
    assert caught.value.code == "pcr_bank"
    quote = verify_quote(encode_quote_part(weak), nonce, unsafe_allow_sha1=True)
    assert quote.weak and verify_event_log(found.event_log, quote).bank == "sha1"
    instance, _ = verify_vtpm_certificate(quote.key, [load_certificate(found.ak_certificate)], 1_795_000_000.0)
    assert instance.instance_name == "cos-test"
    assert replay(parse_event_log(found.event_log), 4)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        field(1, b"k"),
        field(1, b"k") + field(2, 1),
        field(1, b"k") + field(2, b"") * 9,
        field(1, b"k") + field(2, field(1, b"q") + field(2, b"s") + field(3, field(1, 11) + field(2, field(2, b"x")))),
        bytes((1 << 20) + 1),
    ],
)
def test_attestations_that_are_none(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        parse_attestation(raw)


def test_the_synthetic_endorsement_of_the_vectors(vectors: Path) -> None:
    """Made with gce-tcb-verifier's development keys: endorses the measurement of a report, not for Google's root."""
    folder = vectors / "gcp/gce-tcb-verifier"
    raw, dev_root = (folder / "synthetic_endorsement.binarypb").read_bytes(), (folder / "root.crt").read_bytes()
    verified = verify_endorsement(raw, 1_795_000_000.0, roots=[load_certificate(dev_root)])
    assert verified.snp_policy == 0x70000
    ((vcpus, measurement),) = verified.snp.items()
    assert vcpus == 4
    with pytest.raises(EndorsementUnavailable):
        verify_endorsement(raw, 1_795_000_000.0, certificates=[load_certificate(dev_root)])
    reports = [path for path in (vectors / "snp").rglob("*.bin") if path.stat().st_size == 1184]
    assert any(parse_report(path.read_bytes()).measurement == measurement for path in reports)
