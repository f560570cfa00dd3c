"""The first look at an agent: take its evidence over the real channel, pin nothing, and make a strict policy of it.

On a first look one trusts what one sees. In production compare the values with those that your image build printed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from attest.appraise import AttestationResult
from attest.attester import NoEvidence
from attest.binding import Expected
from attest.policy import EvidencePolicy, first_report_policy
from attest.verifier import Verifier, policy_from_result
from cube_mesh.demo.files import AGENT_ID, PROXY_ID, Plan
from cube_mesh.keeper import Keeper
from cube_mesh.settings import Attestation, Upstream
from cube_mesh.tls.ca import load_certificates, load_key
from cube_mesh.tls.connector import AttestedConnector
from cube_mesh.tls.control import ControlLink
from cube_mesh.tls.identity import Leaf, load_leaf, parse_spiffe_id

_FIRST = "first report"


class _Remembering(Verifier):
    """A verifier that keeps the results that it gave."""

    def __init__(self, policy: EvidencePolicy, *, allow_simulated: bool) -> None:
        super().__init__(policy, allow_simulated=allow_simulated)
        self.results: list[AttestationResult] = []

    def appraise(
        self, raw: bytes, expected: Expected, *, now: float, endorsements: Sequence[bytes] = ()
    ) -> AttestationResult:
        result = super().appraise(raw, expected, now=now, endorsements=endorsements)
        self.results.append(result)
        return result


def make_policy(plan: Plan) -> str:
    """A policy (TOML) that pins the running agent. Raises DependencyError when it does not attest."""
    platform: Literal["vtpm", "sev-snp"] = "vtpm" if plan.tcti else "sev-snp"
    verifier = _Remembering(first_report_policy(platform), allow_simulated=not plan.tcti)
    asyncio.run(_attest(plan, verifier))
    return policy_from_result(verifier.results[-1], policy_id="demo")


async def _attest(plan: Plan, verifier: _Remembering) -> None:
    keeper = Keeper(
        parse_spiffe_id(PROXY_ID),
        NoEvidence(),
        {_FIRST: verifier},
        load_certificates(plan.folder / "ca" / "ca.crt"),
        leaf=_leaf(plan.folder),
        clock=time.time,
    )
    upstream = Upstream(name="agent", url=f"atls://127.0.0.1:{plan.ports.agent}", node_id=AGENT_ID, policy=_FIRST)
    link = ControlLink(AttestedConnector(upstream, keeper, Attestation(attester="none")), keeper.sessions)
    try:
        await link.attest()
    finally:
        await link.close()
        await keeper.close()


def _leaf(folder: Path) -> Leaf:
    chain = load_certificates(folder / "proxy-demo-proxy.crt")
    return load_leaf(chain[0], load_key(folder / "proxy-demo-proxy.key"), chain[1:])
