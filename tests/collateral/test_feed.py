"""A node's feed: what its verifiers get, when it is renewed, and what never reaches them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from attest.attester import NoEvidence, evidence_for
from attest.binding import Claims, Expected, Phase, Role, encode_claims
from attest.collateral import parse_collateral
from attest.errors import AttestError
from attest.evidence import TOKEN, TOKEN_TYPE, Evidence, Part, encode_evidence
from attest.items import Item, check, make_record
from attest.policy import first_report_policy, parse_policy
from attest.testkit import intel, tokens
from attest.testkit.intel import simulated_intel_roots
from attest.testkit.tdx import SimulatedTdxCollector
from attest.vouch import Trust, tdx_items
from cube_mesh.collateral.feed import FedVerifier, Feed, feed_from_settings, issuers_of
from cube_mesh.collateral.fetcher import Fetcher
from cube_mesh.collateral.sources import Sources
from cube_mesh.collateral.store import Store
from cube_mesh.errors import ConfigError
from cube_mesh.keeper import Keeper
from cube_mesh.settings import Collateral
from cube_mesh.telemetry.metrics import Metrics, NodeCollector
from cube_mesh.tls.identity import Leaf, parse_spiffe_id
from tests.collateral.vendor import Clock, Reply, Vendor, serve_intel, vendor

NOW = 1_799_999_000.0
FMSPC = intel.tcb_info()["fmspc"].lower()
SET = tdx_items(FMSPC, "platform")
ISSUER, OTHER = "https://one.attest.azure.net", "https://two.attest.azure.net"
CLAIMS = Claims(
    role=Role.SERVER, phase=Phase.POST_HANDSHAKE, node_id="spiffe://cube/agent/a1", not_after=1_800_000_000,
    boot_id=b"b" * 16, spki_hash=b"s" * 32, nonce=b"n" * 32, channel_binding=b"c" * 32, peer_spki_hash=b"p" * 32,
)  # fmt: skip


@pytest.fixture
async def made() -> AsyncIterator[Vendor]:
    async with vendor() as one:
        serve_intel(one, intel.collateral(), FMSPC)
        yield one


def feed(url: str, directory: Path, clock: Clock, single: tuple[Item, ...] = ()) -> Feed:
    fetcher = Fetcher(
        Store(directory, create=True),
        Sources(intel_url=url, intel_root_crl_url=f"{url}/root.der"),
        trust=Trust({}, simulated_intel_roots()),
        clock=clock,
        sleep=clock.sleep,
    )
    return Feed(fetcher, [SET], single, clock=clock, draw=lambda: 0.0)


async def test_a_verifier_accepts_tdx_evidence_once_the_feed_has_fetched(made: Vendor, tmp_path: Path) -> None:
    clock = Clock(NOW)
    one = feed(made.url, tmp_path, clock)
    verifier = FedVerifier(first_report_policy("tdx"), one, allow_simulated=True)
    evidence = evidence_for(SimulatedTdxCollector(b"seed" * 8), CLAIMS)
    expected = Expected(**{name: getattr(CLAIMS, name) for name in Expected.__struct_fields__})
    with pytest.raises(AttestError) as caught:
        verifier.appraise(evidence, expected, now=NOW)
    assert caught.value.code == "collateral_missing"
    assert set(one.missing()) == {str(item) for item in SET}
    await one.refresh()
    assert one.missing() == () and one.fetches() == {"intel_ok": 4} and len(one.endorsements(NOW)) == 1
    assert verifier.appraise(evidence, expected, now=NOW).simulated
    clock.now += 100
    assert one.oldest_age_s() == 100


async def test_the_keeper_starts_the_feed_and_judges_with_it(made: Vendor, tmp_path: Path) -> None:
    clock = Clock(NOW)
    one = feed(made.url, tmp_path, clock)
    verifiers = {"tdx": FedVerifier(first_report_policy("tdx"), one, allow_simulated=True)}
    node = parse_spiffe_id("spiffe://cube/proxy/p1")
    keeper = Keeper(node, NoEvidence(), verifiers, (), leaf=cast(Leaf, object()), feed=one, clock=clock)
    await keeper.start()
    async with asyncio.timeout(5):
        while one.missing():
            await asyncio.sleep(0.01)
    evidence = evidence_for(SimulatedTdxCollector(b"seed" * 8), CLAIMS)
    expected = Expected(**{name: getattr(CLAIMS, name) for name in Expected.__struct_fields__})
    assert (await keeper.appraise(evidence, expected, "tdx")).platform
    await keeper.close()
    assert one._task is not None and one._task.done()


async def test_renewed_when_due_kept_while_the_vendor_is_away_and_dropped_at_the_end(
    made: Vendor, tmp_path: Path
) -> None:
    clock = Clock(NOW)
    one = feed(made.url, tmp_path, clock)
    await one.refresh()
    await one.refresh()
    assert len(made.seen) == 4
    due = min(check(record).refresh_at for record in one._records.values())
    assert one._wait_s() == 600.0
    clock.now = due - 60
    assert one._wait_s() == 60.0
    clock.now = due
    for target in list(made.replies):
        made.at(target, Reply(status="404 Not Found"))
    await one.refresh()
    assert len(made.seen) > 4 and one.missing() == () and len(one.endorsements(clock())) == 1
    end = min(check(record).end for record in one._records.values())
    assert len(one.endorsements(end - 1)) == 1 and one.endorsements(end) == ()


async def test_at_start_the_cache_serves_without_any_vendor(made: Vendor, tmp_path: Path) -> None:
    clock = Clock(NOW)
    await feed(made.url, tmp_path, clock).refresh()
    second = feed("http://127.0.0.1:9", tmp_path, clock)
    await second.start()
    assert len(second.endorsements(NOW)) == 1
    parse_collateral(second.endorsements(NOW)[0])
    await second.close()
    assert len(made.seen) == 4


async def test_a_set_with_one_item_missing_is_not_handed_out(made: Vendor, tmp_path: Path) -> None:
    made.at("/root.der", Reply(status="404 Not Found"))
    one = feed(made.url, tmp_path, Clock(NOW))
    await one.refresh()
    assert one.endorsements(NOW) == () and one.missing() == ("intel-root-crl:root",)
    assert one._wait_s() == 15.0


async def test_keys_of_one_issuer_never_serve_for_another(tmp_path: Path) -> None:
    store = Store(tmp_path, create=True)
    for issuer in (ISSUER, OTHER):
        body = tokens.jwks(tokens.jwk(kid=issuer))
        store.put(make_record(Item("jwks", issuer), url=issuer, fetched_at=NOW, body=body))
    fetcher = Fetcher(store, offline=True, clock=Clock(NOW))
    one = Feed(fetcher, [], [Item("jwks", ISSUER), Item("jwks", OTHER)], clock=Clock(NOW))
    await one.refresh()
    assert [key.kid for key in one.token_keys([ISSUER], NOW)] == [ISSUER]
    assert one.token_keys(["https://three.example"], NOW) == () == one.token_keys([ISSUER], NOW + 86_400)


async def test_metrics_of_the_feed(made: Vendor, tmp_path: Path) -> None:
    collector = NodeCollector(Metrics(), {})
    one = feed(made.url, tmp_path, Clock(NOW))
    one.register(collector)
    await one.refresh()
    samples = {sample.name: sample for family in collector.collect() for sample in family.samples}
    fetches = samples["cube_collateral_fetches_total"]
    assert (fetches.labels, fetches.value) == ({"result": "intel_ok"}, 4)
    assert samples["cube_collateral_missing_items"].value == 0 == samples["cube_collateral_oldest_seconds"].value


async def test_a_verifier_takes_new_keys_as_they_come(tmp_path: Path) -> None:
    """A token is refused for want of its key, then for what it says: the key was found."""
    store, clock = Store(tmp_path, create=True), Clock(NOW)
    one = Feed(Fetcher(store, offline=True, clock=clock), [], [Item("jwks", ISSUER)], clock=clock)
    text = f'id = "x"\n[maa]\nissuers = ["{ISSUER}"]\nunsafe_any_measurement = true\n'
    verifier = FedVerifier(parse_policy(text), one)
    claims = encode_claims(CLAIMS)
    token = tokens.sign({"iss": ISSUER}, tokens.fixed_key(), kid="k1")
    evidence = encode_evidence(Evidence(claims, {TOKEN: Part(TOKEN_TYPE, token)}))
    expected = Expected(**{name: getattr(CLAIMS, name) for name in Expected.__struct_fields__})
    codes = []
    for _ in range(2):
        with pytest.raises(AttestError) as caught:
            verifier.appraise(evidence, expected, now=NOW)
        codes.append(caught.value.code)
        body = tokens.jwks(tokens.jwk(tokens.fixed_key(), kid="k1"))
        store.put(make_record(Item("jwks", ISSUER), url=ISSUER, fetched_at=NOW, body=body))
        await one.refresh()
    assert codes[0] == "kid_unknown" and codes[1] != "kid_unknown"


def test_the_issuers_of_a_policy() -> None:
    text = f'id = "x"\n[maa]\nissuers = ["{ISSUER}"]\nunsafe_any_measurement = true\n'
    assert issuers_of(parse_policy(text)) == (ISSUER,)
    assert issuers_of(first_report_policy("gcp")) == ("https://confidentialcomputing.googleapis.com",)
    assert issuers_of(first_report_policy("maa")) == ()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"cache_dir": ""}, "collateral.cache_dir"),
        ({"tdx_platforms": ("90c06f",)}, "collateral.tdx_platforms"),
        ({"snp_products": ("Rome",)}, "collateral.snp_products"),
        ({"token_issuers": ("issuer",)}, "collateral.token_issuers"),
        ({"token_issuers": ("http://issuer.example",)}, "collateral.token_issuers"),
        ({"intel_url": "http://mirror.example"}, "collateral.intel_url"),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, changes: dict[str, object], key: str) -> None:
    given: dict[str, object] = {"cache_dir": str(tmp_path / "c"), "tdx_platforms": ("90c06f000000",)} | changes
    with pytest.raises(ConfigError) as caught:
        feed_from_settings(Collateral(**given))  # type: ignore[arg-type]
    assert caught.value.key == key


def test_settings_that_are_right(tmp_path: Path) -> None:
    assert feed_from_settings(Collateral()) is None
    settings = Collateral(
        cache_dir=str(tmp_path), tdx_platforms=("90c06f000000", "b0c06f000000/processor"), snp_products=("Milan",),
        token_issuers=(ISSUER,),
    )  # fmt: skip
    made = feed_from_settings(settings)
    assert made is not None and len(made.items) == 8
