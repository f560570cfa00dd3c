"""The demo, step by step: what it starts, what it asks, what it shows. Every value shown is read back from a node."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from cube_mesh.audit import spool
from cube_mesh.demo import llama
from cube_mesh.demo.client import Completion
from cube_mesh.demo.files import DOMAIN, Plan, Ports, fresh_folder, write_agent, write_mesh, write_proxy
from cube_mesh.demo.first_report import make_policy
from cube_mesh.demo.processes import DemoError, Processes, pick_port
from cube_mesh.errors import CubeMeshError
from cube_mesh.probe import readyz

TPM_PROGRAMS = ("swtpm", "tpm2_createprimary", "tpm2_create", "tpm2_load", "tpm2_quote", "tpm2_flushcontext")
NO_TPM = """
[bold white on red] SIMULATED EVIDENCE [/] This run has no TPM, because {missing} is not installed:
the agent's report is made up and proves nothing. For quotes of a real TPM 2.0 implementation:
[bold]apt-get install swtpm tpm2-tools libtss2-tcti-swtpm0[/]
"""
PROMPT = "Say in one sentence what a confidential virtual machine is."
_START_S, _MODEL_START_S, _AUDIT_S = 20.0, 60.0, 2.0


class Story:
    """One run. ``model`` is "scripted" or "smollm2"."""

    def __init__(self, model: str, keep: bool, folder: Path, console: Console) -> None:
        self._model, self._keep, self._folder, self._console = model, keep, folder.absolute(), console
        self._began = time.monotonic()

    def tell(self) -> None:
        """Run it. DemoError or CubeMeshError when any part of it does not hold."""
        fresh_folder(self._folder)
        with tempfile.TemporaryDirectory(prefix="cube-mesh-") as sockets, Processes(self._folder / "logs") as processes:
            plan = self._start_nodes(processes, Path(sockets))
            key = self._start_proxy(processes, plan)
            request_id = self._ask(plan, key)
            event = self._audit_event(plan, request_id)
            self._show_verdict(plan, event)
            self._show_event(event)
            self._show_how_to_call(plan, key)
            if self._keep:
                self._stay(processes)

    # -- starting ------------------------------------------------------------------------------------------------------

    def _start_nodes(self, processes: Processes, sockets: Path) -> Plan:
        tcti = self._start_tpm(processes, sockets)
        backend_url = self._start_model(processes)
        self._step("mesh CA and the proxy's certificate")
        write_mesh(self._folder)
        ports = Ports(pick_port(8900), pick_port(8910), pick_port(8901), pick_port(8911))
        plan = Plan(self._folder, ports, backend_url, tcti)
        self._step(f"agent on port {ports.agent}")
        processes.start("agent", *_node("agent", write_agent(plan)))
        health = f"http://127.0.0.1:{ports.agent_metrics}"
        processes.wait_for("the agent is ready", lambda: readyz(health, 1.0)[0], _START_S)
        return plan

    def _start_tpm(self, processes: Processes, sockets: Path) -> str:
        missing = [program for program in TPM_PROGRAMS if shutil.which(program) is None]
        if missing:
            self._console.print(NO_TPM.format(missing=escape(", ".join(missing))), soft_wrap=True)
            return ""
        self._step("software TPM 2.0 (swtpm)")
        state, socket = self._folder / "tpm", sockets / "tpm.sock"
        state.mkdir()
        flags = ("--flags", "not-need-init,startup-clear")
        server, control = f"type=unixio,path={socket}", f"type=unixio,path={socket}.ctrl"
        storage = ("--tpm2", "--tpmstate", f"dir={state}")
        processes.start("swtpm", "swtpm", "socket", *storage, *flags, "--server", server, "--ctrl", control)
        processes.wait_for("the TPM listens", lambda: socket.exists() and Path(f"{socket}.ctrl").exists(), _START_S)
        return f"swtpm:path={socket}"

    def _start_model(self, processes: Processes) -> str:
        if self._model == "smollm2":
            if llama.model_file() is None:
                raise DemoError(f"--model smollm2 {llama.MISSING}")
            self._step("llama.cpp server with SmolLM2-135M")
            log = processes.start("model", sys.executable, "-m", "cube_mesh.demo.llama", "--port", "0")
        else:
            self._step("scripted OpenAI-compatible model server")
            log = processes.start(
                "model", sys.executable, "-m", "cube_mesh.demo.backend", "--port", "0", "--gap-s", "0.03"
            )
        processes.wait_for("the model server listens", lambda: bool(_address(log)), _MODEL_START_S)
        return _address(log)

    def _start_proxy(self, processes: Processes, plan: Plan) -> str:
        self._step("evidence policy from the agent's first report")
        (self._folder / "policy.toml").write_text(make_policy(plan))
        self._step(f"proxy on port {plan.ports.proxy}")
        file, key = write_proxy(plan, "alice")
        processes.start("proxy", *_node("proxy", file))
        health = f"http://127.0.0.1:{plan.ports.proxy}"
        processes.wait_for("the proxy has attested the agent", lambda: readyz(health, 1.0)[0], _START_S)
        return key

    def _step(self, text: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._began:5.1f} s[/]  {escape(text)}")

    # -- asking and showing --------------------------------------------------------------------------------------------

    def _ask(self, plan: Plan, key: str) -> str:
        self._console.print(f"\n[bold]Prompt[/]   {escape(PROMPT)}\n[bold]Answer[/]   ", end="")
        completion = Completion(plan.ports.proxy, f"/{DOMAIN}/v1/chat/completions", key, PROMPT, self._model)
        pieces = 0
        for piece in completion:
            pieces += 1
            self._console.print(escape(piece), end="", highlight=False, soft_wrap=True)
        self._console.print(f"\n[dim]         {pieces} pieces, streamed[/]")
        if not completion.whole or not pieces:
            raise DemoError("the answer is empty or did not end as it should")
        return completion.request_id

    def _audit_event(self, plan: Plan, request_id: str) -> dict[str, Any]:
        """The one event of this request, as the proxy has written it."""
        deadline = time.monotonic() + _AUDIT_S
        found: list[dict[str, Any]] = []
        while not found and time.monotonic() < deadline:
            lines = spool.lines(plan.folder / "audit.jsonl")
            found = [event for event in map(json.loads, lines) if event["request_id"] == request_id]
        if len(found) != 1:
            raise DemoError(f"{len(found)} audit events for the request {request_id}, expected one")
        return found[0]

    def _show_verdict(self, plan: Plan, event: dict[str, Any]) -> None:
        report = event["attestation_report"]
        if event["attestation_ok"] is not True or report["verdict"] != "accept" or event["status_code"] != 200:
            raise DemoError(f"the audit event does not say that the agent was accepted: {event}")
        kind = "software TPM" if plan.tcti else "SIMULATED SEV-SNP"
        secret = "confidential" if event["confidential"] else "not confidential"
        self._console.print(f"\n[bold]Verdict[/]  [bold green]{report['verdict']}[/] ({kind}, {secret})")
        shown = {
            "agent": event["peer_id"],
            "platform": event["attestation_type"],
            "policy": f"{report['policy_id']} {report['policy_digest'][:16]}",
            "channel": f"{event['tls_version']} {event['cipher_suite']}, mode {event['attestation_mode']}",
            "nonce": event["attestation_nonce"],
            "valid until": report["expires"],
        }
        claims = report["claims"]
        shown |= {
            name: claims[name] for name in ("ak.name", "pcr.sha256.0", "measurement", "chip_id") if name in claims
        }
        for name, value in shown.items():
            self._console.print(f"         [dim]{name:<12}[/] {escape(str(value))}", highlight=False, soft_wrap=True)

    def _show_event(self, event: dict[str, Any]) -> None:
        self._console.print("\n[bold]Audit event[/]  [dim](fields without a value left out)[/]")
        self._console.print_json(json.dumps({name: value for name, value in event.items() if value is not None}))

    def _show_how_to_call(self, plan: Plan, key: str) -> None:
        url = f"http://127.0.0.1:{plan.ports.proxy}/{DOMAIN}/v1"
        print(
            f"""
Files: {plan.folder}   (agent.toml, proxy.toml, policy.toml, audit.jsonl, logs/)

curl -N {url}/chat/completions -H 'Authorization: Bearer {key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"model": "{self._model}", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'

from openai import OpenAI
client = OpenAI(base_url="{url}", api_key="{key}")
for chunk in client.chat.completions.create(
    model="{self._model}", stream=True, messages=[{{"role": "user", "content": "Hello"}}]
):
    print(chunk.choices[0].delta.content or "", end="")
"""
        )

    def _stay(self, processes: Processes) -> None:
        self._console.print("[bold]Everything keeps running until Ctrl-C.[/]")
        try:
            while True:
                processes.check()
                time.sleep(0.5)
        except KeyboardInterrupt:
            self._console.print("\nstopping")


def run(model: str, keep: bool, folder: Path) -> int:
    """The ``demo`` command: 0 when the answer came whole, the agent was accepted and the one event says so; else 1."""
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the children are stopped then, too
    try:
        Story(model, keep, folder, console).tell()
    except (DemoError, CubeMeshError) as error:
        console.print(f"\n[bold red]The demo failed:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _node(role: str, file: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "cube_mesh", role, "--config", str(file))


def _address(log: Path) -> str:
    """The first line that a model server prints, once it is whole."""
    first, newline, _ = log.read_text("utf-8", "replace").partition("\n")
    return first.strip() if newline and first.startswith("http://") else ""
