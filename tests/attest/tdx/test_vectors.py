"""Real quotes: the verdict of every TDX case, of every other quote in the vectors, and what dcap-qvl says of them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest.chain import load_certificate
from attest.collateral import parse_collateral, window
from attest.errors import AttestError, MalformedEvidence
from attest.policy import first_report_policy
from attest.schemes.tdx.abi import parse_quote, parse_tdreport
from attest.schemes.tdx.appraise import appraise_quote, claims_of
from attest.schemes.tdx.verify import Root, VerifiedQuote, verify_collateral, verify_quote, verify_signatures
from attest.testkit.intel import collateral, root_certificate

from .cases import CASES, DATA, NOW, RELAUNCH, V4, V5, launched

DEFAULT = first_report_policy("tdx")
REJECT_CODES = {
    "tdx/go-tdx-guest/tdx_prod_quote_SPR_E4.dat": "tdx_trailing",
    "tdx/phala-dcap-qvl/quote-from-tappd.bin": "tcb_level",
    "tdx/trustee/tdx_quote_5.dat": "tcb_level",
    "tdx/automata/quote_v4_perfmon.bin": "tcb_level",
}
STATUS = {
    "tdx/go-tdx-guest-ccel/cos-113-tdx-quote.dat": ("OutOfDate", 7),
    "tdx/trustee/tdx_quote_4.dat": ("OutOfDate", 11),
    "tdx/trustee-az/td-quote.bin": ("OutOfDate", 10),
}


def _cases(vectors: Path) -> list[dict[str, Any]]:
    return [c for c in json.loads((vectors / "cases.json").read_text()) if c["scheme"] == "tdx"]


def _now(case: dict[str, Any]) -> float:
    return dt.datetime.fromisoformat(case["now"]).timestamp()


def _verify(vectors: Path, case: dict[str, Any]) -> VerifiedQuote:
    verified = verify_collateral(parse_collateral((vectors / case["endorsements"][0]).read_bytes()), _now(case))
    return verify_quote((vectors / case["evidence"]).read_bytes(), verified, _now(case))


def test_every_case_gets_its_verdict(vectors: Path) -> None:
    cases = _cases(vectors)
    assert len(cases) >= 12 and DEFAULT.tdx is not None
    for case in cases:
        if case["verify"] == "reject":
            with pytest.raises(AttestError) as caught:
                _verify(vectors, case)
            assert caught.value.code == REJECT_CODES[case["evidence"]], case
            continue
        verified = _verify(vectors, case)
        mismatches = appraise_quote(verified, DEFAULT.tdx, DEFAULT.reference_values.tdx)
        assert ("reject" if mismatches else "accept") == case["default"], (case, mismatches)
        expected = STATUS.get(case["evidence"], ("UpToDate", 0))
        assert (verified.tcb.status, len(verified.tcb.advisories)) == expected, case
        assert not verified.simulated and claims_of(verified)["fmspc"] == verified.pck.fmspc.hex()


def test_the_debug_domain_is_refused_for_that_alone(vectors: Path) -> None:
    verified = _verify(
        vectors, next(c for c in _cases(vectors) if "debug" in c["why"].lower() and "POLICY" in c["why"])
    )
    assert DEFAULT.tdx is not None
    codes = [m.code for m in appraise_quote(verified, DEFAULT.tdx, DEFAULT.reference_values.tdx)]
    assert codes == ["debug"] and verified.debug


def test_signatures_hold_where_the_level_does_not(vectors: Path) -> None:
    """What has no fitting level, or no collateral at all, is genuine nevertheless."""
    names = [*REJECT_CODES, "tdx/attestation-rs/tdx_quote_live.dat"]
    for name in names:
        raw = (vectors / name).read_bytes()
        if name.endswith("SPR_E4.dat"):
            with pytest.raises(MalformedEvidence):
                parse_quote(raw)
            raw = raw[: raw.index(b"\nextra bytes")]
        verify_signatures(parse_quote(raw), dt.datetime(2026, 4, 1, tzinfo=dt.UTC).timestamp())


def test_tdreports_parse(vectors: Path) -> None:
    live = parse_tdreport((vectors / "tdx" / "attestation-rs" / "tdx_tdreport_live.bin").read_bytes())
    quote = parse_quote((vectors / "tdx" / "attestation-rs" / "tdx_quote_live.dat").read_bytes())
    for name in (
        "tee_tcb_svn",
        "mr_seam",
        "td_attributes",
        "xfam",
        "mr_td",
        "rtmr0",
        "rtmr1",
    ):  # the rest was extended later
        assert getattr(live, name) == getattr(quote.report, name), name
    parse_tdreport((vectors / "tdx" / "go-tdx-guest" / "report.dat").read_bytes())


def test_the_windows_of_real_collateral(vectors: Path) -> None:
    for path in (vectors / "tdx" / "collateral").rglob("collateral.json"):
        raw = path.read_bytes()
        span = window(parse_collateral(raw))
        verify_collateral(parse_collateral(raw), span.refresh_at)
        for now in (span.start - 1, span.end + 1):
            with pytest.raises(AttestError):
                verify_collateral(parse_collateral(raw), now)


def _intel_sample(vectors: Path) -> tuple[bytes, bytes, Root]:
    """Intel's sample set under a private root, as it is: documents and signatures in one JSON each."""
    folder = vectors / "tdx" / "intel-sample-testroot"
    members: dict[str, str] = {
        "pck_crl_issuer_chain": (folder / "pckSignChain.pem").read_text(),
        "root_ca_crl": (folder / "rootCaCrl.der").read_bytes().hex(),
        "pck_crl": (folder / "intermediateCaCrl.der").read_bytes().hex(),
    }
    for name, file in (("tcb_info", "tcbInfo.json"), ("qe_identity", "qeIdentity.json")):
        text = (folder / file).read_text()
        members[name] = text[text.index("{", 1) : text.rindex(',"signature"')]
        members[f"{name}_signature"] = json.loads(text)["signature"]
        members[f"{name}_issuer_chain"] = (folder / "tcbSignChain.pem").read_text()
    root = Root(load_certificate((folder / "trustedRootCaCert.pem").read_bytes()))
    return (folder / "quote.dat").read_bytes(), json.dumps(members).encode(), root


def test_the_sample_of_intel_in_our_time(vectors: Path) -> None:
    """Chains and all signatures hold today; its QE identity is of another enclave: the verdict is no."""
    quote, raw, root = _intel_sample(vectors)
    now = dt.datetime(2026, 11, 24, tzinfo=dt.UTC).timestamp()
    verified = verify_collateral(parse_collateral(raw), now, (root,))
    verify_signatures(parse_quote(quote), now, (root,))
    for collateral_root, code in (((root,), "qe_mr_signer"), (None, "untrusted_root")):
        with pytest.raises(AttestError) as caught:
            verify_quote(quote, verify_collateral(parse_collateral(raw), now, collateral_root), now)
        assert caught.value.code == code
    assert verified.digest


# -- what dcap-qvl says ------------------------------------------------------------------------------------------------

Oracle = Callable[[bytes, bytes, bytes | None, float], str]

# Where we differ on purpose, real quotes: name → (ours, a part of its message).
DIFFERENCES = {
    "tdx/trustee-az/td-quote.bin": ("OutOfDate", "SEPT_VE_DISABLE"),  # for us a rule of the policy
    "tdx/trustee/tdx_quote_4.dat": ("OutOfDate", "Debug mode"),  # for us a rule of the policy
}
# Minted cases that it accepts and we do not, each with our reason.
ACCEPTED_THERE = {
    "byte after the end": "we accept padding of zeros only",
    "padding enormous": "its size has no maximum there",
    "signed data with a byte behind its parts": "what follows the certification data is passed over there",
    "certification data of type 1": "the outer type is not looked at there",
    "chain of two": "we want leaf, CA and the pinned root itself, as Intel's specification has them",
    "chain of four": "the same",
    "root of somebody else with Intel's name": "passed over there; for us it must be the pinned one",
    "root flipped": "the same",
    "leaf is not a PCK certificate": "names are not looked at there",
    "PPID short": "the field is not used there; we pin it",
    "extension: two elements": "what follows the extension's value is passed over there",
    "extension: PPID is an INTEGER": "the field is not used there",
    "extension: a field twice": "the first is taken there",
    "extension: a foreign OID": "what is not asked for is passed over there",
    "extension: a field of three": "the same",
    "extension: a name that is no OID": "the same",
    "extension: a name that is the extension's own": "the same",
    "extension: a flag that is no BOOLEAN": "the configuration is not read strictly there",
    "extension: SVN negative": "its low byte is taken there",
    "PCK list of later": "thisUpdate is not looked at there",
    "root list of later": "thisUpdate is not looked at there",
    "signer alone": "a chain without its root is completed there",
    "signer of another name": "names are not looked at there",
    "PCK list's issuer is the signer": "the chain of the list's issuer is not looked at there",
    "TCB info of another type": "tcbType is not looked at there",
    "another PCE": "pceId is not looked at there",
    "QE identity of version 3": "the version is not looked at there",
}


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    """The status that dcap-qvl gives, or "refused: " and why."""
    dcap_qvl = pytest.importorskip("dcap_qvl")

    def ask(quote: bytes, raw_collateral: bytes, root: bytes | None, now: float) -> str:
        members = json.loads(raw_collateral)
        for name in members:
            if name.endswith(("crl", "signature")):
                members[name] = bytes.fromhex(members[name])
        try:
            given = dcap_qvl.QuoteCollateralV3(**members)
            if root is None:
                return str(dcap_qvl.verify(quote, given, int(now)).status)
            return str(dcap_qvl.verify_with_root_ca(quote, given, root, int(now)).status)
        except ValueError as error:
            return f"refused: {error}"

    return ask


def test_dcap_qvl_agrees_on_real_quotes(vectors: Path, oracle: Oracle) -> None:
    for case in _cases(vectors):
        quote, raw = ((vectors / name).read_bytes() for name in (case["evidence"], case["endorsements"][0]))
        theirs = oracle(quote, raw, None, _now(case))
        try:
            ours = _verify(vectors, case).tcb.status
        except AttestError as error:
            assert theirs.startswith("refused"), (case["evidence"], error, theirs)
            continue
        known = DIFFERENCES.get(case["evidence"])
        if known is None:
            assert ours == theirs, case["evidence"]
        else:
            assert ours == known[0] and known[1] in theirs, (case["evidence"], theirs)


@pytest.mark.parametrize("name", CASES)
def test_dcap_qvl_refuses_what_we_refuse(name: str, oracle: Oracle) -> None:
    case = CASES[name]
    root = root_certificate().public_bytes(Encoding.DER)
    theirs = oracle(case.quote(), case.collateral(), root, case.now.timestamp())
    assert theirs.startswith("refused") != (name in ACCEPTED_THERE), theirs


def test_dcap_qvl_accepts_the_simulation(oracle: Oracle) -> None:
    root = root_certificate().public_bytes(Encoding.DER)
    for platform in (V4, V5):
        assert oracle(platform.quote(DATA), collateral(), root, NOW.timestamp()) == "UpToDate"


# Of domains that were launched under an old module: theirs, and the reason of ours.
RELAUNCH_THERE = {
    "the module is not old": "TDRelaunchAdvised",  # Intel's own library asks for an old module; we follow it
    "the module had no levels of its own": "TDRelaunchAdvised",  # the same
    "older by now than at the launch": "UpToDate",  # for us what runs now counts, too
}


@pytest.mark.parametrize("name", RELAUNCH)
def test_dcap_qvl_agrees_on_relaunching(name: str, oracle: Oracle) -> None:
    changes, status = RELAUNCH[name]
    theirs = oracle(*launched(**changes), root_certificate().public_bytes(Encoding.DER), NOW.timestamp())
    if status == "Revoked":
        assert theirs.startswith("refused") and "Revoked" in theirs  # a status for us, which no policy can accept
    else:
        assert theirs == RELAUNCH_THERE.get(name, status)
