"""Rules for Confidential Space tokens: which workload, in whose project, on which hardware. Verified claims only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from attest.errors import Mismatch
from attest.rules import Table, require, require_if_listed, require_one_of
from attest.schemes.gcp.token import VerifiedSpaceToken

__all__ = ["ReferenceValues", "Rules", "appraise_token", "claims_of"]

_OFF = "disabled-since-boot"
_SPACE = "CONFIDENTIAL_SPACE"


class Rules(Table, frozen=True):
    """``[gcp]``. ``hardware`` without ``GCP_AMD_SEV``: plain SEV has no integrity and no report of its own.

    ``support_attributes``: each must be among the image's (``STABLE`` for production). ``env_override``: the names that
    an operator may have overridden; absent allows any. ``arguments``: the exact command line; absent allows any.
    """

    audiences: tuple[str, ...] = ()
    hardware: tuple[Literal["GCP_AMD_SEV", "GCP_AMD_SEV_ES", "GCP_AMD_SEV_SNP", "GCP_INTEL_TDX"], ...] = (
        "GCP_AMD_SEV_SNP", "GCP_INTEL_TDX",
    )  # fmt: skip
    support_attributes: tuple[Literal["LATEST", "STABLE", "USABLE"], ...] = ("STABLE",)
    min_swversion: Annotated[int, msgspec.Meta(ge=0)] = 0
    restart_policies: tuple[Literal["Never", "Always", "OnFailure"], ...] = ()
    env_override: tuple[str, ...] | None = None
    arguments: tuple[str, ...] | None = None
    unsafe_any_audience: bool = False
    unsafe_any_image: bool = False
    unsafe_any_support: bool = False
    unsafe_allow_debug: bool = False
    unsafe_allow_no_secure_boot: bool = False


class ReferenceValues(Table, frozen=True):
    """``[reference_values.gcp]``; a list that is absent is not compared, except that image digests are required."""

    image_digests: tuple[Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")], ...] = ()
    project_ids: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    instance_ids: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()


def appraise_token(verified: VerifiedSpaceToken, rules: Rules, reference: ReferenceValues) -> tuple[Mismatch, ...]:
    """Every rule that does not hold. A claim that is absent does not hold."""
    claims = verified.claims
    container, gce = _object(claims, "submods", "container"), _object(claims, "submods", "gce")
    image = _text(container, "image_digest")
    audiences = (verified.audience,) if rules.unsafe_any_audience else rules.audiences
    images = (image,) if rules.unsafe_any_image else reference.image_digests
    debug = _text(claims, "dbgstat")
    secure = claims.get("secboot") is True
    return (
        *require_one_of(audiences, "audience", "gcp.aud", verified.audience),
        *require(_text(claims, "swname") == _SPACE, "swname", "gcp.swname", _SPACE, _text(claims, "swname")),
        *require_one_of(rules.hardware, "hardware", "gcp.hwmodel", _text(claims, "hwmodel")),
        *require(
            debug == _OFF or rules.unsafe_allow_debug, "debug", "gcp.dbgstat", _OFF, debug,
            "run the production Confidential Space image, not the debug one",
        ),
        *require(
            secure or rules.unsafe_allow_no_secure_boot, "secure_boot", "gcp.secboot", "true", _text(claims, "secboot")
        ),
        *_support(claims, rules),
        *_version(claims, rules),
        *require_one_of(images, "image", "gcp.image_digest", image),
        *require_if_listed(
            rules.restart_policies, "restart_policy", "gcp.restart_policy", _text(container, "restart_policy")
        ),
        *_environment(container, rules),
        *require_if_listed(reference.project_ids, "project", "gcp.project_id", _text(gce, "project_id")),
        *require_if_listed(reference.zones, "zone", "gcp.zone", _text(gce, "zone")),
        *require_if_listed(reference.instance_ids, "instance", "gcp.instance_id", _text(gce, "instance_id")),
        *_accounts(claims, reference),
    )  # fmt: skip


def _support(claims: Mapping[str, Any], rules: Rules) -> tuple[Mismatch, ...]:
    if rules.unsafe_any_support:
        return ()
    actual = _texts(_object(claims, "submods", "confidential_space").get("support_attributes"))
    missing = [name for name in rules.support_attributes if name not in actual]
    wanted, found = ", ".join(rules.support_attributes), ", ".join(actual) or "none"
    return require(not missing, "support_attributes", "gcp.support_attributes", wanted, found)


def _version(claims: Mapping[str, Any], rules: Rules) -> tuple[Mismatch, ...]:
    """``swversion`` is a list with one number, year and month of the image and a count: 251001."""
    actual = _texts(claims.get("swversion"))
    number = int(actual[0]) if len(actual) == 1 and re.fullmatch("[0-9]{1,9}", actual[0]) else -1
    least = f"at least {rules.min_swversion}"
    return require(number >= rules.min_swversion, "swversion", "gcp.swversion", least, ", ".join(actual) or "none")


def _environment(container: Mapping[str, Any], rules: Rules) -> tuple[Mismatch, ...]:
    mismatches: tuple[Mismatch, ...] = ()
    if rules.env_override is not None:
        overridden = container.get("env_override", {})
        names = sorted(overridden) if isinstance(overridden, dict) else ["not an object"]
        foreign = [name for name in names if name not in rules.env_override]
        wanted = ", ".join(rules.env_override)
        mismatches += require(not foreign, "env_override", "gcp.env_override", wanted, ", ".join(names))
    if rules.arguments is not None:
        actual = _texts(container.get("args"))
        mismatches += require(
            actual == list(rules.arguments), "arguments", "gcp.args", " ".join(rules.arguments), " ".join(actual)
        )
    return mismatches


def _accounts(claims: Mapping[str, Any], reference: ReferenceValues) -> tuple[Mismatch, ...]:
    """Every service account of the instance is a known one; none at all is not."""
    if not reference.service_accounts:
        return ()
    actual = _texts(claims.get("google_service_accounts"))
    known = bool(actual) and all(account in reference.service_accounts for account in actual)
    wanted = " or ".join(reference.service_accounts)
    return require(known, "service_account", "gcp.service_accounts", wanted, ", ".join(actual) or "none")


def _object(claims: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    value: Any = claims
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)[:256]


def _texts(value: Any) -> list[str]:
    """A list of texts; anything else counts as empty, which meets no rule."""
    return list(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else []


def claims_of(verified: VerifiedSpaceToken) -> dict[str, str]:
    """Verified claims as text."""
    claims = verified.claims
    found = {"gcp.token": verified.kind, "gcp.aud": verified.audience}
    for name in ("sub", "hwmodel", "swname", "dbgstat", "secboot"):
        found[f"gcp.{name}"] = _text(claims, name)
    for name in ("image_digest", "image_reference", "image_id", "restart_policy"):
        found[f"gcp.{name}"] = _text(_object(claims, "submods", "container"), name)
    for name in ("project_id", "zone", "instance_id", "instance_name"):
        found[f"gcp.{name}"] = _text(_object(claims, "submods", "gce"), name)
    support = _object(claims, "submods", "confidential_space").get("support_attributes")
    found["gcp.swversion"] = ", ".join(_texts(claims.get("swversion")))
    found["gcp.support_attributes"] = ", ".join(_texts(support))
    found["gcp.service_accounts"] = ", ".join(_texts(claims.get("google_service_accounts")))
    return found
