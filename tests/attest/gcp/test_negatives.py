"""Confidential Space tokens, GCE vTPM certificates, launch endorsements: every negative case, by its name, alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attest.errors import AttestError
from attest.offline import Case, judge
from attest.policy import parse_policy
from attest.schemes.gcp.certificate import verify_vtpm_certificate
from attest.schemes.gcp.endorsement import (
    check_snp_measurement,
    check_tdx_measurement,
    pinned_root,
    verify_endorsement,
)
from attest.schemes.gcp.token import ISSUER, verify_pki_token
from attest.testkit.gcp import endorsement, field, golden, instance_certificate, root, signer_certificate
from attest.testkit.tokens import certificate, fixed_key, jwk, jwks, sign, space_claims, x5c

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
ENDORSEMENTS: dict[str, tuple[bytes, str]] = {
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


@pytest.mark.parametrize("name", ENDORSEMENTS)
def test_endorsement_refused_for_this_alone(name: str) -> None:
    raw, code = ENDORSEMENTS[name]
    assert _reason(lambda: verify_endorsement(raw, (root(),), NOW)) == code


NOT_ENDORSED: dict[str, Callable[[Any], object]] = {
    "measurement not endorsed": lambda verified: check_snp_measurement(verified, b"\x05" * 48),
    "measurement of another vCPU count": lambda verified: check_snp_measurement(verified, b"\x04" * 48, 2),
    "MRTD not endorsed": lambda verified: check_tdx_measurement(verified, b"\x05" * 48),
}


@pytest.mark.parametrize("name", NOT_ENDORSED)
def test_measurement_refused_for_this_alone(name: str) -> None:
    verified = verify_endorsement(ENDORSED, (root(),), NOW)
    check_snp_measurement(verified, b"\x04" * 48, 4)
    check_tdx_measurement(verified, b"\x0d" * 48)
    assert _reason(lambda: NOT_ENDORSED[name](verified)) == "measurement_not_endorsed"


def test_root_is_not_googles() -> None:
    assert _reason(lambda: pinned_root(root().public_bytes(Encoding.PEM))) == "untrusted_root"
