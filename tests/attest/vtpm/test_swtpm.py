"""The collector against a real TPM 2.0 implementation (swtpm) over a unix socket."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from attest.attester import Collector
from attest.binding import Expected
from attest.errors import AppraisalFailed, BindingMismatch, CollectionFailed
from attest.evidence import TPM_QUOTE
from attest.policy import first_report_policy, parse_policy
from attest.schemes.vtpm.abi import Alg, decode_quote_part
from attest.schemes.vtpm.collect import TpmCollector, _split_pcrs
from attest.schemes.vtpm.verify import verify_quote
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import Verifier, policy_from_result

NOW = 1_799_999_000.0
TOOLS = ("swtpm", "tpm2_createprimary", "tpm2_create", "tpm2_load", "tpm2_quote", "tpm2_flushcontext", "tpm2_pcrextend")
HASH = bytes(range(32))


def test_quotes_verify_and_a_policy_made_from_the_first_pins_the_machine(
    tcti: str,
    tmp_path: Path,
    evidence: Callable[[Collector], bytes],
    expected: Expected,
    require_tools: Callable[..., None],
) -> None:
    require_tools(*TOOLS)
    ak_file = tmp_path / "ak"
    with TpmCollector(tcti, (0, 7, 16), ak_file=str(ak_file)) as tpm:
        first = Verifier(first_report_policy("vtpm")).appraise(evidence(tpm), expected, now=NOW)
        assert (first.platform, first.confidential, first.simulated) == ("vtpm", False, False)
        verifier = Verifier(parse_policy(policy_from_result(first, policy_id="pinned")))
        verifier.appraise(evidence(tpm), expected, now=NOW)
    assert stat.S_IMODE(ak_file.stat().st_mode) == 0o600
    with TpmCollector(tcti, (0, 7, 16), ak_file=str(ak_file)) as restarted:
        assert restarted.ak_name == first.claims["ak.name"]
        verifier.appraise(evidence(restarted), expected, now=NOW)
        subprocess.run(["tpm2_pcrextend", "-T", tcti, f"16:sha256={'ab' * 32}"], check=True)
        with pytest.raises(AppraisalFailed) as caught:
            verifier.appraise(evidence(restarted), expected, now=NOW)
    assert [(m.code, m.claim) for m in caught.value.mismatches] == [("pcr", "pcr.sha256.16")]
    with TpmCollector(tcti, (0, 7)) as other, pytest.raises(AppraisalFailed) as caught:
        verifier.appraise(evidence(other), expected, now=NOW)
    assert [m.code for m in caught.value.mismatches] == ["ak_not_pinned", "pcr_selection"]


@pytest.mark.parametrize("algorithm", ["ecc", "rsa"])
def test_many_quotes_leave_no_slot_taken(tcti: str, algorithm: str) -> None:
    """swtpm has three transient slots and no resource manager: without flushing, the fourth program fails."""
    with TpmCollector(tcti, (0,), algorithm=algorithm) as tpm:
        for number in range(6):
            data = bytes((number,)) * 32
            body = tpm.parts(data)[TPM_QUOTE].body
            verify_quote(body, data)
            with pytest.raises(BindingMismatch):
                verify_quote(body, HASH)


def test_a_persistent_handle(tcti: str, tmp_path: Path) -> None:
    def run(*command: str) -> None:
        subprocess.run([*command, "-T", tcti], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["tpm2_flushcontext", "-t", "-T", tcti], check=True)

    parent, public, private, key = (str(tmp_path / name) for name in ("p.ctx", "u", "r", "k.ctx"))
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"
    run("tpm2_createprimary", "-Q", "-C", "o", "-c", parent)
    kind = ("-G", "ecc256:ecdsa-sha256:null", "-a", attributes)
    run("tpm2_create", "-Q", "-C", parent, *kind, "-u", public, "-r", private)
    run("tpm2_load", "-Q", "-C", parent, "-u", public, "-r", private, "-c", key)
    run("tpm2_evictcontrol", "-Q", "-C", "o", "-c", key, "0x81010022")
    with TpmCollector(tcti, (0, 1), ak_handle="0x81010022") as tpm:
        assert verify_quote(tpm.parts(HASH)[TPM_QUOTE].body, HASH).ak_name == tpm.ak_name


def test_a_tpm_reset_between_two_quotes(tcti: str, tmp_path: Path) -> None:
    with TpmCollector(tcti, (0,), ak_file=str(tmp_path / "ak")) as tpm:
        name = tpm.ak_name
        tpm.parts(HASH)
        subprocess.run(["swtpm_ioctl", "--unix", f"{tcti.removeprefix('swtpm:path=')}.ctrl", "-i"], check=True)
        subprocess.run(["tpm2_startup", "-c", "-T", tcti], check=True)
        assert verify_quote(tpm.parts(HASH)[TPM_QUOTE].body, HASH).ak_name == name


def test_an_ak_of_another_tpm_is_an_error_not_a_new_ak(tcti: str, tmp_path: Path) -> None:
    ak_file = tmp_path / "ak"
    with TpmCollector(tcti, (0,), ak_file=str(ak_file)) as tpm:
        assert tpm.ak_name
    kept = ak_file.read_bytes()
    subprocess.run(["tpm2_clear", "-T", tcti], check=True)
    with TpmCollector(tcti, (0,), ak_file=str(ak_file)) as tpm, pytest.raises(CollectionFailed) as caught:
        tpm.parts(HASH)
    assert caught.value.code == "tpm_failed" and ak_file.read_bytes() == kept


def test_no_tpm_behind_the_tcti(tmp_path: Path, require_tools: Callable[..., None]) -> None:
    require_tools(*TOOLS)
    with TpmCollector(f"swtpm:path={tmp_path}/none", (0,)) as tpm:
        for _ in range(2):  # it may come later: each use tries
            with pytest.raises(CollectionFailed) as caught:
                tpm.parts(HASH)
            assert caught.value.code == "tpm_failed"


def test_values_are_told_apart_by_the_selection() -> None:
    tpm = SoftwareTpm(pcrs={Alg.SHA256: (0, 7), Alg.SHA384: (3,)})
    selection = {Alg.SHA1: (), Alg.SHA256: (0, 7), Alg.SHA384: (3,)}
    attest = decode_quote_part(tpm.quote(HASH, selection=selection)).attest
    values = b"a" * 32 + b"b" * 32 + b"c" * 48
    assert _split_pcrs(attest, values) == {Alg.SHA256: {0: b"a" * 32, 7: b"b" * 32}, Alg.SHA384: {3: b"c" * 48}}
    for wrong in (values[:-1], values + b"d"):
        with pytest.raises(CollectionFailed, match="PCR values"):
            _split_pcrs(attest, wrong)


def test_the_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with TpmCollector("swtpm:path=/none", (0,)) as tpm, pytest.raises(CollectionFailed) as caught:
        tpm.parts(HASH)
    assert caught.value.code == "tool_missing" and "tpm2_createprimary" in str(caught.value)


def test_a_program_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tpm2_createprimary"
    program.write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with TpmCollector("swtpm:path=/none", (0,), timeout_s=0.2) as tpm, pytest.raises(CollectionFailed) as caught:
        tpm.parts(HASH)
    assert caught.value.code == "tpm_timeout"


@pytest.mark.parametrize("content", [b"", b"junk", b"\x82\x01\x02", b"\x81\x41a"])
def test_a_file_that_is_no_ak(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ak").write_bytes(content)
    with TpmCollector("swtpm:path=/none", (0,), ak_file=str(tmp_path / "ak")) as tpm, pytest.raises(CollectionFailed):
        tpm.parts(HASH)


@pytest.mark.parametrize("arguments", [{"pcrs": ()}, {"pcrs": (24,)}, {"bank": "sha1"}, {"algorithm": "dsa"}])
def test_settings_that_cannot_be(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        TpmCollector(**{"tcti": "device:/dev/tpmrm0", "pcrs": (0,), **arguments})  # type: ignore[arg-type]
