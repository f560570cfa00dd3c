"""A strict policy from each kind of evidence: what it pins, what it cannot, and that its own evidence meets it."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest.attester import evidence_for
from attest.errors import AttestError, MalformedEvidence, PolicyFormatError
from attest.evidence import (
    AZURE_HCL_TYPE,
    ENDORSEMENTS,
    HARDWARE,
    LAUNCH_ENDORSEMENT,
    LAUNCH_ENDORSEMENT_TYPE,
    TOKEN,
    TOKEN_TYPE,
    TPM_QUOTE,
    Part,
    encode_certificates,
)
from attest.policy import parse_policy
from attest.policy_init import Draft, draft_policy
from attest.testkit.azure import hcl_report, runtime_claims
from attest.testkit.eventlog import GOOD_TD_BOOT, agile_log, ccel
from attest.testkit.gcp import endorsement, golden, instance_certificate
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tokens import fixed_key, maa_claims, sign, space_claims
from attest.testkit.tpm import SoftwareTpm

from .conftest import CLAIMS

pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length must be")  # of Google's older root

NOW = 1_800_000_000.0
SNP, TDX, TPM = SnpPlatform(b"draft"), TdxPlatform(b"draft", version=5), SoftwareTpm()


class _Machine:
    scheme = "test"

    def __init__(self, **parts: Part) -> None:
        keys = {
            "hardware": HARDWARE, "quote": TPM_QUOTE, "token": TOKEN, "endorsements": ENDORSEMENTS,
            "launch": LAUNCH_ENDORSEMENT,
        }  # fmt: skip
        self._parts = {keys[name]: part for name, part in parts.items()}

    def parts(self, _: bytes) -> dict[int, Part]:
        return self._parts


def _bundle(**parts: Part) -> bytes:
    return evidence_for(_Machine(**parts), CLAIMS)


def _hardware(body: bytes) -> Part:
    return Part(AZURE_HCL_TYPE, body)


def _certified(*keys: Any, **changes: Any) -> Part:
    return encode_certificates(tuple(instance_certificate(key, **changes).public_bytes(Encoding.DER) for key in keys))


def _launch(**changes: Any) -> Part:
    return Part(LAUNCH_ENDORSEMENT_TYPE, endorsement(golden(**changes)))


QUOTE = TPM.parts(bytes(32))[TPM_QUOTE]
MAA = {kind: sign(maa_claims(kind, NOW, b"n")) for kind in ("azurevm", "sevsnpvm", "tdxvm")}
SPACE = sign(space_claims(NOW, "n"))
SERVICE_TD = TDX.quote(bytes(64), mr_service_td=b"\x01" * 48)
# evidence, what it is taken for, what is pinned among others, what a note says
DRAFTS: dict[str, tuple[bytes, str, str, str]] = {
    "SNP": (SNP.report(bytes(64)), "sev-snp", "reference_values.sev-snp.chip_ids", ""),
    "SNP of version 2": (
        SNP.report(bytes(64), version=2, cpuid_family=0, cpuid_model=0, cpuid_stepping=0), "sev-snp",
        "sev-snp.min_tcb", "does not name its product",
    ),
    "SNP without chip": (
        SNP.report(bytes(64), chip_id=bytes(64)), "sev-snp", "sev-snp.min_tcb", "does not name its chip",
    ),
    "SNP with debug": (SNP.report(bytes(64), policy=0x30000 | 1 << 19), "sev-snp", "sev-snp.min_tcb", "debug is on"),
    "SNP with migration": (
        SNP.report(bytes(64), policy=0x30000 | 1 << 18), "sev-snp", "sev-snp.min_tcb", "migrate_ma is on",
    ),
    "SNP on one socket": (SNP.report(bytes(64), policy=0x30000 | 1 << 20), "sev-snp", "sev-snp.min_tcb", ""),
    "SNP of an author": (
        SNP.report(bytes(64), flags=1, author_key_digest=b"\x01" * 48), "sev-snp",
        "reference_values.sev-snp.author_key_digests", "",
    ),
    "SNP with firmware on trial": (
        SNP.report(bytes(64), current_build=9), "sev-snp", "sev-snp.min_tcb", "firmware is provisional",
    ),
    "TDX": (TDX.quote(bytes(64)), "tdx", "reference_values.tdx.mr_td", "FMSPC"),
    "TDX with a service TD": (SERVICE_TD, "tdx", "reference_values.tdx.mr_service_td", "FMSPC"),
    "HCL": (hcl_report(SNP), "azure-hcl", "reference_values.azure.vm_unique_ids", "no PCR values"),
    "MAA, azurevm": (MAA["azurevm"], "token", "reference_values.maa.measurements", "by its hash"),
    "MAA, sevsnpvm": (MAA["sevsnpvm"], "token", "reference_values.maa.host_data", "by its hash"),
    "MAA, tdxvm": (MAA["tdxvm"], "token", "reference_values.maa.measurements", "by its hash"),
    "Confidential Space": (SPACE, "token", "reference_values.gcp.image_digests", ""),
    "a vTPM alone": (_bundle(quote=QUOTE), "bundle", "reference_values.vtpm.ak_names", "integrity"),
    "SNP in a collection": (
        _bundle(hardware=_hardware(SNP.report(bytes(64)))), "bundle", "reference_values.sev-snp.measurements", "",
    ),
    "TDX in a collection": (
        _bundle(hardware=_hardware(TDX.quote(bytes(64)))), "bundle", "reference_values.tdx.mr_td", "FMSPC",
    ),
    "SNP that Google endorses": (
        _bundle(hardware=_hardware(SNP.report(bytes(64))), launch=_launch()), "bundle",
        "reference_values.sev-snp.measurements", "lead to Google's root",
    ),
    "a token beside an endorsement of nothing": (
        _bundle(token=Part(TOKEN_TYPE, SPACE), launch=_launch()), "bundle", "reference_values.gcp.image_digests", "",
    ),
    "a vTPM of an instance": (
        _bundle(quote=QUOTE, endorsements=_certified(fixed_key(), TPM.key)), "bundle", "reference_values.vtpm.gce",
        "integrity",
    ),
    "a vTPM with a certificate that names none": (
        _bundle(quote=QUOTE, endorsements=_certified(TPM.key, value=b"")), "bundle", "reference_values.vtpm.ak_names",
        "integrity",
    ),
    "a token in a collection": (
        _bundle(token=Part(TOKEN_TYPE, SPACE)), "bundle", "reference_values.gcp.image_digests", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DRAFTS)
def test_a_draft_loads_and_says_what_it_could_not_pin(case: str) -> None:
    raw, kind, pinned, note = DRAFTS[case]
    draft = draft_policy(raw, "mine")
    assert draft.format == kind and pinned in draft.pinned
    assert note in "; ".join(draft.notes)
    policy = parse_policy(draft.text)
    assert policy.id == "mine" and all(f"not pinned: {name}" in draft.notes for name in policy.unsafe)


def test_what_google_says_of_firmware_and_instance_is_pinned() -> None:
    for launch, svn in ((_launch(svn=7), 7), (_launch(svn=1), 1)):
        draft = draft_policy(_bundle(hardware=_hardware(SNP.report(bytes(64))), launch=launch), "mine")
        rules = parse_policy(draft.text).sev_snp
        assert rules is not None and rules.launch_endorsement is not None and rules.launch_endorsement.min_svn == svn
    draft = draft_policy(_bundle(quote=QUOTE, endorsements=_certified(TPM.key)), "mine")
    values = parse_policy(draft.text).reference_values.vtpm
    assert values.gce.project_ids == ("project",) and values.gce.instance_ids == ("42",) and len(values.ak_roots) == 2


def test_an_hcl_report_of_a_trust_domain() -> None:
    draft = draft_policy(hcl_report(SNP, hardware=bytes(1024), report_type=4), "mine")
    assert "reference_values.tdx.mr_td" in draft.pinned


def test_an_hcl_report_of_a_vm_without_name() -> None:
    claims = runtime_claims(None, **{"vm-configuration": {"tpm-enabled": True}})
    assert "reference_values.azure.vm_unique_ids" not in draft_policy(hcl_report(SNP, claims), "mine").pinned


def _without(kind: str, **changes: Any) -> bytes:
    return sign(maa_claims(kind, NOW, b"n", changes))


def test_tokens_with_less_in_them() -> None:
    def draft(raw: bytes) -> Draft:
        return draft_policy(raw, "mine")

    assert (
        "reference_values.maa.host_data" not in draft(_without("sevsnpvm", **{"x-ms-sevsnpvm-hostdata": None})).pinned
    )
    space = draft(sign(space_claims(NOW, "n", {"aud": ["a", "b"], "submods/gce": None})))
    assert 'audiences = ["a", "b"]' in space.text and "reference_values.gcp.zones" not in space.pinned


NONE = {
    "nothing": b"nothing",
    "a token of nobody": sign({"iss": "x"}),
    "a token without a measurement": _without("tdxvm", tdx_mrtd=None),
    "a collection of nothing": _bundle(),
    "a collection of unknown hardware": _bundle(hardware=_hardware(b"x")),
}


@pytest.mark.parametrize("case", NONE)
def test_what_gives_no_policy(case: str) -> None:
    with pytest.raises(MalformedEvidence) as caught:
        draft_policy(NONE[case], "mine")
    assert caught.value.code == "unknown_format"


def test_an_id_that_is_none() -> None:
    with pytest.raises(PolicyFormatError):
        draft_policy(SPACE, "not an id")


BOOT_ON, BOOT_OFF = ccel(), ccel([event for event in GOOD_TD_BOOT if event[1] not in (0x80000001, 0x80000007)])


@pytest.mark.parametrize(
    ("log", "changed", "rules", "note"),
    [
        (BOOT_ON, {}, (0, 1, 2, 3, "secure_boot", "exit_boot_services"), ""),
        (BOOT_OFF, {}, (0, 1, 2, 3), "does not show secure boot"),
        (BOOT_ON, {"rtmr2": b"\x01" * 48}, (0, 1, 3, "secure_boot", "exit_boot_services"), "RTMR2 was measured on"),
        (BOOT_ON, {"rtmr1": b"\x01" * 48}, (0, 2, 3, "secure_boot"), "RTMR1 was measured on"),
        (BOOT_ON, {"rtmr0": b"\x01" * 48}, (1, 2, 3, "exit_boot_services"), "RTMR0 was measured on"),
    ],
)
def test_a_trust_domains_log_is_asked_for(log: bytes, changed: dict[str, Any], rules: Any, note: str) -> None:
    draft = draft_policy(TdxPlatform(b"draft", event_log=log).quote(bytes(64), **changed), "d", log)
    tdx = parse_policy(draft.text).tdx
    assert tdx is not None and tdx.require_event_log and tdx.rtmrs == (0, 1, 2, 3)
    assert tdx.event_log_rtmrs == tuple(n for n in rules if isinstance(n, int))
    assert tdx.require_secure_boot == ("secure_boot" in rules)
    assert tdx.require_exit_boot_services == ("exit_boot_services" in rules)
    assert note in "\n".join(draft.notes)


@pytest.mark.parametrize(
    ("raw", "log", "code"),
    [
        (TDX.quote(bytes(64)), BOOT_ON, "event_log_empty"),  # of another machine: no RTMR comes of it
        (TDX.quote(bytes(64)), agile_log(GOOD_TD_BOOT), "event_log_bank"),
        (TDX.quote(bytes(64)), BOOT_ON[:700], "event_log_truncated"),
        (TDX.quote(bytes(64)), b"", "event_log_truncated"),
        (SNP.report(bytes(64)), BOOT_ON, "part_unknown"),
    ],
)
def test_a_log_that_does_not_belong_to_it(raw: bytes, log: bytes, code: str) -> None:
    with pytest.raises(AttestError) as caught:
        draft_policy(raw, "d", log)
    assert caught.value.code == code
