"""Policies: what is accepted, and each way to be unusable, by the word that tells the operator."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from attest.errors import PolicyFormatError
from attest.policy import first_report_policy, load_policy, parse_policy

NAME = "000b" + "ab" * 32
VALUE = "cd" * 32
VTPM = f"""
id = "p"
[vtpm]
pcrs = [0, 7]
[reference_values.vtpm]
ak_names = ["{NAME}"]
[reference_values.vtpm.pcr_values]
0 = ["{VALUE}"]
7 = ["{VALUE}", "{"ef" * 32}"]
"""
SNP = f"""
id = "p"
[sev-snp]
min_tcb = {{ bootloader = 4, tee = 0, snp = 24, microcode = 219 }}
[reference_values.sev-snp]
measurements = ["{"ab" * 48}"]
"""
NONE = 'id = "p"\n[none]\naccept_unattested_clients = true\n'


@pytest.mark.parametrize("text", [VTPM, SNP, NONE])
def test_accepted(text: str) -> None:
    policy = parse_policy(text)
    assert policy.id == "p" and len(policy.digest) == 64 and policy.unsafe == ()


def test_digest_is_of_the_content_only() -> None:
    policy = parse_policy(VTPM)
    lines = VTPM.replace("[0, 7]", "[ 0,7 ] # PCRs").replace('id = "p"\n', 'id = "p"\nmax_lifetime_s = 7200.0\n')
    assert parse_policy(lines).digest == policy.digest
    changed = [
        VTPM.replace('id = "p"', 'id = "q"'),
        VTPM.replace("cd", "ce"),
        VTPM.replace(NAME, "000b" + "aa" * 32),
        VTPM.replace('id = "p"', 'id = "p"\nmax_lifetime_s = 60'),
        VTPM.replace('id = "p"', 'id = "p"\nunsafe_accept_vtpm_only = true'),
        SNP,
        NONE,
    ]
    assert len({policy.digest, *(parse_policy(text).digest for text in changed)}) == len(changed) + 1


REFUSED = {
    "empty file": ("", "is empty"),
    "not TOML": ("id =", "policy"),
    "no id": (VTPM.replace('id = "p"\n', ""), "id"),
    "id with a quote": (VTPM.replace('"p"', "'p\"'"), "id"),
    "unknown key at the top": ("x = 1\n" + VTPM, "`x`"),
    "unknown key in a table": (VTPM.replace("pcrs =", "pcr_bnak = 'sha256'\npcrs ="), "pcr_bnak"),
    "unknown table": (VTPM + "[sgx]\nx = 1\n", "sgx"),
    "unknown reference value": (VTPM.replace("ak_names", "ak_nmes"), "ak_nmes"),
    "asks for nothing": ('id = "p"\n', "asks for no evidence"),
    "empty rule": (VTPM.replace("[0, 7]", "[]"), "pcrs: is empty"),
    "empty table": ('id = "p"\n[vtpm]\n', "vtpm: is empty"),
    "empty reference list": (VTPM.replace(f'["{VALUE}"]', "[]"), "0: is empty"),
    "empty text": (VTPM.replace(f'"{NAME}"', '""'), "is empty"),
    "no PCRs": (VTPM.replace("pcrs = [0, 7]", 'pcr_bank = "sha256"'), "pcrs"),
    "SHA-1 bank": (VTPM.replace("pcrs =", 'pcr_bank = "sha1"\npcrs ='), "sha1"),
    "PCR 24": (VTPM.replace("[0, 7]", "[0, 24]"), "pcrs"),
    "PCR without a value": (VTPM.replace("[0, 7]", "[0, 1, 7]"), "PCR 1"),
    "value without a PCR": (VTPM.replace("[0, 7]", "[0]"), "PCR 7"),
    "upper-case value": (VTPM.replace(VALUE, VALUE.upper()), "pcr_values"),
    "short value": (VTPM.replace(VALUE, VALUE[:-2]), "pcr_values"),
    "value with a newline": (VTPM.replace(VALUE, VALUE + "\\n"), "pcr_values"),
    "AK name by SHA-1": (VTPM.replace(NAME, "0004" + "ab" * 20), "ak_names"),
    "no AK": (VTPM.replace(f'ak_names = ["{NAME}"]\n', ""), "no AK is pinned"),
    "AK pinned and any": (VTPM.replace("pcrs =", "unsafe_any_ak = true\npcrs ="), "contradicts"),
    "PCRs pinned and any": (VTPM.replace("pcrs =", "unsafe_any_pcr_values = true\npcrs ="), "contradicts"),
    "root is no certificate": (VTPM.replace("ak_names", 'ak_roots = ["x"]\nak_names'), "not a PEM certificate"),
    "values of a platform not asked for": (VTPM + "[reference_values.sev-snp]\ncsp_ids = ['x']", "not asked"),
    "no measurement": (SNP.split("[reference")[0], "measurements"),
    "any measurement and one": (SNP.replace("[sev-snp]", "[sev-snp]\nunsafe_any_measurement = true"), "measurements"),
    "no TCB floor": (SNP.replace("min_tcb", "min_launch_tcb"), "min_tcb"),
    "TCB floor and any": (SNP.replace("[sev-snp]", "[sev-snp]\nunsafe_any_tcb = true"), "min_tcb"),
    "TCB floor in part": (SNP.replace("snp = 24, ", ""), "snp"),
    "TCB level 256": (SNP.replace("219", "256"), "microcode"),
    "VMPL 4": (SNP.replace("[sev-snp]", "[sev-snp]\nvmpl = [4]"), "vmpl"),
    "product unknown": (SNP.replace("[sev-snp]", '[sev-snp]\nproducts = ["Rome"]'), "Rome"),
    "measurement short": (SNP.replace("ab" * 48, "ab" * 32), "measurements"),
    "number as text": (SNP.replace("219", '"219"'), "microcode"),
    "bool as number": (SNP.replace("219", "true"), "microcode"),
    "none is false": (NONE.replace("true", "false"), "accept_unattested_clients"),
    "none beside vtpm": (VTPM + "[none]\naccept_unattested_clients = true\n", "beside"),
    "lifetime zero": (VTPM.replace('id = "p"', 'id = "p"\nmax_lifetime_s = 0'), "max_lifetime_s"),
    "lifetime of a year": (VTPM.replace('id = "p"', 'id = "p"\nmax_lifetime_s = 31536000'), "max_lifetime_s"),
    "lifetime is nan": (VTPM.replace('id = "p"', 'id = "p"\nmax_lifetime_s = nan'), "max_lifetime_s"),
    "file named, none given": ('reference_values_file = "x.toml"\n' + VTPM.split("[reference")[0], "reference values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    text, words = REFUSED[case]
    with pytest.raises(PolicyFormatError) as caught:
        parse_policy(text)
    assert words in str(caught.value)


def test_reference_values_in_a_file_of_their_own(tmp_path: Path) -> None:
    rules, values = VTPM.split("[reference_values.vtpm]")
    values = "[vtpm]" + values.replace("reference_values.", "")
    (tmp_path / "p.toml").write_text('reference_values_file = "values/a.toml"\n' + rules)
    with pytest.raises(PolicyFormatError, match=r"a\.toml"):
        load_policy(tmp_path / "p.toml")
    (tmp_path / "values").mkdir()
    (tmp_path / "values" / "a.toml").write_text(values)
    apart, together = load_policy(tmp_path / "p.toml"), parse_policy(VTPM)
    assert msgspec.structs.replace(apart, reference_files={}) == together and list(apart.reference_files) == ["a"]
    (tmp_path / "p.toml").write_text('reference_values_file = "values/a.toml"\n' + VTPM)
    with pytest.raises(PolicyFormatError, match="in the policy or in the file"):
        load_policy(tmp_path / "p.toml")


@pytest.mark.parametrize("content", [b"\xff", b"#" * 300_000])
def test_files_that_are_no_policy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.toml").write_bytes(content)
    with pytest.raises(PolicyFormatError, match=r"p\.toml"):
        load_policy(tmp_path / "p.toml")


def test_unsafe_settings_are_listed() -> None:
    assert first_report_policy("vtpm", "sev-snp").unsafe == (
        "vtpm.unsafe_any_pcr_values", "vtpm.unsafe_any_ak", "sev-snp.unsafe_any_tcb", "sev-snp.unsafe_any_measurement",
    )  # fmt: skip
    assert first_report_policy("vtpm").unsafe[0] == "unsafe_accept_vtpm_only"
    with pytest.raises(PolicyFormatError):
        first_report_policy()


def test_unsafe_settings_of_branches_and_schemes_are_listed() -> None:
    rules = "[any_of.schemes.x]\nunsafe_all = true\nunsafe_none = false\nkey = 1\n"
    policy = parse_policy('id = "p"\n[[any_of]]\nid = "m"\n' + rules)
    assert policy.unsafe == ("m: schemes.x.unsafe_all",) and policy.unsafe_of("m") == ("schemes.x.unsafe_all",)
    assert first_report_policy("maa").unsafe_of("") == ("maa.unsafe_any_issuer", "maa.unsafe_any_measurement")


def test_reference_values_handed_in_as_text() -> None:
    rules, values = VTPM.split("[reference_values.vtpm]")
    values = "[vtpm]" + values.replace("reference_values.", "")
    named = 'reference_values_file = "a.toml"\n' + rules
    assert parse_policy(named, values).reference_values == parse_policy(VTPM).reference_values
    with pytest.raises(PolicyFormatError, match="in the policy or in the file"):
        parse_policy(VTPM, values)


SHIPPED = sorted(Path(__file__).parents[2].glob("policies/evidence/*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_policies_load_and_are_safe(path: Path) -> None:
    assert not [name for name in load_policy(path).unsafe if name != "unsafe_accept_vtpm_only"]
