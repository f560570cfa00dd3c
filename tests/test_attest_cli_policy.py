"""``attest policy`` and ``attest collect`` as an operator types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from attest.attester import evidence_for
from attest.policy import load_policy
from attest.policy_diff import diff_policies
from attest.schemes.azure.collect import HCL_REPORT
from attest.testkit.eventlog import ccel
from attest.testkit.gcp import endorsement
from attest.testkit.snp import SimulatedSnpCollector, SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tpm import SoftwareTpm
from attest.testkit.tsm import TsmDirectory, snp_responder, tdx_responder
from cube_mesh.cli import app

from .attest import test_corim as corim
from .attest import test_go_check as go
from .attest.conftest import CLAIMS
from .support.clouds import AzureVm, Tpm
from .support.endpoint import endpoint
from .support.require import require
from .support.tpm import software_tpm

RUNNER = CliRunner()
NONCE = bytes(range(32))


def _run(*arguments: object) -> tuple[int, str, str]:
    result = RUNNER.invoke(app, ["attest", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


SNP, TDX = SnpPlatform(b"init"), TdxPlatform(b"init")
SOURCES: dict[str, tuple[bytes, str, str]] = {
    "report": (SNP.report(bytes(64)), "sev-snp", "reference_values.sev-snp.measurements"),
    "quote": (TDX.quote(bytes(64)), "tdx", "reference_values.tdx.mr_td"),
    "collection": (evidence_for(SimulatedSnpCollector(b"x"), CLAIMS), "bundle", "reference_values.sev-snp.chip_ids"),
    "vtpm": (evidence_for(SoftwareTpm(), CLAIMS), "bundle", "reference_values.vtpm.ak_names"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_init(case: str, tmp_path: Path) -> None:
    raw, kind, pinned = SOURCES[case]
    (tmp_path / "e").write_bytes(raw)
    code, text, remarks = _run("policy", "init", "--from", tmp_path / "e", "--id", "mine")
    assert code == 0 and f"{kind}: NOT verified" in remarks and pinned in remarks
    (tmp_path / "p.toml").write_text(text)
    policy = load_policy(tmp_path / "p.toml")
    assert policy.id == "mine" and set(policy.unsafe) <= {"unsafe_accept_vtpm_only"}


REAL = {
    "azure/trustee-az-snp/hcl-report.bin": "azure-hcl",
    "azure/maa-thomvanl/token.jwt": "token",
    "gcp/flare/cs_pki_token.jwt": "token",
}


@pytest.mark.parametrize("name", REAL)
def test_init_from_real_evidence(name: str, tmp_path: Path) -> None:
    from .support.require import vectors

    code, text, remarks = _run("policy", "init", "--from", vectors() / name)
    assert code == 0 and f"{REAL[name]}: NOT verified" in remarks
    (tmp_path / "p.toml").write_text(text)
    assert _run("policy", "check", tmp_path / "p.toml")[0] == 0


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # every VCEK's is 0
def test_init_of_verified_evidence(tmp_path: Path) -> None:
    from .support.require import vectors

    cases = json.loads((vectors() / "cases.json").read_text())
    case = next(c for c in cases if c["scheme"] == "sev-snp" and c["default"] == "accept" and c["endorsements"])
    report, files = vectors() / case["evidence"], [vectors() / name for name in case["endorsements"]]
    given = [option for file in files for option in ("--endorsements", file)]
    code, text, remarks = _run("policy", "init", "--from", report, *given)
    assert code == 0 and "sev-snp: verified now" in remarks
    (tmp_path / "p.toml").write_text(text)
    now = ("--now", case["now"], "--policy", tmp_path / "p.toml")
    assert _run("verify", "--scheme", "sev-snp", "--evidence", report, *given, *now)[0] == 0
    damaged = bytearray(report.read_bytes())
    damaged[0x90] ^= 1
    (tmp_path / "r").write_bytes(damaged)
    code, text, _ = _run("policy", "init", "--from", tmp_path / "r", *given)
    assert (code, text) == (1, "")
    (tmp_path / "b").write_bytes(SOURCES["collection"][0])
    assert _run("policy", "init", "--from", tmp_path / "b", *given)[0] == 2


def test_init_without_evidence(tmp_path: Path) -> None:
    (tmp_path / "e").write_bytes(b"no evidence")
    assert _run("policy", "init", "--from", tmp_path / "e")[0] == 3
    (tmp_path / "r").write_bytes(SOURCES["report"][0])
    assert _run("policy", "init", "--from", tmp_path / "r", "--id", "not an id")[0] == 1
    assert _run("policy", "init", "--from", tmp_path / "absent")[0] == 2


def test_import(tmp_path: Path) -> None:
    (tmp_path / "sev.json").write_text(json.dumps(go.SEV))
    (tmp_path / "tdx.json").write_text(json.dumps(go.TDX))
    for name, kind in (("sev.json", "go-sev-guest"), ("tdx.json", "go-tdx-guest")):
        code, text, _ = _run("policy", "import", "--from", tmp_path / name, "--format", kind)
        (tmp_path / "p.toml").write_text(text)
        assert code == 0 and _run("policy", "check", tmp_path / "p.toml")[0] == 0
    code, _, remarks = _run("policy", "import", "--from", tmp_path / "sev.json", "--format", "go-tdx-guest")
    assert code == 1 and "policy.policy" in remarks


def test_import_of_a_corim(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(corim.GOOD)
    pem = corim.KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(pem)
    wanted = ("policy", "import", "--from", tmp_path / "c", "--format", "corim")
    code, text, _ = _run(*wanted, "--trust-key", tmp_path / "key.pem", "--id", "image-1")
    assert code == 0 and 'id = "image-1"' in text and "01" * 48 in text
    assert _run(*wanted)[0] == 2
    (tmp_path / "c").write_bytes(corim.GOOD[:-1] + bytes((corim.GOOD[-1] ^ 1,)))
    code, text, remarks = _run(*wanted, "--trust-key", tmp_path / "key.pem")
    assert (code, text) == (1, "") and "cose_signature" in remarks


BASE = (
    'id = "a"\n[sev-snp]\nvmpl = [0]\nallow_smt = false\nmin_guest_svn = 2\n'
    "min_tcb = { bootloader = 1, tee = 0, snp = 9, microcode = 9 }\n"
    f'[reference_values.sev-snp]\nmeasurements = ["{"01" * 48}"]\nchip_ids = ["{"05" * 64}"]\n'
)
# text → what is there instead, its direction, the rule.
CHANGES = {
    "vmpl": ("vmpl = [0]", "vmpl = [0, 1]", "looser"),
    "allow_smt": ("allow_smt = false\n", "", "looser"),
    "min_guest_svn": ("svn = 2", "svn = 3", "stricter"),
    "min_tcb.snp": ("snp = 9", "snp = 8", "looser"),
    "min_tcb.microcode": ("microcode = 9", "microcode = 10", "stricter"),
    "measurements": ("01" * 48, "02" * 48, "changed"),
    "chip_ids": (f'chip_ids = ["{"05" * 64}"]\n', "", "looser"),
    "require_id_block": ("vmpl", 'require_author_key = true\nvmpl', "stricter"),
    "unsafe_allow_debug": ("vmpl", "unsafe_allow_debug = true\nvmpl", "looser"),
    "platform_info_allowed": ("vmpl", 'platform_info_allowed = ["smt"]\nvmpl', "stricter"),
    "platform_info_required": ("vmpl", 'platform_info_required = ["smt"]\nvmpl', "stricter"),
    "products": ("vmpl", 'products = ["Milan"]\nvmpl', "stricter"),
    "max_lifetime_s": ('"a"\n', '"a"\nmax_lifetime_s = 60\n', "stricter"),
    "[tdx]": (BASE, 'id = "a"\n[tdx]\nunsafe_any_mr_td = true\nunsafe_any_rtmrs = true\n', ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_diff(case: str, tmp_path: Path) -> None:
    old, new, direction = CHANGES[case]
    before, after = tmp_path / "a.toml", tmp_path / "b.toml"
    before.write_text(BASE)
    after.write_text(BASE.replace(old, new, 1))
    code, text, _ = _run("policy", "diff", before, after)
    assert code == 1
    if not direction:
        assert "stricter [tdx]" in text and "looser   [sev-snp]" in text
        return
    assert [line.split()[0] for line in text.splitlines()] == [direction]
    answer = json.loads(_run("policy", "diff", "--json", after, before)[1])
    opposite = {"looser": "stricter", "stricter": "looser", "changed": "changed"}[direction]
    assert [change["direction"] for change in answer] == [opposite]


def test_diff_of_nothing_and_of_branches(tmp_path: Path) -> None:
    one, two = tmp_path / "a.toml", tmp_path / "b.toml"
    one.write_text(BASE)
    two.write_text(BASE.replace('id = "a"', 'id = "b" # other words'))
    assert _run("policy", "diff", one, two) == (0, "", "")
    member = (
        '[[any_of]]\nid = "{}"\nunsafe_accept_vtpm_only = true\n[any_of.vtpm]\npcrs = [0]\nunsafe_any_ak = true\n'
        "unsafe_any_pcr_values = true\n"
    )
    one.write_text('id = "a"\n' + member.format("x"))
    two.write_text('id = "a"\n' + member.format("x") + member.format("y"))
    assert [(c.rule, c.direction) for c in diff_policies(load_policy(one), load_policy(two))] == [("y", "looser")]
    assert diff_policies(load_policy(two), load_policy(one))[0].direction == "stricter"


@pytest.mark.parametrize(
    ("scheme", "provider", "respond"),
    [
        ("sev-snp", "sev_guest", snp_responder(SNP, launch_endorsement=endorsement())),
        ("tdx", "tdx_guest", tdx_responder(TDX)),
    ],
)
def test_collect_through_configfs(scheme: str, provider: str, respond: Any, tmp_path: Path) -> None:
    with TsmDirectory(tmp_path / "tsm", provider, respond) as tsm:
        code, text, _ = _run("collect", "--scheme", scheme, "--out", tmp_path / "o", "--nonce", NONCE.hex(),
                             "--tsm", tsm.path)  # fmt: skip
    assert code == 0
    body = (tmp_path / "o" / ("report.bin" if scheme == "sev-snp" else "quote.bin")).read_bytes()
    assert NONCE + bytes(32) in body
    for beside in ("cert-0.der", "endorsement.binarypb"):
        assert (tmp_path / "o" / beside).exists() == (scheme == "sev-snp")
    assert _run("policy", "init", "--from", text.splitlines()[0])[0] == 0


def test_init_with_an_event_log(tmp_path: Path) -> None:
    (tmp_path / "quote").write_bytes(TdxPlatform(b"init", event_log=ccel()).quote(bytes(64)))
    (tmp_path / "CCEL").write_bytes(ccel())
    code, text, _ = _run("policy", "init", "--from", tmp_path / "quote", "--event-log", tmp_path / "CCEL")
    (tmp_path / "p.toml").write_text(text)
    assert code == 0 and "require_secure_boot = true" in text
    assert _run("policy", "check", tmp_path / "p.toml")[0] == 0
    (tmp_path / "quote").write_bytes(TDX.quote(bytes(64)))
    code, _, remarks = _run("policy", "init", "--from", tmp_path / "quote", "--event-log", tmp_path / "CCEL")
    assert code == 1 and "event_log_empty" in remarks


def test_collect_takes_the_event_log_along(tmp_path: Path) -> None:
    (tmp_path / "CCEL").write_bytes(ccel())
    given = ("--out", tmp_path / "o", "--nonce", NONCE.hex(), "--event-log", tmp_path / "CCEL")
    with TsmDirectory(tmp_path / "tsm", "tdx_guest", tdx_responder(TDX)) as tsm:
        code, text, _ = _run("collect", "--scheme", "tdx", *given, "--tsm", tsm.path)
    assert code == 0 and {Path(line).name for line in text.splitlines()} == {"quote.bin", "event-log.bin"}
    assert (tmp_path / "o" / "event-log.bin").read_bytes() == ccel()
    code, _, remarks = _run("collect", "--scheme", "sev-snp", *given)
    assert code == 2 and "no meaning with --scheme sev-snp" in remarks


def test_collect_from_a_tpm(tmp_path: Path) -> None:
    require("swtpm", "tpm2_quote")
    with software_tpm() as tcti:
        code, _, remarks = _run(
            "collect", "--scheme", "vtpm", "--out", tmp_path, "--nonce", NONCE.hex(), "--tcti", tcti
        )
    assert code == 0, remarks
    files = ["--evidence", tmp_path / "quote.msg", "--signature", tmp_path / "quote.sig", "--ak", tmp_path / "ak.pub"]
    code, text, _ = _run("verify", "--scheme", "vtpm", *files, "--pcrs", tmp_path / "pcrs.json", "--nonce", NONCE.hex())
    assert code == 0 and text.startswith("accept")


@pytest.mark.parametrize("kind", ["sev-snp", "tdx"])
def test_collect_on_azure(kind: str, tmp_path: Path) -> None:
    require("swtpm", "tpm2_quote")
    with software_tpm() as tcti, endpoint() as service:
        vm = AzureVm(Tpm(tcti, tmp_path), service, kind)
        vm.tpm.store(HCL_REPORT, vm.report(vm.claims())[:2000])
        where = ("--tcti", tcti, "--metadata-url", service.url)
        code, text, remarks = _run(
            "collect", "--scheme", "azure", "--out", tmp_path / "o", "--nonce", NONCE.hex(), *where
        )
    assert code == 0, remarks
    made = {Path(line).name for line in text.splitlines()}
    own = {"td-quote.bin", "cert-0.der"} if kind == "tdx" else {"cert-0.der", "cert-1.der", "cert-2.der"}
    assert made == {"hcl.bin", "quote.msg", "quote.sig", "ak.pub", "pcrs.json"} | own
    files = ["--quote", "quote.msg", "--signature", "quote.sig", "--ak", "ak.pub", "--pcrs", "pcrs.json"]
    files += ["--td-quote", "td-quote.bin"] if kind == "tdx" else []
    named = [str(tmp_path / "o" / part) if not part.startswith("--") else part for part in files]
    code, text, _ = _run("verify", "--scheme", "azure", "--evidence", tmp_path / "o/hcl.bin", *named, "--nonce",
                         NONCE.hex(), *sorted((tmp_path / "o").glob("cert-*.der")))  # fmt: skip
    # As far as the hardware's signature, which is a simulation's: no root of a vendor's leads to it.
    assert code == 1 and text.split(": ")[1] in ("untrusted_root", "untrusted_chain", "collateral_missing"), text


def test_collect_on_a_machine_without(tmp_path: Path) -> None:
    for scheme in ("sev-snp", "tdx"):
        arguments = ("--scheme", scheme, "--out", tmp_path / "o", "--nonce", NONCE.hex(), "--tsm", tmp_path / "none")
        code, text, remarks = _run("collect", *arguments)
        assert (code, text) == (1, "") and ("device_unavailable" in remarks or "tsm_unavailable" in remarks)
    code, _, remarks = _run("collect", "--scheme", "vtpm", "--out", tmp_path / "o", "--nonce", NONCE.hex(),
                            "--tcti", "swtpm:path=/nowhere")  # fmt: skip
    assert code == 1 and remarks.startswith("cube-mesh: ")
    code, _, remarks = _run("collect", "--scheme", "gcp", "--out", tmp_path / "o", "--nonce", NONCE.hex(),
                            "--audience", "https://a")  # fmt: skip
    assert code == 1 and remarks.startswith("cube-mesh: endpoint_unreachable")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "arguments", [("--nonce", "zz"), ("--nonce", "00"), ("--nonce", "00" * 32, "--pcrs", "99"), ()]
)
def test_collect_asked_wrongly(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert _run("collect", "--scheme", "vtpm", "--out", tmp_path / "o", *arguments)[0] == 2


@pytest.mark.parametrize(
    ("scheme", "arguments", "key"),
    [
        ("gcp", (), "audience"),
        ("maa", (), "maa_url"),
        ("maa", ("--maa-url", "http://maa.example"), "must be https"),
        ("azure", ("--metadata-url", "http://10.0.0.1"), "must be https"),
    ],
)
def test_collect_asks_nobody_that_could_be_anybody(
    scheme: str, arguments: tuple[str, ...], key: str, tmp_path: Path
) -> None:
    code, _, remarks = _run("collect", "--scheme", scheme, "--out", tmp_path / "o", "--nonce", NONCE.hex(), *arguments)
    assert code == 2 and key in remarks
