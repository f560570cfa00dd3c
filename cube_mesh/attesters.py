"""What a node attests with: settings → the one collector that they choose. No device or endpoint is touched here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from attest.attester import Collector, NoEvidence, WithTpm
from attest.errors import AttestError
from attest.plugins import Scheme, SchemeCollector, load_scheme
from attest.schemes.azure.collect import AzureCollector, MaaCollector
from attest.schemes.gcp.collect import SpaceCollector, gce_collector
from attest.schemes.gcp.endorsement import read_unverified
from attest.schemes.sev_snp.collect import SnpCollector
from attest.schemes.tdx.collect import TdxCollector
from attest.schemes.vtpm.collect import TpmCollector
from cube_mesh.collateral.transport import BlockingTransport
from cube_mesh.errors import ConfigError
from cube_mesh.https import check_url
from cube_mesh.settings import Attestation, Settings
from cube_mesh.tls.ca import load_certificates

__all__ = ["AGENTS", "QUOTING", "collector_from_settings", "event_log_of", "schemes_from_settings"]


def collector_from_settings(settings: Settings, role: Literal["proxy", "agent"]) -> Collector:
    """The collector of a node with ``role``. ConfigError says which setting is wrong or missing."""
    chosen = settings.attestation.attester
    make = _PROXIES.get(chosen) if role == "proxy" else AGENTS.get(chosen)
    if make is None:
        wanted = '"none"' if role == "proxy" else ", ".join(f'"{name}"' for name in AGENTS)
        raise ConfigError(f"a node with role {role} says {wanted}, not {chosen!r}", key="attestation.attester")
    try:
        return make(settings)
    except ValueError as error:
        raise ConfigError(str(error), key="attestation") from error


def event_log_of(attestation: Attestation) -> Path | None:
    """Where the log of what is quoted is, if it is to be sent; ConfigError for an attester that quotes no register."""
    if not attestation.event_log_file:
        return None
    if attestation.attester not in QUOTING:
        problem = f"says what quoted PCRs or RTMRs come of; the attester {attestation.attester!r} quotes none"
        raise ConfigError(problem, key="attestation.event_log_file")
    return Path(attestation.event_log_file)


def schemes_from_settings(settings: Settings) -> tuple[Scheme, ...]:
    """The third parties' schemes that configuration enables; ConfigError for one that is not to be had."""
    try:
        return tuple(load_scheme(name) for name in dict.fromkeys(settings.attestation.schemes))
    except AttestError as error:
        raise ConfigError(str(error), key="attestation.schemes") from error


def _scheme(settings: Settings) -> Collector:
    schemes = schemes_from_settings(settings)
    if len(schemes) != 1:
        raise ConfigError('attester = "scheme" is the one that is named here', key="attestation.schemes")
    return SchemeCollector(schemes[0])


def _tpm(settings: Settings) -> TpmCollector:
    attestation = settings.attestation
    return TpmCollector(
        _tcti(attestation),
        attestation.pcrs,
        ak_file=attestation.ak_context_file,
        ak_handle=attestation.ak_handle,
        ak_certificates=_ak_certificates(attestation),
    )


def _tcti(attestation: Attestation) -> str:
    if not attestation.tcti:
        raise ConfigError("says how to reach the TPM; must not be empty", key="attestation.tcti")
    return attestation.tcti


def _ak_certificates(attestation: Attestation) -> tuple[bytes, ...]:
    return load_certificates(attestation.ak_cert_file) if attestation.ak_cert_file else ()


def _gce_tpm(settings: Settings) -> Collector:
    attestation = settings.attestation
    return gce_collector(
        _tcti(attestation),
        attestation.pcrs,
        algorithm=attestation.gcp.ak_algorithm,
        ak_certificates=_ak_certificates(attestation),
    )


def _snp(settings: Settings) -> SnpCollector:
    file = settings.attestation.chip_cert_file
    certificates = load_certificates(file) if file else ()
    return SnpCollector(
        certificates=certificates,
        launch_endorsement=_launch_endorsement(settings.attestation),
        directory=Path(settings.attestation.tsm_dir),
    )


def _tdx(settings: Settings) -> TdxCollector:
    endorsement = _launch_endorsement(settings.attestation)
    return TdxCollector(launch_endorsement=endorsement, directory=Path(settings.attestation.tsm_dir))


def _launch_endorsement(attestation: Attestation) -> bytes:
    """Read here, at start: it changes with the firmware, which a running machine keeps."""
    path = attestation.gcp.launch_endorsement_file
    if not path:
        return b""
    try:
        raw = Path(path).read_bytes()
        read_unverified(raw)
    except (OSError, AttestError) as error:
        raise ConfigError(str(error), key="attestation.gcp.launch_endorsement_file", where=path) from error
    return raw


def _azure(settings: Settings) -> Collector:
    attestation = settings.attestation
    return AzureCollector(
        _tcti(attestation),
        attestation.pcrs,
        BlockingTransport(attestation.endpoint_deadline_s),
        ak_certificates=_ak_certificates(attestation),
        metadata_url=_metadata_url(attestation),
    )


def _maa(settings: Settings) -> Collector:
    attestation = settings.attestation
    check_url(attestation.azure.maa_url, "attestation.azure.maa_url")
    return MaaCollector(
        _tcti(attestation),
        attestation.azure.maa_url,
        BlockingTransport(attestation.endpoint_deadline_s),
        metadata_url=_metadata_url(attestation),
    )


def _metadata_url(attestation: Attestation) -> str:
    url = attestation.azure.metadata_url.rstrip("/")
    check_url(url, "attestation.azure.metadata_url", link_local=True)
    return url


def _space(settings: Settings) -> Collector:
    attestation = settings.attestation
    if not attestation.gcp.audience:
        raise ConfigError("whom the token is for; must not be empty", key="attestation.gcp.audience")
    return SpaceCollector(
        attestation.gcp.audience,
        BlockingTransport(attestation.endpoint_deadline_s),
        token_type=attestation.gcp.token_type,
        unix_socket=attestation.gcp.launcher_socket,
    )


def _simulated_snp(settings: Settings) -> Collector:
    from attest.testkit.snp import SimulatedSnpCollector  # test keys: only where the operator asked for them

    return _simulated(settings, SimulatedSnpCollector)


def _simulated_tdx(settings: Settings) -> Collector:
    from attest.testkit.tdx import SimulatedTdxCollector

    return _simulated(settings, SimulatedTdxCollector)


def _simulated(settings: Settings, make: Callable[[bytes], Collector]) -> Collector:
    path = settings.attestation.simulated_seed_file
    if not settings.unsafe_allow_simulated:
        raise ConfigError("simulated evidence needs unsafe_allow_simulated = true", key="attestation.attester")
    try:
        return make(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"no seed: {error}", key="attestation.simulated_seed_file", where=path) from error


QUOTING = ("vtpm", "gce-vtpm", "sev-snp+vtpm", "tdx", "tdx+vtpm", "azure")
"""Attesters whose evidence has registers that an event log explains: a TPM's PCRs, or else RTMRs."""
_Make = Callable[[Settings], Collector]
_PROXIES: dict[str, _Make] = {"none": lambda _: NoEvidence()}
AGENTS: dict[str, _Make] = {
    "vtpm": _tpm,
    "gce-vtpm": _gce_tpm,
    "sev-snp": _snp,
    "sev-snp+vtpm": lambda settings: WithTpm(_snp(settings), _tpm(settings)),
    "tdx": _tdx,
    "tdx+vtpm": lambda settings: WithTpm(_tdx(settings), _tpm(settings)),
    "azure": _azure,
    "maa": _maa,
    "gcp": _space,
    "scheme": _scheme,
    "simulated-sev-snp": _simulated_snp,
    "simulated-tdx": _simulated_tdx,
}
"""An agent's choices, by ``attestation.attester``."""
