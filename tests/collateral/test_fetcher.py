"""The fetcher against a vendor that answers rightly, wrongly, late, too much, not at all."""

from __future__ import annotations

import asyncio
import datetime as dt
import email.utils
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attest.items import Item, check
from attest.needs import needed_items
from attest.offline import Case, judge
from attest.testkit import intel, tokens
from attest.testkit.intel import simulated_intel_roots
from attest.vouch import Trust, tdx_items, tdx_set
from cube_mesh.collateral.fetcher import CollateralUnavailable, Fetcher
from cube_mesh.collateral.sources import Sources
from cube_mesh.collateral.store import Store
from cube_mesh.errors import ConfigError
from tests.collateral.vendor import Clock, Reply, Vendor, intel_replies, serve_intel, vendor

# Every VCEK has serial number 0, and AMD's other certificates are no better; pytest turns the library's own filter off.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number", "ignore:Attribute's length")
NOW = 1_799_999_000.0
TEST_TRUST = Trust({}, simulated_intel_roots())
ROOT_CRL = Item("intel-root-crl", "root")
GOOD = intel.crl("root").public_bytes(Encoding.DER)


@pytest.fixture
async def intel_like() -> AsyncIterator[Vendor]:
    async with vendor() as made:
        made.at("/root.der", Reply(GOOD))
        yield made


def fetcher(
    made: Vendor | None, directory: Path, *, now: float = NOW, trust: Trust | None = TEST_TRUST, **more: object
) -> Fetcher:
    url = made.url if made is not None else "http://127.0.0.1:9"
    sources = Sources(amd_url=url, intel_url=url, intel_root_crl_url=f"{url}/root.der", thim_url=f"{url}/thim")
    clock = more.pop("clock", None) or Clock(now)
    return Fetcher(
        Store(directory, create=True), sources, trust=trust, clock=clock, sleep=clock.sleep, draw=lambda: 1.0, **more
    )  # type: ignore[arg-type, attr-defined]


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def at(text: str) -> float:
    return dt.datetime.fromisoformat(text).timestamp()


async def refused(one: Fetcher, item: Item = ROOT_CRL) -> CollateralUnavailable:
    with pytest.raises(CollateralUnavailable) as caught:
        await one.get(item)
    assert caught.value.item == item and str(item) in caught.value.detail
    return caught.value


# --- as the vendors answer, with real evidence ---


@pytest.mark.parametrize(
    ("quote", "fmspc", "collateral", "now"),
    [
        ("tdx/go-tdx-guest/quote_v5_sample.dat", "90c06f000000", "90c06f-2026-03", "2026-04-01T00:00:00Z"),
        ("tdx/dstack/quote.bin", "90c06f000000", "90c06f-2026-03", "2026-04-01T00:00:00Z"),
        ("tdx/flashbots/dcap-tdx.bin", "00806f050000", "00806f-2026-01", "2026-02-10T00:00:00Z"),
        ("tdx/phala-dcap-qvl/near_20a06f.bin", "20a06f000000", "20a06f-2025-09", "2025-09-10T00:00:00Z"),
    ],
)
async def test_a_real_quote_is_accepted_with_what_was_fetched_for_it(
    vectors: Path, tmp_path: Path, quote: str, fmspc: str, collateral: str, now: str
) -> None:
    raw = (vectors / quote).read_bytes()
    async with vendor() as made:
        serve_intel(made, (vectors / f"tdx/collateral/{collateral}/collateral.json").read_bytes(), fmspc)
        one = fetcher(made, tmp_path, now=at(now), trust=None)
        items = needed_items(raw)
        assert items == tdx_items(fmspc, "platform")
        records = [await one.get(item) for item in items]
        assert [await one.get(item) for item in items] == records and len(made.seen) == 4  # then out of the cache
    assert one.counts == {("intel", "ok"): 4}
    assert all(record.url.startswith(made.url) and record.fetched_at == at(now) for record in records)
    answer = judge(Case(scheme="tdx", evidence=raw, now=at(now), endorsements=(tdx_set(*records),)))
    assert answer.verdict == "accept", answer.detail


async def test_a_real_report_gets_its_vcek(vectors: Path, tmp_path: Path) -> None:
    case = next(
        case
        for case in json.loads((vectors / "cases.json").read_text())
        if case["scheme"] == "sev-snp" and case["evidence"].startswith("snp/trustee/") and case["default"] == "accept"
    )
    raw = (vectors / case["evidence"]).read_bytes()
    vcek = next(e for e in case["endorsements"] if "vcek" in e)
    item = next(i for i in needed_items(raw, product="Milan") if i.kind == "amd-vcek")
    async with vendor() as made:
        one = fetcher(made, tmp_path, now=at(case["now"]), trust=None)
        target = one._sources.request(item).url.removeprefix(made.url)
        assert "blSPL=" in target and "&ucodeSPL=" in target
        made.at(target, Reply((vectors / vcek).read_bytes()))
        record = await one.get(item)
        answer = judge(Case(scheme="sev-snp", evidence=raw, now=at(case["now"]), endorsements=(record.body,)))
        assert answer.verdict == "accept", answer.detail
        # The certificate of another TCB: kept out of the cache, where it would stay for years.
        other = Item("amd-vcek", item.key[:-1] + ("0" if item.key[-1] != "0" else "1"))
        made.at(one._sources.request(other).url.removeprefix(made.url), Reply((vectors / vcek).read_bytes()))
        assert (await refused(one, other)).reason == "bad_answer"


async def test_amds_chain_and_azures_certificates(vectors: Path, tmp_path: Path) -> None:
    chain = (vectors / "snp/go-sev-guest/milan_ask_ark.pem").read_bytes()
    azure = vectors / "azure/attestation-rs"
    pem = [_pem((azure / f"imds-{name}.der").read_bytes()) for name in ("vcek", "chain-0", "chain-1")]
    thim = json.dumps({"vcekCert": pem[0], "certificateChain": pem[1] + pem[2], "tcbm": "x", "cacheControl": "86400"})
    async with vendor() as made:
        made.at("/vcek/v1/Milan/cert_chain", Reply(chain))
        made.at("/vcek/v1/Genoa/cert_chain", Reply(chain))
        made.at("/thim", Reply(thim.encode()))
        one = fetcher(made, tmp_path, now=at("2026-04-01T00:00:00Z"), trust=None)
        await one.get(Item("amd-chain", "Milan/vcek"))
        assert (await refused(one, Item("amd-chain", "Genoa/vcek"))).reason == "bad_answer"
        await one.get(Item("azure-thim", "local"))
    assert "\r\nmetadata: true\r\n" in made.heads[-1].lower()


def _pem(der: bytes) -> str:
    from cryptography import x509

    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()


# --- key sets ---


async def test_a_key_set_by_discovery(tmp_path: Path) -> None:
    async with vendor() as made:
        item = Item("jwks", made.url)
        document = {"issuer": made.url, "jwks_uri": f"{made.url}/certs"}
        made.at("/.well-known/openid-configuration", Reply(json.dumps(document).encode()))
        made.at("/certs", Reply(tokens.jwks(tokens.jwk())))
        one = fetcher(made, tmp_path)
        record = await one.get(item)
        assert record.url == f"{made.url}/certs" and record.body == tokens.jwks(tokens.jwk())
        times = check(record)
        assert (
            times.state(NOW) == "fresh" and times.state(NOW + 3600) == "due" and times.state(NOW + 86_400) == "expired"
        )


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://other.example"},
        {"jwks_uri": "http://other.example/certs"},
        {"jwks_uri": "ftp://127.0.0.1/certs"},
        {"jwks_uri": None},
    ],
)
async def test_a_discovery_document_that_is_not_followed(tmp_path: Path, change: dict[str, object]) -> None:
    async with vendor() as made:
        document = {"issuer": made.url, "jwks_uri": f"{made.url}/certs"} | change
        made.at("/.well-known/openid-configuration", Reply(json.dumps(document).encode()))
        assert (await refused(fetcher(made, tmp_path), Item("jwks", made.url))).reason == "bad_answer"
        assert len(made.seen) == 1


# --- answers that are none ---

TESTED = intel.crl("root", last_update=intel.START + dt.timedelta(days=1)).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(status="404 Not Found"), "not_found"),
        (Reply(status="400 Bad Request"), "refused"),
        (Reply(status="302 Found", fields={"location": "/elsewhere"}), "redirect"),
        (Reply(b"x" * ((4 << 20) + 1)), "oversize"),
        (Reply(b""), "bad_answer"),
        (Reply(b"<html>maintenance</html>"), "bad_answer"),
        (Reply(GOOD[:-1]), "bad_answer"),
        (Reply(GOOD[:-1] + bytes([GOOD[-1] ^ 1])), "bad_answer"),  # the signature alone is wrong
        (Reply(intel.crl("platform").public_bytes(Encoding.DER)), "bad_answer"),  # another CA's
        (Reply(intel.crl("root", signer=intel.key("platform")).public_bytes(Encoding.DER)), "bad_answer"),
        (
            Reply(intel.crl("root", next_update=dt.datetime.fromtimestamp(NOW - 1, dt.UTC)).public_bytes(Encoding.DER)),
            "bad_answer",
        ),
    ],
)
async def test_wrong_answers_change_nothing_in_the_cache(
    intel_like: Vendor, tmp_path: Path, reply: Reply, reason: str
) -> None:
    intel_like.at("/root.der", reply)
    one = fetcher(intel_like, tmp_path)
    error = await refused(one)
    assert error.reason == reason and not error.retryable and len(intel_like.seen) == 1
    assert files(tmp_path) == [] and one.counts == {("intel", reason): 1}


async def test_a_truncated_answer_and_a_dropped_one_are_asked_for_again(intel_like: Vendor, tmp_path: Path) -> None:
    intel_like.at("/root.der", Reply(GOOD, cut=5), Reply(drop=True), Reply(GOOD))
    await fetcher(intel_like, tmp_path).get(ROOT_CRL)
    assert len(intel_like.seen) == 3


async def test_a_slow_vendor_costs_no_more_than_the_deadline(intel_like: Vendor, tmp_path: Path) -> None:
    intel_like.at("/root.der", Reply(GOOD, wait_s=5))
    error = await refused(fetcher(intel_like, tmp_path, timeout_s=0.05))
    assert error.reason == "unreachable" and error.retryable


async def test_retry_after_is_honoured_and_jitter_is_added(intel_like: Vendor, tmp_path: Path) -> None:
    later = email.utils.formatdate(NOW + 20, usegmt=True)
    intel_like.at(
        "/root.der",
        Reply(status="429 Too Many Requests", fields={"retry-after": "7"}),
        Reply(status="503 Service Unavailable", fields={"retry-after": later}),
        Reply(status="500 Internal Server Error", fields={"retry-after": "soon"}),
        Reply(GOOD),
    )
    clock = Clock(NOW)
    await fetcher(intel_like, tmp_path, clock=clock, deadline_s=60.0).get(ROOT_CRL)
    assert clock.slept == [8.0, 14.0, 4.0]  # 7 + 1; to the date, 12, + 2; 4


async def test_a_vendor_that_says_later_is_left_alone_until_then(intel_like: Vendor, tmp_path: Path) -> None:
    intel_like.at("/root.der", Reply(status="429 Too Many Requests", fields={"retry-after": "600"}), Reply(GOOD))
    clock = Clock(NOW)
    one = fetcher(intel_like, tmp_path, clock=clock)
    assert (await refused(one)).reason == "busy"
    assert (await refused(one)).reason == "busy"
    assert len(intel_like.seen) == 1 and clock.slept == []
    clock.now += 602
    await one.get(ROOT_CRL)
    assert len(intel_like.seen) == 2


# --- what is kept ---


async def test_callers_at_once_share_one_request(intel_like: Vendor, tmp_path: Path) -> None:
    intel_like.at("/root.der", Reply(GOOD, wait_s=0.05))
    one = fetcher(intel_like, tmp_path)
    tasks = [asyncio.create_task(one.get(ROOT_CRL)) for _ in range(20)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()  # the one who started it goes away: the others still get it
    records = await asyncio.gather(*tasks, return_exceptions=True)
    assert len(intel_like.seen) == 1 and isinstance(records[0], asyncio.CancelledError)
    assert all(record == records[1] for record in records[1:]) and not isinstance(records[1], BaseException)


async def test_due_is_served_while_the_vendor_is_away_and_expired_is_not(intel_like: Vendor, tmp_path: Path) -> None:
    clock = Clock(NOW)
    one = fetcher(intel_like, tmp_path, clock=clock)
    record = await one.get(ROOT_CRL)
    times = check(record)
    intel_like.at("/root.der", Reply(status="404 Not Found"))
    clock.now = times.refresh_at - 1
    assert await one.get(ROOT_CRL) == record and len(intel_like.seen) == 1
    clock.now = times.refresh_at
    assert await one.get(ROOT_CRL) == record and len(intel_like.seen) == 2
    clock.now = times.end - 1
    assert await one.get(ROOT_CRL) == record
    clock.now = times.end
    assert (await refused(one)).reason == "not_found"


async def test_an_answer_older_than_the_kept_one_is_not_taken(intel_like: Vendor, tmp_path: Path) -> None:
    intel_like.at("/root.der", Reply(TESTED), Reply(GOOD))
    one = fetcher(intel_like, tmp_path)
    newer = await one.get(ROOT_CRL)
    with pytest.raises(CollateralUnavailable) as caught:
        await one.refresh(ROOT_CRL)
    assert caught.value.reason == "older" and await one.get(ROOT_CRL) == newer


async def test_offline_never_asks(intel_like: Vendor, tmp_path: Path) -> None:
    async def forbidden(url: str, **_: object) -> object:
        raise AssertionError(url)

    one = fetcher(intel_like, tmp_path, offline=True, get=forbidden)
    assert (await refused(one)).reason == "offline"
    record = await fetcher(intel_like, tmp_path).get(ROOT_CRL)
    assert await one.get(ROOT_CRL) == record
    times = check(record)
    assert await one.get(ROOT_CRL, times.refresh_at) == record
    with pytest.raises(CollateralUnavailable):
        await one.get(ROOT_CRL, times.end)
    with pytest.raises(CollateralUnavailable):
        await one.get(ROOT_CRL, times.start - 1)
    assert len(intel_like.seen) == 1


async def test_a_damaged_file_is_fetched_anew_and_offline_it_is_missing(intel_like: Vendor, tmp_path: Path) -> None:
    one = fetcher(intel_like, tmp_path)
    await one.get(ROOT_CRL)
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"body": "MI', b'"body": "MJ'))
    assert (await refused(fetcher(None, tmp_path, offline=True))).reason == "offline"
    await one.get(ROOT_CRL)
    assert len(intel_like.seen) == 2


async def test_tcb_info_of_another_platform_is_not_taken(tmp_path: Path) -> None:
    fmspc = intel.tcb_info()["fmspc"].lower()
    replies = intel_replies(intel.collateral(), fmspc)
    async with vendor() as made:
        made.at("/tdx/certification/v4/tcb?fmspc=aabbccddeeff&update=standard", next(iter(replies.values())))
        error = await refused(fetcher(made, tmp_path), Item("intel-tcb-info", "aabbccddeeff"))
    assert error.reason == "bad_answer" and "TCB info is of" in error.detail


@pytest.mark.parametrize("target", ["tcb", "qe", "pckcrl"])
async def test_an_answer_without_its_issuer_chain(tmp_path: Path, target: str) -> None:
    fmspc = intel.tcb_info()["fmspc"].lower()
    async with vendor() as made:
        for path, reply in intel_replies(intel.collateral(), fmspc).items():
            made.at(path, Reply(reply.body) if target in path else reply)
        one = fetcher(made, tmp_path)
        outcomes = []
        for item in tdx_items(fmspc, "platform"):
            try:
                await one.get(item)
                outcomes.append("ok")
            except CollateralUnavailable as error:
                outcomes.append(error.reason)
    assert sorted(outcomes) == ["bad_answer", "ok", "ok", "ok"]


@pytest.mark.parametrize("name", ["amd_url", "intel_url", "intel_root_crl_url", "thim_url"])
def test_addresses_that_anyone_on_the_way_could_answer(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        Fetcher(Store(tmp_path), Sources(**{name: "http://mirror.example"}))


async def test_a_server_whose_certificate_nobody_vouches_for(tmp_path: Path) -> None:
    key, certificate = intel.key("signer"), intel.certificate("signer")
    pem = tmp_path / "server.pem"
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(certificate.public_bytes(Encoding.PEM) + key.private_bytes(*form))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    made = Vendor()
    made.at("/root.der", Reply(GOOD))
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
    made.url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    error = await refused(fetcher(made, tmp_path / "cache"))
    listening.close()
    await listening.wait_closed()
    assert error.reason == "unreachable" and "CERTIFICATE_VERIFY_FAILED" in error.detail and made.seen == []
