"""A simulated TDX machine: spec-true quotes, versions 4 and 5, by a platform that its seed decides.

Any field of header, TD report, or quoting enclave can be changed before it is signed, and each signer and certificate
replaced, so that one thing alone is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from attest.binding import snp_report_data
from attest.eventlog import SHA384, parse_event_log, replay
from attest.evidence import HARDWARE, TDX_QUOTE_TYPE, Part
from attest.schemes.tdx.abi import FIELDS, FIELDS_15, INTEL_QE_VENDOR, QE_FIELDS, TD_REPORT_BYTES
from attest.testkit.intel import (
    PLATFORM,
    QE_SIGNER,
    certificate,
    key,
    pck_extension,
    pem,
    raw_signature,
    root_certificate,
    standing_certificate,
)

__all__ = ["SimulatedTdxCollector", "TdxPlatform"]

# Header fields: (offset, length).
HEADER = {"version": (0, 2), "key_type": (2, 2), "tee_type": (4, 4), "qe_vendor_id": (12, 16), "user_data": (28, 20)}
TEE_TCB_SVN = bytes((6, 1, 8)) + bytes(13)
SEPT_VE_DISABLE = 1 << 28


class TdxPlatform:
    """One platform with a trust domain on it. ``version`` is the quote's, ``body`` "1.0" or "1.5" (version 5 only).
    ``event_log``: a CCEL that the domain booted by, whose RTMRs then are what it gives.
    """

    def __init__(
        self, seed: bytes, *, version: int = 4, body: str = "", ca: str = "platform", event_log: bytes = b""
    ) -> None:
        if not seed:
            raise ValueError("a simulated platform needs a seed")
        self._seed, self.version, self.ca = seed, version, ca
        self.body = body or ("1.0" if version == 4 else "1.5")
        self.info = replace(PLATFORM, ppid=self._derive("ppid")[:16])
        self.rtmrs = {f"rtmr{n}": self._derive(f"rtmr{n}")[:48] for n in range(4)}
        if event_log:
            values = replay(parse_event_log(event_log), SHA384)
            self.rtmrs = {f"rtmr{n}": values.get(n + 1, bytes(48)) for n in range(4)}
        self.key, self.attestation_key = key(f"pck {seed.hex()}"), key(f"ak {seed.hex()}")

    def _derive(self, label: str) -> bytes:
        return hashlib.sha512(b"cube-mesh/1 simulated tdx " + label.encode() + b"\x00" + self._seed).digest()

    @cached_property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """PCK certificate, its CA, root."""
        return self.pck(), standing_certificate(self.ca), root_certificate()

    def pck(self, **changes: object) -> x509.Certificate:
        """The PCK certificate with arguments of :func:`attest.testkit.intel.certificate` changed."""
        arguments = {"issuer": self.ca, "public_key": self.key.public_key(), "extension": pck_extension(self.info)}
        return certificate("pck", **{**arguments, **changes})  # type: ignore[arg-type]

    def quote(
        self,
        report_data: bytes,
        *,
        header: Mapping[str, int | bytes] | None = None,
        qe: Mapping[str, int | bytes] | None = None,
        auth_data: bytes = bytes(range(32)),
        attestation_key: ec.EllipticCurvePrivateKey | None = None,
        quote_signer: ec.EllipticCurvePrivateKey | None = None,
        qe_signer: ec.EllipticCurvePrivateKey | None = None,
        chain: Sequence[x509.Certificate] | bytes | None = None,
        outer_type: int = 6,
        inner_type: int = 5,
        trailing: bytes = b"",
        **fields: int | bytes,
    ) -> bytes:
        """A quote whose signatures hold. ``fields``: of the TD report; ``header``, ``qe``: of those, by name."""
        signed = self._header(header or {}) + self._report(report_data, fields)
        ak = attestation_key or self.attestation_key
        public = ak.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        qe_report = _qe_report(public, auth_data, qe or {})
        certificates = self.chain if chain is None else chain
        pck_chain = certificates if isinstance(certificates, bytes) else pem(*certificates).encode() + b"\x00"
        certification = (
            qe_report
            + raw_signature(qe_signer or self.key, qe_report)
            + _number(len(auth_data), 2)
            + auth_data
            + _block(inner_type, pck_chain)
        )
        signature = raw_signature(quote_signer or ak, signed)
        data = signature + public + _block(outer_type, certification)
        return signed + _number(len(data), 4) + data + trailing

    def _header(self, changes: Mapping[str, int | bytes]) -> bytes:
        defaults: dict[str, int | bytes] = {
            "version": self.version, "key_type": 2, "tee_type": 0x81, "qe_vendor_id": INTEL_QE_VENDOR,
        }  # fmt: skip
        return _filled(48, HEADER, defaults | dict(changes))

    def _report(self, report_data: bytes, changes: Mapping[str, int | bytes]) -> bytes:
        defaults: dict[str, int | bytes] = {
            "tee_tcb_svn": TEE_TCB_SVN, "mr_seam": self._derive("module")[:48], "mr_td": self._derive("mrtd")[:48],
            "td_attributes": SEPT_VE_DISABLE, "xfam": 0x0602E7, "report_data": report_data,
            **self.rtmrs,
        }  # fmt: skip
        layout = FIELDS
        if self.body == "1.5":
            layout = FIELDS | FIELDS_15
            defaults["tee_tcb_svn2"] = TEE_TCB_SVN
        body = _filled(TD_REPORT_BYTES[self.body], layout, defaults | dict(changes))
        if self.version == 4:
            return body
        return _number({"1.0": 2, "1.5": 3}[self.body], 2) + _number(len(body), 4) + body


def _qe_report(public: bytes, auth_data: bytes, changes: Mapping[str, int | bytes]) -> bytes:
    defaults: dict[str, int | bytes] = {
        "attributes": b"\x15" + bytes(7) + b"\xe7" + bytes(7), "mr_signer": QE_SIGNER, "isv_prod_id": 2, "isv_svn": 4,
        "report_data": hashlib.sha256(public + auth_data).digest() + bytes(32),
    }  # fmt: skip
    return _filled(384, QE_FIELDS, defaults | dict(changes))


def _filled(size: int, layout: Mapping[str, tuple[int, int]], values: Mapping[str, int | bytes]) -> bytes:
    raw = bytearray(size)
    for name, value in values.items():
        offset, length = layout[name]
        field = value.to_bytes(length, "little") if isinstance(value, int) else value
        assert len(field) == length, name
        raw[offset : offset + length] = field
    return bytes(raw)


def _block(kind: int, data: bytes) -> bytes:
    return _number(kind, 2) + _number(len(data), 4) + data


def _number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


class SimulatedTdxCollector:
    """Collector of scheme "simulated-tdx": what a real trust domain would send, from a machine that a seed makes.

    A relying party also needs collateral: :func:`attest.testkit.intel.collateral` makes it.
    """

    scheme = "simulated-tdx"

    def __init__(self, seed: bytes, *, version: int = 4, event_log: bytes = b"") -> None:
        self.platform = TdxPlatform(seed, version=version, event_log=event_log)

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        return self.parts_over(snp_report_data(data_hash))

    def parts_over(self, report_data: bytes) -> dict[int, Part]:
        return {HARDWARE: Part(TDX_QUOTE_TYPE, self.platform.quote(report_data))}
