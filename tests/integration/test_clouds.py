"""An Azure VM's agent as real processes, its keeper apart: from HCL report and quote down to an answered request."""

from __future__ import annotations

import asyncio
from pathlib import Path

from attest.schemes.azure.collect import HCL_REPORT
from cube_mesh.demo.backend import ScriptedBackend
from tests.integration.test_sessions import ask
from tests.support.clouds import AzureVm, Tpm
from tests.support.endpoint import Reply, endpoint
from tests.support.mesh import Mesh, read_events
from tests.support.node import Node
from tests.support.tpm import software_tpm

POLICY = """id = "azure"
[azure]
require_ak_certificate = false
[vtpm]
pcrs = [0, 7]
unsafe_any_pcr_values = true
unsafe_any_ak = true
[sev-snp]
vmpl = [0]
unsafe_any_tcb = true
unsafe_any_measurement = true
"""


async def test_an_azure_vm_serves(mesh: Mesh, backend: ScriptedBackend, tmp_path: Path) -> None:
    policy = tmp_path / "azure.toml"
    policy.write_text(POLICY)
    with software_tpm() as tcti, endpoint() as service:
        vm = await asyncio.to_thread(AzureVm, Tpm(tcti, tmp_path), service, "sev-snp")
        await asyncio.to_thread(vm.tpm.store, HCL_REPORT, vm.report(vm.claims())[:2000])
        thim = vm.thim()
        service.at("GET", "/metadata/THIM/amd/certification", Reply(b"busy", 429), Reply(thim))  # busy at the start
        attestation = {"attester": "azure", "tcti": tcti, "pcrs": [0, 7], "azure": {"metadata_url": service.url}}
        own = {"workers": 1, "unsafe_allow_simulated": True, "attestation": attestation}
        with await asyncio.to_thread(mesh.agent, tmp_path / "agent", backend.url, **own) as agent:
            theirs = mesh.proxy_config(agent.port)["upstreams"]
            theirs[0]["policy"] = policy
            unsafe = {"unsafe_allow_simulated": True, "upstreams": theirs}
            with await asyncio.to_thread(mesh.proxy, tmp_path / "proxy", agent.port, **unsafe) as proxy:
                (reply,) = await ask(proxy, mesh)
                assert reply.status == 200
    (event,) = read_events(tmp_path / "proxy")
    assert event["attestation_type"] == "azure+simulated-sev-snp+vtpm"
    assert len(service.seen) == 2  # the chip's certificates are asked for once, whatever the number of quotes


async def test_an_agent_that_is_not_where_it_says_does_not_start(mesh: Mesh, tmp_path: Path) -> None:
    google = {"audience": "https://p", "launcher_socket": tmp_path / "none"}
    attestation = {"attester": "gcp", "gcp": google, "endpoint_deadline_s": 0.5}
    config = mesh.agent_config("http://127.0.0.1:9", attestation=attestation)
    with Node("agent", config, tmp_path / "agent") as agent:
        code = await asyncio.to_thread(agent.popen.wait, 20)
    said = (tmp_path / "agent" / "agent.log").read_text()
    assert code != 0 and "endpoint_unreachable" in said and str(tmp_path / "none") in said
