"""Records of collateral: what each kind must be, when it may be used, and what is not taken for one."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from attest.der import der_items
from attest.errors import MalformedEvidence
from attest.items import (
    KINDS,
    MAX_CHAIN_BYTES,
    MAX_RECORD_BYTES,
    Item,
    Record,
    Times,
    check,
    decode_record,
    encode_record,
    parse_item,
    signed_document,
    thim_certificates,
)
from attest.testkit import intel, pki

from .records import (
    BODIES,
    MILAN,
    NOW,
    PCK_ISSUER,
    QE_IDENTITY,
    SET,
    SIGNER,
    TCB,
    TCB_INFO,
    TURIN,
    VCEK,
    VCEK_TURIN,
    amd_chain,
    der,
    document,
    record,
    thim,
)

DAY = 86_400.0
LEAF_END = MILAN.leaf.not_valid_after_utc.timestamp()


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = (size,) if size < 0x80 else (0x81, size) if size < 0x100 else (0x82, *divmod(size, 0x100))
    return bytes((tag, *length)) + content


def _endless_crl() -> bytes:
    """A list without nextUpdate, which no library writes. Its signature does not hold; nothing here looks at it."""
    ((_, outer),) = der_items(der(pki.crl("Milan")))
    content, algorithm, signature = der_items(outer)
    fields = der_items(content[1])
    del fields[4]
    listed = 0x30, b"".join(_tlv(*field) for field in fields)
    return _tlv(0x30, b"".join(_tlv(*item) for item in (listed, algorithm, signature)))


@pytest.mark.parametrize("name", BODIES)
def test_a_record_of_every_kind_comes_back(name: str) -> None:
    made = record(name)
    item = parse_item(name)
    assert str(item) == name == made.item and decode_record(encode_record(made), item) == made
    times = check(made)
    assert times.start < NOW < times.refresh_at and times.state(NOW) == "fresh"


def test_every_kind_is_tried() -> None:
    assert {name.partition(":")[0] for name in BODIES} == set(KINDS)


# Item, and a body (with an issuer chain) that it cannot have.
REFUSED: dict[str, Callable[[], Record]] = {
    "nothing": lambda: record(VCEK, b""),
    "too large": lambda: record(VCEK, b"\x30" * (KINDS["amd-vcek"].max_bytes + 1)),
    "an issuer chain that is too large": lambda: record(TCB, issuer_chain="x" * (MAX_CHAIN_BYTES + 1)),
    "two VCEKs": lambda: record(VCEK, der(MILAN.leaf) * 2),
    "the VCEK of another chip": lambda: record(VCEK, der(MILAN.certificate(hwid=bytes(64)))),
    "a VCEK by another name": lambda: record(VCEK, der(MILAN.certificate(common_name="SEV-VLEK"))),
    "the VCEK of another TCB": lambda: record(VCEK, der(MILAN.certificate(tcb=replace(MILAN.tcb, snp=23)))),
    "a VCEK without a level": lambda: record(VCEK, der(MILAN.certificate(omit=("3.8",)))),
    "Turin's VCEK of another FMC": lambda: record(VCEK_TURIN, der(TURIN.certificate(tcb=replace(TURIN.tcb, fmc=2)))),
    "ASVK for ASK": lambda: record("amd-chain:Milan/vcek", amd_chain("asvk", "ark")),
    "ASK for ASVK": lambda: record("amd-chain:Milan/vlek", amd_chain("ask", "ark")),
    "the chain of another product": lambda: record("amd-chain:Milan/vcek", amd_chain("ask", "ark", product="Genoa")),
    "a chain without its root": lambda: record("amd-chain:Milan/vcek", amd_chain("ask")),
    "the list of another product": lambda: record("amd-crl:Milan", der(pki.crl("Genoa"))),
    "a list without an end": lambda: record("amd-crl:Milan", _endless_crl()),
    "junk for a list": lambda: record("amd-crl:Milan", b"junk"),
    "no JSON from THIM": lambda: record("azure-thim:local", b"{"),
    "THIM without a VCEK": lambda: record("azure-thim:local", thim(pki.ca_certificate("ask", "Milan"))),
    "TCB info of another platform": lambda: record(
        TCB, document("tcbInfo", SET["tcb_info"].replace("C0BE00000000", "C0BE00000001"), "00" * 64)
    ),
    "TCB info of SGX": lambda: record(TCB, document("tcbInfo", SET["tcb_info"].replace('"TDX"', '"SGX"'), "00" * 64)),
    "QE identity for TCB info": lambda: record(TCB, QE_IDENTITY),
    "TCB info for QE identity": lambda: record("intel-qe-identity:tdx", TCB_INFO),
    "QE identity of SGX": lambda: record(
        "intel-qe-identity:tdx", document("enclaveIdentity", SET["qe_identity"].replace("TD_QE", "QE"), "00" * 64)
    ),
    "a signature that is short": lambda: record(TCB, document("tcbInfo", SET["tcb_info"], "00" * 63)),
    "a signature that is no hex": lambda: record(TCB, document("tcbInfo", SET["tcb_info"], "zz" * 64)),
    "an issuer chain of one": lambda: record(TCB, issuer_chain=intel.pem(intel.certificate("signer"))),
    "an issuer chain of three": lambda: record(TCB, issuer_chain=SIGNER + intel.pem(intel.root_certificate())),
    "no issuer chain": lambda: record("intel-pck-crl:platform", issuer_chain=""),
    "the list of the other CA": lambda: record("intel-pck-crl:platform", der(intel.crl("processor"))),
    "the list of a CA for the root's": lambda: record("intel-root-crl:root", der(intel.crl("platform"))),
    "keys that are none": lambda: record("jwks:https://issuer.example", b'{"keys": 1}'),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_taken(case: str) -> None:
    with pytest.raises(MalformedEvidence) as caught:
        REFUSED[case]()
    assert caught.value.code.startswith("malformed_") or caught.value.code in ("tcb_info_kind", "qe_identity_kind")


def test_a_file_is_of_its_item_whole_and_undamaged() -> None:
    item, made = parse_item("amd-crl:Milan"), record("amd-crl:Milan")
    for raw, words in (
        (bytes(MAX_RECORD_BYTES + 1), "above"),
        (b"{}", "Object missing"),
        (encode_record(record("intel-root-crl:root")), "the file is of intel-root-crl:root"),
        (encode_record(replace(made, body=made.body + b"\x00")), "not what was stored"),
        (encode_record(replace(made, item="amd-crl:Rome")), "the file is of amd-crl:Rome"),
    ):
        with pytest.raises(MalformedEvidence, match=words):
            decode_record(raw, item)


@pytest.mark.parametrize(
    "text",
    [
        "", "jwks", "jwks:", "jwks:ftp://x", "amd-crl:Rome", "amd-vcek:Milan/00/1.2.3.4", "other:x",
        f"intel-tcb-info:{'C0' * 6}", "intel-tcb-info:90c06f000000\n", "jwks:https://a/../../x\x00",
    ],
)  # fmt: skip
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(MalformedEvidence) as caught:
        parse_item(text)
    assert caught.value.code == "malformed_collateral"


def test_file_names() -> None:
    assert Item("amd-crl", "Milan").file_name == "amd-crl_Milan.json"
    long, other = (Item("amd-vcek", f"Genoa/{'ab' * 64}/1.2.3.{n}").file_name for n in (4, 5))
    assert long != other and long.startswith("amd-vcek_Genoa_abab") and len(long) < 128
    slash, dots = (Item("jwks", f"https://a.example/{end}").file_name for end in ("", ".."))
    assert slash != dots and "/" not in slash + dots


def test_times() -> None:
    times = Times(10.0, 20.0, 30.0)
    states = [times.state(now) for now in (9, 10, 19, 20, 29, 30)]
    assert states == ["early", "fresh", "fresh", "due", "due", "expired"]


@pytest.mark.parametrize(
    ("name", "start", "refresh_at", "end"),
    [
        (VCEK, intel.START.timestamp(), (NOW + LEAF_END) / 2, LEAF_END),
        ("amd-chain:Milan/vcek", intel.START.timestamp(), NOW + 30 * DAY, intel.END.timestamp()),
        ("amd-crl:Milan", intel.START.timestamp(), NOW + DAY, LEAF_END),
        (TCB, intel.START.timestamp(), NOW + DAY, intel.END.timestamp()),
        ("jwks:https://issuer.example", -math.inf, NOW + 3600, NOW + DAY),
    ],
)
def test_when_a_record_may_be_used(name: str, start: float, refresh_at: float, end: float) -> None:
    assert check(record(name)) == Times(start, refresh_at, end)


def test_the_shortest_of_its_parts_counts() -> None:
    """Of what is signed, the list, and each certificate of the issuer chain."""
    soon, late = (dt.datetime(2026, 6, day, tzinfo=dt.UTC) for day in (2, 3))
    crl = der(intel.crl("platform", next_update=late))
    assert check(record("intel-pck-crl:platform", crl)).end == late.timestamp()
    short = intel.pem(intel.certificate("platform", not_after=soon), intel.root_certificate())
    assert check(record("intel-pck-crl:platform", crl, issuer_chain=short)).end == soon.timestamp()
    assert check(record("intel-pck-crl:platform", crl, issuer_chain=PCK_ISSUER)).refresh_at == NOW + DAY


def test_a_record_of_later_is_not_refreshed_before() -> None:
    later = dt.datetime(2028, 1, 1, tzinfo=dt.UTC)
    times = check(record("amd-crl:Milan", der(pki.crl("Milan", last_update=later))))
    assert times.start == times.refresh_at == later.timestamp() and times.state(NOW) == "early"


def test_what_intel_signed_is_kept_byte_by_byte() -> None:
    for name, kind in ((TCB, "tcb_info"), ("intel-qe-identity:tdx", "qe_identity")):
        found = signed_document(record(name))
        assert (found.raw.decode(), found.signature.hex()) == (SET[kind], SET[f"{kind}_signature"])


def test_the_certificates_of_thim_begin_with_the_vcek() -> None:
    found = thim_certificates(record("azure-thim:local"))
    assert found.startswith(intel.pem(MILAN.leaf).encode()) and found.endswith(amd_chain("ask", "ark"))


def test_a_key_set_lives_from_its_fetching() -> None:
    assert check(record("jwks:https://issuer.example", fetched_at=NOW - DAY)).state(NOW) == "expired"
