"""The whole door: each platform under each kind of policy, one thing wrong at a time, all mismatches as data."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attest.appraise import Verified, appraise
from attest.attester import Collector, NoEvidence, evidence_for
from attest.binding import Claims, Expected, Phase, Role, ak_report_data, data_hash, encode_claims
from attest.errors import AppraisalFailed, AttestError, PolicyFormatError
from attest.evidence import (
    ENDORSEMENTS,
    HARDWARE,
    SNP_REPORT_TYPE,
    TPM2_QUOTE_TYPE,
    TPM_QUOTE,
    Evidence,
    Part,
    decode_evidence,
    encode_certificates,
    encode_evidence,
)
from attest.policy import EvidencePolicy, first_report_policy, parse_policy
from attest.schemes.sev_snp.verify import verify_report
from attest.schemes.vtpm.abi import Alg
from attest.testkit.pki import name, simulated_roots
from attest.testkit.snp import SimulatedSnpCollector, SnpPlatform
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import Verifier, policy_from_result

ROOT = Path(__file__).parents[2]
NOW = 1_799_999_000.0
CLAIMS = Claims(
    role=Role.SERVER, phase=Phase.POST_HANDSHAKE, node_id="spiffe://cube/agent/a1", not_after=1_800_000_000,
    boot_id=b"b" * 16, spki_hash=b"s" * 32, nonce=b"n" * 32, channel_binding=b"c" * 32, peer_spki_hash=b"p" * 32,
)  # fmt: skip
HASH = data_hash(encode_claims(CLAIMS))
EXPECTED = Expected(**{name: getattr(CLAIMS, name) for name in Expected.__struct_fields__})
TPM = SoftwareTpm()
SEED = b"machine"
SNP = SimulatedSnpCollector(SEED)
NONE_POLICY = parse_policy('id = "n"\n[none]\naccept_unattested_clients = true\n')


def _pinned(collector: Collector, platform: Any, **arguments: Any) -> EvidencePolicy:
    first = Verifier(first_report_policy(platform), allow_simulated=True)
    result = first.appraise(evidence_for(collector, CLAIMS), EXPECTED, now=NOW)
    return parse_policy(policy_from_result(result, policy_id="pinned", **arguments))


VTPM_POLICY, SNP_POLICY = _pinned(TPM, "vtpm"), _pinned(SNP, "sev-snp")


def _codes(policy: EvidencePolicy, raw: bytes, **arguments: Any) -> list[str]:
    with pytest.raises(AttestError) as caught:
        Verifier(policy, allow_simulated=True).appraise(raw, EXPECTED, now=NOW, **arguments)
    error = caught.value
    return [m.code for m in error.mismatches] if isinstance(error, AppraisalFailed) else [error.code]


def test_vtpm_result() -> None:
    raw = evidence_for(TPM, CLAIMS)
    result = Verifier(VTPM_POLICY).appraise(raw, EXPECTED, now=NOW)
    assert (result.verdict, result.platform, result.confidential, result.simulated) == ("accept", "vtpm", False, False)
    assert result.policy_id == "pinned" and result.policy_digest == VTPM_POLICY.digest
    assert (result.node_id, result.boot_id, result.expires) == (CLAIMS.node_id, CLAIMS.boot_id, 1_800_000_000.0)
    assert result.claims["pcr.sha256.7"] == "00" * 32 and result.claims["ak.name"].startswith("000b")
    again = Verifier(VTPM_POLICY).appraise(raw, EXPECTED, now=NOW + 1)
    assert again == result


def test_simulated_snp_result_says_so_and_needs_the_permission() -> None:
    raw = evidence_for(SNP, CLAIMS)
    result = Verifier(SNP_POLICY, allow_simulated=True).appraise(raw, EXPECTED, now=NOW)
    assert (result.platform, result.confidential, result.simulated) == ("simulated-sev-snp", False, True)
    assert result.claims["chip_id"] == SnpPlatform(SEED).hwid.hex()
    for policy in (SNP_POLICY, first_report_policy("sev-snp")):
        with pytest.raises(AttestError) as caught:
            Verifier(policy).appraise(raw, EXPECTED, now=NOW)
        assert caught.value.code == "untrusted_chain"


def test_a_policy_made_in_one_process_fits_the_same_seed_in_another() -> None:
    raw = evidence_for(SimulatedSnpCollector(SEED), CLAIMS)
    Verifier(SNP_POLICY, allow_simulated=True).appraise(raw, EXPECTED, now=NOW)
    assert _codes(SNP_POLICY, evidence_for(SimulatedSnpCollector(b"other"), CLAIMS)) == ["measurement", "chip_id"]


def test_confidential_is_said_of_real_hardware_without_debug_only() -> None:
    """As if AMD had signed: the same verified report, with the mark of the simulation taken off."""

    def confidential(simulated: bool, **fields: int) -> bool:
        raw = SNP.platform.report(HASH + bytes(32), **fields)
        report = verify_report(raw, [SNP.platform.leaf], NOW, simulated_roots())
        report = msgspec.structs.replace(report, simulated=simulated)
        verified = Verified(claims=CLAIMS, evidence_digest="", expires=NOW, report=report)
        return appraise(verified, _rules(unsafe_allow_debug=True)).confidential

    assert confidential(simulated=False)
    assert not confidential(simulated=True)
    assert not confidential(simulated=False, policy=0x30000 | 1 << 19)


def _evidence(*parts: tuple[int, str, bytes], claims: bytes = b"") -> bytes:
    return encode_evidence(Evidence(claims or encode_claims(CLAIMS), {key: Part(t, body) for key, t, body in parts}))


def _report(**changes: Any) -> bytes:
    """The SNP evidence with report fields changed, and the certificate that fits the report's TCB."""
    certificate = changes.pop("certificate", {})
    platform = SnpPlatform(SEED)
    report = platform.report(changes.pop("report_data", HASH + bytes(32)), **changes)
    leaf = platform.certificate(**certificate)
    endorsements = encode_certificates((leaf.public_bytes(Encoding.DER),))
    return _evidence((HARDWARE, SNP_REPORT_TYPE, report), (ENDORSEMENTS, endorsements.media_type, endorsements.body))


def _rules(**changes: Any) -> EvidencePolicy:
    assert SNP_POLICY.sev_snp is not None
    return msgspec.structs.replace(SNP_POLICY, sev_snp=msgspec.structs.replace(SNP_POLICY.sev_snp, **changes))


def _values(**changes: Any) -> EvidencePolicy:
    values = msgspec.structs.replace(SNP_POLICY.reference_values.sev_snp, **changes)
    references = msgspec.structs.replace(SNP_POLICY.reference_values, sev_snp=values)
    return msgspec.structs.replace(SNP_POLICY, reference_values=references)


TCB = SNP_POLICY.sev_snp.min_tcb if SNP_POLICY.sev_snp else None
assert TCB is not None
HIGHER = {name: msgspec.structs.replace(TCB, **{name: getattr(TCB, name) + 1}) for name in ("bootloader", "tee", "snp")}
APPRAISALS: dict[str, tuple[EvidencePolicy, bytes, list[str]]] = {
    "debug": (SNP_POLICY, _report(policy=0x30000 | 1 << 19), ["debug"]),
    "migration agent": (SNP_POLICY, _report(policy=0x30000 | 1 << 18), ["migrate_ma"]),
    "several sockets": (_rules(require_single_socket=True), _report(), ["single_socket"]),
    "measurement": (SNP_POLICY, _report(measurement=bytes(48)), ["measurement"]),
    "host data": (SNP_POLICY, _report(host_data=b"\x01" * 32), ["host_data"]),
    "VMPL": (SNP_POLICY, _report(vmpl=1), ["vmpl"]),
    "guest SVN": (SNP_POLICY, _report(guest_svn=0), ["guest_svn"]),
    "product": (_rules(products=("Genoa",)), _report(), ["product"]),
    "signing key": (_rules(signing_keys=("vlek",)), _report(), ["signing_key"]),
    "bootloader floor": (_rules(min_tcb=HIGHER["bootloader"]), _report(), ["tcb_floor"]),
    "tee floor": (_rules(min_tcb=HIGHER["tee"]), _report(), ["tcb_floor"]),
    "snp floor": (_rules(min_tcb=HIGHER["snp"]), _report(), ["tcb_floor"]),
    "launch floor": (_rules(min_launch_tcb=HIGHER["snp"]), _report(), ["launch_tcb_floor"]),
    "id key": (_values(id_key_digests=("11" * 48,)), _report(), ["id_key"]),
    "author key": (_values(author_key_digests=("11" * 48,)), _report(author_key_digest=b"\x11" * 48), ["author_key"]),
    "chip": (_values(chip_ids=("22" * 64,)), _report(), ["chip_id"]),
    "provider": (_values(csp_ids=("CN=x",)), _report(), ["csp_id"]),
    "all at once, in order": (
        SNP_POLICY, _report(policy=0x30000 | 3 << 18, vmpl=3, measurement=bytes(48), guest_svn=0),
        ["debug", "migrate_ma", "vmpl", "measurement", "guest_svn"],
    ),
    "report data of another": (SNP_POLICY, _report(report_data=bytes(64)), ["report_data"]),
    "report data with a tail": (SNP_POLICY, _report(report_data=HASH + b"\x01" * 32), ["report_data"]),
}  # fmt: skip


@pytest.mark.parametrize("case", APPRAISALS)
def test_snp_appraisal(case: str) -> None:
    policy, raw, codes = APPRAISALS[case]
    assert _codes(policy, raw) == codes


def test_appraisal_itself_refuses_what_has_no_rule() -> None:
    """``parse_policy`` refuses such policies; one made by hand must not read as "anything goes"."""
    for policy, code in (
        (_values(measurements=()), "measurement"),
        (_rules(products=()), "product"),
        (_rules(vmpl=()), "vmpl"),
        (_rules(signing_keys=()), "signing_key"),
        (_rules(min_tcb=None), "tcb_floor"),
    ):
        assert _codes(policy, _report()) == [code]
    values = msgspec.structs.replace(VTPM_POLICY.reference_values.vtpm, pcr_values={})
    references = msgspec.structs.replace(VTPM_POLICY.reference_values, vtpm=values)
    policy = msgspec.structs.replace(VTPM_POLICY, reference_values=references)
    assert _codes(policy, evidence_for(TPM, CLAIMS)) == ["pcr"] * 8


def test_the_rules_let_pass_what_they_name() -> None:
    verifier = Verifier(_values(id_key_digests=("11" * 48,), author_key_digests=("33" * 48,)), allow_simulated=True)
    raw = _report(id_key_digest=b"\x11" * 48, author_key_digest=b"\x33" * 48, flags=1)
    verifier.appraise(raw, EXPECTED, now=NOW)
    debug = Verifier(_rules(unsafe_allow_debug=True, unsafe_allow_migration=True), allow_simulated=True)
    assert debug.policy.unsafe == ("sev-snp.unsafe_allow_debug", "sev-snp.unsafe_allow_migration")
    debug.appraise(_report(policy=0x30000 | 3 << 18), EXPECTED, now=NOW)


def _tpm_evidence(body: bytes) -> bytes:
    return _evidence((TPM_QUOTE, TPM2_QUOTE_TYPE, body))


def _changed_tpm(bank: int = Alg.SHA256, **digests: bytes) -> SoftwareTpm:
    tpm = SoftwareTpm(pcrs={bank: range(8)})
    tpm.pcrs[bank] |= {int(name.removeprefix("pcr")): digest for name, digest in digests.items()}
    return tpm


VTPM_APPRAISALS: dict[str, tuple[bytes, list[str]]] = {
    "PCR value": (_tpm_evidence(_changed_tpm(pcr7=b"\x01" * 32).quote(HASH)), ["pcr"]),
    "two PCR values": (_tpm_evidence(_changed_tpm(pcr0=b"\x01" * 32, pcr7=b"\x01" * 32).quote(HASH)), ["pcr", "pcr"]),
    "AK": (_tpm_evidence(SoftwareTpm(b"another").quote(HASH)), ["ak_not_pinned"]),
    "PCRs fewer than the policy": (
        _tpm_evidence(SoftwareTpm(pcrs={Alg.SHA256: range(7)}).quote(HASH)), ["pcr_selection"],
    ),
    "another bank": (_tpm_evidence(SoftwareTpm(pcrs={Alg.SHA384: range(8)}).quote(HASH)), ["pcr_selection"] * 8),
    "quote of other claims": (_tpm_evidence(TPM.quote(bytes(32))), ["nonce_mismatch"]),
}  # fmt: skip


@pytest.mark.parametrize("case", VTPM_APPRAISALS)
def test_vtpm_appraisal(case: str) -> None:
    raw, codes = VTPM_APPRAISALS[case]
    assert _codes(VTPM_POLICY, raw) == codes


def test_more_pcrs_than_the_policy_are_welcome() -> None:
    policy = _pinned(TPM, "vtpm", pcrs=(0, 7))
    assert policy.vtpm is not None and policy.vtpm.pcrs == (0, 7)
    raw = _tpm_evidence(_changed_tpm(pcr3=b"\x01" * 32).quote(HASH))
    Verifier(policy).appraise(raw, EXPECTED, now=NOW)


def test_a_vtpm_alone_is_not_confidential_unless_the_policy_accepts_that_by_name() -> None:
    strict = msgspec.structs.replace(VTPM_POLICY, unsafe_accept_vtpm_only=False)
    raw = evidence_for(TPM, CLAIMS)
    with pytest.raises(AppraisalFailed) as caught:
        Verifier(strict).appraise(raw, EXPECTED, now=NOW)
    (mismatch,) = caught.value.mismatches
    assert (mismatch.code, mismatch.side, caught.value.code) == ("not_confidential", "policy", "not_confidential")


# -- an AK that a CA vouches for


def _issue(tpm: SoftwareTpm, end: dt.datetime, *, self_signed: bool = False) -> tuple[bytes, str]:
    """An AK certificate (DER) and the root (PEM) that it ends in."""
    ca = ec.derive_private_key(99, ec.SECP256R1())
    start, last = dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    root = x509.CertificateBuilder(name("root"), name("root"), ca.public_key(), 1, start, last)
    root = root.add_extension(x509.BasicConstraints(True, 0), True).add_extension(usage, True)
    leaf = x509.CertificateBuilder(name("root"), name("ak"), tpm.key.public_key(), 2, start, end)
    signed = leaf.sign(tpm.key if self_signed else ca, hashes.SHA256())
    return signed.public_bytes(Encoding.DER), root.sign(ca, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _certified(root: str, names: tuple[str, ...] = ()) -> EvidencePolicy:
    values = msgspec.structs.replace(VTPM_POLICY.reference_values.vtpm, ak_names=names, ak_roots=(root,))
    references = msgspec.structs.replace(VTPM_POLICY.reference_values, vtpm=values)
    return msgspec.structs.replace(VTPM_POLICY, reference_values=references)


def test_a_certified_ak() -> None:
    soon = dt.datetime.fromtimestamp(NOW + 100, dt.UTC)
    certificate, root = _issue(TPM, soon)
    policy, tpm = _certified(root), SoftwareTpm(certificates=(certificate,))
    result = Verifier(policy).appraise(evidence_for(tpm, CLAIMS), EXPECTED, now=NOW)
    assert result.expires == NOW + 100, "the certificate ends before the claims"
    raw = evidence_for(TPM, CLAIMS)
    assert Verifier(policy).appraise(raw, EXPECTED, now=NOW, endorsements=(certificate,)).expires == NOW + 100
    assert _codes(policy, raw) == ["ak_not_certified"]
    assert _codes(policy, evidence_for(SoftwareTpm(b"x", certificates=(certificate,)), CLAIMS)) == ["ak_not_certified"]
    forged, _ = _issue(TPM, soon, self_signed=True)
    assert _codes(policy, raw, endorsements=(forged,)) == ["untrusted_chain"]
    expired, _ = _issue(TPM, dt.datetime.fromtimestamp(NOW - 1, dt.UTC))
    assert _codes(policy, raw, endorsements=(expired,)) == ["certificate_expired"]
    both = _certified(root, names=("000b" + "00" * 32,))
    assert _codes(both, raw, endorsements=(certificate,)) == ["ak_not_pinned"]


# -- which parts may be there


def test_parts_are_exactly_those_of_the_policy() -> None:
    quote, report = TPM.parts(HASH)[TPM_QUOTE], SNP.parts(HASH)[HARDWARE]
    tpm, snp = (TPM_QUOTE, quote.media_type, quote.body), (HARDWARE, report.media_type, report.body)
    assert _codes(VTPM_POLICY, _evidence()) == ["part_missing"]
    assert _codes(SNP_POLICY, _evidence()) == ["part_missing"]
    assert _codes(VTPM_POLICY, _evidence(snp)) == ["part_missing"]
    assert _codes(VTPM_POLICY, _evidence(tpm, snp)) == ["part_unknown"]
    assert _codes(VTPM_POLICY, _evidence((TPM_QUOTE, "application/x", quote.body))) == ["part_unknown"]
    assert _codes(VTPM_POLICY, _evidence(tpm, (4, "application/eat+jwt", b"x"))) == ["part_unknown"]
    assert _codes(VTPM_POLICY, _evidence(tpm, (ENDORSEMENTS, "application/x", b"x"))) == ["part_unknown"]
    assert _codes(SNP_POLICY, _evidence((HARDWARE, TPM2_QUOTE_TYPE, quote.body))) == ["part_unknown"]
    assert _codes(SNP_POLICY, _evidence(snp)) == ["vcek_missing"]
    assert _codes(NONE_POLICY, _evidence(tpm)) == ["part_unknown"]


def test_endorsements_may_be_handed_in_instead() -> None:
    report = SNP.parts(HASH)[HARDWARE]
    raw = _evidence((HARDWARE, report.media_type, report.body))
    verifier = Verifier(SNP_POLICY, allow_simulated=True)
    assert verifier.appraise(raw, EXPECTED, now=NOW, endorsements=SNP.platform.endorsements).simulated


@pytest.mark.parametrize("body", [b"\x00", b"\x80", b"\x81\x40", b"\x81\x41\x00"])
def test_malformed_endorsements(body: bytes) -> None:
    report = SNP.parts(HASH)[HARDWARE]
    part = encode_certificates((b"x",))
    raw = _evidence((HARDWARE, report.media_type, report.body), (ENDORSEMENTS, part.media_type, body))
    assert _codes(SNP_POLICY, raw)[0] in ("malformed_evidence", "malformed_certificate")


# -- the combination of hardware and vTPM


class _Both:
    """A guest with SEV-SNP and a vTPM, whose report names the AK."""

    scheme = "sev-snp+vtpm"

    def __init__(self, named: SoftwareTpm) -> None:
        self.named = named

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        report = SNP.platform.report(ak_report_data(self.named.public(), data_hash))
        parts = SNP.parts(data_hash) | TPM.parts(data_hash)
        return parts | {HARDWARE: Part(SNP_REPORT_TYPE, report)}


def test_a_report_that_names_the_ak_makes_the_vtpm_trusted() -> None:
    text = """
        id = "both"
        [sev-snp]
        unsafe_any_tcb = true
        unsafe_any_measurement = true
        [vtpm]
        pcrs = [0]
        [reference_values.vtpm.pcr_values]
        0 = ["0000000000000000000000000000000000000000000000000000000000000000"]
    """
    policy = parse_policy(text)
    result = Verifier(policy, allow_simulated=True).appraise(evidence_for(_Both(TPM), CLAIMS), EXPECTED, now=NOW)
    assert result.platform == "simulated-sev-snp+vtpm" and {"measurement", "ak.name"} <= result.claims.keys()
    assert _codes(policy, evidence_for(_Both(SoftwareTpm(b"another")), CLAIMS)) == ["report_data"]
    parts = SNP.parts(HASH) | TPM.parts(HASH)
    unnamed = encode_evidence(Evidence(encode_claims(CLAIMS), parts))
    assert _codes(policy, unnamed) == ["report_data"]


# -- attester "none"


def test_none_is_for_clients_that_the_policy_accepts_by_name() -> None:
    client = msgspec.structs.replace(CLAIMS, role=Role.CLIENT, node_id="spiffe://cube/proxy/p1")
    expected = Expected(**{name: getattr(client, name) for name in Expected.__struct_fields__})
    raw = evidence_for(NoEvidence(), client)
    result = Verifier(NONE_POLICY).appraise(raw, expected, now=NOW)
    assert (result.platform, result.confidential, result.claims) == ("none", False, {})
    for policy in (VTPM_POLICY, SNP_POLICY):
        with pytest.raises(AttestError) as caught:
            Verifier(policy).appraise(raw, expected, now=NOW)
        assert caught.value.code == "part_missing"
    assert _codes(NONE_POLICY, evidence_for(NoEvidence(), CLAIMS)) == ["unattested_server"]
    with pytest.raises(ValueError, match="without evidence"):
        policy_from_result(result, policy_id="x")


# -- binding


def test_other_claims_under_a_genuine_quote() -> None:
    """The quote is genuine and for its claims; the claims are of another channel."""
    for change in (
        {"nonce": b"x" * 32},
        {"spki_hash": b"x" * 32},
        {"role": Role.CLIENT},
        {"node_id": "spiffe://x/agent/y"},
    ):
        raw = evidence_for(TPM, msgspec.structs.replace(CLAIMS, **change))
        assert _codes(VTPM_POLICY, raw) == ["binding_mismatch"]
    swapped = decode_evidence(evidence_for(TPM, msgspec.structs.replace(CLAIMS, nonce=b"x" * 32)))
    raw = encode_evidence(Evidence(encode_claims(CLAIMS), swapped.parts))
    assert _codes(VTPM_POLICY, raw) == ["nonce_mismatch"]


def test_time() -> None:
    raw = evidence_for(TPM, CLAIMS)
    for now in (1_800_000_000.0, 1_800_000_000.0 - 7201):
        with pytest.raises(AttestError) as caught:
            Verifier(VTPM_POLICY).appraise(raw, EXPECTED, now=now)
        assert caught.value.code == "stale"


def test_policy_from_result_refuses_an_id_that_breaks_out_of_its_line() -> None:
    result = Verifier(VTPM_POLICY).appraise(evidence_for(TPM, CLAIMS), EXPECTED, now=NOW)
    with pytest.raises(PolicyFormatError):
        policy_from_result(result, policy_id='x"\nunsafe_accept_vtpm_only = true\nid2 = "')


def test_production_never_loads_the_simulation() -> None:
    """Nor what reaches the world; a fresh interpreter says so (the name parser of cryptography loads ``socket``)."""
    code = """
import sys
from attest.policy import first_report_policy
from attest.verifier import Verifier
Verifier(first_report_policy("vtpm", "sev-snp"))
print([m for m in ("attest.testkit", "cube_mesh", "asyncio", "subprocess") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_nothing_but_attest_errors_from_damaged_evidence() -> None:
    raw = evidence_for(TPM, CLAIMS)
    verifier = Verifier(VTPM_POLICY)
    for at in range(len(raw)):
        for damaged in (raw[:at], raw[:at] + bytes((raw[at] ^ 0x80,)) + raw[at + 1 :]):
            with pytest.raises(AttestError):
                verifier.appraise(damaged, EXPECTED, now=NOW)
