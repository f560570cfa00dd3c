"""This node's place in the mesh, from the configuration: its id, its leaf, its attester, the policies for its peers.

Everything that can be wrong with files is found here, at the start, with the key that names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from cryptography import x509

from attest.attester import Collector, NoEvidence
from attest.errors import AttestError
from attest.policy import load_policy
from attest.schemes.vtpm.collect import TpmCollector
from attest.verifier import Verifier
from cube_mesh.errors import ConfigError
from cube_mesh.keeper import Keeper
from cube_mesh.settings import Attestation, Mesh, Settings, Upstream
from cube_mesh.tls.ca import load_certificates, load_key
from cube_mesh.tls.identity import Leaf, NodeRole, SpiffeId, load_leaf, parse_spiffe_id

T = TypeVar("T")


def own_id(role: NodeRole, mesh: Mesh) -> SpiffeId:
    """``mesh.node_id`` is the last part of the SPIFFE id; role and trust domain complete it."""
    return _checked("mesh.node_id", lambda: parse_spiffe_id(f"spiffe://{mesh.trust_domain}/{role}/{mesh.node_id}"))


def build_keeper(role: NodeRole, settings: Settings) -> Keeper:
    """The keeper of this node. ConfigError for anything missing; nothing is started and no device is touched."""
    mesh, attestation = settings.mesh, settings.attestation
    roots = _checked("mesh.ca_file", lambda: load_certificates(mesh.ca_file))
    return Keeper(
        own_id(role, mesh),
        _collector(role, settings),
        _verifiers(settings.upstreams, allow_simulated=settings.unsafe_allow_simulated),
        roots,
        leaf=_leaf_from_disk(mesh) if role == "proxy" else None,
        leaf_lifetime_s=attestation.leaf_lifetime_s,
        claims_lifetime_s=attestation.interval_s,
        max_concurrent_quotes=attestation.max_concurrent_quotes,
    )


def _leaf_from_disk(mesh: Mesh) -> Leaf:
    chain = _checked("mesh.cert_file", lambda: load_certificates(mesh.cert_file))
    key = _checked("mesh.key_file", lambda: load_key(mesh.key_file))
    return _checked("mesh.cert_file", lambda: load_leaf(chain[0], key, tuple(chain[1:])))


def _collector(role: NodeRole, settings: Settings) -> Collector:
    attestation = settings.attestation
    match attestation.attester:
        case "none" if role == "proxy":
            return NoEvidence()
        case "vtpm":
            return _tpm(attestation)
        case "simulated-sev-snp" if settings.unsafe_allow_simulated:
            return _simulated(attestation)
    raise ConfigError(f'"{attestation.attester}" cannot be the attester of this node', key="attestation.attester")


def _tpm(attestation: Attestation) -> TpmCollector:
    certificates: tuple[bytes, ...] = ()
    if attestation.ak_cert_file:
        certificates = _checked("attestation.ak_cert_file", lambda: load_certificates(attestation.ak_cert_file))
    return _checked(
        "attestation",
        lambda: TpmCollector(
            attestation.tcti,
            attestation.pcrs,
            ak_file=attestation.ak_context_file,
            ak_handle=attestation.ak_handle,
            ak_certificates=certificates,
        ),
    )


def _simulated(attestation: Attestation) -> Collector:
    from attest.testkit.snp import SimulatedSnpCollector

    seed = _checked("attestation.simulated_seed_file", Path(attestation.simulated_seed_file).read_bytes)
    if len(seed) < 16:
        raise ConfigError("must hold at least 16 bytes", key="attestation.simulated_seed_file")
    return SimulatedSnpCollector(seed)


def _verifiers(upstreams: Iterable[Upstream], *, allow_simulated: bool) -> dict[str, Verifier]:
    """One verifier for each policy file that an upstream names, by that name."""
    verifiers: dict[str, Verifier] = {}
    for upstream in upstreams:
        path = upstream.policy
        if path and path not in verifiers:
            policy = _checked(f"upstreams.{upstream.name}.policy", lambda path=path: load_policy(path))  # type: ignore[misc]
            verifiers[path] = Verifier(policy, allow_simulated=allow_simulated)
    return verifiers


def _checked(key: str, build: Callable[[], T]) -> T:
    try:
        return build()
    except (OSError, ValueError, AttestError, x509.ExtensionNotFound) as error:
        raise ConfigError(str(error), key=key) from None
