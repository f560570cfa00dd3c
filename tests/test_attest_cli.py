"""``cube-mesh attest``: every real file its verdict and exit code, and every way to ask wrongly."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from attest.attester import evidence_for
from attest.binding import Claims, Phase, Role
from attest.testkit.snp import SimulatedSnpCollector
from attest.testkit.tpm import SoftwareTpm
from cube_mesh.cli import app
from tests.support.require import vectors

pytestmark = [
    pytest.mark.filterwarnings("ignore:Parsed a serial number"),
    pytest.mark.filterwarnings("ignore:Attribute's length must be"),
]
RUNNER = CliRunner()
NOW = "2026-11-24T12:00:00Z"


@pytest.fixture(scope="module", name="vectors")
def _vectors() -> Path:
    return vectors()


def _run(*arguments: object) -> tuple[int, str]:
    result = RUNNER.invoke(app, ["attest", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def _verdict(*arguments: object) -> tuple[int, dict[str, Any]]:
    code, output = _run("verify", *arguments, "--json")
    return code, json.loads(output)


def test_the_pairs_of_the_manifest(vectors: Path) -> None:
    counts: dict[str, int] = {}
    for case in json.loads((vectors / "cases.json").read_text()):
        arguments = ["--scheme", case["scheme"], "--evidence", vectors / case["evidence"], "--now", case["now"]]
        files = [vectors / name for name in case["endorsements"]]
        for wanted, more in ((case["default"], []), (case["verify"], ["--verify-only"])):
            code, answer = _verdict(*arguments, *(["--endorsements", *files] if files else []), *more)
            assert answer["verdict"] == wanted, (case, answer)
            assert code == (0 if wanted == "accept" else 3 if answer["malformed"] else 1)
            assert {"verdict", "reason", "mismatches", "claims", "unchecked"} <= answer.keys()
        counts[case["scheme"]] = counts.get(case["scheme"], 0) + 1
    print(counts)
    assert counts["sev-snp"] >= 15 and counts["tdx"] >= 12


SWTPM = ("--scheme", "vtpm", "--evidence", "vtpm/swtpm/q.msg", "--signature", "vtpm/swtpm/q.sig", "--ak",
         "vtpm/swtpm/ak.pub", "--pcrs", "vtpm/swtpm/pcrs.json")  # fmt: skip
SWTPM_NONCE = "4bb1411aa324057eecb84a9841694f1095b51a903f3b206fdb755a61c775b2fd"
COS = ("--scheme", "tdx", "--evidence", "tdx/go-tdx-guest-ccel/cos-113-tdx-quote.dat", "--endorsements",
       "tdx/collateral/00806f-2026-01/collateral.json", "--now", "2026-02-10T00:00:00Z")  # fmt: skip
MAA = ("--scheme", "maa", "--evidence", "azure/maa-thomvanl/token.jwt", "--jwks", "azure/maa-thomvanl/jwks.json")
PKI = ("--scheme", "gcp", "--evidence", "gcp/flare/cs_pki_token.jwt", "--now", "2024-11-04T00:00:00Z")
OIDC = ("--scheme", "gcp", "--evidence", "gcp/synddb/cs_oidc_token_0.jwt", "--jwks", "gcp/synddb/jwks.json")
AT, TOKEN_NOW = ("--now", "2025-12-02T21:00:00Z"), ("--now", "2022-12-24T00:00:00Z")
DEAD = b"0x000000000000000000000000000000000000dEaD".hex()
TRUSTEE = ("--scheme", "azure", "--evidence", "azure/trustee-az-snp/hcl-report.bin")
# Files of the manifest, relative to it; exit code and reason.
REAL: dict[str, tuple[tuple[str, ...], int, str]] = {
    "swtpm": ((*SWTPM, "--nonce", SWTPM_NONCE), 0, "ok"),
    "swtpm without nonce": (SWTPM, 0, "ok"),
    "swtpm, another nonce": ((*SWTPM, "--nonce", SWTPM_NONCE[:-2]), 1, "nonce_mismatch"),
    "swtpm, a foreign log": ((*SWTPM, "--event-log", "vtpm/eventlogs/cos-93-amd-sev.bin"), 1, "event_log_replay"),
    "swtpm, Google does not know it": ((*SWTPM, "--endorsements", "vtpm/swtpm/ek_cert.der"), 1, "ak_not_certified"),
    "tdx, its log": ((*COS, "--event-log", "tdx/go-tdx-guest-ccel/ccel_data.dat"), 0, "ok"),
    "tdx, a foreign log": ((*COS, "--event-log", "tdx/dstack/ccel.bin"), 1, "event_log_replay"),
    "tdx, a log of SHA-1": ((*COS, "--event-log", "vtpm/eventlogs/debian-10.bin"), 1, "event_log_bank"),
    "tdx, the table that names the log": (
        (*COS, "--event-log", "tdx/go-tdx-guest-ccel/ccel_table.dat"), 3, "malformed_event_log",
    ),
    "maa": ((*MAA, *TOKEN_NOW), 0, "ok"),
    "maa, its issuer": ((*MAA, *TOKEN_NOW, "--issuer", "https://sharedweu.weu.attest.azure.net"), 0, "ok"),
    "maa, another issuer": ((*MAA, *TOKEN_NOW, "--issuer", "https://sharedweu.weu.attest.azure.net.evil"), 1, "issuer"),
    "maa today": ((*MAA, "--now", NOW), 1, "token_expired"),
    "maa without keys": ((*MAA[:4], *TOKEN_NOW), 1, "keys_missing"),
    "maa, unknown kid": (
        ("--scheme", "maa", "--evidence", "azure/maa-msft/token_1649979780.jwt", *MAA[4:], "--now", NOW),
        1, "kid_unknown",
    ),
    "maa, wrong file": (("--scheme", "maa", "--evidence", "azure/maa-thomvanl/jwks.json", *MAA[4:]), 3,
                        "malformed_evidence"),
    "pki": ((*PKI, "--nonce", DEAD, "--audience", "https://sts.google.com", "--verify-only"), 0, "ok"),
    "pki is of a debug image": (PKI, 1, "debug"),
    "pki, another audience": ((*PKI, "--audience", "https://evil", "--verify-only"), 1, "audience"),
    "pki today": ((*PKI[:4], "--now", NOW), 1, "certificate_expired"),
    "oidc": ((*OIDC, *AT, "--verify-only"), 0, "ok"),
    "oidc is of a debug image": ((*OIDC, *AT), 1, "debug"),
    "oidc, unknown kid": (
        ("--scheme", "gcp", "--evidence", "gcp/flare/cs_oidc_token.jwt", *OIDC[4:], "--now", "2024-11-04T00:00:00Z"),
        1, "kid_unknown",
    ),
    "oidc without keys": ((*OIDC[:4], *AT), 1, "keys_missing"),
    "azure": ((*TRUSTEE, "--endorsements", "azure/trustee-az-snp/vcek.pem"), 0, "ok"),
    "azure, another chip": (
        ("--scheme", "azure", "--evidence", "azure/kinvolk/hcl-report-snp.bin", "--endorsements",
         "azure/kinvolk/certs.pem"), 1, "hwid_mismatch",
    ),
    "azure without certificates": (TRUSTEE, 1, "vcek_missing"),
    "azure, TDX without its quote": (
        ("--scheme", "azure", "--evidence", "azure/kinvolk/hcl-report-tdx.bin"), 1, "part_missing",
    ),
    "azure, an SNP report": (
        ("--scheme", "azure", "--evidence", "snp/go-sev-guest/attestation.bin"), 3, "malformed_evidence",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_files(vectors: Path, name: str) -> None:
    arguments, code, reason = REAL[name]
    resolved = [str(vectors / item) if (vectors / item).is_file() and "/" in item else item for item in arguments]
    clock = () if "--now" in arguments else ("--now", NOW)
    found, answer = _verdict(*resolved, *clock)
    assert (found, answer["reason"]) == (code, reason), answer
    assert answer["verdict"] == ("accept" if code == 0 else "reject")


def test_the_answer_of_azures_metadata_service_is_taken_as_it_is(vectors: Path, tmp_path: Path) -> None:
    vcek = (vectors / "azure/trustee-az-snp/vcek.pem").read_text()
    chain = (vectors / "snp/roots/milan-ask.der").read_bytes()
    ask = x509.load_der_x509_certificate(chain).public_bytes(Encoding.PEM).decode()
    answer = {"vcekCert": vcek, "tcbm": "DB18000000000004", "certificateChain": ask, "cacheControl": "86400"}
    thim = _write(tmp_path / "thim.json", json.dumps(answer).encode())
    arguments = [vectors / item if "/" in item else item for item in TRUSTEE]
    assert _verdict(*arguments, "--endorsements", thim, "--now", NOW)[1]["reason"] == "ok"
    broken = _write(tmp_path / "broken.json", json.dumps(answer | {"certificateChain": "none"}).encode()[:-9])
    assert _verdict(*arguments, "--endorsements", broken, "--now", NOW)[1]["reason"] == "malformed_collateral"


def _write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("name", "nonce", "collateral", "now"),
    [
        ("trustee-az-snp/evidence-v1.json", b"challenge", "", NOW),
        ("trustee-az-tdx/evidence-v1.json", b"challenge", "00806f-2026-01", "2026-02-10T00:00:00Z"),
        ("attestation-rs/az_snp-live-evidence.json", b"attestation-test-fixture", "", NOW),
    ],
)
def test_azure_with_its_vtpm_quote(
    vectors: Path, tmp_path: Path, name: str, nonce: bytes, collateral: str, now: str
) -> None:
    content = json.loads((vectors / "azure" / name).read_text())
    content = content.get("evidence", content)
    quote = content["tpm_quote"]

    def decoded(text: str) -> bytes:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    arguments: list[object] = ["--scheme", "azure", "--now", now, "--nonce", nonce.hex()]
    arguments += ["--evidence", _write(tmp_path / "hcl", decoded(content["hcl_report"]))]
    arguments += ["--quote", _write(tmp_path / "quote", bytes.fromhex(quote["message"]))]
    arguments += ["--signature", _write(tmp_path / "signature", bytes.fromhex(quote["signature"]))]
    arguments += ["--pcrs", _write(tmp_path / "pcrs", json.dumps({"pcrs": quote["pcrs"]}).encode())]
    if collateral:
        arguments += ["--td-quote", _write(tmp_path / "td", decoded(content["td_quote"]))]
        arguments += ["--endorsements", vectors / "tdx/collateral" / collateral / "collateral.json"]
    else:
        arguments += ["--endorsements", _write(tmp_path / "vcek", decoded(content["vcek"]))]
    code, answer = _verdict(*arguments)
    assert (code, answer["reason"]) == (0, "ok"), answer
    assert answer["confidential"] and answer["claims"]["nonce"] == nonce.hex()
    other = _write(tmp_path / "other", (vectors / "vtpm/swtpm/ak.pub").read_bytes())
    assert _verdict(*arguments, "--ak", other)[0] in (1, 3)


def test_a_policy_file_and_words_for_its_mismatches(vectors: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'id = "strict"\n[gcp]\naudiences = ["https://sts.google.com"]\n'
        f'[reference_values.gcp]\nimage_digests = ["sha256:{"00" * 32}"]\n'
    )
    token = ["--scheme", "gcp", "--evidence", vectors / PKI[3], "--now", PKI[5], "--policy", policy]
    code, answer = _verdict(*token)
    assert code == 1 and answer["policy_id"] == "strict" and answer["policy_digest"]
    assert [m["code"] for m in answer["mismatches"]] == ["hardware", "debug", "support_attributes", "image"]
    code, text = _run("explain", *token)
    assert code == 1
    for word in ("gcp.dbgstat (debug)", "expected: disabled-since-boot", "actual:   enabled", "side:", "to do:"):
        assert word in text
    policy.write_text('id = "other"\n[vtpm]\npcrs = [0]\nunsafe_any_ak = true\nunsafe_any_pcr_values = true\n')
    assert _verdict(*token)[1]["mismatches"][0]["code"] == "part_unknown"


def test_policy_check(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('id = "p"\n[gcp]\naudiences = ["a"]\nunsafe_any_image = true\n')
    code, output = _run("policy", "check", policy)
    assert code == 0 and json.loads(output)["unsafe"] == ["gcp.unsafe_any_image"]
    for text in ("", "id = 1", 'id = "p"\n[gcp]\naudiences = []\n', 'id = "p"\n[sgx]\nx = 1\n'):
        policy.write_text(text)
        assert _run("policy", "check", policy)[0] == 1
    assert _run("policy", "check", tmp_path / "absent")[0] == 1


def test_explain_says_what_nobody_looked_at(vectors: Path) -> None:
    arguments = [vectors / item if (vectors / item).is_file() else item for item in MAA]
    code, text = _run("explain", *arguments, "--now", "2022-12-24T00:00:00Z")
    assert code == 0 and "Accepted" in text and "--nonce" in text and "pins nothing" in text
    code, text = _run("explain", *arguments, "--now", NOW)
    assert code == 1 and "token_expired" in text and "to do:" in text
    code, text = _run("explain", "--scheme", "tdx", "--evidence", vectors / MAA[3])
    assert code in (1, 3)


CLAIMS = Claims(
    role=Role.SERVER, phase=Phase.POST_HANDSHAKE, node_id="spiffe://cube/agent/a1", not_after=1_800_000_000,
    boot_id=b"b" * 16, spki_hash=b"s" * 32, nonce=b"n" * 32, channel_binding=b"c" * 32, peer_spki_hash=b"p" * 32,
)  # fmt: skip


def test_bundles(tmp_path: Path) -> None:
    good = _write(tmp_path / "vtpm", evidence_for(SoftwareTpm(), CLAIMS))
    now = ("--now", "2027-01-15T07:43:20Z")
    code, answer = _verdict("--scheme", "bundle", "--evidence", good, *now, "--nonce", (b"n" * 32).hex())
    assert code == 0 and answer["claims"]["node_id"] == CLAIMS.node_id and not answer["confidential"]
    code, answer = _verdict("--scheme", "bundle", "--evidence", good, *now, "--nonce", "00" * 32)
    assert (code, answer["reason"]) == (1, "binding_mismatch")
    simulated = _write(tmp_path / "snp", evidence_for(SimulatedSnpCollector(b"x"), CLAIMS))
    assert _verdict("--scheme", "bundle", "--evidence", simulated, *now)[1]["reason"] == "untrusted_chain"
    cut = _write(tmp_path / "cut", good.read_bytes()[:-1])
    assert _verdict("--scheme", "bundle", "--evidence", cut, *now)[0] == 3


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--scheme", "sgx"),
        ("--report-data", "zz"),
        ("--report-data", "00"),
        ("--nonce", "00"),
        ("--audience", "a"),
        ("--now", "yesterday"),
        ("--now", "2026-01-01T00:00:00"),
        ("--policy", "/nowhere.toml"),
        ("--endorsements", "/nowhere.pem"),
        ("--evidence", "/nowhere"),
    ],
)
def test_usage(vectors: Path, arguments: tuple[str, ...]) -> None:
    good = () if not arguments else ("--evidence", vectors / "snp/go-sev-guest/attestation.bin")
    scheme = ("--scheme", "sev-snp") if arguments and "--scheme" not in arguments else ()
    assert _run("verify", *scheme, *good, *arguments)[0] == 2


SHOWN = {
    "snp/go-sev-guest/attestation.bin": "sev-snp-report", "tdx/dstack/quote.bin": "tdx-quote",
    "azure/kinvolk/hcl-report-snp.bin": "azure-hcl", "azure/kinvolk/hcl-report-tdx.bin": "azure-hcl",
    "vtpm/swtpm/q.msg": "tpm2-quote", "vtpm/swtpm/q.sig": "tpm2-signature", "vtpm/swtpm/ak.pub": "tpm2-public",
    "vtpm/keylime/ak.pub": "tpm2-public", "gcp/flare/cs_pki_token.jwt": "jwt", "gcp/synddb/jwks.json": "jwks",
    "azure/maa-thomvanl/jwks.json": "jwks", "vtpm/eventlogs/debian-10.bin": "event-log",
    "gcp/gce-tcb-verifier/synthetic_endorsement.binarypb": "gce-launch-endorsement",
    "gcp/go-tpm-tools/gce-cos-85-nonce9009.pb": "go-tpm-tools-attestation",
    "gcp/salrashid-vtpm/akcert.pem": "certificates", "tdx/go-tdx-guest-ccel/ccel_data.dat": "event-log",
    "tdx/collateral/90c06f-2026-03/collateral.json": "tdx-collateral",
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_show(vectors: Path, name: str) -> None:
    code, output = _run("show", vectors / name)
    shown = json.loads(output)
    assert (code, shown["format"], shown["verified"]) == (0, SHOWN[name], False) and shown["content"]


def test_show_of_something_else(vectors: Path, tmp_path: Path) -> None:
    assert _run("show", vectors / "MANIFEST.tsv")[0] == 3
    assert _run("show", tmp_path / "absent")[0] == 2
    bundle = _write(tmp_path / "bundle", evidence_for(SoftwareTpm(), CLAIMS))
    assert json.loads(_run("show", bundle)[1])["format"] == "cube-mesh-evidence"


def test_version_loads_no_attestation() -> None:
    code = (
        "import sys; import cube_mesh.cli; sys.exit(any(m == 'attest' or m.startswith('attest.') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
