"""Confidential Space tokens, GCE vTPM certificates, launch endorsements: every negative case, by its name, alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attest.appraise import AttestationResult
from attest.attester import evidence_for
from attest.binding import Expected, snp_report_data
from attest.errors import AttestError
from attest.evidence import (
    ENDORSEMENTS,
    HARDWARE,
    LAUNCH_ENDORSEMENT,
    LAUNCH_ENDORSEMENT_TYPE,
    SNP_REPORT_TYPE,
    TDX_QUOTE_TYPE,
    Part,
    encode_certificates,
)
from attest.offline import Case, judge
from attest.policy import EvidencePolicy, parse_policy
from attest.schemes.gcp.certificate import verify_vtpm_certificate
from attest.schemes.gcp.endorsement import verify_endorsement
from attest.schemes.gcp.token import ISSUER, verify_pki_token
from attest.schemes.tdx.abi import parse_quote
from attest.testkit.gcp import endorsement, field, golden, instance_certificate, root, root_pem, signer_certificate
from attest.testkit.intel import collateral
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tokens import certificate, fixed_key, jwk, jwks, sign, space_claims, x5c
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import Verifier

from ..conftest import CLAIMS
from ..conftest import NOW as DOOR_NOW
from ..token_cases import of_any_token

NOW = 1_800_000_000.0
NONCE = b"0123456789abcdef"
AUDIENCE = "https://relying.example"
IMAGE = "sha256:" + "ab" * 32
POLICY = parse_policy(
    f'id = "space"\n[gcp]\naudiences = ["{AUDIENCE}"]\nmin_swversion = 250000\nrestart_policies = ["Never"]\n'
    'env_override = ["A"]\narguments = ["/app"]\n'
    f'[reference_values.gcp]\nimage_digests = ["{IMAGE}"]\nproject_ids = ["p"]\nzones = ["us-central1-a"]\n'
    'instance_ids = ["42"]\nservice_accounts = ["w@p.iam.gserviceaccount.com"]\n'
)
OTHER, WEAK, VTPM = fixed_key("service-other"), fixed_key("weak"), fixed_key("vtpm-ak")


def _claims(**changes: Any) -> dict[str, Any]:
    return space_claims(NOW, NONCE.decode(), changes)


def _token(raw: bytes, keys: bytes = b"") -> Case:
    return Case(scheme="gcp", evidence=raw, now=NOW, policy=POLICY, nonce=NONCE, jwks=keys or jwks())


def _changed(**changes: Any) -> Case:
    return _token(sign(_claims(**changes)))


CONTAINER, GCE, SPACE = "submods/container/", "submods/gce/", "submods/confidential_space/"

TOKENS: dict[str, tuple[Case, str]] = {
    **of_any_token(_claims, _token, issuer=ISSUER, now=NOW, lifetime_s=3600),
    "jwk of the attacker": (_token(sign(_claims(), jwk=jwk(OTHER))), "jku_foreign"),
    "aud wrong": (_changed(aud="https://other.example"), "audience"),
    "aud list": (_changed(aud=[AUDIENCE]), "audience"),
    "aud absent": (_changed(aud=None), "audience"),
    "nonce absent": (_changed(eat_nonce=None), "nonce_mismatch"),
    "nonce of another": (_changed(eat_nonce=NONCE[::-1].decode()), "nonce_mismatch"),
    "nonce prefix": (_changed(eat_nonce=NONCE[:-1].decode()), "nonce_mismatch"),
    "debug enabled": (_changed(dbgstat="enabled"), "debug"),
    "debug absent": (_changed(dbgstat=None), "debug"),
    "swname other": (_changed(swname="GCE"), "swname"),
    "hwmodel GCP_AMD_SEV": (_changed(hwmodel="GCP_AMD_SEV"), "hardware"),
    "secure boot off": (_changed(secboot=False), "secure_boot"),
    "support_attributes without STABLE": (_changed(**{SPACE + "support_attributes": ["USABLE"]}), "support_attributes"),
    "swversion below minimum": (_changed(swversion=["240900"]), "swversion"),
    "image_digest mismatch": (_changed(**{CONTAINER + "image_digest": "sha256:" + "00" * 32}), "image"),
    "args mismatch": (_changed(**{CONTAINER + "args": ["/app", "--debug"]}), "arguments"),
    "env_override of another name": (_changed(**{CONTAINER + "env_override": {"B": "1"}}), "env_override"),
    "restart_policy mismatch": (_changed(**{CONTAINER + "restart_policy": "Always"}), "restart_policy"),
    "project_id mismatch": (_changed(**{GCE + "project_id": "q"}), "project"),
    "zone mismatch": (_changed(**{GCE + "zone": "moon"}), "zone"),
    "instance_id mismatch": (_changed(**{GCE + "instance_id": "43"}), "instance"),
    "service account mismatch": (_changed(google_service_accounts=["x"]), "service_account"),
}  # fmt: skip


def _reason(call: Callable[[], object]) -> str:
    with pytest.raises(AttestError) as caught:
        call()
    return caught.value.code


def test_nothing_wrong_with_the_token() -> None:
    assert judge(_changed()).reason == "ok"


@pytest.mark.parametrize("name", TOKENS)
def test_token_refused_for_this_alone(name: str) -> None:
    case, code = TOKENS[name]
    verdict = judge(case)
    assert (verdict.verdict, verdict.reason) == ("reject", code), verdict.detail
    assert {mismatch.code for mismatch in verdict.mismatches} <= {code}


# -- PKI tokens --------------------------------------------------------------------------------------------------------


def _pki(chain: list[str], key: Any = None, trusted: Any = None, **changes: Any) -> None:
    token = sign(_claims(**changes), key, x5c=chain)
    verify_pki_token(token, audiences=(AUDIENCE,), now=NOW, nonce=NONCE, roots=trusted or (root(),))


SELF_MADE = root(fixed_key())  # Google's name, another key
FOREIGN = signer_certificate(signer=fixed_key())
CHAINS: dict[str, tuple[dict[str, Any], str]] = {
    "x5c leaf not issued by root": ({"chain": x5c(FOREIGN)}, "untrusted_chain"),
    "x5c extra root": ({"chain": x5c(FOREIGN, SELF_MADE)}, "untrusted_chain"),
    "x5c extra root, PEM": (
        {"chain": x5c(FOREIGN, SELF_MADE, pem=True)}, "untrusted_chain",
    ),
    "x5c leaf is no one's": ({"chain": x5c(certificate("signer", fixed_key()))}, "untrusted_chain"),
    "x5c leaf expired": ({"chain": x5c(signer_certificate(end=NOW - 1))}, "certificate_expired"),
    "x5c leaf not yet valid": ({"chain": x5c(signer_certificate(start=NOW + 1))}, "certificate_not_yet_valid"),
    "x5c leaf of another key": ({"chain": x5c(signer_certificate(VTPM))}, "signature"),
    "x5c leaf of 1024 bits": ({"chain": x5c(signer_certificate(WEAK)), "key": WEAK}, "key_strength"),
    "x5c empty": ({"chain": []}, "malformed_evidence"),
    "x5c certificate byte flipped": ({"chain": ["%" + x5c(signer_certificate())[0][1:]]}, "malformed_evidence"),
    "iss suffix trick": ({"chain": x5c(signer_certificate()), "iss": "https://evil"}, "issuer"),
    "expired": ({"chain": x5c(signer_certificate()), "nbf": NOW - 3600, "exp": NOW}, "token_expired"),
}  # fmt: skip


def test_nothing_wrong_with_the_chain() -> None:
    for pem in (False, True):  # x5c PEM vs DER
        for chain in ((signer_certificate(),), (signer_certificate(), root())):
            _pki(x5c(*chain, pem=pem))


@pytest.mark.parametrize("name", CHAINS)
def test_chain_refused_for_this_alone(name: str) -> None:
    arguments, code = CHAINS[name]
    assert _reason(lambda: _pki(**arguments)) == code


# -- vTPM certificates -------------------------------------------------------------------------------------------------

AK_CERTIFICATES: dict[str, tuple[dict[str, Any], str]] = {
    "AK cert of another key": ({"key": OTHER}, "ak_not_certified"),
    "AK cert expired": ({"end": NOW - 1}, "certificate_expired"),
    "AK cert not yet valid": ({"start": NOW + 1}, "certificate_not_yet_valid"),
    "AK cert of other issuer": ({"signer": VTPM}, "untrusted_chain"),
    "AK cert without instance": ({"value": b""}, "instance_extension"),
}


def _certified(**changes: Any) -> None:
    verify_vtpm_certificate(VTPM.public_key(), [instance_certificate(**{"key": VTPM} | changes)], NOW, (root(),))


@pytest.mark.parametrize("name", AK_CERTIFICATES)
def test_ak_certificate_refused_for_this_alone(name: str) -> None:
    changes, code = AK_CERTIFICATES[name]
    _certified()
    assert _reason(lambda: _certified(**changes)) == code


# -- launch endorsements -----------------------------------------------------------------------------------------------

EC_SIGNER = signer_certificate(ec.derive_private_key(7, ec.SECP256R1()))
ENDORSED = endorsement()
MINTED: dict[str, tuple[bytes, str]] = {
    "signature by another": (endorsement(key=OTHER), "signature"),
    "measurement changed": (ENDORSED.replace(b"\x04" * 48, b"\x05" * 48), "signature"),
    "signer not issued by root": (endorsement(golden(signer=FOREIGN)), "untrusted_chain"),
    "extra root in the bundle": (
        endorsement(golden(signer=FOREIGN, bundle=SELF_MADE.public_bytes(Encoding.PEM))), "untrusted_chain",
    ),
    "signer expired": (endorsement(golden(signer=signer_certificate(end=NOW - 1))), "certificate_expired"),
    "signer not yet valid": (
        endorsement(golden(signer=signer_certificate(start=NOW + 1))), "certificate_not_yet_valid",
    ),
    "signer of 1024 bits": (field(1, golden(signer=signer_certificate(WEAK))) + field(2, bytes(128)), "key_strength"),
    "signer is no RSA key": (field(1, golden(signer=EC_SIGNER)) + field(2, b"x"), "key_strength"),
    "truncated": (ENDORSED[:-1], "malformed_evidence"),
    "oversize": (ENDORSED + field(9, bytes(70_000)), "oversize"),
}  # fmt: skip


@pytest.mark.parametrize("name", MINTED)
def test_endorsement_refused_for_this_alone(name: str) -> None:
    raw, code = MINTED[name]
    assert _reason(lambda: verify_endorsement(raw, NOW, roots=(root(),))) == code


def test_endorsement_without_its_root() -> None:
    assert _reason(lambda: verify_endorsement(ENDORSED, NOW)) == "launch_root_missing"


# -- launch endorsements and instances by policy, through the door of channels -----------------------------------------

SNP, TDX, TPM = SnpPlatform(b"gce"), TdxPlatform(b"gce"), SoftwareTpm(key=VTPM)
MR_TD = parse_quote(TDX.quote(bytes(64))).report.mr_td
COUNTS = {2: b"\x02" * 48, 4: SNP.measurement}
SNP_TABLES = """
[sev-snp]
unsafe_any_tcb = true
[sev-snp.launch_endorsement]
{rules}
[reference_values.sev-snp]
launch_roots = [{root}]
"""
TDX_TABLES = """
[tdx]
unsafe_any_rtmrs = true
[tdx.launch_endorsement]
{rules}
[reference_values.tdx]
launch_roots = [{root}]
"""


def _minted(**changes: Any) -> bytes:
    return endorsement(golden(COUNTS, tdx=[(0, 1, MR_TD)], **changes))


class Launched(NamedTuple):
    """A machine of Google's, what it sends as its firmware's endorsement, and the rules. As it is, all is right."""

    code: str
    tables: str = SNP_TABLES
    rules: str = "min_svn = 3"
    sent: bytes | None = _minted()
    handed_in: tuple[bytes, ...] = ()
    root: str = root_pem()

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        bound, sent = snp_report_data(data_hash), {}
        if self.sent is not None:
            sent = {LAUNCH_ENDORSEMENT: Part(LAUNCH_ENDORSEMENT_TYPE, self.sent)}
        if "[tdx]" in self.tables:
            return sent | {HARDWARE: Part(TDX_QUOTE_TYPE, TDX.quote(bound))}
        certificates = encode_certificates(SNP.endorsements)
        return sent | {HARDWARE: Part(SNP_REPORT_TYPE, SNP.report(bound)), ENDORSEMENTS: certificates}

    def appraise(self) -> AttestationResult:
        policy = parse_policy('id = "gce"\n' + self.tables.format(rules=self.rules, root=json.dumps(self.root)))
        return _door(policy, self.parts, (collateral(), *self.handed_in))


class _Machine:
    scheme = "test"

    def __init__(self, make: Callable[[bytes], dict[int, Part]]) -> None:
        self.parts = make


def _door(policy: EvidencePolicy, make: Callable[[bytes], dict[int, Part]], files: tuple[bytes, ...] = ()) -> Any:
    expected = Expected(**{name: getattr(CLAIMS, name) for name in Expected.__struct_fields__})
    verifier = Verifier(policy, allow_simulated=True)
    return verifier.appraise(evidence_for(_Machine(make), CLAIMS), expected, now=DOOR_NOW, endorsements=files)


ON_TDX: dict[str, Any] = {"tables": TDX_TABLES, "rules": "min_svn = 2"}
LAUNCHES: dict[str, Launched] = {
    "no endorsement": Launched("launch_endorsement_missing", sent=None),
    "no endorsement, TDX": Launched("launch_endorsement_missing", sent=None, **ON_TDX),
    "measurement not endorsed": Launched("measurement_not_endorsed", sent=endorsement(golden({4: b"\x05" * 48}))),
    "endorsed for TDX alone": Launched("measurement_not_endorsed", sent=endorsement(golden({}, svn=3))),
    "MRTD not endorsed": Launched("measurement_not_endorsed", sent=endorsement(golden(COUNTS)), **ON_TDX),
    "signature by another": Launched("signature", sent=endorsement(golden(COUNTS), OTHER)),
    "measurement put in after signing": Launched(
        "signature", sent=endorsement(golden({4: b"\x05" * 48})).replace(b"\x05" * 48, SNP.measurement)
    ),
    "chain to another root": Launched("untrusted_chain", sent=_minted(signer=FOREIGN)),
    "another root of the same name": Launched("untrusted_chain", root=SELF_MADE.public_bytes(Encoding.PEM).decode()),
    "its own root in the bundle": Launched(
        "untrusted_chain", sent=_minted(signer=FOREIGN, bundle=SELF_MADE.public_bytes(Encoding.PEM))
    ),
    "signer expired": Launched("certificate_expired", sent=_minted(signer=signer_certificate(end=DOOR_NOW - 1))),
    "signer not yet valid": Launched(
        "certificate_not_yet_valid", sent=_minted(signer=signer_certificate(start=DOOR_NOW + 1))
    ),
    "svn too low": Launched("launch_svn", rules="min_svn = 4"),
    "svn too low, TDX": Launched("launch_svn", tables=TDX_TABLES, rules="min_svn = 3"),
    "svn of the first firmware": Launched("launch_svn", sent=_minted(svn=1), rules="min_svn = 2"),
    "vCPUs unknown": Launched("vcpus_unknown", rules="min_svn = 3\nvcpus = [8, 16]"),
    "vCPUs of another machine": Launched("vcpus", rules="min_svn = 3\nvcpus = [2]"),
    "truncated": Launched("malformed_evidence", sent=_minted()[:-1]),
    "seventeen of them": Launched("ambiguous_endorsement", handed_in=(_minted(),) * 16),
}  # fmt: skip


@pytest.mark.parametrize("name", LAUNCHES)
def test_launch_refused_for_this_alone(name: str) -> None:
    case = LAUNCHES[name]
    right = Launched("", tables=case.tables, rules="min_svn = 2")
    right.appraise()
    with pytest.raises(AttestError) as caught:
        case.appraise()
    assert caught.value.code == case.code, caught.value
    assert {mismatch.code for mismatch in caught.value.mismatches} <= {case.code}


INSTANCE_POLICY = """
id = "gce-vtpm"
unsafe_accept_vtpm_only = true
[vtpm]
pcrs = [0]
unsafe_any_pcr_values = true
[reference_values.vtpm]
ak_roots = [{root}]
[reference_values.vtpm.gce]
zones = [{zone!r}]
project_numbers = [{project_number!r}]
project_ids = [{project_id!r}]
instance_ids = [{instance_id!r}]
instance_names = [{instance_name!r}]
"""
INSTANCE = {"zone": "zone-a", "project_number": "7", "project_id": "project", "instance_id": "42",
            "instance_name": "vm-1"}  # fmt: skip
INSTANCES: dict[str, tuple[dict[str, str], bytes | None, str]] = {
    "zone": ({"zone": "zone-b"}, None, "gce_zone"),
    "project number": ({"project_number": "8"}, None, "gce_project_number"),
    "project id": ({"project_id": "project-2"}, None, "gce_project_id"),
    "instance id": ({"instance_id": "43"}, None, "gce_instance_id"),
    "instance name": ({"instance_name": "vm-2"}, None, "gce_instance_name"),
    "no extension": ({}, b"", "gce_instance_missing"),
    "another extension": ({}, b"\x30\x00", "instance_extension"),
}


def _instance(changes: dict[str, str], extension: bytes | None) -> Any:
    certificate = instance_certificate(VTPM, extension).public_bytes(Encoding.DER)
    parts = {ENDORSEMENTS: encode_certificates((certificate,))}
    policy = parse_policy(INSTANCE_POLICY.format(root=json.dumps(root_pem()), **INSTANCE | changes))
    return _door(policy, lambda data_hash: TPM.parts(data_hash) | parts)


@pytest.mark.parametrize("name", INSTANCES)
def test_instance_refused_for_this_alone(name: str) -> None:
    changes, extension, code = INSTANCES[name]
    assert _instance({}, None).claims["gce.zone"] == "zone-a"
    with pytest.raises(AttestError) as caught:
        _instance(changes, extension)
    assert caught.value.code == code, caught.value
    assert {mismatch.code for mismatch in caught.value.mismatches} <= {code}
