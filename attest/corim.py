"""CoRIM (draft-ietf-rats-corim) as a file of reference values, after the signature over it has been verified.

Read are reference-value triples of two kinds of environment: AMD SEV-SNP (draft-deeglaze-amd-sev-snp-corim-profile:
class-id UUID, measurement keys) and Intel TDX (class vendor Intel, model "TDX"; draft-cds-rats-intel-corim-profile:
``tee.mrtee`` is MRTD; RTMRs as integrity registers). Everything else, and any member that is not known, is a
PolicyFormatError with its name: a reference value that is dropped would silently accept more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attest.cose import PublicKey, Tag, cbor_read, verify_sign1
from attest.errors import MalformedEvidence, PolicyFormatError, Stale
from attest.tomltext import toml_text

__all__ = ["import_corim"]

MAX_TRIPLES = 64
_COMID, _UNSIGNED, _UUID, _TIME, _BYTES = 506, 501, 37, 1, 560
_SHA384 = (7, "sha-384")
_TYPES = ("application/rim+cbor", "application/corim-unsigned+cbor")
_CORIM = {0: "id", 1: "tags", 2: "dependent-rims", 3: "profile", 4: "rim-validity", 5: "entities"}
_COMID_KEYS = {0: "language", 1: "tag-identity", 2: "entities", 3: "linked-tags", 4: "triples"}
_TRIPLES = {
    0: "reference-triples", 1: "endorsed-triples", 2: "identity-triples", 3: "attest-key-triples",
    4: "dependency-triples", 5: "membership-triples", 6: "coswid-triples", 8: "conditional-endorsement-series-triples",
    10: "conditional-endorsement-triples",
}  # fmt: skip
_MVAL = {
    0: "version", 1: "svn", 2: "digests", 3: "flags", 4: "raw-value", 5: "raw-value-mask", 6: "mac-addr", 7: "ip-addr",
    8: "serial-number", 9: "ueid", 10: "uuid", 11: "name", 13: "cryptokeys", 14: "integrity-registers",
    15: "int-range", -83: "tee.mrtee", -84: "tee.mrsigner", -82: "tee.attributes",
}  # fmt: skip
_CHIP, _CSP = "d05e6d1b9f464ae2a610ce3e6ee7e153", "89a7a1f0e7044faaacbd81c86df8a961"
# SEV-SNP: (measurement key, member of the values) → reference value and size.
_SNP_RAW = {
    (0, 4): ("family_ids", 16), (3, 4): ("report_ids", 32), (4, 4): ("report_ids_ma", 32),
    (5, 4): ("id_key_digests", 48), (6, 4): ("author_key_digests", 48), (8, 4): ("host_data", 32),
}  # fmt: skip

Fields = dict[str, list[str]]  # of one triple: reference value → allowed values


def import_corim(raw: bytes, key: PublicKey, file_id: str, *, now: float) -> str:
    """Reference values (TOML) of a signed CoRIM. ``key``: the signer's, from the caller. ``now``: Unix seconds.

    Raises MalformedEvidence, VerificationFailed, Stale, or PolicyFormatError naming what cannot be expressed.
    """
    signed = verify_sign1(raw, key)
    kind = signed.header.get(3)
    if kind is not None and not (isinstance(kind, str) and kind.partition(";")[0] in _TYPES):
        raise MalformedEvidence(f"COSE: the content is {kind!r}, not a CoRIM")
    _signer(signed.header, now)
    corim = cbor_read(signed.payload)
    corim = corim.value if isinstance(corim, Tag) and corim.number == _UNSIGNED else corim
    fields = _members(corim, _CORIM, "corim", needed=(0, 1), ignored=(3, 5), taken=(4,))
    if 4 in fields:
        _validity(fields[4], now, "rim-validity")
    tables: dict[str, list[Fields]] = {}
    for tag in _list(fields[1], "tags"):
        for platform, values in _comid(tag):
            tables.setdefault(platform, []).append(values)
    if not tables or sum(map(len, tables.values())) > MAX_TRIPLES:
        raise PolicyFormatError(f"corim: no reference triples, or over {MAX_TRIPLES}")
    return toml_text({"id": file_id, **{name: _tables(name, _joined(name, found)) for name, found in tables.items()}})


def _signer(header: Mapping[Any, Any], now: float) -> None:
    """The signer's own limit of time (corim-meta, 8; CWT claims, 15)."""
    meta = cbor_read(header[8]) if isinstance(header.get(8), bytes) else header.get(8, {})
    claims = header.get(15, {})
    if not isinstance(meta, dict) or not isinstance(claims, dict):
        raise MalformedEvidence("COSE: corim-meta and CWT claims are maps")
    if 1 in meta:
        _validity(meta[1], now, "signature-validity")
    _validity({0: claims[5]} | ({1: claims[4]} if 4 in claims else {}) if 5 in claims else
              {1: claims[4]} if 4 in claims else {}, now, "CWT claims", may_be_open=True)  # fmt: skip


def _validity(value: Any, now: float, name: str, *, may_be_open: bool = False) -> None:
    if not isinstance(value, dict) or not set(value) <= {0, 1} or (1 not in value and not may_be_open):
        raise MalformedEvidence(f"corim: {name} is not a period of time")
    times = {key: _time(moment, name) for key, moment in value.items()}
    if not times.get(0, 0) <= now <= times.get(1, now):
        raise Stale(f"corim: {name} does not include this time", code="corim_validity")


def _time(value: Any, name: str) -> int:
    bare = value.value if isinstance(value, Tag) and value.number == _TIME else value
    if not isinstance(bare, int) or isinstance(bare, bool):
        raise MalformedEvidence(f"corim: {name}: not a time in whole seconds")
    return bare


def _members(
    value: Any,
    names: Mapping[int, str],
    where: str,
    *,
    needed: tuple[int, ...] = (),
    ignored: tuple[int, ...] = (),
    taken: tuple[int, ...] = (),
) -> dict[int, Any]:
    """A map's members. ``ignored`` say who wrote it and change no value; any other that is not taken is an error."""
    if not isinstance(value, dict) or not set(needed) <= set(value):
        raise MalformedEvidence(f"corim: {where} is not a map with {', '.join(names[key] for key in needed)}")
    for key in value:
        if key not in (*needed, *ignored, *taken):
            raise PolicyFormatError(f"corim: {where}: {names.get(key, key)} cannot be expressed")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise MalformedEvidence(f"corim: {name} is not a list with members")
    return value


def _comid(tag: Any) -> list[tuple[str, Fields]]:
    if not isinstance(tag, Tag) or tag.number != _COMID or not isinstance(tag.value, bytes):
        raise PolicyFormatError("corim: a tag other than a CoMID (506) cannot be expressed")
    comid = _members(cbor_read(tag.value), _COMID_KEYS, "comid", needed=(1, 4), ignored=(0, 2))
    triples = _members(comid[4], _TRIPLES, "triples", needed=(0,))
    return [_triple(triple) for triple in _list(triples[0], "reference-triples")]


def _triple(triple: Any) -> tuple[str, Fields]:
    if not isinstance(triple, list) or len(triple) != 2:
        raise MalformedEvidence("corim: a reference triple is an environment and its measurements")
    environment, measurements = triple
    env = _members(environment, {0: "class", 1: "instance", 2: "group"}, "environment", needed=(0,), taken=(1,))
    class_names = {0: "class-id", 1: "vendor", 2: "model", 3: "layer", 4: "index"}
    found = _members(env[0], class_names, "class", taken=(0, 1, 2))
    uuid = found.get(0)
    fields: Fields = {}
    if isinstance(uuid, Tag) and uuid.number == _UUID and uuid.value in map(bytes.fromhex, (_CHIP, _CSP)):
        if 1 in env:
            _add(fields, *_instance(env[1], uuid.value.hex()))
        for measurement in _list(measurements, "measurements"):
            _snp(measurement, fields)
        return "sev-snp", fields
    if str(found.get(1)).removesuffix(" Corporation") == "Intel" and found.get(2) == "TDX" and 1 not in env:
        for measurement in _list(measurements, "measurements"):
            _tdx(measurement, fields)
        return "tdx", fields
    raise PolicyFormatError("corim: class: neither SEV-SNP's UUIDs nor Intel TDX, which alone are understood")


def _instance(value: Any, uuid: str) -> tuple[str, str]:
    data = _raw(value, "instance")
    if uuid == _CSP:
        try:
            return "csp_ids", data.decode("ascii")
        except UnicodeDecodeError:
            raise MalformedEvidence("corim: instance: a CSP_ID is text") from None
    if len(data) not in (8, 64):
        raise MalformedEvidence("corim: instance: a CHIP_ID has 64 bytes, or 8")
    return "chip_ids", data.ljust(64, b"\x00").hex()


def _measurement(value: Any) -> tuple[Any, dict[int, Any]]:
    names = {0: "mkey", 1: "mval", 2: "authorized-by"}
    found = _members(value, names, "measurement", needed=(1,), taken=(0,))
    if not isinstance(found[1], dict) or not found[1]:
        raise MalformedEvidence("corim: mval is not a map with members")
    return found.get(0), found[1]


def _snp(measurement: Any, fields: Fields) -> None:
    key, values = _measurement(measurement)
    for member, value in values.items():
        if (key, member) == (0, 2) and isinstance(key, int):
            for digest in _digests(value):
                _add(fields, "measurements", digest)
        elif isinstance(key, int) and (key, member) in _SNP_RAW:
            name, size = _SNP_RAW[key, member]
            data = _raw(value, _MVAL[member])
            if len(data) != size:
                raise MalformedEvidence(f"corim: mkey {key}: {name} has {size} bytes, not {len(data)}")
            _add(fields, name, data.hex())
        elif (key, member) == (0, 0) and isinstance(value, dict) and set(value) == {0}:
            text = str(value[0]).lower()
            if len(text) != 32 or not set(text) <= set("0123456789abcdef"):
                raise MalformedEvidence("corim: mkey 0: version is not an IMAGE_ID in hex")
            _add(fields, "image_ids", text)
        else:
            shown = key.value.hex() if isinstance(key, Tag) and isinstance(key.value, bytes) else key
            raise PolicyFormatError(f"corim: mkey {shown!r}: {_MVAL.get(member, member)} cannot be expressed")


def _tdx(measurement: Any, fields: Fields) -> None:
    key, values = _measurement(measurement)
    if key is not None:
        raise PolicyFormatError(f"corim: mkey {key!r} cannot be expressed for TDX")
    for member, value in values.items():
        if member == -83:
            for digest in _digests(
                value if value and isinstance(value, list) and isinstance(value[0], list) else [value]
            ):
                _add(fields, "mr_td", digest)
        elif member == 14 and isinstance(value, dict) and value:
            for index, digests in value.items():
                name = str(index).lower().removeprefix("rtmr")
                if name not in ("0", "1", "2", "3"):
                    raise PolicyFormatError(f"corim: integrity-registers: {index!r} is no RTMR")
                for digest in _digests(digests):
                    _add(fields, f"rtmr{name}", digest)
        else:
            raise PolicyFormatError(f"corim: TDX: {_MVAL.get(member, member)} cannot be expressed")


def _digests(value: Any) -> list[str]:
    found = []
    for digest in _list(value, "digests"):
        if not isinstance(digest, list) or len(digest) != 2 or not isinstance(digest[1], bytes):
            raise MalformedEvidence("corim: a digest is an algorithm and bytes")
        if digest[0] not in _SHA384 or len(digest[1]) != 48:
            raise PolicyFormatError(
                f"corim: digests: algorithm {digest[0]!r} with {len(digest[1])} bytes is not SHA-384 (7)"
            )
        found.append(digest[1].hex())
    return found


def _raw(value: Any, name: str) -> bytes:
    if not isinstance(value, Tag) or value.number != _BYTES or not isinstance(value.value, bytes):
        raise PolicyFormatError(f"corim: {name}: anything but tagged bytes (560) cannot be expressed")
    return value.value


def _add(fields: Fields, name: str, value: str) -> None:
    if value not in fields.setdefault(name, []):
        fields[name].append(value)


def _joined(platform: str, triples: list[Fields]) -> Fields:
    """Triples are alternatives; lists are compared one by one. Both say the same only where one list differs."""
    joined = {name: list(values) for name, values in triples[0].items()}
    differing = {name for fields in triples for name, values in fields.items() if values != joined.get(name)}
    if len(differing) > 1 or any(set(fields) != set(joined) for fields in triples):
        raise PolicyFormatError(f"corim: the reference triples of {platform} belong together in ways lists cannot say")
    for fields in triples[1:]:
        for name in differing:
            joined[name] += [value for value in fields[name] if value not in joined[name]]
    return joined


def _tables(platform: str, fields: Fields) -> dict[str, Any]:
    if platform != "tdx":
        return dict(fields)
    rtmrs = {name.removeprefix("rtmr"): values for name, values in fields.items() if name.startswith("rtmr")}
    return {"mr_td": fields.get("mr_td"), "rtmr_values": rtmrs}
