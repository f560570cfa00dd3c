"""Launch endorsements and instances by policy: what accepted ones say, who may hand them in, and in files."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from attest.appraise import AttestationResult
from attest.errors import PolicyFormatError
from attest.offline import Case, Verdict, judge
from attest.policy import parse_policy
from attest.policy_diff import diff_policies
from attest.schemes.gcp.attestation import parse_attestation
from attest.schemes.gcp.endorsement import read_unverified
from attest.schemes.gcp.roots import vtpm_roots
from attest.schemes.sev_snp.abi import parse_report
from attest.schemes.tdx.abi import parse_quote
from attest.schemes.vtpm.abi import Alg
from attest.show import show
from attest.testkit.gcp import endorsement, golden, root, root_pem, signer_certificate

from ..conftest import NOW
from .test_negatives import COUNTS, MR_TD, ON_TDX, SNP, SNP_TABLES, TDX_TABLES, Launched, _minted

pytestmark = [
    pytest.mark.filterwarnings("ignore:Attribute's length must be"),
    pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive"),
]

FOREIGN = endorsement(golden({4: b"\x05" * 48}))


def _accepted(**changes: Any) -> AttestationResult:
    return Launched("", **changes).appraise()


def test_claims_of_an_accepted_launch() -> None:
    sent = _minted(commit=b"\xc0" * 20)
    claims = _accepted(sent=sent, rules="min_svn = 3\nvcpus = [4, 8]").claims
    unsigned = read_unverified(sent)
    assert {name: value for name, value in claims.items() if name.startswith("launch_endorsement")} == {
        "launch_endorsement.digest": unsigned.digest,
        "launch_endorsement.timestamp": "1760000000",
        "launch_endorsement.changelist": "12345",
        "launch_endorsement.commit": "c0" * 20,
        "launch_endorsement.firmware_digest": "0f" * 48,
        "launch_endorsement.svn": "3",
        "launch_endorsement.vcpus": "4",
    }
    of_td = _accepted(**ON_TDX).claims
    assert (of_td["launch_endorsement.svn"], of_td["launch_endorsement.ram_gib"]) == ("2", "0")
    assert of_td["launch_endorsement.early_accept"] == "true" and "launch_endorsement.vcpus" not in of_td


def test_the_result_ends_with_the_signers_certificate() -> None:
    short = _minted(signer=signer_certificate(end=NOW + 5))
    assert _accepted(sent=short).expires == NOW + 5 < _accepted().expires


def test_the_one_that_names_the_measurement_counts_whoever_hands_it_in() -> None:
    assert _accepted(sent=None, handed_in=(FOREIGN, _minted())).claims["launch_endorsement.vcpus"] == "4"
    assert _accepted(sent=FOREIGN, handed_in=(_minted(),)).claims["launch_endorsement.vcpus"] == "4"
    assert _accepted(sent=_minted(), handed_in=(FOREIGN,)).claims["launch_endorsement.vcpus"] == "4"


def test_listed_measurements_must_hold_beside_the_endorsement() -> None:
    for tables, listed in ((SNP_TABLES, "measurements"), (TDX_TABLES, "mr_td")):
        own = SNP.measurement if tables == SNP_TABLES else MR_TD
        rules = {"rules": "min_svn = 2"}
        assert _accepted(tables=tables + f"{listed} = ['{own.hex()}']\n", **rules)
        with pytest.raises(Exception, match=f"{'mr_td' if tables == TDX_TABLES else 'measurement'}: expected 0505"):
            _accepted(tables=tables + f"{listed} = ['{'05' * 48}']\n", **rules)


def test_an_endorsement_that_nobody_asks_for_is_not_looked_at() -> None:
    plain = "[sev-snp]\nunsafe_any_tcb = true\nunsafe_any_measurement = true\n#{rules}{root}\n"
    result = _accepted(tables=plain, sent=b"nothing", rules="", root="")
    assert not any(name.startswith("launch_endorsement") for name in result.claims)


HEAD = 'id = "p"\n[sev-snp]\nunsafe_any_tcb = true\n'
RULES = HEAD + "[sev-snp.launch_endorsement]\n{0}\n"
ROOTS = f"[reference_values.sev-snp]\nlaunch_roots = [{json.dumps(root_pem())}]\n"
UNUSABLE = {
    "no svn": (RULES.format("vcpus = [4]"), "min_svn"),
    "svn of none": (RULES.format("min_svn = 0"), "min_svn"),
    "empty": (RULES.format(""), "launch_endorsement: is empty"),
    "no vCPUs": (RULES.format("min_svn = 1\nvcpus = []"), "vcpus: is empty"),
    "unknown key": (RULES.format("min_svn = 1\nvcpu = 4"), "vcpu"),
    "any measurement": (
        RULES.format("min_svn = 1").replace("tcb = true", "tcb = true\nunsafe_any_measurement = true"),
        "measurements or launch_endorsement",
    ),
    "roots without rule": (HEAD + "unsafe_any_measurement = true\n" + ROOTS, "without sev-snp.launch_endorsement"),
    "a root that is none": (
        RULES.format("min_svn = 1") + "[reference_values.sev-snp]\nlaunch_roots = ['x']\n", "not a PEM certificate",
    ),
    "TDX with vCPUs": (
        'id = "p"\n[tdx]\nunsafe_any_rtmrs = true\n[tdx.launch_endorsement]\nmin_svn = 1\nvcpus = [4]\n', "vcpus",
    ),
    "TDX, any MRTD": (
        'id = "p"\n[tdx]\nunsafe_any_rtmrs = true\nunsafe_any_mr_td = true\n[tdx.launch_endorsement]\nmin_svn = 1\n',
        "mr_td or launch_endorsement",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_policies_that_cannot_be_used(name: str) -> None:
    text, words = UNUSABLE[name]
    with pytest.raises(PolicyFormatError, match=words.replace(".", r"\.")):
        parse_policy(text)


def test_a_rule_more_is_stricter() -> None:
    one, two, three = (
        parse_policy(text + f"[reference_values.sev-snp]\nmeasurements = ['{'05' * 48}']\n")
        for text in (HEAD, RULES.format("min_svn = 1"), RULES.format("min_svn = 2\nvcpus = [4]"))
    )
    for before, after in ((one, two), (two, three)):
        assert {change.direction for change in diff_policies(before, after)} == {"stricter"}
        assert {change.direction for change in diff_policies(after, before)} == {"looser"}


# -- in files ----------------------------------------------------------------------------------------------------------


def _judge(vectors: Path, *files: bytes, policy: str = "", **changes: Any) -> Verdict:
    """A real report of a machine of Google's."""
    folder = vectors / "snp/teekit-gcp"
    case = Case(
        scheme="sev-snp",
        evidence=(folder / "sev-gcp-reportdata.bin").read_bytes(),
        now=1_795_000_000.0,
        endorsements=((folder / "sev-gcp-vcek.pem").read_bytes(), *files),
        policy=parse_policy(policy) if policy else None,
    )
    return judge(case.__class__(**{name: getattr(case, name) for name in case.__struct_fields__} | changes))


def _endorsing(vectors: Path, **changes: Any) -> bytes:
    report = parse_report((vectors / "snp/teekit-gcp/sev-gcp-reportdata.bin").read_bytes())
    return endorsement(golden({8: report.measurement}, **changes))


def test_a_real_report_and_a_minted_endorsement(vectors: Path) -> None:
    policy = RULES.format("min_svn = 3\nvcpus = [8]").replace("tcb = true", "tcb = true\nvmpl = [0, 1]") + ROOTS
    verdict = _judge(vectors, _endorsing(vectors), policy=policy)
    assert verdict.verdict == "accept", verdict
    assert verdict.claims["launch_endorsement.vcpus"] == "8"
    assert _judge(vectors, policy=policy).reason == "launch_endorsement_missing"
    assert _judge(vectors, FOREIGN, policy=policy).reason == "measurement_not_endorsed"
    assert _judge(vectors, _endorsing(vectors, svn=2), policy=policy).reason == "launch_svn"


def test_the_built_in_policy_looks_at_what_is_handed_in(vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _judge(vectors, _endorsing(vectors)).reason == "launch_root_missing"
    monkeypatch.setattr("attest.schemes.gcp.endorsement.tcb_root_sha256", root().fingerprint(hashes.SHA256()).hex())
    own_root = root().public_bytes(Encoding.DER)
    verdict = _judge(vectors, _endorsing(vectors), own_root)
    assert verdict.verdict == "accept" and verdict.claims["launch_endorsement.svn"] == "3"
    assert _judge(vectors, FOREIGN, own_root).reason == "measurement_not_endorsed"
    assert _judge(vectors, FOREIGN, own_root, verify_only=True).reason == "ok"


def test_an_endorsement_without_a_rule_is_said_to_be_unread(vectors: Path) -> None:
    plain = HEAD + "unsafe_any_measurement = true\nvmpl = [0, 1]\n"
    verdict = _judge(vectors, _endorsing(vectors), policy=plain)
    assert verdict.verdict == "accept"
    assert "launch endorsement: no rule of the policy asks for one" in verdict.unchecked
    assert "sev-snp" in _judge(vectors, _endorsing(vectors), policy='id = "t"\n[schemes.x]\nkey = 1\n').detail


def test_a_real_quote_and_a_minted_endorsement(vectors: Path) -> None:
    rows = json.loads((vectors / "cases.json").read_text())
    row = next(row for row in rows if row["scheme"] == "tdx" and row["default"] == "accept" and row["now"] > "2025")
    quote, collateral = ((vectors / name).read_bytes() for name in (row["evidence"], *row["endorsements"]))
    measured = parse_quote(quote).report.mr_td
    sent = endorsement(golden({}, tdx=[(0, 0, measured), (64, 0, measured)]))
    now = dt.datetime.fromisoformat(row["now"]).timestamp()

    def verdict(*files: bytes, svn: int = 0) -> Verdict:
        policy = parse_policy(
            f'id = "t"\n[tdx]\nunsafe_any_rtmrs = true\n[tdx.launch_endorsement]\nmin_svn = {svn}\n'
            f"[reference_values.tdx]\nlaunch_roots = [{json.dumps(root_pem())}]\n"
        ) if svn else None  # fmt: skip
        return judge(Case(scheme="tdx", evidence=quote, now=now, endorsements=(collateral, *files), policy=policy))

    assert verdict(sent, svn=2).claims["launch_endorsement.ram_gib"] == "0, 64"
    assert verdict(sent, svn=3).reason == "launch_svn"
    assert verdict(svn=2).reason == "launch_endorsement_missing"
    assert verdict(sent).reason == "launch_root_missing"


def test_show_decodes_an_endorsement() -> None:
    shown = show(_minted(commit=b"\xc0" * 20))
    assert (shown["format"], shown["verified"]) == ("gce-launch-endorsement", False)
    assert (shown["content"]["snp_svn"], shown["content"]["commit"]) == (3, "c0" * 20)
    assert shown["content"]["snp"] == {str(count): measured.hex() for count, measured in COUNTS.items()}


def test_a_quote_of_a_real_instance_by_its_certificate(vectors: Path) -> None:
    """The attestation that go-tpm-tools has of a machine of Google's, its AK certified by Google."""
    found = parse_attestation((vectors / "gcp/go-tpm-tools/gce-cos-85-nonce9009.pb").read_bytes())
    part = next(quote for quote in found.quotes if Alg.SHA256 in quote.pcrs)
    pcrs = {"sha256": {str(index): value.hex() for index, value in part.pcrs[Alg.SHA256].items()}}
    roots = [certificate.public_bytes(Encoding.PEM).decode() for certificate in vtpm_roots()]

    def verdict(name: str) -> Verdict:
        policy = parse_policy(
            'id = "v"\nunsafe_accept_vtpm_only = true\n[vtpm]\npcrs = [0]\nunsafe_any_pcr_values = true\n'
            f"[reference_values.vtpm]\nak_roots = {json.dumps(roots)}\n"
            f'[reference_values.vtpm.gce]\ninstance_names = ["{name}"]\n'
        )
        return judge(
            Case(
                scheme="vtpm", evidence=part.attest, signature=part.signature, ak=part.ak_public, now=1_795_000_000.0,
                pcrs=json.dumps(pcrs).encode(), endorsements=(found.ak_certificate,), policy=policy,
            )
        )  # fmt: skip

    assert verdict("cos-test").claims["gce.instance_name"] == "cos-test"
    other = verdict("cos-test-2")
    assert (other.reason, [m.claim for m in other.mismatches]) == ("gce_instance_name", ["gce.instance_name"])
