"""Rules for launch endorsements: that firmware of Google's was launched, and not an old one.

The measurement of a SEV-SNP report, or the MRTD of a TDX quote, must be one that a verified endorsement names. It says
which firmware ran first, and nothing of what that started.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from cryptography import x509

from attest.chain import load_certificate
from attest.errors import MalformedEvidence, Mismatch, UnsupportedEvidence
from attest.rules import Table, require, require_one_of
from attest.schemes.gcp.endorsement import Endorsement, read_unverified, verify_endorsement

__all__ = [
    "CLAIM",
    "Launch",
    "LaunchRules",
    "SnpLaunchRules",
    "appraise_launch",
    "claims_of",
    "problems",
    "verify_launch",
]

MAX_ENDORSEMENTS = 16  # that one call may hand in
CLAIM = "launch_endorsement"


class LaunchRules(Table, frozen=True):
    """``[tdx.launch_endorsement]``: the MRTD must be one that an endorsement names, of firmware of at least
    ``min_svn``. Which roots it may lead to is in the reference values: ``launch_roots`` (PEM), by default Google's.
    """

    min_svn: Annotated[int, msgspec.Meta(ge=1)]


class SnpLaunchRules(LaunchRules, frozen=True):
    """``[sev-snp.launch_endorsement]``: the same of the launch measurement, which differs by the number of vCPUs.
    ``vcpus``: how many the machine may have been launched with, any that is endorsed when left out.
    """

    vcpus: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] | None = None


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What a verified endorsement says of one machine. ``svn``: of the firmware on this kind of hardware.

    ``sizes``: of the machines that it gives this measurement for, by name, none when it does not know the measurement;
    ``vcpus``: the numbers of them that it knows at all (SEV-SNP).
    """

    endorsement: Endorsement
    svn: int
    measured: bytes
    sizes: dict[str, tuple[str, ...]]
    vcpus: tuple[int, ...] = ()

    @property
    def expires(self) -> float:
        """Earliest end of the chain of the endorsement's signer, Unix seconds."""
        return self.endorsement.expires


def problems(table: str, rules: LaunchRules | None, roots: Sequence[str]) -> list[str]:
    """What makes rules and roots of ``table`` unusable, in words."""
    found = []
    if roots and rules is None:
        found.append(f"reference_values.{table}.launch_roots: without {table}.launch_endorsement")
    for pem in roots:
        try:
            load_certificate(pem.encode())
        except MalformedEvidence:
            found.append(f"reference_values.{table}.launch_roots: not a PEM certificate")
    return found


def verify_launch(
    kind: Literal["sev-snp", "tdx"],
    measured: bytes,
    rules: LaunchRules | None,
    roots: Sequence[str],
    endorsements: Sequence[bytes],
    certificates: Sequence[x509.Certificate],
    now: float,
) -> Launch | None:
    """Verify the one of ``endorsements`` that names ``measured``, a verified measurement or MRTD, else the first.

    ``roots``: PEM, none for Google's among ``certificates``. None without rules or endorsement. Raises
    UnsupportedEvidence for more than 16 (``ambiguous_endorsement``), or what :func:`verify_endorsement` raises.
    """
    if rules is None or not endorsements:
        return None
    if len(endorsements) > MAX_ENDORSEMENTS:
        raise UnsupportedEvidence(f"{len(endorsements)} launch endorsements", code="ambiguous_endorsement")
    see = _snp if kind == "sev-snp" else _tdx
    naming = (raw for raw in endorsements if see(read_unverified(raw), measured).sizes)
    raw = next(naming, endorsements[0])
    trusted = [load_certificate(pem.encode()) for pem in roots]
    return see(verify_endorsement(raw, now, roots=trusted, certificates=certificates), measured)


def _snp(endorsement: Endorsement, measured: bytes) -> Launch:
    counts = [count for count, digest in endorsement.snp.items() if hmac.compare_digest(digest, measured)]
    sizes = {"vcpus": tuple(map(str, counts))} if counts else {}
    known = tuple(endorsement.snp)
    return Launch(endorsement=endorsement, svn=endorsement.snp_svn, measured=measured, sizes=sizes, vcpus=known)


def _tdx(endorsement: Endorsement, measured: bytes) -> Launch:
    entries = [entry for entry in endorsement.tdx if hmac.compare_digest(entry.mrtd, measured)]
    sizes = {
        "ram_gib": tuple(dict.fromkeys(str(entry.ram_gib) for entry in entries)),
        "early_accept": tuple(dict.fromkeys(str(entry.early_accept).lower() for entry in entries)),
    }
    return Launch(endorsement=endorsement, svn=endorsement.tdx_svn, measured=measured, sizes=sizes if entries else {})


def appraise_launch(launch: Launch | None, rules: LaunchRules | None) -> tuple[Mismatch, ...]:
    """Every rule that does not hold; without rules, none."""
    if rules is None:
        return ()
    if launch is None:
        hint = "hand in the endorsement of this measurement, which Google publishes"
        return require(False, "launch_endorsement_missing", CLAIM, "an endorsement", "none", hint)
    least = f"at least {rules.min_svn}"
    return (
        *require(launch.svn >= rules.min_svn, "launch_svn", f"{CLAIM}.svn", least, str(launch.svn)),
        *require(
            bool(launch.sizes), "measurement_not_endorsed", CLAIM, "an endorsed measurement", launch.measured.hex()
        ),
        *(_vcpus(launch, rules.vcpus) if isinstance(rules, SnpLaunchRules) and rules.vcpus is not None else ()),
    )


def _vcpus(launch: Launch, allowed: Sequence[int]) -> tuple[Mismatch, ...]:
    """The numbers of vCPUs that have the measurement, and that a policy allows."""
    claim, wanted = f"{CLAIM}.vcpus", [str(count) for count in allowed]
    if not set(allowed) & set(launch.vcpus):
        known = ", ".join(map(str, launch.vcpus)) or "none"
        return require(False, "vcpus_unknown", claim, " or ".join(wanted), f"endorsed are {known}")
    found = launch.sizes.get("vcpus", ())
    if not found or set(found) & set(wanted):  # a measurement that is not endorsed is a mismatch of its own
        return ()
    return require_one_of(wanted, "vcpus", claim, ", ".join(found))


def claims_of(launch: Launch | None) -> dict[str, str]:
    """Claims that the endorsement adds, all of them signed in it but its digest."""
    if launch is None:
        return {}
    endorsement = launch.endorsement
    claims = {
        "digest": endorsement.digest,
        "timestamp": str(endorsement.timestamp),
        "changelist": str(endorsement.changelist),
        "commit": endorsement.commit.hex(),
        "firmware_digest": endorsement.firmware_digest.hex(),
        "svn": str(launch.svn),
    }
    claims |= {name: ", ".join(values) for name, values in launch.sizes.items()}
    return {f"{CLAIM}.{name}": value for name, value in claims.items()}
