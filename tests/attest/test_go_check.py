"""go-sev-guest's and go-tdx-guest's configs: what they become, and every field that cannot become anything."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest.errors import PolicyFormatError
from attest.go_check import MAX_BYTES, import_sev_guest, import_tdx_guest
from attest.policy import parse_policy


def b(byte: int, size: int) -> str:
    return base64.b64encode(bytes((byte,)) * size).decode()


POLICY = 1 << 17 | 1 << 16 | 1 << 8 | 55
SEV: dict[str, Any] = {
    "policy": {"policy": str(POLICY), "measurement": b(1, 48), "minimumTcb": str(0xDB18000000000004)}
}
TDX: dict[str, Any] = {
    "policy": {
        "headerPolicy": {"minimumQeSvn": 5, "minimum_pce_svn": 11, "qeVendorId": "k5pyM/ecTKmUCg2zlX8GBw=="},
        "tdQuoteBodyPolicy": {
            "minimumTeeTcbSvn": b(3, 16), "mrSeam": b(4, 48), "tdAttributes": b(0, 8), "xfam": b(7, 8),
            "mrTd": b(9, 48), "rtmrs": [b(1, 48), "", b(2, 48)], "mrConfigId": b(5, 48), "tdattributesDebug": False,
        },
    },
    "rootOfTrust": {"checkCrl": True, "getCollateral": True},
}  # fmt: skip


def _sev(config: Any) -> Any:
    return parse_policy(import_sev_guest(json.dumps(config).encode(), "imported").text)


def _with(base: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = json.loads(json.dumps(base))
    *above, name = path.split(".")
    at = changed
    for key in above:
        at = at.setdefault(key, {})
    at[name] = value
    return changed  # type: ignore[no-any-return]


def test_sev_snp() -> None:
    policy = _sev(SEV)
    rules = policy.sev_snp
    assert (rules.products, rules.vmpl, rules.allow_smt, rules.allow_cxl) == (("Milan",), (0, 1, 2, 3), True, False)
    assert (rules.min_policy_abi.major, rules.min_policy_abi.minor) == (1, 55)
    floor = rules.min_tcb
    assert (floor.bootloader, floor.tee, floor.snp, floor.microcode) == (4, 0, 0x18, 0xDB)
    assert policy.reference_values.sev_snp.measurements == ("01" * 48,) and policy.unsafe == ()


# field of the policy: value, where it goes, what stands there
SEV_FIELDS: dict[str, tuple[Any, str, Any]] = {
    "minimumGuestSvn": (7, "rules.min_guest_svn", 7),
    "vmpl": ("2", "rules.vmpl", (2,)),
    "requireAuthorKey": (True, "rules.require_author_key", True),
    "permit_provisional_firmware": (True, "rules.permit_provisional_firmware", True),
    "platformInfo": ("5", "rules.platform_info_allowed", ("smt", "ecc")),
    "hostData": (b(2, 32), "values.host_data", ("02" * 32,)),
    "familyId": (b(3, 16).rstrip("="), "values.family_ids", ("03" * 16,)),
    "imageId": (base64.urlsafe_b64encode(b"\xfb\xff" * 8).decode(), "values.image_ids", ("fbff" * 8,)),
    "reportId": (b(4, 32), "values.report_ids", ("04" * 32,)),
    "reportIdMa": (b(5, 32), "values.report_ids_ma", ("05" * 32,)),
    "chipId": (b(6, 8), "values.chip_ids", ("06" * 8 + "00" * 56,)),
    "trustedIdKeyHashes": ([b(7, 48)], "values.id_key_digests", ("07" * 48,)),
    "trustedAuthorKeyHashes": ([b(8, 48)], "values.author_key_digests", ("08" * 48,)),
    "policy": (POLICY | 1 << 20 | 1 << 23, "rules.require_rapl_disabled", True),
    "minimumLaunchTcb": ("4", "rules.min_launch_tcb.bootloader", 4),
    "minimumVersion": ("1.55", "rules.min_firmware.minor", 55),
    "product": ({"name": "SEV_PRODUCT_GENOA"}, "rules.products", ("Genoa",)),
}


@pytest.mark.parametrize("name", SEV_FIELDS)
def test_each_field_of_sev_snp(name: str) -> None:
    value, where, expected = SEV_FIELDS[name]
    policy = _sev(_with(SEV, f"policy.{name}", value))
    at: Any = {"rules": policy.sev_snp, "values": policy.reference_values.sev_snp}[where.split(".")[0]]
    for step in where.split(".")[1:]:
        at = getattr(at, step)
    assert at == expected


def test_turin_crl_and_pcrs() -> None:
    config = _with(SEV, "rootOfTrust", {"productLine": "Turin", "checkCrl": True, "disallowNetwork": True})
    del config["policy"]["minimumTcb"]
    config["policy"]["minimum_tcb_turin"] = str(0x4800000000000E00 | 7 << 8)
    policy = _sev(config | {"pcr_values": {"sha256": {"7": "AB" * 32}}})
    assert policy.sev_snp.require_revocation_check and policy.sev_snp.products == ("Turin",)
    assert policy.sev_snp.min_tcb.microcode == 0x48 and policy.sev_snp.min_tcb.bootloader == 0x0F
    assert policy.vtpm.pcrs == (7,) and policy.reference_values.vtpm.pcr_values == {"7": ("ab" * 32,)}


def test_what_is_not_pinned_is_named() -> None:
    imported = import_sev_guest(json.dumps({"policy": {"policy": POLICY | 1 << 19}}).encode(), "p")
    assert parse_policy(imported.text).unsafe == (
        "sev-snp.unsafe_allow_debug", "sev-snp.unsafe_any_tcb", "sev-snp.unsafe_any_measurement"
    )  # fmt: skip
    assert sum(note.startswith("skipped") for note in imported.notes) == 3


SEV_REFUSED: dict[str, Any] = {
    "policy.reportData": b(1, 64), "policy.minimumBuild": 3, "policy.trustedIdKeys": [b(1, 8)],
    "policy.trustedAuthorKeys": [b(1, 8)], "policy.policy": "0", "policy.measurement": b(1, 47), "policy.odd": 1,
    "policy.hostData": "!!", "policy.vmpl": -1, "policy.minimumTcb": str(1 << 16), "policy.minimumTcbTurin": "1",
    "policy.minimumGuestSvn": 1 << 32, "policy.platformInfo": 0, "policy.minimumVersion": "1",
    "policy.minimum_tcb": "1", "policy.requireIdBlock": "yes", "policy.product": {"name": "SEV_PRODUCT_ROME"},
    "policy.trustedIdKeyHashes": b(1, 48),
    "policy.product.machineStepping": 1, "rootOfTrust.cabundles": ["x"], "rootOfTrust.cabundlePaths": ["x"],
    "rootOfTrust.productLine": "Rome", "odd": {}, "policy.familyId": [], "pcr_values": {"sha1": {"0": "00" * 20}},
}  # fmt: skip


@pytest.mark.parametrize("path", SEV_REFUSED)
def test_what_cannot_be_said_of_sev_snp_is_an_error_that_names_it(path: str) -> None:
    with pytest.raises(PolicyFormatError) as caught:
        _sev(_with(SEV, path, SEV_REFUSED[path]))
    name = path.rsplit(".", 1)[-1]
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    assert snake in str(caught.value) or (snake == "product_line" and "product" in str(caught.value))


def test_a_product_by_its_number() -> None:
    assert _sev(_with(SEV, "policy.product", {"name": 2})).sev_snp.products == ("Genoa",)


@pytest.mark.parametrize("bits", [1 << 16, 1 << 17 | 1 << 26])
def test_a_guest_policy_that_cannot_be(bits: int) -> None:
    with pytest.raises(PolicyFormatError, match="bit 17"):
        _sev(_with(SEV, "policy.policy", bits))


@pytest.mark.parametrize("pcrs", [{"seven": "00" * 32}, {"7" * 5000: "00" * 32}, {"٧": "00" * 32}, {"7": 1}, []])
def test_pcr_values_that_are_none(pcrs: object) -> None:
    with pytest.raises(PolicyFormatError, match="index to hex"):
        _sev(SEV | {"pcr_values": {"sha256": pcrs}})


def test_base64_of_no_length() -> None:
    with pytest.raises(PolicyFormatError, match="not base64"):
        _sev(_with(SEV, "policy.hostData", "A"))


def test_both_lists_of_keys() -> None:
    config = _with(_with(SEV, "policy.trustedIdKeyHashes", [b(1, 48)]), "policy.trustedAuthorKeyHashes", [b(1, 48)])
    with pytest.raises(PolicyFormatError, match="trusted_author_key_hashes"):
        _sev(config)


def test_tdx() -> None:
    policy = parse_policy(import_tdx_guest(json.dumps(TDX).encode(), "t").text)
    rules, values = policy.tdx, policy.reference_values.tdx
    assert rules is not None and policy.unsafe == ()
    assert (rules.min_qe_svn, rules.min_pce_svn, rules.min_tee_tcb_svn, rules.rtmrs) == (5, 11, "03" * 16, (0, 2))
    assert values.mr_td == ("09" * 48,) and values.rtmr_values == {"0": ("01" * 48,), "2": ("02" * 48,)}
    assert values.mr_seam == ("04" * 48,) and values.xfam == ("07" * 8,) and values.mr_config_id == ("05" * 48,)


def test_tdx_with_any_mr_td_and_nothing_else() -> None:
    config = {"policy": {"td_quote_body_policy": {"anyMrTd": [b(1, 48), b(2, 48)]}}}
    policy = parse_policy(import_tdx_guest(json.dumps(config).encode(), "t").text)
    assert policy.reference_values.tdx.mr_td == ("01" * 48, "02" * 48)
    assert policy.unsafe == ("tdx.unsafe_any_rtmrs",)


BODY = "policy.tdQuoteBodyPolicy"
TDX_REFUSED: dict[str, Any] = {
    f"{BODY}.reportData": b(1, 64), f"{BODY}.tdattributesDebug": True, f"{BODY}.anyMrTd": [b(1, 48)],
    f"{BODY}.rtmrs": [b(1, 48)] * 5, f"{BODY}.mrSeam": b(1, 47), f"{BODY}.odd": 1, "policy.headerPolicy.odd": 1,
    "policy.headerPolicy.minimumQeSvn": 1 << 16, "policy.headerPolicy.qeVendorId": b(1, 16), "policy.odd": 1,
    "rootOfTrust.cabundles": ["x"], "rootOfTrust.checkCrl": 1, "odd": 1, "policy.headerPolicy": [], f"{BODY}.xfam": 5,
}  # fmt: skip


@pytest.mark.parametrize("path", TDX_REFUSED)
def test_what_cannot_be_said_of_tdx_is_an_error_that_names_it(path: str) -> None:
    with pytest.raises(PolicyFormatError) as caught:
        import_tdx_guest(json.dumps(_with(TDX, path, TDX_REFUSED[path])).encode(), "t")
    name = path.rsplit(".", 1)[-1]
    assert "".join(f"_{c.lower()}" if c.isupper() else c for c in name) in str(caught.value)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b'{"a":1,"a":1}', b'{"policy":{},"policy":{}}', b" " * (MAX_BYTES + 1)]
)
def test_not_a_config(raw: bytes) -> None:
    for read in (import_sev_guest, import_tdx_guest):
        with pytest.raises(PolicyFormatError):
            read(raw, "p")


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    for read in (import_sev_guest, import_tdx_guest):
        with pytest.raises(PolicyFormatError):
            read(raw, "p")
