"""Intel TDX quotes, versions 4 and 5, as fields. Intel "TDX DCAP Quoting Library API", appendix A; SGX reports inside.

Little endian and strict: one attestation key type, one form of certification data, zeros alone after the quote (quote
services hand out padded buffers). Nothing is verified here.
"""

from __future__ import annotations

import msgspec

from attest.errors import MalformedEvidence

__all__ = [
    "INTEL_QE_VENDOR",
    "MAX_QUOTE_BYTES",
    "TD_REPORT_BYTES",
    "TDREPORT_BYTES",
    "TDREPORT_TYPE",
    "QeReport",
    "Quote",
    "TdReport",
    "parse_qe_report",
    "parse_quote",
    "parse_tdreport",
]

MAX_QUOTE_BYTES = 32_768  # real ones have about 5,000 bytes and come in buffers of up to 8,000
MAX_AUTH_BYTES = 1_024
MAX_CHAIN_BYTES = 16_384
TDREPORT_BYTES = 1_024

INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_HEADER_BYTES = 48
_TEE_TDX = 0x81
_ECDSA_P256 = 2
_QE_REPORT_DATA, _PCK_CHAIN = 6, 5  # types of certification data, outer and inner
_BODY_TYPES = {2: "1.0", 3: "1.5"}  # of a version 5 quote
TD_REPORT_BYTES = {"1.0": 584, "1.5": 648}
_QE_REPORT_BYTES = 384

# Name: (offset, length) in a TD report (the body of a quote).
FIELDS: dict[str, tuple[int, int]] = {
    "tee_tcb_svn": (0, 16), "mr_seam": (16, 48), "mr_signer_seam": (64, 48), "seam_attributes": (112, 8),
    "td_attributes": (120, 8), "xfam": (128, 8), "mr_td": (136, 48), "mr_config_id": (184, 48), "mr_owner": (232, 48),
    "mr_owner_config": (280, 48), "rtmr0": (328, 48), "rtmr1": (376, 48), "rtmr2": (424, 48), "rtmr3": (472, 48),
    "report_data": (520, 64),
}  # fmt: skip
FIELDS_15: dict[str, tuple[int, int]] = {"tee_tcb_svn2": (584, 16), "mr_service_td": (600, 48)}
# The same in the SGX report of the quoting enclave.
QE_FIELDS: dict[str, tuple[int, int]] = {
    "cpu_svn": (0, 16), "misc_select": (16, 4), "attributes": (48, 16), "mr_enclave": (64, 32), "mr_signer": (128, 32),
    "isv_prod_id": (256, 2), "isv_svn": (258, 2), "report_data": (320, 64),
}  # fmt: skip
# And in the TDREPORT that the TDX module makes: TEE_TCB_INFO at 256, TDINFO at 512, report data in the MAC structure.
_TDREPORT_FIELDS: dict[str, tuple[int, int]] = {
    "report_data": (128, 64), "tee_tcb_svn": (264, 16), "mr_seam": (280, 48), "mr_signer_seam": (328, 48),
    "seam_attributes": (376, 8), "td_attributes": (512, 8), "xfam": (520, 8), "mr_td": (528, 48),
    "mr_config_id": (576, 48), "mr_owner": (624, 48), "mr_owner_config": (672, 48), "rtmr0": (720, 48),
    "rtmr1": (768, 48), "rtmr2": (816, 48), "rtmr3": (864, 48),
}  # fmt: skip
TDREPORT_TYPE = 0x81


class TdReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the TDX module says about a trust domain. The last two exist in TD 1.5 reports; None in TD 1.0."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mr_service_td: bytes | None = None


class QeReport(msgspec.Struct, frozen=True, kw_only=True):
    """The SGX report of the quoting enclave, as far as its identity goes."""

    cpu_svn: bytes
    misc_select: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """A quote as fields. ``signed`` is what the attestation key signs; signatures are r and s, 32 bytes each, big
    endian; ``attestation_key`` is x and y. ``certificates`` is the PCK chain as it came, PEM or DER.
    """

    version: int
    qe_vendor_id: bytes
    report: TdReport
    size: int  # in bytes, without padding
    signed: bytes
    signature: bytes
    attestation_key: bytes
    raw_qe_report: bytes
    qe_report: QeReport
    qe_report_signature: bytes
    qe_auth_data: bytes
    certificates: bytes


class _Reader:
    """Cuts fields off the front of a buffer; MalformedEvidence when it ends too early."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self.at = raw, 0

    def take(self, size: int, maximum: int | None = None) -> bytes:
        end = self.at + size
        if maximum is not None and size > maximum:
            raise MalformedEvidence(f"TDX quote: {size} bytes at {self.at} are above {maximum}", code="oversize")
        if end > len(self._raw):
            raise MalformedEvidence(f"TDX quote: {size} bytes wanted at {self.at} of {len(self._raw)}")
        self.at, start = end, self.at
        return self._raw[start:end]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def rest(self) -> bytes:
        return self._raw[self.at :]


def parse_quote(raw: bytes) -> Quote:
    """A quote's fields, unverified. Raises MalformedEvidence, for SGX and other key types by codes of their own."""
    if len(raw) > MAX_QUOTE_BYTES:
        raise MalformedEvidence(f"TDX quote of {len(raw)} bytes is above {MAX_QUOTE_BYTES}", code="oversize")
    reader = _Reader(raw)
    header = reader.take(_HEADER_BYTES)
    version = _check_header(header)
    report = _td_report(reader, version)
    signed = raw[: reader.at]
    signature_data = _Reader(reader.take(reader.number(4)))
    if any(reader.rest()):
        raise MalformedEvidence("TDX quote: bytes other than zero after its end", code="tdx_trailing")
    signature, attestation_key = signature_data.take(64), signature_data.take(64)
    certification = _Reader(_certification_data(signature_data, _QE_REPORT_DATA))
    raw_qe_report = certification.take(_QE_REPORT_BYTES)
    qe_report_signature = certification.take(64)
    auth = certification.take(certification.number(2), MAX_AUTH_BYTES)
    return Quote(
        version=version,
        qe_vendor_id=header[12:28],
        report=report,
        size=reader.at,
        signed=signed,
        signature=signature,
        attestation_key=attestation_key,
        raw_qe_report=raw_qe_report,
        qe_report=parse_qe_report(raw_qe_report),
        qe_report_signature=qe_report_signature,
        qe_auth_data=auth,
        certificates=_certification_data(certification, _PCK_CHAIN),
    )


def _check_header(header: bytes) -> int:
    version, key_type = (int.from_bytes(header[at : at + 2], "little") for at in (0, 2))
    if version not in (4, 5):
        raise MalformedEvidence(f"TDX quote version {version}", code="tdx_version")
    if key_type != _ECDSA_P256:
        raise MalformedEvidence(f"TDX quote: attestation key type {key_type} is not ECDSA P-256", code="tdx_key_type")
    tee = int.from_bytes(header[4:8], "little")
    if tee != _TEE_TDX:
        raise MalformedEvidence(f"quote of TEE type {tee:#x}, not TDX", code="tdx_tee_type")
    return version


def _td_report(reader: _Reader, version: int) -> TdReport:
    kind = "1.0"
    if version == 5:
        body_type, size = reader.number(2), reader.number(4)
        if body_type not in _BODY_TYPES:
            raise MalformedEvidence(f"TDX quote: body type {body_type}", code="tdx_body_type")
        kind = _BODY_TYPES[body_type]
        if size != TD_REPORT_BYTES[kind]:
            raise MalformedEvidence(f"TDX quote: body of {size} bytes, not {TD_REPORT_BYTES[kind]}")
    body = reader.take(TD_REPORT_BYTES[kind])
    fields = FIELDS if kind == "1.0" else FIELDS | FIELDS_15
    return TdReport(**{name: body[at : at + size] for name, (at, size) in fields.items()})


def _certification_data(reader: _Reader, wanted: int) -> bytes:
    """One block of certification data; it must be the last thing in its surroundings."""
    kind, size = reader.number(2), reader.number(4)
    if kind != wanted:
        raise MalformedEvidence(f"TDX quote: certification data of type {kind}", code="tdx_certification_type")
    data = reader.take(size, MAX_CHAIN_BYTES)
    if reader.rest():
        raise MalformedEvidence("TDX quote: bytes after the certification data")
    return data


def parse_qe_report(raw: bytes) -> QeReport:
    """The quoting enclave's SGX report (384 bytes) as fields, unverified."""
    if len(raw) != _QE_REPORT_BYTES:
        raise MalformedEvidence(f"SGX report of {len(raw)} bytes, not {_QE_REPORT_BYTES}")
    values: dict[str, bytes | int] = {}
    for name, (at, size) in QE_FIELDS.items():
        values[name] = int.from_bytes(raw[at : at + size], "little") if size == 2 else raw[at : at + size]
    return QeReport(**values)  # type: ignore[arg-type]


def parse_tdreport(raw: bytes) -> TdReport:
    """A TDREPORT (1024 bytes, as ``/dev/tdx_guest`` and Azure's HCL hold it) as fields.

    It is authenticated by a MAC that only its own machine can check: evidence for nobody else, and its type byte
    (``TDREPORT_TYPE`` at 0) is for the caller to look at. Raises MalformedEvidence for another length.
    """
    if len(raw) != TDREPORT_BYTES:
        raise MalformedEvidence(f"TDREPORT of {len(raw)} bytes, not {TDREPORT_BYTES}")
    return TdReport(**{name: raw[at : at + size] for name, (at, size) in _TDREPORT_FIELDS.items()})
