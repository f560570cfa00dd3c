"""TDX quotes from the simulated Intel: accepted forms, what levels come to, every byte, TD relaunch."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attest.chain import check_crl, check_not_revoked, load_certificates, load_crl
from attest.collateral import parse_collateral, window
from attest.errors import AttestError, BindingMismatch, MalformedEvidence
from attest.schemes.tdx.abi import parse_qe_report, parse_quote, parse_tdreport
from attest.schemes.tdx.tcb import STATUSES, TcbState, converge
from attest.schemes.tdx.verify import (
    VerifiedQuote,
    check_report_data,
    intel_roots,
    needs,
    verify_collateral,
    verify_quote,
    verify_signatures,
)
from attest.testkit.intel import (
    END,
    START,
    collateral,
    crl,
    isv_level,
    key,
    pem,
    qe_identity,
    root_certificate,
    simulated_intel_roots,
    tcb_info,
    tcb_level,
)
from attest.testkit.tdx import TEE_TCB_SVN, TdxPlatform

from .cases import DATA, LATEST, MODULE, NOW, RELAUNCH, V4, V5, launched

pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length must be")

TIME = NOW.timestamp()
VERIFIED = verify_collateral(parse_collateral(collateral()), TIME, simulated_intel_roots())


def verify(quote: bytes, raw_collateral: bytes, now: float = TIME) -> VerifiedQuote:
    verified = verify_collateral(parse_collateral(raw_collateral), now, simulated_intel_roots())
    return verify_quote(quote, verified, now)


@pytest.mark.parametrize(
    ("version", "body", "ca"), [(4, "1.0", "platform"), (5, "1.0", "platform"), (5, "1.5", "processor")]
)
def test_accepted(version: int, body: str, ca: str) -> None:
    platform = TdxPlatform(b"x", version=version, body=body, ca=ca)
    verified = verify(platform.quote(DATA, trailing=bytes(70)), collateral(ca=ca))
    assert (verified.tcb.status, verified.tcb.advisories, verified.simulated) == ("UpToDate", (), True)
    assert verified.pck == platform.info and verified.expires == END.timestamp() and verified.verified_at == TIME
    assert (verified.quote.report.tee_tcb_svn2 is None) == (body == "1.0")
    assert verified.tcb_evaluation_data_number == 18
    check_report_data(verified.quote, DATA)


def test_the_simulated_root_is_refused_without_being_handed_in() -> None:
    for refused in (
        lambda: verify_collateral(parse_collateral(collateral()), TIME),
        lambda: verify_signatures(parse_quote(V4.quote(DATA)), TIME),
    ):
        with pytest.raises(AttestError) as caught:
            refused()
        assert caught.value.code == "untrusted_root"


def test_kept_collateral_is_used_in_its_time_only() -> None:
    quote = V4.quote(DATA)
    assert verify_quote(quote, VERIFIED, TIME + 1).verified_at == TIME + 1
    for now, code in ((VERIFIED.start - 1, "collateral_not_yet_valid"), (VERIFIED.expires + 1, "collateral_expired")):
        with pytest.raises(AttestError) as caught:
            verify_quote(quote, VERIFIED, now)
        assert caught.value.code == code
    span = window(parse_collateral(collateral()))
    assert (span.start, span.end) == (VERIFIED.start, VERIFIED.expires) == (START.timestamp(), END.timestamp())
    assert span.start < span.refresh_at < span.end


def test_chains_may_come_root_first_or_as_der() -> None:
    ders = [c.public_bytes(Encoding.DER) for c in V4.chain]
    for chain in (pem(*reversed(V4.chain)).encode(), b"".join(ders), b"".join(reversed(ders)) + b"\x00"):
        assert verify_quote(V4.quote(DATA, chain=chain), VERIFIED, TIME).simulated
    for chain in (b"".join(ders)[:-1], b"".join(ders) + b"\x01", b"\x30", b"".join(ders) + b"\x30\x82\xff\xff"):
        with pytest.raises(AttestError) as caught:
            verify_quote(V4.quote(DATA, chain=chain), VERIFIED, TIME)
        assert caught.value.code == "malformed_certificate"


def test_the_first_level_that_fits_counts() -> None:
    better = tcb_level(sgx=(9, *(0,) * 15))
    worse = tcb_level("OutOfDate", advisories=["INTEL-SA-2", "INTEL-SA-1"], sgx=(0,) * 16)
    verified = verify(V4.quote(DATA), collateral(tcb=tcb_info(tcbLevels=[better, worse, tcb_level(sgx=(0,) * 16)])))
    assert verified.tcb.status == "OutOfDate" and verified.tcb.advisories == ("INTEL-SA-1", "INTEL-SA-2")


def test_a_module_before_1_5_has_the_levels_of_the_platform() -> None:
    """TEE_TCB_SVN[1] = 0: its first two components count, no module identity does."""
    quote = V4.quote(DATA, tee_tcb_svn=bytes((5, 0, 8)) + bytes(13))
    verified = verify(quote, collateral(tcb=tcb_info(tdxModuleIdentities=None)))
    assert verified.module is None and verified.tcb.status == "UpToDate"
    with pytest.raises(AttestError) as caught:
        verify(V4.quote(DATA, tee_tcb_svn=bytes((4, 0, 8)) + bytes(13)), collateral())
    assert caught.value.code == "tcb_level"
    assert TEE_TCB_SVN[1] == 1 and verify(V4.quote(DATA), collateral()).module is not None


def _state(status: str, *advisories: str, date: float = 0.0) -> TcbState:
    return TcbState(status, advisories, date)


CONVERGED = [
    ("UpToDate", "UpToDate", "UpToDate"),
    ("UpToDate", "SWHardeningNeeded", "SWHardeningNeeded"),
    ("SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"),
    ("SWHardeningNeeded", "OutOfDate", "OutOfDate"),
    ("ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
    ("ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
    ("OutOfDateConfigurationNeeded", "UpToDate", "OutOfDateConfigurationNeeded"),
    ("Revoked", "UpToDate", "Revoked"),
    ("Revoked", "OutOfDateConfigurationNeeded", "Revoked"),
]


@pytest.mark.parametrize(("one", "other", "both"), CONVERGED)
def test_what_two_levels_come_to(one: str, other: str, both: str) -> None:
    for pair in ((one, other), (other, one)):
        assert converge([_state(status) for status in pair]).status == both


def test_convergence_keeps_every_advisory_and_the_oldest_date() -> None:
    states = [
        _state("OutOfDate", "B", "A", date=3.0),
        _state("UpToDate", date=2.0),
        _state("UpToDate", "A", "C", date=4),
    ]
    assert converge(states) == TcbState("OutOfDate", ("A", "B", "C"), 2.0)
    for status in STATUSES:
        assert converge([_state(status)]).status == status


@pytest.mark.parametrize("part", ["platform", "module", "qe"])
def test_the_status_of_each_part_counts(part: str) -> None:
    changes: dict[str, Any] = {
        "platform": {"tcb": tcb_info(tcbLevels=[tcb_level("Revoked")])},
        "module": {"tcb": tcb_info(tdxModuleIdentities=[{**MODULE, "tcbLevels": [isv_level(6, "Revoked")]}])},
        "qe": {"qe": qe_identity(tcbLevels=[isv_level(4, "Revoked")])},
    }[part]
    verified = verify(V4.quote(DATA), collateral(**changes))
    assert verified.tcb.status == "Revoked"
    assert getattr(verified, part).status == "Revoked"


@pytest.mark.parametrize("quote", [V4.quote(DATA), V5.quote(DATA)], ids=["version 4", "version 5"])
def test_every_byte_is_covered(quote: bytes) -> None:
    """A flip at any byte is refused, but for the zero that ends the chain's text, and line ends within it."""
    accepted = []
    for at in range(len(quote)):
        try:
            verify_quote(quote[:at] + bytes((quote[at] ^ 0x01,)) + quote[at + 1 :], VERIFIED, TIME)
        except AttestError:
            continue
        accepted.append(at)
    assert all(quote[at : at + 1] in (b"\n", b"\x00", b"-") for at in accepted), [quote[a : a + 1] for a in accepted]


def test_every_truncation_is_malformed() -> None:
    quote = V5.quote(DATA)
    for length in range(len(quote)):
        with pytest.raises(MalformedEvidence):
            parse_quote(quote[:length])


def test_sizes_have_maxima() -> None:
    with pytest.raises(MalformedEvidence, match="above"):
        parse_quote(V4.quote(DATA) + bytes(40_000))
    with pytest.raises(MalformedEvidence, match="above"):
        parse_collateral(b" " * (9 << 20))
    with pytest.raises(MalformedEvidence, match="certificates in a chain"):
        load_certificates(pem(*V4.chain * 4).encode())


def test_report_data_is_compared_whole() -> None:
    quote = parse_quote(V4.quote(DATA))
    for other in (bytes(64), DATA[:32] + bytes(32), DATA[::-1], b""):
        with pytest.raises(BindingMismatch) as caught:
            check_report_data(quote, other)
        assert caught.value.code == "report_data"


def test_the_qe_report_has_one_length() -> None:
    with pytest.raises(MalformedEvidence):
        parse_qe_report(bytes(383))


def test_collateral_without_dates_has_no_window() -> None:
    for changes in ({"tcb_info": "{}"}, {"qe_identity": "x"}):
        with pytest.raises(MalformedEvidence):
            window(parse_collateral(collateral(**changes)))


def test_a_packaged_root_that_was_exchanged_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attest.schemes.tdx.verify.intel_root", root_certificate)
    with pytest.raises(AttestError) as caught:
        intel_roots.__wrapped__()
    assert caught.value.code == "anchor"


def test_a_ca_without_key_usage_signs_no_lists() -> None:
    bare = x509.CertificateBuilder(
        root_certificate().subject, root_certificate().subject, root_certificate().public_key(), 1,
        START, END,
    ).sign(key("root"), hashes.SHA256())  # fmt: skip
    for issuer, made, code in (
        (bare, crl("root"), "crl_issuer"),
        (root_certificate(), crl("root", signer=ec.derive_private_key(5, ec.SECP384R1())), "crl_signature"),
    ):
        with pytest.raises(AttestError) as caught:
            check_crl(made, issuer, TIME)
        assert caught.value.code == code
    with pytest.raises(AttestError) as caught:
        check_not_revoked(V4.pck(), crl("root"))
    assert caught.value.code == "crl_issuer"
    with pytest.raises(MalformedEvidence, match="above"):
        load_crl(bytes(5 << 20))


@pytest.mark.parametrize("ca", ["platform", "processor"])
def test_what_a_quote_calls_for(ca: str) -> None:
    need = needs(parse_quote(TdxPlatform(b"a", ca=ca).quote(DATA)))
    assert (need.fmspc, need.ca) == ("c0be00000000", ca)


def test_a_seed_is_needed() -> None:
    with pytest.raises(ValueError, match="seed"):
        TdxPlatform(b"")


def test_tdreport_has_one_length() -> None:
    assert parse_tdreport(bytes(1024)).mr_td == bytes(48)
    for size in (0, 1023, 1025):
        with pytest.raises(MalformedEvidence):
            parse_tdreport(bytes(size))


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{}", b"[]", b"\xff", collateral()[:-1], collateral().replace(b'"pck_crl"', b'"pck_crll"'),
        collateral(pck_crl="zz"), collateral(pck_crl="00"), collateral(tcb_info_signature="00"),
        collateral(tcb_info_issuer_chain=""), collateral(tcb_info_issuer_chain="x"),
    ],
)  # fmt: skip
def test_collateral_that_is_none(raw: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        parse_collateral(raw)


# -- a domain that was launched under an old module --------------------------------------------------------------------


@pytest.mark.parametrize("case", RELAUNCH)
def test_td_relaunch(case: str) -> None:
    """Intel's rule condition by condition, and what runs now counts in any case."""
    changes, status = RELAUNCH[case]
    assert verify(*launched(**changes)).tcb.status == status


def test_td_relaunch_keeps_advisories_and_the_oldest_date() -> None:
    latest = {**LATEST, "tcbStatus": "SWHardeningNeeded", "advisoryIDs": ["C"]}
    before = tcb_level("OutOfDate", advisories=["B", "A"], date="2020-01-01T00:00:00Z")
    assert verify(*launched(levels=[latest, before])).tcb == TcbState(
        "TDRelaunchAdvised", ("A", "B", "C"), 1_577_836_800.0
    )
