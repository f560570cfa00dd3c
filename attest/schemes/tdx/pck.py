"""The platform's certificate: what Intel's SGX extension in a PCK certificate says (1.2.840.113741.1.13.1).

Intel "SGX PCK Certificate and Certificate Revocation List Profile Specification" §1.3. Unverified: the chain is
``verify``'s matter.
"""

from __future__ import annotations

import msgspec
from cryptography import x509

from attest.chain import remembered
from attest.der import INTEGER, OCTET_STRING, OID, SEQUENCE, Tlv, der_items, der_unsigned
from attest.errors import MalformedEvidence

__all__ = ["SGX_EXTENSION", "PckInfo", "pck_info"]

SGX_EXTENSION = "1.2.840.113741.1.13.1"
# The extension's own OID, encoded, begins every OID within it; what follows, one byte an arc, is the field's name here.
_PREFIX = bytes.fromhex("2a864886f84d010d01")
_PPID, _TCB, _PCE_ID, _FMSPC, _SGX_TYPE, _INSTANCE, _CONFIGURATION = (bytes((n,)) for n in range(1, 8))
_PCE_SVN = _TCB + b"\x11"
_ENUMERATED, _BOOLEAN = 0x0A, 0x01
_SGX_TYPES = ("standard", "scalable", "scalable-with-integrity")
COMPONENTS = 16
MAX_SVN = 65_535


class PckInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Whose platform this is and at which level. ``platform_instance_id``, ``dynamic_platform``, ``cached_keys`` and
    ``smt`` are in certificates of the platform CA only: None where the certificate does not say.
    """

    ppid: bytes
    component_svns: tuple[int, ...]
    pce_svn: int
    pce_id: bytes
    fmspc: bytes
    sgx_type: str
    platform_instance_id: bytes | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt: bool | None


@remembered
def pck_info(certificate: x509.Certificate) -> PckInfo:
    """The extension's fields; MalformedEvidence (``pck_extension``) when it is absent or not as Intel writes it."""
    try:
        extension = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(SGX_EXTENSION)).value
        assert isinstance(extension, x509.UnrecognizedExtension)  # cryptography has no type for this extension
        return _info(_table(_only(der_items(extension.value), SEQUENCE)))
    except (x509.ExtensionNotFound, KeyError, MalformedEvidence) as error:
        raise MalformedEvidence(f"PCK certificate: SGX extension: {error}", code="pck_extension") from None


def _info(fields: dict[bytes, Tlv]) -> PckInfo:
    levels = _table(_content(fields[_TCB], SEQUENCE))
    configuration = _table(_content(fields[_CONFIGURATION], SEQUENCE)) if _CONFIGURATION in fields else {}
    sgx_type = der_unsigned(_content(fields[_SGX_TYPE], _ENUMERATED), len(_SGX_TYPES) - 1)
    return PckInfo(
        ppid=_octets(fields[_PPID], 16),
        component_svns=tuple(_svn(levels[_TCB + bytes((n,))]) for n in range(1, COMPONENTS + 1)),
        pce_svn=_svn(levels[_PCE_SVN]),
        pce_id=_octets(fields[_PCE_ID], 2),
        fmspc=_octets(fields[_FMSPC], 6),
        sgx_type=_SGX_TYPES[sgx_type],
        platform_instance_id=_octets(fields[_INSTANCE], 16) if _INSTANCE in fields else None,
        dynamic_platform=_flag(configuration, 1),
        cached_keys=_flag(configuration, 2),
        smt=_flag(configuration, 3),
    )


def _table(raw: bytes) -> dict[bytes, Tlv]:
    """SEQUENCE OF SEQUENCE {OID, value}, each OID once and under the extension's own; by what follows that."""
    table: dict[bytes, Tlv] = {}
    for tag, content in der_items(raw):
        (name_tag, oid), value = _pair(der_items(content) if tag == SEQUENCE else [])
        name = oid[len(_PREFIX) :]
        if name_tag != OID or not oid.startswith(_PREFIX) or not name or name in table:
            raise MalformedEvidence(f"OID {oid.hex()} is not expected, or there twice")
        table[name] = value
    return table


def _pair(items: list[Tlv]) -> tuple[Tlv, Tlv]:
    if len(items) != 2:
        raise MalformedEvidence("not a pair of OID and value")
    return items[0], items[1]


def _only(items: list[Tlv], tag: int) -> bytes:
    if len(items) != 1:
        raise MalformedEvidence(f"{len(items)} elements, not one")
    return _content(items[0], tag)


def _content(item: Tlv, tag: int) -> bytes:
    if item[0] != tag:
        raise MalformedEvidence(f"tag {item[0]:#x}, not {tag:#x}")
    return item[1]


def _octets(item: Tlv, size: int) -> bytes:
    content = _content(item, OCTET_STRING)
    if len(content) != size:
        raise MalformedEvidence(f"{len(content)} bytes, not {size}")
    return content


def _svn(item: Tlv) -> int:
    return der_unsigned(_content(item, INTEGER), MAX_SVN)


def _flag(configuration: dict[bytes, Tlv], arc: int) -> bool | None:
    item = configuration.get(_CONFIGURATION + bytes((arc,)))
    if item is None:
        return None
    if item not in ((_BOOLEAN, b"\x00"), (_BOOLEAN, b"\xff")):
        raise MalformedEvidence("not a BOOLEAN")
    return item[1] == b"\xff"
