"""Policies of go-sev-guest and go-tdx-guest (``check.Config`` as protojson) as policies of ours.

protojson: names in lowerCamelCase or as in the .proto, bytes in base64 of either alphabet, 64-bit numbers as text, null
for unset. What our schema cannot say, and any name that is not known, is a PolicyFormatError with the field's path.
Where those tools do not look at something that we demand, the result is stricter, and ``notes`` say so.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from typing import Any

import msgspec

from attest.errors import PolicyFormatError
from attest.policy import parse_policy
from attest.schemes.sev_snp.abi import PLATFORM_INFO
from attest.tomltext import toml_text

__all__ = ["IMPORTS", "Imported", "import_sev_guest", "import_tdx_guest"]

MAX_BYTES = 1 << 20
_PCR = re.compile("[0-9]{1,2}")
_QE_VENDOR = "939a7233f79c4ca9940a0db3957f0607"
_PRODUCTS = {"SEV_PRODUCT_MILAN": "Milan", "SEV_PRODUCT_GENOA": "Genoa", "SEV_PRODUCT_TURIN": "Turin"}
_PRODUCT_NUMBERS = dict(enumerate(_PRODUCTS, 1))
# Bits of the guest policy: what may be, and what must be.
_MAY = {16: "allow_smt", 18: "unsafe_allow_migration", 19: "unsafe_allow_debug", 21: "allow_cxl"}
_MUST = {
    20: "require_single_socket", 22: "require_aes256_xts", 23: "require_rapl_disabled",
    24: "require_ciphertext_hiding", 25: "require_page_swap_disabled",
}  # fmt: skip


class Imported(msgspec.Struct, frozen=True):
    """``text``: TOML that loads. ``notes``: where it differs from what was imported."""

    text: str
    notes: tuple[str, ...]


class _Message:
    """One JSON object of the config; every field must be taken by the time of :meth:`done`."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise PolicyFormatError(f"{path or 'config'}: not an object")
        self.path = path
        self._fields: dict[str, Any] = {}
        for name, item in value.items():
            snake = re.sub(r"(?<!^)([A-Z])", lambda m: "_" + m[1].lower(), name)
            if snake in self._fields:
                raise PolicyFormatError(f"{self.at(snake)}: given twice")
            self._fields[snake] = item

    def at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def error(self, name: str, text: str) -> PolicyFormatError:
        return PolicyFormatError(f"{self.at(name)}: {text}")

    def take(self, name: str) -> Any:
        return self._fields.pop(name, None)

    def message(self, name: str) -> _Message:
        value = self.take(name)
        return _Message({} if value is None else value, self.at(name))

    def number(self, name: str, bits: int = 32) -> int | None:
        value = self.take(name)
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}", value):
            value = int(value)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << bits):
            return value
        raise self.error(name, f"not a whole number of {bits} bits")

    def flag(self, name: str) -> bool | None:
        value = self.take(name)
        if value is None or isinstance(value, bool):
            return value
        raise self.error(name, "not true or false")

    def hex(self, name: str, *sizes: int) -> str | None:
        value = self.take(name)
        return self._hex(name, value, sizes) if value not in (None, "") else None

    def hexes(self, name: str, size: int, *, gaps: bool = False) -> list[str]:
        values = self.take(name)
        if values is not None and not isinstance(values, list):
            raise self.error(name, "not a list")
        return ["" if gaps and v == "" else self._hex(name, v, (size,)) for v in values or ()]

    def _hex(self, name: str, value: object, sizes: tuple[int, ...]) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9+/_-]*={0,2}", value):
            raise self.error(name, "not base64")
        bare = value.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            data = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
        except binascii.Error:
            raise self.error(name, "not base64") from None
        if len(data) not in sizes:
            raise self.error(name, f"{len(data)} bytes, not {' or '.join(map(str, sizes))}")
        return data.hex()

    def refuse(self, name: str, why: str) -> None:
        if self.take(name) not in (None, "", [], 0, "0", False):
            raise self.error(name, why)

    def done(self) -> None:
        for name in self._fields:
            raise self.error(name, "not known, and nothing of a policy is ignored")


def import_sev_guest(raw: bytes, policy_id: str) -> Imported:
    """A go-sev-guest ``check.Config``, also with Cocos' ``pcr_values`` beside it. Raises PolicyFormatError."""
    config = _load(raw)
    notes: list[str] = []
    rules, values = _sev(config.message("policy"), config.message("root_of_trust"), notes)
    document: dict[str, Any] = {"id": policy_id, "sev-snp": rules}
    reference: dict[str, Any] = {"sev-snp": values}
    if (vtpm := _pcr_values(config)) is not None:
        document["vtpm"], reference["vtpm"] = vtpm
    config.done()
    return _imported(document, reference, notes)


def import_tdx_guest(raw: bytes, policy_id: str) -> Imported:
    """A go-tdx-guest ``checkconfig.Config``. Raises PolicyFormatError."""
    config = _load(raw)
    notes = ["stricter: TCB status UpToDate, collateral, revocation lists and SEPT_VE_DISABLE are demanded here"]
    policy, root = config.message("policy"), config.message("root_of_trust")
    header, body = policy.message("header_policy"), policy.message("td_quote_body_policy")
    if header.hex("qe_vendor_id", 16) not in (None, _QE_VENDOR):
        raise header.error("qe_vendor_id", "only Intel's quoting enclave is known here")
    rules: dict[str, Any] = {"min_qe_svn": header.number("minimum_qe_svn", 16)}
    rules["min_pce_svn"] = header.number("minimum_pce_svn", 16)
    rules["min_tee_tcb_svn"] = body.hex("minimum_tee_tcb_svn", 16)
    values: dict[str, Any] = {"mr_td": _mr_td(body)}
    for name, size in (("mr_seam", 48), ("mr_config_id", 48), ("mr_owner", 48), ("mr_owner_config", 48),
                       ("td_attributes", 8), ("xfam", 8)):  # fmt: skip
        values[name] = _one(body.hex(name, size))
    rtmrs = body.hexes("rtmrs", 48, gaps=True)
    if len(rtmrs) > 4:
        raise body.error("rtmrs", "there are four")
    values["rtmr_values"] = {str(n): [value] for n, value in enumerate(rtmrs) if value}
    rules["rtmrs"] = [n for n, value in enumerate(rtmrs) if value]
    rules["unsafe_any_mr_td"] = True if not values["mr_td"] else None
    rules["unsafe_any_rtmrs"] = True if not rules["rtmrs"] else None
    body.refuse("report_data", "is the channel's to decide, not the policy's")
    if body.flag("tdattributes_debug"):
        raise body.error("tdattributes_debug", "debug can be allowed here, not demanded")
    _bundles(root)
    root.flag("check_crl")
    root.flag("get_collateral")
    for message in (header, body, policy, root, config):
        message.done()
    return _imported({"id": policy_id, "tdx": rules}, {"tdx": values}, notes)


def _mr_td(body: _Message) -> list[str]:
    one, some = _one(body.hex("mr_td", 48)), body.hexes("any_mr_td", 48)
    if one and some:
        raise body.error("any_mr_td", "beside mr_td: one of them")
    return one or some


def _load(raw: bytes) -> _Message:
    if len(raw) > MAX_BYTES:
        raise PolicyFormatError(f"config: above {MAX_BYTES} bytes")
    try:
        return _Message(json.loads(raw, object_pairs_hook=_once), "")
    except (ValueError, RecursionError) as error:
        raise PolicyFormatError(f"config: not JSON: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is given twice in one object")
    return dict(pairs)


def _one(value: str | None) -> list[str]:
    return [value] if value else []


def _bundles(root: _Message) -> None:
    for name in ("cabundle_paths", "cabundles"):
        root.refuse(name, "the vendor's roots are built in and pinned")


def _imported(document: dict[str, Any], reference: dict[str, Any], notes: list[str]) -> Imported:
    text = toml_text({**document, "reference_values": reference}, tuple(notes))
    skipped = parse_policy(text).unsafe
    return Imported(text, (*notes, *(f"skipped: {name} is on, because the config does not pin it" for name in skipped)))


# -- SEV-SNP -----------------------------------------------------------------------------------------------------------


def _sev(policy: _Message, root: _Message, notes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    product = _product(policy, root, notes)
    rules: dict[str, Any] = {"products": [product], **_guest_policy(policy)}
    rules["min_guest_svn"] = policy.number("minimum_guest_svn")
    vmpl = policy.number("vmpl")
    rules["vmpl"] = [0, 1, 2, 3] if vmpl is None else [vmpl]
    rules["min_tcb"] = _tcb(policy, "minimum_tcb", product)
    rules["min_launch_tcb"] = _tcb(policy, "minimum_launch_tcb", product)
    rules["platform_info_allowed"] = _platform_info(policy)
    rules["min_firmware"] = _version(policy)
    for name in ("require_author_key", "require_id_block", "permit_provisional_firmware"):
        rules[name] = policy.flag(name)
    rules["require_revocation_check"] = root.flag("check_crl")
    _bundles(root)
    root.flag("disallow_network")  # nothing here fetches
    values = _sev_values(policy)
    rules["unsafe_any_measurement"] = True if not values["measurements"] else None
    rules["unsafe_any_tcb"] = True if rules["min_tcb"] is None else None
    policy.refuse("report_data", "is the channel's to decide, not the policy's")
    for name in ("trusted_author_keys", "trusted_id_keys"):
        policy.refuse(name, f"give the key's SHA-384 in {name[:-1]}_hashes")
    policy.refuse("minimum_build", "a build is compared within one version only here: give min_firmware by hand")
    policy.done()
    root.done()
    return rules, values


def _sev_values(policy: _Message) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field, size in (
        ("measurement", "measurements", 48), ("host_data", "host_data", 32), ("family_id", "family_ids", 16),
        ("image_id", "image_ids", 16), ("report_id", "report_ids", 32), ("report_id_ma", "report_ids_ma", 32),
    ):  # fmt: skip
        values[field] = _one(policy.hex(name, size))
    chip = policy.hex("chip_id", 64, 8)
    values["chip_ids"] = _one(chip and chip.ljust(128, "0"))
    values["id_key_digests"] = policy.hexes("trusted_id_key_hashes", 48)
    values["author_key_digests"] = policy.hexes("trusted_author_key_hashes", 48)
    if values["id_key_digests"] and values["author_key_digests"]:
        raise policy.error(
            "trusted_author_key_hashes", "beside trusted_id_key_hashes: there either, here both must hold"
        )
    return values


def _product(policy: _Message, root: _Message, notes: list[str]) -> str:
    product = policy.message("product")
    name = product.take("name")
    if isinstance(name, int):
        name = _PRODUCT_NUMBERS.get(name, "not known")
    found = {_PRODUCTS.get(str(name))} if name else set()
    for field in ("stepping", "machine_stepping"):
        if product.take(field) is not None:
            raise product.error(field, "steppings are not compared here")
    product.done()
    for field in ("product", "product_line"):
        if line := root.take(field):
            found.add(line if line in _PRODUCTS.values() else None)
    if None in found or len(found) > 1:
        raise policy.error("product", "is none of Milan, Genoa, Turin, or contradicts the root of trust")
    if not found:
        notes.append("Milan only, as go-sev-guest takes a config without a product")
    return next(iter(found)) or "" if found else "Milan"


def _guest_policy(policy: _Message) -> dict[str, Any]:
    bits = policy.number("policy", 64)
    if not bits:
        raise policy.error("policy", "is needed: the guest policy that is allowed at most")
    if not bits >> 17 & 1 or bits >> 26:
        raise policy.error("policy", "bit 17 must be 1, bits 26 and above 0")
    rules: dict[str, Any] = {name: bool(bits >> bit & 1) for bit, name in _MAY.items()}
    rules |= {name: True for bit, name in _MUST.items() if bits >> bit & 1}
    rules["min_policy_abi"] = {"major": bits >> 8 & 255, "minor": bits & 255}
    return rules


def _tcb(policy: _Message, name: str, product: str) -> dict[str, int] | None:
    turin = product == "Turin"
    policy.refuse(name if turin else name + "_turin", f"has no meaning for {product}")
    raw = (policy.number(name + "_turin" if turin else name, 64) or 0).to_bytes(8, "little")
    names: tuple[str, ...] = ("bootloader", "tee", "", "", "", "", "snp", "microcode")
    names = ("fmc", "bootloader", "tee", "snp", "", "", "", "microcode") if turin else names
    if any(level for part, level in zip(names, raw, strict=True) if not part):
        raise policy.error(name, "reserved bytes are not zero")
    levels = {part: level for part, level in zip(names, raw, strict=True) if part}
    return levels if any(raw) else None


def _platform_info(policy: _Message) -> list[str] | None:
    bits = policy.number("platform_info", 64)
    if bits is None:
        return None
    names = [name for name, bit in PLATFORM_INFO.items() if bits >> bit & 1]
    if not names or sum(1 << PLATFORM_INFO[name] for name in names) != bits:
        raise policy.error("platform_info", f"{bits:#x} has no known bit, or one that is not known")
    return names


def _version(policy: _Message) -> dict[str, int] | None:
    text = policy.take("minimum_version")
    if text in (None, ""):
        return None
    match = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})", text) if isinstance(text, str) else None
    if match is None:
        raise policy.error("minimum_version", 'is not "major.minor"')
    return {"major": int(match[1]), "minor": int(match[2])}


def _pcr_values(config: _Message) -> tuple[dict[str, Any], dict[str, Any]] | None:
    banks = config.take("pcr_values")
    if banks is None:
        return None
    if not isinstance(banks, dict) or len(banks) != 1 or next(iter(banks)) not in ("sha256", "sha384"):
        raise config.error("pcr_values", "one bank, sha256 or sha384")
    bank, pcrs = next(iter(banks.items()))
    if not isinstance(pcrs, dict) or not all(_PCR.fullmatch(n) and isinstance(v, str) for n, v in pcrs.items()):
        raise config.error("pcr_values", "is not index to hex")
    values = {n: [v.lower()] for n, v in pcrs.items()}
    return {"pcr_bank": bank, "pcrs": [int(n) for n in pcrs]}, {"pcr_values": values}


IMPORTS: dict[str, Callable[[bytes, str], Imported]] = {
    "go-sev-guest": import_sev_guest,
    "go-tdx-guest": import_tdx_guest,
}
