"""All of, any of: which evidence which tree accepts, what each failure carries, and every way to write one wrongly."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest.appraise import AttestationResult
from attest.attester import evidence_for
from attest.composition import MAX_BRANCHES
from attest.errors import AppraisalFailed, AttestError, BindingMismatch, PolicyFormatError, VerificationFailed
from attest.evidence import HARDWARE, Evidence, Part, decode_evidence, encode_evidence
from attest.explain import explain
from attest.export import ear_claims, ear_refusal
from attest.offline import Case, judge
from attest.policy import EvidencePolicy, load_policy, parse_policy
from attest.testkit.snp import SimulatedSnpCollector, SnpPlatform
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import Verifier

from .conftest import CLAIMS, NOW

EXPECTED_FIELDS = ("role", "phase", "node_id", "spki_hash", "nonce", "channel_binding", "peer_spki_hash")
ONE, TWO = SimulatedSnpCollector(b"one"), SimulatedSnpCollector(b"two")
TPM = SoftwareTpm()


def _expected(**changes: Any) -> Any:
    from attest.binding import Expected

    return Expected(**{name: getattr(CLAIMS, name) for name in EXPECTED_FIELDS} | changes)


def _snp(name: str, platform: SnpPlatform, *, at: str = "any_of", extra: str = "") -> str:
    return (
        f'[[{at}]]\nid = "{name}"\n[{at}.sev-snp]\n{extra}'
        "min_tcb = { bootloader = 0, tee = 0, snp = 0, microcode = 0 }\n"
        f'[{at}.reference_values.sev-snp]\nmeasurements = ["{platform.measurement.hex()}"]\n'
    )


def _vtpm(name: str, at: str = "any_of") -> str:
    return (
        f'[[{at}]]\nid = "{name}"\nunsafe_accept_vtpm_only = true\n[{at}.vtpm]\npcrs = [7]\nunsafe_any_ak = true\n'
        f'[{at}.reference_values.vtpm.pcr_values]\n7 = ["{"00" * 32}"]\n'
    )


FLEET = 'id = "fleet"\n' + _snp("one", ONE.platform) + _snp("two", TWO.platform) + _vtpm("tpm")


def _appraise(policy: EvidencePolicy, raw: bytes, **changes: Any) -> AttestationResult:
    return Verifier(policy, allow_simulated=True).appraise(raw, _expected(**changes), now=NOW)


@pytest.mark.parametrize(("collector", "branch"), [(ONE, "one"), (TWO, "two"), (TPM, "tpm")])
def test_the_result_names_the_branch(collector: Any, branch: str) -> None:
    policy = parse_policy(FLEET)
    result = _appraise(policy, evidence_for(collector, CLAIMS))
    assert (result.branch, result.policy_id, result.policy_digest) == (branch, "fleet", policy.digest)
    assert policy.unsafe == ("tpm: unsafe_accept_vtpm_only", "tpm: vtpm.unsafe_any_ak")
    submod = ear_claims(result, policy, issued_at=NOW)["submods"][result.platform]
    assert submod["cube-mesh.branch"] == branch
    assert submod["cube-mesh.unsafe"] == list(policy.unsafe_of(branch)) and (branch == "tpm") == bool(
        submod["cube-mesh.unsafe"]
    )


def test_a_refusal_carries_all_mismatches_of_all_branches() -> None:
    policy = parse_policy(FLEET)
    with pytest.raises(AppraisalFailed) as caught:
        _appraise(policy, evidence_for(SimulatedSnpCollector(b"three"), CLAIMS))
    found = [(m.branch, m.code) for m in caught.value.mismatches]
    assert found == [("one", "measurement"), ("two", "measurement"), ("tpm", "part_missing")]
    refusal = ear_refusal(caught.value, policy, issued_at=NOW)["submods"]["evidence"]
    assert [m["branch"] for m in refusal["cube-mesh.mismatches"]] == ["one", "two", "tpm"]


def test_evidence_that_verifies_under_no_branch_is_no_appraisal_failure() -> None:
    evidence = decode_evidence(evidence_for(ONE, CLAIMS))
    part = evidence.parts[HARDWARE]
    body = bytearray(part.body)
    body[0x90] ^= 1
    parts = {**evidence.parts, HARDWARE: Part(part.media_type, bytes(body))}
    with pytest.raises(VerificationFailed) as caught:
        _appraise(parse_policy(FLEET), encode_evidence(Evidence(evidence.claims, parts)))
    assert [m.branch for m in caught.value.mismatches] == ["one", "two", "tpm"]
    assert not isinstance(caught.value, AppraisalFailed)


def test_the_binding_is_no_matter_of_branches() -> None:
    with pytest.raises(BindingMismatch) as caught:
        _appraise(parse_policy(FLEET), evidence_for(ONE, CLAIMS), node_id="spiffe://cube/agent/other")
    assert caught.value.mismatches == ()


ALL = 'id = "all"\n' + _snp("hw", ONE.platform, at="all_of") + _vtpm("boot", "all_of")


class Both:
    """Hardware and vTPM, bound to each other as on one machine."""

    scheme = "both"

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        from attest.binding import ak_report_data
        from attest.evidence import ENDORSEMENTS, SNP_REPORT_TYPE, TPM_QUOTE, encode_certificates
        from attest.schemes.vtpm.abi import decode_quote_part

        quote = TPM.parts(data_hash)[TPM_QUOTE]
        data = ak_report_data(decode_quote_part(quote.body).ak_public, data_hash)
        report = ONE.platform.report(data)
        endorsements = encode_certificates(ONE.platform.endorsements)
        return {HARDWARE: Part(SNP_REPORT_TYPE, report), TPM_QUOTE: quote, ENDORSEMENTS: endorsements}


def test_all_of_asks_for_both_parts() -> None:
    policy = parse_policy(ALL)
    result = _appraise(policy, evidence_for(Both(), CLAIMS))
    assert (result.branch, result.platform) == ("hw+boot", "simulated-sev-snp+vtpm")
    for alone in (ONE, TPM):
        with pytest.raises(AttestError) as caught:
            _appraise(policy, evidence_for(alone, CLAIMS))
        assert caught.value.code == "part_missing"


def test_all_of_the_same_table_compares_with_both() -> None:
    text = 'id = "a"\n' + _snp("one", ONE.platform, at="all_of")
    policy = parse_policy(text + _snp("two", ONE.platform, at="all_of", extra="vmpl = [1]\n"))
    assert [len(branch.views) for branch in policy.branches] == [2]
    with pytest.raises(AppraisalFailed) as caught:
        _appraise(policy, evidence_for(ONE, CLAIMS))
    assert [(m.branch, m.code) for m in caught.value.mismatches] == [("one+two", "vmpl")]
    both = parse_policy(text + _snp("two", ONE.platform, at="all_of", extra="vmpl = [0, 1]\n"))
    assert _appraise(both, evidence_for(ONE, CLAIMS)).branch == "one+two"


def test_nested() -> None:
    text = 'id = "n"\n[[any_of]]\nid = "eu"\n' + _snp("a", ONE.platform, at="any_of.any_of")
    text += _snp("b", TWO.platform, at="any_of.any_of") + _vtpm("lab")
    policy = parse_policy(text)
    assert [branch.id for branch in policy.branches] == ["eu/a", "eu/b", "lab"]
    assert _appraise(policy, evidence_for(TWO, CLAIMS)).branch == "eu/b"


WRONG = {
    "empty": ('id = "x"\nany_of = []\n', "is empty"),
    "empty all": ('id = "x"\nall_of = []\n', "is empty"),
    "a member without anything": ('id = "x"\n[[any_of]]\nid = "m"\n', "no evidence"),
    "a member without id": ('id = "x"\n' + _snp("m", ONE.platform).replace('id = "m"\n', ""), "id"),
    "unknown key": ('id = "x"\n' + _snp("m", ONE.platform, extra="odd = 1\n"), "odd"),
    "unknown operator": ('id = "x"\n' + _snp("m", ONE.platform, at="one_of"), "one_of"),
    "lifetime in a member": ('id = "x"\n[[any_of]]\nid = "m"\nmax_lifetime_s = 60\n', "max_lifetime_s"),
    "same id twice": ('id = "x"\n' + _snp("m", ONE.platform) * 2, "same id"),
    "tables beside": (FLEET + "[vtpm]\npcrs = [0]\nunsafe_any_ak = true\n", "one of them"),
    "values beside": (FLEET + '[reference_values.vtpm]\nak_names = ["000b' + "00" * 32 + '"]\n', "one of them"),
    "unsafe beside": ("unsafe_accept_vtpm_only = true\n" + FLEET, "one of them"),
    "both": (FLEET + _vtpm("q", "all_of"), "one of them"),
    "none": (FLEET + '[[any_of]]\nid = "n"\n[any_of.none]\naccept_unattested_clients = true\n', "any client"),
    "stray values": (
        'id = "x"\n' + _vtpm("m", "all_of") + '[all_of.reference_values.tdx]\nmr_td = ["' + "00" * 48 + '"]\n',
        "not asked for",
    ),
    "too many": ('id = "x"\n' + "".join(_vtpm(f"m{n}") for n in range(MAX_BRANCHES + 1)), "ways"),
    "one scheme twice": (
        'id = "x"\n' + "".join(f'[[all_of]]\nid = "{n}"\n[all_of.schemes.s]\nkey = 1\n' for n in "ab"), "same name",
    ),
    "too many views": ('id = "x"\n' + "".join(_vtpm(f"m{n}", "all_of") for n in range(5)), "same table"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_written_wrongly(case: str) -> None:
    text, word = WRONG[case]
    with pytest.raises(PolicyFormatError, match=word):
        parse_policy(text)


def test_nesting_has_a_bound() -> None:
    def text(depth: int, at: str = "any_of") -> str:
        return _vtpm("m", at) if depth == 1 else f'[[{at}]]\nid = "m"\n' + text(depth - 1, f"{at}.any_of")

    assert parse_policy('id = "x"\n' + text(4)).branches[0].id == "m/m/m/m"
    with pytest.raises(PolicyFormatError, match="nested"):
        parse_policy('id = "x"\n' + text(5))


def test_a_product_is_bounded_while_it_grows() -> None:
    pair = "".join(_vtpm(name, "all_of.any_of") for name in "abc")
    members = "".join(f'[[all_of]]\nid = "m{n}"\n{pair}' for n in range(3))
    with pytest.raises(PolicyFormatError, match="ways"):
        parse_policy('id = "x"\n' + members)


@given(st.permutations(["one", "two", "tpm"]))
def test_order_decides_names_but_not_acceptance(order: list[str]) -> None:
    texts = {"one": _snp("one", ONE.platform), "two": _snp("two", TWO.platform), "tpm": _vtpm("tpm")}
    policy = parse_policy('id = "p"\n' + "".join(texts[name] for name in order))
    assert _appraise(policy, _ONE_RAW).branch == "one"


_ONE_RAW = evidence_for(ONE, CLAIMS)


def test_offline() -> None:
    strict = parse_policy(FLEET)
    raw = _ONE_RAW
    answer = judge(Case(scheme="bundle", evidence=raw, now=NOW, policy=strict))
    assert answer.verdict == "reject"  # the testkit's root is not AMD's
    assert [m.branch for m in answer.mismatches] == ["one", "two", "tpm"]
    tpm = judge(Case(scheme="bundle", evidence=evidence_for(TPM, CLAIMS), now=NOW, policy=strict))
    assert (tpm.verdict, tpm.branch, tpm.policy_id) == ("accept", "tpm", "fleet")
    only = judge(Case(scheme="bundle", evidence=evidence_for(TPM, CLAIMS), now=NOW, policy=strict, verify_only=True))
    assert (only.verdict, only.branch) == ("accept", "")
    words = explain(judge(Case(scheme="bundle", evidence=evidence_for(Both(), CLAIMS), now=NOW, policy=strict)))
    assert "branch:   two" in words and "genuine" not in words
    assert "by its branch tpm" in explain(tpm)


# -- files of reference values -----------------------------------------------------------------------------------------

VALUES = f'id = "image-1"\n[sev-snp]\nmeasurements = ["{ONE.platform.measurement.hex()}"]\n'
MORE = f'[sev-snp]\nmeasurements = ["{TWO.platform.measurement.hex()}"]\n'
RULES = 'id = "p"\n{files}\n[sev-snp]\nmin_tcb = {{ bootloader = 0, tee = 0, snp = 0, microcode = 0 }}\n'


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_files_by_id_and_digest(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(VALUES)
    (tmp_path / "b.toml").write_text(MORE)
    entries = f'{{ id = "image-1", file = "a.toml", sha256 = "{_sha(VALUES)}" }}, {{ id = "b", file = "b.toml" }}'
    (tmp_path / "p.toml").write_text(RULES.format(files=f"reference_values_files = [{entries}]"))
    policy = load_policy(tmp_path / "p.toml")
    assert policy.reference_files == {"image-1": _sha(VALUES), "b": _sha(MORE)}
    for collector in (ONE, TWO):
        result = _appraise(policy, evidence_for(collector, CLAIMS))
        assert result.reference_values == policy.reference_files and result.branch == ""


WRONG_FILES = {
    "another id": ('[{ id = "image-2", file = "a" }]', "id image-1, not image-2"),
    "another content": ('[{ id = "image-1", file = "a", sha256 = "' + "0" * 64 + '" }]', "SHA-256"),
    "no id": ('[{ file = "a" }]', "id"),
    "unknown key": ('[{ id = "image-1", file = "a", md5 = "0" }]', "md5"),
    "missing": ('[{ id = "image-1", file = "c" }]', "not handed in"),
    "no list": ('"a"', "Expected"),
    "empty": ("[]", "is empty"),
    "two with one id": ('[{ id = "image-1", file = "a" }, { id = "image-1", file = "b" }]', "have the id"),
    "values twice": ('[{ id = "image-1", file = "a" }]\nreference_values_file = "a"', "stand in the policy or"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_files_wrongly(case: str) -> None:
    files, word = WRONG_FILES[case]
    with pytest.raises(PolicyFormatError, match=word):
        parse_policy(RULES.format(files=f"reference_values_files = {files}"), files={"a": VALUES, "b": MORE})


def test_a_member_has_its_own_file(tmp_path: Path) -> None:
    member = '[[any_of]]\nid = "m"\nreference_values_file = "a.toml"\n[any_of.sev-snp]\nunsafe_any_tcb = true\n'
    (tmp_path / "a.toml").write_text(VALUES)
    (tmp_path / "p.toml").write_text('id = "p"\n' + member + _vtpm("tpm"))
    policy = load_policy(tmp_path / "p.toml")
    assert list(policy.reference_files) == ["image-1"]
    assert _appraise(policy, _ONE_RAW).branch == "m"
