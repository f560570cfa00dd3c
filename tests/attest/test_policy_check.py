"""Policies that are well formed and cannot be meant: each by the word that tells the operator why, and nothing else."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest.errors import PolicyFormatError
from attest.policy import parse_policy
from attest.testkit.tokens import certificate, fixed_key

ROOT = certificate("root", fixed_key(), ca=True).public_bytes(Encoding.PEM).decode()
ZERO = "00" * 32
VTPM = "[vtpm]\npcrs = [0]\n"
ANY = "unsafe_any_pcr_values = true\nunsafe_any_ak = true\n"
SNP = "[sev-snp]\nunsafe_any_tcb = true\nunsafe_any_measurement = true\n"
TDX = "[tdx]\nunsafe_any_mr_td = true\nunsafe_any_rtmrs = true\n"
CCEL = "require_event_log = true\n"
AZURE = "[azure]\nrequire_ak_certificate = true\n"
MAA, GCP = "[maa]\nissuers = ['https://x']\n", "[gcp]\naudiences = ['a']\n"
MEASURED = f"[reference_values.maa]\nmeasurements = ['{'ab' * 48}']\n"
IMAGE = f"[reference_values.gcp]\nimage_digests = ['sha256:{ZERO}']\n"
SCHEME = "[schemes.x]\nkey = 1\n"
NONE = "[none]\naccept_unattested_clients = true\n"
PCR = f"[reference_values.vtpm.pcr_values]\n0 = ['{ZERO}']\n"
GCE = "[reference_values.vtpm.gce]\nzones = ['z']\n"
NAMES = f"[reference_values.vtpm]\nak_names = ['000b{ZERO}']\n"

USABLE = {
    "a vTPM": VTPM + NAMES + PCR,
    "a certified vTPM": VTPM + f"[reference_values.vtpm]\nak_roots = ['''{ROOT}''']\n" + PCR,
    "a vTPM of an instance of Google's": VTPM + f"[reference_values.vtpm]\nak_roots = ['''{ROOT}''']\n" + GCE + PCR,
    "SEV-SNP endorsed by Google": "[sev-snp]\nunsafe_any_tcb = true\n[sev-snp.launch_endorsement]\nmin_svn = 1\n",
    "any vTPM": VTPM + ANY,
    "a vTPM by SHA-1": VTPM + ANY + "pcr_bank = 'sha1'\nunsafe_allow_sha1 = true\n",
    "a vTPM that hardware names": SNP + VTPM + PCR,
    "SEV-SNP": SNP,
    "TDX": TDX,
    "TDX and its log": TDX + CCEL,
    "TDX beside a vTPM": TDX + VTPM + PCR,
    "Azure": AZURE + VTPM + ANY + SNP,
    "MAA": MAA + MEASURED,
    "any MAA": "[maa]\nunsafe_any_issuer = true\nunsafe_any_measurement = true\n",
    "Confidential Space": GCP + IMAGE,
    "any of it": "[gcp]\nunsafe_any_audience = true\nunsafe_any_image = true\n",
    "a scheme": SCHEME,
    "a scheme and a token": SCHEME + MAA + MEASURED,
    "none": NONE,
}


@pytest.mark.parametrize("case", USABLE)
def test_usable(case: str) -> None:
    parse_policy('id = "p"\n' + USABLE[case])


UNUSABLE: dict[str, tuple[str, str]] = {
    "nothing": ("", "asks for no evidence"),
    "none beside evidence": (SNP + NONE, "[none] beside another kind of evidence"),
    "none beside a scheme": (SCHEME + NONE, "[none] beside another kind of evidence"),
    "two kinds of hardware": (SNP + TDX, "[sev-snp] and [tdx]: evidence has room for one kind of hardware"),
    "Azure alone": (AZURE, "it needs [vtpm] and the hardware's table"),
    "Azure without hardware": (AZURE + VTPM + ANY, "it needs [vtpm] and the hardware's table"),
    "Azure without vTPM": (AZURE + SNP, "it needs [vtpm] and the hardware's table"),
    "a scheme beside hardware": (SCHEME + SNP, "[schemes.*]: evidence has room for one kind of hardware"),
    "two schemes": (SCHEME + "[schemes.y]\nkey = 1\n", "[schemes.*]: evidence has room for one kind of hardware"),
    "two tokens": (MAA + GCP + MEASURED + IMAGE, "[maa] and [gcp]: evidence has room for one token"),
    "values of what is not asked for": (SNP + MEASURED, "reference values for [maa], which is not asked for"),
    "one log, and two that could be asked": (TDX + CCEL + VTPM + PCR, "the event log is the TPM's"),
    "no AK": (VTPM + PCR, "no AK is pinned (ak_names) or certified (ak_roots)"),
    "any AK and one": (VTPM + "unsafe_any_ak = true\n" + NAMES + PCR, "unsafe_any_ak contradicts"),
    "any values and one": (VTPM + "unsafe_any_pcr_values = true\n" + NAMES + PCR, "unsafe_any_pcr_values contradicts"),
    "SHA-1 unsaid": (VTPM + ANY + "pcr_bank = 'sha1'\n", "only with unsafe_allow_sha1 = true"),
    "an instance that nobody certifies": (VTPM + NAMES + GCE + PCR, "counts only with ak_roots"),
    "Azure's machine with Google's firmware": (
        AZURE + VTPM + ANY + SNP.replace("unsafe_any_measurement = true\n", "launch_endorsement = {min_svn = 1}\n"),
        "Google endorses its own firmware only",
    ),
    "a PCR without value": (VTPM + NAMES, "rule or value missing for PCR 0"),
    "a value without PCR": (VTPM + NAMES + PCR + f"7 = ['{ZERO}']\n", "rule or value missing for PCR 7"),
    "a PCR by value and by events": (
        VTPM + NAMES + PCR + f"[reference_values.vtpm.event_digests]\n0 = ['{ZERO}']\n", "of the same PCR",
    ),
    "a root that is none": (VTPM + "[reference_values.vtpm]\nak_roots = ['x']\n" + PCR, "not a PEM certificate"),
    "no issuer": (MAA.replace("issuers = ['https://x']", "types = ['azurevm']") + MEASURED, "give issuers"),
    "any issuer and one": (MAA + "unsafe_any_issuer = true\n" + MEASURED, "give issuers"),
    "no measurement": (MAA, "give measurements"),
    "any measurement and one": (MAA + "unsafe_any_measurement = true\n" + MEASURED, "give measurements"),
    "no audience": (GCP.replace("audiences = ['a']", "min_swversion = 1") + IMAGE, "give audiences"),
    "any audience and one": (GCP + "unsafe_any_audience = true\n" + IMAGE, "give audiences"),
    "no image": (GCP, "give image_digests"),
    "any image and one": (GCP + "unsafe_any_image = true\n" + IMAGE, "give image_digests"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_for_this_alone(case: str) -> None:
    tables, words = UNUSABLE[case]
    with pytest.raises(PolicyFormatError) as caught:
        parse_policy('id = "p"\n' + tables)
    assert words in str(caught.value) and "; " not in str(caught.value), caught.value


def test_all_problems_at_once() -> None:
    with pytest.raises(PolicyFormatError) as caught:
        parse_policy('id = "p"\n' + MAA + GCP)
    assert [words in str(caught.value) for words in ("one token", "measurements", "image_digests")] == [True] * 3
