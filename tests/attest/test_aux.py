"""An event log beside evidence for a channel: named by digest, replayed, asked for by policy; never in a passport."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from attest.appraise import AttestationResult
from attest.attester import WithTpm, evidence_for
from attest.binding import Expected, Phase
from attest.codec import cbor_encode
from attest.errors import AppraisalFailed, AttestError, CollectionFailed, MalformedEvidence
from attest.eventlog import parse_event_log
from attest.eventlog import replay as replayed
from attest.evidence import (
    AUX_DIGEST,
    AUX_DIGEST_TYPE,
    MAX_AUX_BYTES,
    MAX_EVIDENCE_BYTES,
    Part,
    decode_evidence,
    encode_evidence,
    has_aux,
    join_aux,
    split_aux,
)
from attest.needs import needed_items
from attest.policy import parse_policy
from attest.schemes.vtpm.abi import Alg
from attest.testkit.eventlog import GOOD_BOOT, GOOD_TD_BOOT, agile_log, ccel
from attest.testkit.intel import collateral
from attest.testkit.snp import SimulatedSnpCollector
from attest.testkit.tdx import SimulatedTdxCollector
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import Verifier

from .conftest import CLAIMS, NOW

LOG = agile_log()
OTHER = agile_log((*GOOD_BOOT, (4, 0x80000003, b"another loader")))
POLICY = """id = "log"
unsafe_accept_vtpm_only = true
[vtpm]
pcrs = [0, 4, 5, 7]
{rules}
unsafe_any_pcr_values = true
unsafe_any_ak = true
"""
ASKS = ("require_event_log = true", "require_secure_boot = true", "require_exit_boot_services = true")


def measured(log: bytes) -> SoftwareTpm:
    """A machine whose PCRs 0 to 7 come of ``log``."""
    tpm = SoftwareTpm()
    tpm.pcrs[Alg.SHA256] |= {i: v for i, v in replayed(parse_event_log(log), Alg.SHA256).items() if i < 8}
    return tpm


TPM = measured(LOG)


def verifier(rules: str = ASKS[0]) -> Verifier:
    return Verifier(parse_policy(POLICY.format(rules=rules)))


def refused(raw: bytes, expected: Expected, rules: str = ASKS[0]) -> str:
    with pytest.raises(AttestError) as caught:
        verifier(rules).appraise(raw, expected, now=NOW)
    return caught.value.code


@pytest.mark.parametrize("rules", [*ASKS, "\n".join(ASKS), ""])
def test_a_log_that_replays_is_accepted(rules: str, expected: Expected) -> None:
    result = verifier(rules).appraise(evidence_for(TPM, CLAIMS, LOG), expected, now=NOW)
    assert (
        result.claims["eventlog.secure_boot"] == "true" and result.claims["eventlog.pcrs"] == "0, 1, 2, 3, 4, 5, 6, 7"
    )


@pytest.mark.parametrize("rules", ASKS)
def test_policy_that_asks_gets_a_log_or_refuses(rules: str, expected: Expected) -> None:
    assert refused(evidence_for(TPM, CLAIMS), expected, rules) == "event_log_missing"
    passport = replace(CLAIMS, phase=Phase.PASSPORT, nonce=None, channel_binding=None, peer_spki_hash=None)
    known = {name: getattr(passport, name) for name in Expected.__struct_fields__}
    verifier(rules).appraise(evidence_for(TPM, passport), Expected(**known), now=NOW)


def test_digests_of_events_in_place_of_values(expected: Expected) -> None:
    """What boots is named event by event; a passport, which has none, is judged by the rest."""
    events = parse_event_log(LOG).events
    named = {i: sorted({e.digests[Alg.SHA256].hex() for e in events if e.index == i and e.type != 3}) for i in (0, 4)}
    text = POLICY.format(rules="").replace("unsafe_any_pcr_values = true", "").replace("[0, 4, 5, 7]", "[0, 4]")
    listed = "\n".join(f"{index} = {digests}" for index, digests in named.items()).replace("'", '"')
    policy = parse_policy(text + "[reference_values.vtpm.event_digests]\n" + listed)
    one = Verifier(policy)
    assert one.appraise(evidence_for(TPM, CLAIMS, LOG), expected, now=NOW).platform == "vtpm"
    with pytest.raises(AppraisalFailed) as caught:
        one.appraise(evidence_for(measured(OTHER), CLAIMS, OTHER), expected, now=NOW)
    assert [m.code for m in caught.value.mismatches] == ["event"]
    with pytest.raises(AppraisalFailed) as caught:
        one.appraise(evidence_for(TPM, CLAIMS), expected, now=NOW)
    assert {m.code for m in caught.value.mismatches} == {"event_log_missing"}


def test_one_thing_wrong(expected: Expected) -> None:
    good = decode_evidence(split_aux(evidence_for(TPM, CLAIMS, LOG))[0])
    bare = encode_evidence(replace(good, parts=_without(good.parts)))

    def with_digest(digest: bytes, kind: str = AUX_DIGEST_TYPE) -> bytes:
        return encode_evidence(replace(good, parts={**good.parts, AUX_DIGEST: Part(kind, digest)}))

    named = encode_evidence(good)
    assert refused(named, expected) == "aux_digest"  # named, and not sent
    assert refused(join_aux(bare, LOG), expected) == "aux_digest"  # sent, and not named
    assert refused(join_aux(named, LOG + b"\x00"), expected) == "aux_digest"
    assert refused(join_aux(with_digest(bytes(32)), LOG), expected) == "aux_digest"
    assert refused(join_aux(with_digest(hashlib.sha256(LOG).digest()[:31]), LOG), expected) == "aux_digest"
    assert refused(join_aux(with_digest(hashlib.sha256(LOG).digest(), "text/plain"), LOG), expected) == "part_unknown"
    assert refused(evidence_for(TPM, CLAIMS, OTHER), expected) == "event_log_replay"
    assert refused(evidence_for(TPM, CLAIMS, LOG[:-1]), expected) == "event_log_truncated"
    assert refused(evidence_for(TPM, CLAIMS, agile_log(algorithms=(Alg.SHA384,))), expected) == "event_log_bank"


def _without(parts: Mapping[int, Part]) -> dict[int, Part]:
    return {key: part for key, part in parts.items() if key != AUX_DIGEST}


# -- a trust domain's, without a TPM -----------------------------------------------------------------------------------

CCEL = ccel()
BOOTED = SimulatedTdxCollector(b"booted", event_log=CCEL)
TDX_POLICY = """id = "ccel"
[tdx]
{rules}
unsafe_any_mr_td = true
unsafe_any_rtmrs = true
"""


def judged(raw: bytes, expected: Expected, rules: str = "\n".join(ASKS)) -> AttestationResult:
    one = Verifier(parse_policy(TDX_POLICY.format(rules=rules)), allow_simulated=True)
    return one.appraise(raw, expected, now=NOW, endorsements=[collateral()])


def tdx_refused(raw: bytes, expected: Expected, rules: str = "\n".join(ASKS)) -> list[str]:
    with pytest.raises(AttestError) as caught:
        judged(raw, expected, rules)
    return [m.code for m in caught.value.mismatches] or [caught.value.code]


@pytest.mark.parametrize("rules", [*ASKS, "\n".join(ASKS), "event_log_rtmrs = [0, 1, 2]"])
def test_a_trust_domains_log_is_replayed_to_its_rtmrs(rules: str, expected: Expected) -> None:
    claims = judged(evidence_for(BOOTED, CLAIMS, CCEL), expected, rules).claims
    assert claims["eventlog.bank"] == "sha384" and claims["eventlog.rtmrs"].startswith("0, 1, 2")
    assert claims["eventlog.secure_boot"] == claims["eventlog.exit_boot_services"] == "true"


@pytest.mark.parametrize("rules", ASKS)
def test_a_trust_domain_that_sends_none(rules: str, expected: Expected) -> None:
    """Refused for a channel; a passport is judged by the rest, and tells nothing of a log."""
    assert tdx_refused(evidence_for(BOOTED, CLAIMS), expected, rules) == ["event_log_missing"]
    passport = replace(CLAIMS, phase=Phase.PASSPORT, nonce=None, channel_binding=None, peer_spki_hash=None)
    known = {name: getattr(passport, name) for name in Expected.__struct_fields__}
    result = judged(evidence_for(BOOTED, passport), Expected(**known), rules)
    assert not any(name.startswith("eventlog.") for name in result.claims)


def test_one_thing_wrong_with_a_trust_domains_log(expected: Expected) -> None:
    other = ccel((*GOOD_TD_BOOT, (2, 0x80000003, b"another loader")))
    off = ccel([event for event in GOOD_TD_BOOT if event[1] != 0x80000001])
    named = split_aux(evidence_for(BOOTED, CLAIMS, CCEL))[0]
    assert tdx_refused(named, expected) == ["aux_digest"]
    assert tdx_refused(join_aux(split_aux(evidence_for(BOOTED, CLAIMS))[0], CCEL), expected) == ["aux_digest"]
    assert tdx_refused(join_aux(named, CCEL[:-1]), expected) == ["aux_digest"]
    assert tdx_refused(evidence_for(BOOTED, CLAIMS, other), expected) == ["event_log_replay"]
    assert tdx_refused(evidence_for(BOOTED, CLAIMS, CCEL[:700]), expected) == ["event_log_truncated"]
    assert tdx_refused(evidence_for(BOOTED, CLAIMS, LOG), expected) == ["event_log_bank"]
    booted_without = SimulatedTdxCollector(b"booted", event_log=off)
    assert tdx_refused(evidence_for(booted_without, CLAIMS, off), expected) == ["secure_boot"]


def test_beside_a_tpms_quote_the_log_is_the_tpms(expected: Expected) -> None:
    text = TDX_POLICY.format(rules="") + POLICY.format(rules=ASKS[0]).partition("unsafe_accept_vtpm_only = true\n")[2]
    one = Verifier(parse_policy(text), allow_simulated=True)
    both = WithTpm(BOOTED, TPM)
    result = one.appraise(evidence_for(both, CLAIMS, LOG), expected, now=NOW, endorsements=[collateral()])
    assert result.claims["eventlog.bank"] == "sha256" and "eventlog.rtmrs" not in result.claims
    with pytest.raises(AttestError) as caught:
        one.appraise(evidence_for(both, CLAIMS, CCEL), expected, now=NOW, endorsements=[collateral()])
    assert caught.value.code == "event_log_bank"


def test_a_log_beside_evidence_that_no_tpm_quoted(expected: Expected) -> None:
    raw = evidence_for(SimulatedSnpCollector(b"s"), CLAIMS, LOG)
    policy = parse_policy('id = "s"\n[sev-snp]\nunsafe_any_tcb = true\nunsafe_any_measurement = true\n')
    with pytest.raises(AttestError) as caught:
        Verifier(policy, allow_simulated=True).appraise(raw, expected, now=NOW)
    assert caught.value.code == "part_unknown"
    assert needed_items(evidence_for(SimulatedSnpCollector(b"s"), CLAIMS)) == needed_items(raw)


def test_the_two_as_one_value() -> None:
    raw = evidence_for(TPM, CLAIMS)
    assert join_aux(raw, b"") == raw and split_aux(raw) == (raw, b"") and not has_aux(raw)
    assert split_aux(join_aux(raw, LOG)) == (raw, LOG) and has_aux(join_aux(raw, LOG))
    largest = join_aux(bytes(MAX_EVIDENCE_BYTES), bytes(MAX_AUX_BYTES))
    assert len(split_aux(largest)[1]) == MAX_AUX_BYTES


@pytest.mark.parametrize(
    "raw",
    [
        b"\x82", b"\x82\x41a", b"\x82\x41a\x41b\x00", b"\x82\x01\x41a", b"\x82\x41a\x40",
        b"\x82\x40\x41a", b"\x82\x41a\xf6", cbor_encode([b"a", bytes(MAX_AUX_BYTES + 1)]),
        cbor_encode([b"a", bytes(MAX_AUX_BYTES + MAX_EVIDENCE_BYTES + 17)]),
    ],
)  # fmt: skip
def test_values_that_are_neither(raw: bytes, expected: Expected) -> None:
    with pytest.raises(MalformedEvidence):
        split_aux(raw)
    assert refused(raw, expected) in ("malformed_evidence", "oversize")


def test_a_log_that_no_channel_holds() -> None:
    with pytest.raises(CollectionFailed) as caught:
        evidence_for(TPM, CLAIMS, bytes(MAX_AUX_BYTES + 1))
    assert caught.value.code == "evidence_too_large"
    assert split_aux(evidence_for(TPM, CLAIMS, bytes(MAX_AUX_BYTES)))[1] == bytes(MAX_AUX_BYTES)
