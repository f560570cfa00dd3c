"""A simulated SEV-SNP machine: spec-true reports, signed by a chip key that its seed decides.

The same seed gives the same chip, measurement and key in every process, so that a policy made from a first report fits
the next one. Any field of the report can be changed before it is signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from attest.binding import snp_report_data
from attest.evidence import ENDORSEMENTS, HARDWARE, SNP_REPORT_TYPE, Part, encode_certificates
from attest.schemes.sev_snp.abi import FIELDS, REPORT_BYTES, SIGNED_BYTES, SIGNING_KEYS, Tcb
from attest.testkit.pki import ca_certificate, chip_certificate

__all__ = ["SimulatedSnpCollector", "SnpPlatform"]

_CPUID = {"Milan": (0x19, 0x01, 0x01), "Genoa": (0x19, 0x11, 0x01), "Turin": (0x1A, 0x02, 0x01)}
_GUEST_POLICY = 0x30000  # SMT allowed, and the bit that must be one
_P384_ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)


class SnpPlatform:
    """One chip of ``product`` with a guest on it. ``version`` is the report's; ``signing_key`` "vcek" or "vlek"."""

    def __init__(self, seed: bytes, *, product: str = "Milan", version: int = 3, signing_key: str = "vcek") -> None:
        if not seed:
            raise ValueError("a simulated platform needs a seed")
        self._seed = seed
        self.product, self.version, self.signing_key = product, version, signing_key
        self.tcb = Tcb(7, 0, 14, 72, fmc=1) if product == "Turin" else Tcb(4, 0, 24, 219)
        self.hwid = self._derive("chip")[: 8 if product == "Turin" else 64]
        self.measurement = self._derive("measurement")[:48]

    def _derive(self, label: str) -> bytes:
        return hashlib.sha512(b"cube-mesh/1 simulated " + label.encode() + b"\x00" + self._seed).digest()

    @cached_property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The chip's endorsement key (P-384)."""
        secret = int.from_bytes(self._derive("endorsement key"), "big")
        return ec.derive_private_key(secret % (_P384_ORDER - 1) + 1, ec.SECP384R1())

    @cached_property
    def leaf(self) -> x509.Certificate:
        """The VCEK or VLEK that AMD's simulation issues for this chip and TCB."""
        return self.certificate()

    def certificate(self, **changes: object) -> x509.Certificate:
        """The leaf with the given arguments of :func:`attest.testkit.pki.chip_certificate` changed."""
        arguments: dict[str, object] = {"kind": self.signing_key, "tcb": self.tcb, "product": self.product}
        arguments |= {"csp_id": "CN=cc-simulated"} if self.signing_key == "vlek" else {"hwid": self.hwid}
        return chip_certificate(**{"public_key": self.key.public_key(), **arguments, **changes})  # type: ignore[arg-type]

    @property
    def endorsements(self) -> tuple[bytes, ...]:
        """Leaf and intermediate, DER."""
        intermediate = ca_certificate("ask" if self.signing_key == "vcek" else "asvk", self.product)
        return self.leaf.public_bytes(Encoding.DER), intermediate.public_bytes(Encoding.DER)

    def report(self, report_data: bytes, patch: Mapping[int, bytes] | None = None, **fields: int | bytes) -> bytes:
        """A signed report. ``fields`` replace values by their name in ``abi.FIELDS``; ``patch`` writes bytes by offset.

        Both are applied before signing, so that the signature always holds and one thing alone is wrong.
        """
        raw = bytearray(REPORT_BYTES)
        for name, value in {**self._defaults(), "report_data": report_data, **fields}.items():
            offset, length = FIELDS[name]
            raw[offset : offset + length] = value.to_bytes(length, "little") if isinstance(value, int) else value
        for offset, data in (patch or {}).items():
            raw[offset : offset + len(data)] = data
        r, s = decode_dss_signature(self.key.sign(bytes(raw[:SIGNED_BYTES]), ec.ECDSA(hashes.SHA384())))
        for name, number in (("signature_r", r), ("signature_s", s)):
            if name not in fields:
                offset, length = FIELDS[name]
                raw[offset : offset + length] = number.to_bytes(length, "little")
        assert len(raw) == REPORT_BYTES
        return bytes(raw)

    def _defaults(self) -> dict[str, int | bytes]:
        vlek = self.signing_key == "vlek"
        family, model, stepping = _CPUID[self.product] if self.version >= 3 else (0, 0, 0)
        tcb = tcb_bytes(self.tcb)
        return {
            "version": self.version, "guest_svn": 1, "policy": _GUEST_POLICY, "signature_algo": 1,
            "current_tcb": tcb, "reported_tcb": tcb, "committed_tcb": tcb, "launch_tcb": tcb, "platform_info": 0x25,
            "flags": {name: number for number, name in SIGNING_KEYS.items()}[self.signing_key] << 2,
            "measurement": self.measurement, "report_id": self._derive("report id")[:32],
            "report_id_ma": b"\xff" * 32, "cpuid_family": family, "cpuid_model": model, "cpuid_stepping": stepping,
            "chip_id": bytes(64) if vlek else self.hwid.ljust(64, b"\x00"),
            "current_build": 21, "current_minor": 55, "current_major": 1,
            "committed_build": 21, "committed_minor": 55, "committed_major": 1,
        }  # fmt: skip


def tcb_bytes(tcb: Tcb) -> bytes:
    """The eight bytes of a TCB version, in the order of the product that has (or lacks) an FMC."""
    if tcb.fmc is None:
        return bytes((tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode))
    return bytes((tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode))


class SimulatedSnpCollector:
    """Collector of scheme "simulated-sev-snp": what a real guest would send, from a machine that a seed makes."""

    scheme = "simulated-sev-snp"

    def __init__(self, seed: bytes, *, product: str = "Milan") -> None:
        self.platform = SnpPlatform(seed, product=product)

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        report = self.platform.report(snp_report_data(data_hash))
        return {
            HARDWARE: Part(SNP_REPORT_TYPE, report),
            ENDORSEMENTS: encode_certificates(self.platform.endorsements),
        }
