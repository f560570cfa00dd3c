"""AMD's items, minted under the testkit's root: the list, the chip's certificate, and what is refused of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest.errors import AttestError, MalformedEvidence
from attest.items import Item, Record, check, make_record
from attest.needs import needed_items
from attest.schemes.sev_snp.verify import amd_roots
from attest.testkit import intel, pki
from attest.testkit.intel import simulated_intel_roots
from attest.testkit.pki import simulated_roots
from attest.testkit.snp import SnpPlatform
from attest.vouch import Trust, vouch
from cube_mesh.collateral.fetcher import CollateralUnavailable, Fetcher
from cube_mesh.collateral.sources import Sources
from cube_mesh.collateral.store import Store
from tests.collateral.vendor import Clock, Reply, vendor

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number", "ignore:Attribute's length")
NOW = 1_799_999_000.0
TRUST = Trust(simulated_roots(), simulated_intel_roots())


def record(item: Item, body: bytes, **more: str) -> Record:
    return make_record(item, url="https://x", fetched_at=NOW, body=body, **more)


async def test_the_list_is_fetched_and_one_of_another_product_is_not_taken(tmp_path: Path) -> None:
    milan = pki.crl("Milan").public_bytes(Encoding.DER)
    async with vendor() as made:
        made.at("/vcek/v1/Milan/crl", Reply(milan))
        made.at("/vcek/v1/Genoa/crl", Reply(milan))
        clock = Clock(NOW)
        one = Fetcher(Store(tmp_path), Sources(amd_url=made.url), trust=TRUST, clock=clock, sleep=clock.sleep)
        assert (await one.get(Item("amd-crl", "Milan"))).body == milan
        with pytest.raises(CollateralUnavailable) as caught:
            await one.get(Item("amd-crl", "Genoa"))
    assert caught.value.reason == "bad_answer" and one.counts == {("amd", "ok"): 1, ("amd", "bad_answer"): 1}


def test_a_list_is_vouched_for_by_its_own_root_only() -> None:
    item = Item("amd-crl", "Milan")
    kept = record(item, pki.crl("Milan").public_bytes(Encoding.DER))
    vouch(kept, NOW, TRUST)
    for trust in (Trust({"Milan": simulated_roots()["Genoa"]}, ()), Trust({"Milan": ()}, ())):
        with pytest.raises(AttestError):
            vouch(kept, NOW, trust)
    with pytest.raises(AttestError) as caught:
        vouch(kept, check(kept).end, TRUST)
    assert caught.value.code == "collateral_expired"
    with pytest.raises(AttestError) as caught:
        vouch(kept, check(kept).start - 1, TRUST)
    assert caught.value.code == "collateral_early"


def test_intels_documents_are_signed_by_the_signer_of_tcb_and_nobody_else() -> None:
    """The same body and a chain to the right root, but of the CA that issues PCK certificates."""
    from attest.vouch import tdx_items
    from tests.collateral.vendor import intel_replies

    fmspc = intel.tcb_info()["fmspc"].lower()
    reply = next(iter(intel_replies(intel.collateral(), fmspc).values()))
    item = tdx_items(fmspc, "platform")[0]
    signer = intel.pem(intel.certificate("signer"), intel.root_certificate())
    vouch(record(item, reply.body, issuer_chain=signer), NOW, TRUST)
    other = intel.pem(intel.certificate("platform"), intel.root_certificate())
    with pytest.raises(AttestError) as caught:
        vouch(record(item, reply.body, issuer_chain=other), NOW, TRUST)
    assert caught.value.code == "collateral_signer"
    with pytest.raises(MalformedEvidence):
        record(item, reply.body, issuer_chain=intel.pem(intel.certificate("signer")))
    for old, new in ((b'"signature":"', b'"signature":"00'), (b'"signature":"', b'"signature":"zz'), (b"{", b"[")):
        with pytest.raises(MalformedEvidence):
            record(item, reply.body.replace(old, new), issuer_chain=signer)


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"vcekCert": "x", "certificateChain": "y"}', b"\xff"])
def test_an_answer_of_azure_that_is_none(body: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        record(Item("azure-thim", "local"), body)


def test_a_list_of_another_issuer() -> None:
    with pytest.raises(MalformedEvidence):
        record(Item("intel-root-crl", "root"), intel.crl("platform").public_bytes(Encoding.DER))


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_a_chips_certificate_fits_its_name_or_is_not_kept(product: str) -> None:
    platform = SnpPlatform(b"s" * 32, product=product)
    item = needed_items(platform.report(bytes(64)))[0]
    der = platform.leaf.public_bytes(Encoding.DER)
    vouch(record(item, der), NOW, TRUST)
    name, hwid, levels = item.key.split("/")
    other_chip = Item(item.kind, f"{name}/{'0' * len(hwid)}/{levels}")
    first, *rest = levels.split(".")
    other_tcb = Item(item.kind, f"{name}/{hwid}/{'.'.join([str(int(first) ^ 1), *rest])}")
    for wrong, body in ((other_chip, der), (other_tcb, der), (item, der + der)):
        with pytest.raises(MalformedEvidence):
            record(wrong, body)
    with pytest.raises(AttestError) as caught:
        vouch(record(item, der), NOW, Trust(amd_roots(), ()))
    assert caught.value.code == "untrusted_chain"


def test_a_vlek_calls_for_the_list_alone() -> None:
    report = SnpPlatform(b"s" * 32, signing_key="vlek").report(bytes(64))
    assert needed_items(report) == (Item("amd-crl", "Milan"),)
