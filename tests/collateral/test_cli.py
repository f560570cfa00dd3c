"""``attest collateral`` and ``--cache``: fetched from a local vendor, shown, used by verify, all without a network."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from attest.items import Item, encode_record, make_record
from attest.needs import needed_items
from attest.vouch import tdx_items
from cube_mesh.attest_cli import app
from cube_mesh.collateral.store import Store
from tests.collateral.vendor import Vendor, intel_replies, serve_intel, vendor

QUOTE, SET, NOW = "tdx/go-tdx-guest/quote_v5_sample.dat", "90c06f-2026-03", "2026-04-01T00:00:00Z"
FETCHED_AT = 1_775_001_000.0  # 2026-03-31T23:50


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def cache(vectors: Path, tmp_path: Path) -> Path:
    """A cache filled with real collateral, as if fetched at the time of the vectors."""
    from cube_mesh.collateral.sources import issuer_chain
    from cube_mesh.https import Answer

    store = Store(tmp_path / "cache", create=True)
    raw = (vectors / f"tdx/collateral/{SET}/collateral.json").read_bytes()
    replies = intel_replies(raw, "90c06f000000").values()
    for item, reply in zip(tdx_items("90c06f000000", "platform"), replies, strict=True):
        fields = {name.lower(): value for name, value in reply.fields.items()}
        chain = issuer_chain(item, Answer(200, fields, b""))
        store.put(make_record(item, url="https://test", fetched_at=FETCHED_AT, body=reply.body, issuer_chain=chain))
    return store.directory


@pytest.fixture
def served() -> Iterator[Vendor]:
    """A vendor on a loop of its own: the command line runs its own loop here."""
    loop, ready, made = asyncio.new_event_loop(), threading.Event(), list[Vendor]()
    stop = asyncio.Event()

    async def serve() -> None:
        async with vendor() as one:
            made.append(one)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(5)
    yield made[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(5)
    loop.close()


def test_verify_takes_what_is_missing_from_the_cache(vectors: Path, cache: Path) -> None:
    evidence = ("verify", "--scheme", "tdx", "--evidence", vectors / QUOTE, "--now", NOW)
    assert run(*evidence).exit_code == 1
    done = run(*evidence, "--cache", cache, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["verdict"] == "accept"
    # Handed in counts first: no second set beside it.
    handed = vectors / f"tdx/collateral/{SET}/collateral.json"
    assert run(*evidence, "--cache", cache, "--endorsements", handed).exit_code == 0


@pytest.mark.parametrize("name", ["intel-tcb-info", "intel-qe-identity", "intel-pck-crl", "intel-root-crl"])
def test_one_item_missing_is_no_set(vectors: Path, cache: Path, name: str) -> None:
    next(cache.glob(f"{name}_*")).unlink()
    done = run("verify", "--scheme", "tdx", "--evidence", vectors / QUOTE, "--now", NOW, "--cache", cache, "--json")
    assert done.exit_code == 1 and json.loads(done.output)["reason"] == "collateral_missing"


def test_what_has_expired_is_not_taken_from_the_cache(vectors: Path, cache: Path) -> None:
    late = ("--now", "2026-09-01T00:00:00Z")
    done = run("verify", "--scheme", "tdx", "--evidence", vectors / QUOTE, *late, "--cache", cache, "--json")
    assert done.exit_code == 1 and json.loads(done.output)["reason"] == "collateral_missing"


def test_a_damaged_item_and_a_cache_that_is_none(vectors: Path, cache: Path, tmp_path: Path) -> None:
    evidence = ("verify", "--scheme", "tdx", "--evidence", vectors / QUOTE, "--now", NOW)
    assert run(*evidence, "--cache", tmp_path / "absent").exit_code == 2
    path = next(cache.glob("intel-root-crl_*"))
    path.write_bytes(path.read_bytes()[:-20])
    assert run(*evidence, "--cache", cache).exit_code == 2
    shown = run("collateral", "show", "--cache", cache, "--now", NOW, "--json")
    assert shown.exit_code == 1
    assert [row["state"] for row in json.loads(shown.output)].count("damaged") == 1


def test_show_lists_states_and_provenance(cache: Path) -> None:
    done = run("collateral", "show", "--cache", cache, "--now", NOW, "--json")
    rows = json.loads(done.output)
    assert done.exit_code == 0 and len(rows) == 4
    assert all(row["state"] == "fresh" and row["url"] == "https://test" and row["age_s"] == 600 for row in rows)
    assert all(len(row["sha256"]) == 64 for row in rows)
    due = json.loads(run("collateral", "show", "--cache", cache, "--now", "2026-04-05T00:00:00Z", "--json").output)
    assert all(row["state"] == "due" for row in due)
    late = run("collateral", "show", "--cache", cache, "--now", "2026-09-01T00:00:00Z")
    assert late.exit_code == 1 and "expired" in late.output and "intel-tcb-info:90c06f000000" in late.output


def test_fetch_for_evidence_offline_says_what_is_missing(vectors: Path, tmp_path: Path) -> None:
    Store(tmp_path / "cache", create=True)
    done = run("collateral", "fetch", "--evidence", vectors / QUOTE, "--offline", "--cache", tmp_path / "cache")
    assert done.exit_code == 1
    for item in tdx_items("90c06f000000", "platform"):
        assert f"missing  {item}: offline" in done.output
    assert run("collateral", "fetch", "--tdx", "90c06f000000", "--offline", "--cache", tmp_path / "none").exit_code == 2


def test_fetch_of_a_stale_answer_says_so(vectors: Path, tmp_path: Path, served: Vendor) -> None:
    """A real set, long past its time: refused at the real now, but for the root's list, which may still be good."""
    serve_intel(served, (vectors / f"tdx/collateral/{SET}/collateral.json").read_bytes(), "90c06f000000")
    urls = ("--intel-url", served.url, "--intel-root-crl-url", f"{served.url}/root.der")
    done = run("collateral", "fetch", "--tdx", "90C06F000000", "--cache", tmp_path / "c", *urls)
    assert done.exit_code == 1 and "collateral_expired" in done.output
    assert len(served.seen) == 4


@pytest.mark.parametrize(
    "arguments",
    [(), ("--tdx", "90c06f"), ("--tdx", "90c06f000000/other"), ("--amd", "Rome"), ("--issuer", "file:///etc/passwd")],
)
def test_fetch_of_what_there_is_not(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert run("collateral", "fetch", "--offline", "--cache", tmp_path, *arguments).exit_code == 2


def test_the_keys_of_a_tokens_issuer(vectors: Path, tmp_path: Path) -> None:
    """A real token with a key set that was fetched before: --cache in place of --jwks."""
    folder = vectors / "azure/maa-thomvanl"
    item = Item("jwks", "https://sharedweu.weu.attest.azure.net")
    body = (folder / "jwks.json").read_bytes()
    record = make_record(item, url=f"{item.key}/certs", fetched_at=1_671_840_000.0, body=body)
    store = Store(tmp_path / "cache", create=True)
    (store.directory / item.file_name).write_bytes(encode_record(record))
    (store.directory / item.file_name).chmod(0o600)
    token = ("verify", "--scheme", "maa", "--evidence", folder / "token.jwt", "--issuer", item.key, "--json")
    at_its_time = ("--now", "2022-12-24T00:10:00Z")
    assert run(*token, *at_its_time).exit_code == 1
    done = run(*token, *at_its_time, "--cache", store.directory)
    assert done.exit_code == 0, done.output


@pytest.mark.filterwarnings("ignore:Parsed a serial number", "ignore:Attribute's length")
def test_a_report_with_its_vcek_from_the_cache(vectors: Path, tmp_path: Path) -> None:
    report = vectors / "snp/attestation-rs/live-evidence-genoa-report.bin"
    vcek = vectors / "snp/attestation-rs/live-evidence-genoa-vcek.der"
    store = Store(tmp_path / "cache", create=True)
    item = needed_items(report.read_bytes())[0]
    store.put(make_record(item, url="https://x", fetched_at=FETCHED_AT, body=vcek.read_bytes()))
    evidence = ("verify", "--scheme", "sev-snp", "--evidence", report, "--now", NOW, "--verify-only", "--json")
    assert json.loads(run(*evidence).output)["reason"] == "vcek_missing"
    for more in ((), ("--endorsements", vcek)):  # handed in as well: not there twice
        done = run(*evidence, "--cache", store.directory, *more)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("now", ["yesterday", "2026-04-01T00:00:00"])
def test_a_time_that_is_none(cache: Path, now: str) -> None:
    assert run("collateral", "show", "--cache", cache, "--now", now).exit_code == 2


def test_without_cache_the_users_own(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "cube-mesh").mkdir()
    cache.rename(tmp_path / "cube-mesh" / "collateral")
    assert len(json.loads(run("collateral", "show", "--now", NOW, "--json").output)) == 4


def test_evidence_that_is_none(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing")
    for file in (tmp_path / "x", tmp_path / "absent"):
        assert run("collateral", "fetch", "--evidence", file, "--cache", cache, "--offline").exit_code == 2
    assert run("verify", "--scheme", "tdx", "--evidence", tmp_path / "x", "--cache", cache).exit_code == 1
