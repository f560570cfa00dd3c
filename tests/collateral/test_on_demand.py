"""Collateral that a peer's evidence calls for: fetched within bounds where configuration says so, else never."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest.attester import NoEvidence, evidence_for
from attest.binding import Expected, encode_claims
from attest.chain import load_certificate
from attest.collateral import sort_endorsements
from attest.errors import AttestError, MalformedEvidence
from attest.evidence import HARDWARE, SNP_REPORT_TYPE, TOKEN, TOKEN_TYPE, Evidence, Part, encode_evidence
from attest.items import check
from attest.policy import first_report_policy, parse_policy
from attest.testkit import intel, tokens
from attest.testkit.intel import simulated_intel_roots
from attest.testkit.pki import simulated_roots
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import SimulatedTdxCollector
from attest.vouch import Trust
from cube_mesh.collateral.feed import FedVerifier, Feed, feed_from_settings
from cube_mesh.collateral.fetcher import Fetcher
from cube_mesh.collateral.on_demand import MAX_A_MINUTE, MAX_ITEMS, OnDemand
from cube_mesh.collateral.sources import Sources
from cube_mesh.collateral.store import Store
from cube_mesh.errors import ConfigError
from cube_mesh.keeper import Keeper
from cube_mesh.settings import Collateral
from cube_mesh.tls.identity import Leaf, parse_spiffe_id
from tests.collateral.test_feed import CLAIMS, FMSPC, NOW
from tests.collateral.vendor import Clock, Reply, Vendor, serve_intel, vendor

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")
CHIP = SnpPlatform(b"a chip")
EXPECTED = Expected(**{name: getattr(CLAIMS, name) for name in Expected.__struct_fields__})
TDX_EVIDENCE = evidence_for(SimulatedTdxCollector(b"seed" * 8), CLAIMS)


class Bare:
    """A guest whose host hands out no certificates."""

    scheme = "sev-snp"

    def __init__(self, platform: SnpPlatform) -> None:
        self._platform = platform

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        return {HARDWARE: Part(SNP_REPORT_TYPE, self._platform.report(data_hash + bytes(32)))}


def evidence(platform: SnpPlatform = CHIP) -> bytes:
    return evidence_for(Bare(platform), CLAIMS)


def serve_vcek(made: Vendor, platform: SnpPlatform, *replies: Reply) -> None:
    tcb = platform.tcb
    query = f"blSPL={tcb.bootloader:02d}&teeSPL={tcb.tee:02d}&snpSPL={tcb.snp:02d}&ucodeSPL={tcb.microcode:02d}"
    made.at(
        f"/vcek/v1/{platform.product}/{platform.hwid.hex()}?{query}", *(replies or (Reply(platform.endorsements[0]),))
    )


@pytest.fixture
async def made() -> AsyncIterator[Vendor]:
    async with vendor() as one:
        serve_vcek(one, CHIP)
        serve_intel(one, intel.collateral(), FMSPC)
        yield one


class Proxy:
    """A keeper with verifiers for both kinds of hardware, and no platform named."""

    def __init__(
        self, url: str, directory: Path, *, products: tuple[str, ...] = ("Milan",), offline: bool = False
    ) -> None:
        self.clock = Clock(NOW)
        self.fetcher = Fetcher(
            Store(directory, create=True),
            Sources(amd_url=url, intel_url=url, intel_root_crl_url=f"{url}/root.der"),
            trust=Trust(simulated_roots(), simulated_intel_roots()),
            clock=self.clock, sleep=self.clock.sleep, offline=offline,
        )  # fmt: skip
        self.on_demand = OnDemand(self.fetcher, products, clock=self.clock)
        feed = Feed(self.fetcher, [], [], on_demand=self.on_demand, clock=self.clock)
        either = parse_policy(EITHER)
        policies = {"snp": first_report_policy("sev-snp"), "tdx": first_report_policy("tdx"), "either": either}
        verifiers = {name: FedVerifier(policy, feed, allow_simulated=True) for name, policy in policies.items()}
        node, leaf = parse_spiffe_id("spiffe://cube/proxy/p1"), cast(Leaf, object())
        self.keeper = Keeper(node, NoEvidence(), verifiers, (), leaf=leaf, feed=feed, clock=self.clock)

    async def appraise(self, raw: bytes, policy: str) -> str:
        return (await self.keeper.appraise(raw, EXPECTED, policy)).platform

    async def refused(self, raw: bytes, policy: str) -> str:
        with pytest.raises(AttestError) as caught:
            await self.keeper.appraise(raw, EXPECTED, policy)
        return caught.value.code


EITHER = """id = "either"
[[any_of]]
id = "snp"
[any_of.sev-snp]
vmpl = [0]
unsafe_any_tcb = true
unsafe_any_measurement = true
[[any_of]]
id = "tdx"
[any_of.tdx]
tcb_statuses = ["UpToDate"]
unsafe_any_mr_td = true
unsafe_any_rtmrs = true
"""


async def test_a_vcek_that_the_evidence_lacks(made: Vendor, tmp_path: Path) -> None:
    proxy = Proxy(made.url, tmp_path)
    assert await proxy.appraise(evidence(), "snp") == "simulated-sev-snp"
    assert len(made.seen) == 1
    assert await proxy.appraise(evidence(), "either") == "simulated-sev-snp" and len(made.seen) == 1


async def test_the_set_of_a_platform_that_nobody_named(made: Vendor, tmp_path: Path) -> None:
    proxy = Proxy(made.url, tmp_path)
    for policy in ("tdx", "either", "tdx"):
        assert await proxy.appraise(TDX_EVIDENCE, policy) == "simulated-tdx"
    assert len(made.seen) == 4


async def test_each_chip_gets_its_own(made: Vendor, tmp_path: Path) -> None:
    other = SnpPlatform(b"another chip")
    serve_vcek(made, other)
    proxy = Proxy(made.url, tmp_path)
    for platform in (CHIP, other, CHIP):
        assert await proxy.appraise(evidence(platform), "snp") == "simulated-sev-snp"
    assert len(made.seen) == 2


async def test_offline_the_cache_serves_and_nothing_is_fetched(made: Vendor, tmp_path: Path) -> None:
    assert await Proxy(made.url, tmp_path).refused(evidence(SnpPlatform(b"unknown chip")), "snp") == "vcek_missing"
    await Proxy(made.url, tmp_path).appraise(evidence(), "snp")
    asked = len(made.seen)
    offline = Proxy(made.url, tmp_path, offline=True)
    assert await offline.appraise(evidence(), "snp") == "simulated-sev-snp"
    assert await offline.refused(TDX_EVIDENCE, "tdx") == "collateral_missing"
    assert len(made.seen) == asked and dict(offline.fetcher.counts) == {}


async def test_products_that_configuration_does_not_name(made: Vendor, tmp_path: Path) -> None:
    assert await Proxy(made.url, tmp_path, products=("Genoa",)).refused(evidence(), "snp") == "vcek_missing"
    assert made.seen == []


async def test_evidence_that_fails_otherwise_asks_for_nothing(made: Vendor, tmp_path: Path) -> None:
    proxy = Proxy(made.url, tmp_path)
    for raw, policy in ((b"", "snp"), (evidence()[:-1], "snp"), (TDX_EVIDENCE, "snp"), (evidence(), "tdx")):
        assert await proxy.refused(raw, policy) in ("malformed_evidence", "part_missing", "part_unknown")
    assert made.seen == []


async def test_a_key_set_is_never_fetched_for_a_peer(made: Vendor, tmp_path: Path) -> None:
    claims = tokens.maa_claims("sevsnpvm", NOW, b"n" * 32, {"iss": made.url})
    token = Evidence(encode_claims(CLAIMS), {TOKEN: Part(TOKEN_TYPE, tokens.sign(claims))})
    proxy = Proxy(made.url, tmp_path)
    assert not await proxy.on_demand.obtain(encode_evidence(token)) and made.seen == []


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status="404 Not Found"),
        Reply(b"no certificate"),
        Reply(SnpPlatform(b"another chip").endorsements[0]),
        Reply(SnpPlatform(b"a chip", signing_key="vlek").endorsements[0]),
        Reply(drop=True),
    ],
)
async def test_a_vendor_that_has_none(made: Vendor, tmp_path: Path, reply: Reply) -> None:
    serve_vcek(made, CHIP, reply)
    proxy = Proxy(made.url, tmp_path)
    assert await proxy.refused(evidence(), "snp") == "vcek_missing"
    serve_vcek(made, CHIP)
    proxy.clock.now += 60
    assert await proxy.appraise(evidence(), "snp") == "simulated-sev-snp"


async def test_so_many_in_a_minute(made: Vendor, tmp_path: Path) -> None:
    proxy = Proxy(made.url, tmp_path)
    for number in range(MAX_A_MINUTE + 3):
        assert await proxy.refused(evidence(SnpPlatform(b"chip %d" % number)), "snp") == "vcek_missing"
    assert len(made.seen) == MAX_A_MINUTE
    assert await proxy.refused(evidence(), "snp") == "vcek_missing"
    proxy.clock.now += 61
    assert await proxy.appraise(evidence(), "snp") == "simulated-sev-snp"


async def test_a_clock_that_was_set_back_does_not_stop_it(made: Vendor, tmp_path: Path) -> None:
    proxy = Proxy(made.url, tmp_path)
    for number in range(MAX_A_MINUTE):
        await proxy.refused(evidence(SnpPlatform(b"chip %d" % number)), "snp")
    proxy.clock.now -= 3600
    assert await proxy.appraise(evidence(), "snp") == "simulated-sev-snp"


async def test_so_many_are_kept(made: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cube_mesh.collateral.on_demand.MAX_ITEMS", 2)
    assert MAX_ITEMS == 256
    proxy = Proxy(made.url, tmp_path)
    chips = [SnpPlatform(b"chip %d" % number) for number in range(3)]
    for chip in chips:
        serve_vcek(made, chip)
        await proxy.appraise(evidence(chip), "snp")
    kept = [bool(proxy.on_demand.ready(evidence(chip), NOW)) for chip in chips]
    assert kept == [False, True, True]


async def test_what_has_ended_is_fetched_again(made: Vendor, tmp_path: Path) -> None:
    proxy = Proxy(made.url, tmp_path)
    await proxy.appraise(TDX_EVIDENCE, "tdx")
    end = min(check(record).end for record in proxy.on_demand._records.values())
    assert proxy.on_demand.ready(TDX_EVIDENCE, end - 1) and not proxy.on_demand.ready(TDX_EVIDENCE, end)
    proxy.clock.now = end
    assert not await proxy.on_demand.obtain(TDX_EVIDENCE) and len(made.seen) > 4  # the vendor's own is as old


def test_it_is_off_unless_configuration_says_so(tmp_path: Path) -> None:
    plain = feed_from_settings(Collateral(cache_dir=str(tmp_path), snp_products=("Milan",)))
    asked = feed_from_settings(Collateral(cache_dir=str(tmp_path), snp_products=("Milan",), on_demand=True))
    assert plain is not None and plain.on_demand is None
    assert asked is not None and asked.on_demand is not None
    with pytest.raises(ConfigError, match="is needed"):
        feed_from_settings(Collateral(on_demand=True))


# --- Azure's THIM answer, handed in as it is ---


def test_thims_answer_is_endorsements() -> None:
    leaf, ask = (load_certificate(der).public_bytes(Encoding.PEM).decode() for der in CHIP.endorsements)
    answer = {"vcekCert": leaf, "tcbm": "DB18000000000004", "certificateChain": ask}
    beside = intel.collateral()
    given = sort_endorsements([json.dumps(answer).encode(), beside])
    assert [c.public_bytes(Encoding.DER) for c in given.certificates] == list(CHIP.endorsements)
    assert given.collateral == (beside,)
    for broken in (
        b'{"vcekCert": 7}',
        b'{"vcekCert": "x"}',
        b'{"vcekCert":"x","certificateChain":"y"}',
        b'{"vcekCert"',
    ):
        with pytest.raises(MalformedEvidence):
            sort_endorsements([broken])
