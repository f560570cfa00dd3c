"""Evidence of an Azure confidential VM: the paravisor's HCL report out of NV, a quote by the key that it names, and
what stands behind the report (the chip's certificates, or the trust domain's quote). Or a token of MAA about the same.

The report speaks for the claims of a channel through the quote's extraData. A token has no quote: there the claims'
hash is written as user data first, and the paravisor's new report covers it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from attest.chain import common_name, load_certificates
from attest.errors import AttestError, CollectionFailed
from attest.evidence import (
    AZURE_HCL_TYPE,
    ENDORSEMENTS,
    HARDWARE,
    TOKEN,
    TPM_QUOTE,
    Part,
    encode_certificates,
)
from attest.schemes.azure.abi import CLAIMS_OFFSET, TD_REPORT_BYTES, HclReport, RuntimeClaims, parse_claims, parse_hcl
from attest.schemes.azure.client import METADATA_URL, attest_snp, attest_tdx, chip_certificates, td_quote
from attest.schemes.azure.verify import tdx_part
from attest.schemes.sev_snp.abi import REPORT_BYTES
from attest.schemes.vtpm.abi import decode_quote_part
from attest.schemes.vtpm.collect import TpmCollector
from attest.schemes.vtpm.tools import TpmTools
from attest.schemes.vtpm.verify import load_ak
from attest.transport import Transport, token_part

__all__ = ["AK_HANDLE", "AzureCollector", "MaaCollector", "Paravisor", "user_data"]

AK_HANDLE = "0x81000003"
AK_CERTIFICATE = 0x01C101D0
HCL_REPORT, USER_DATA = 0x01400001, 0x01400002
_LOOKS = 16


class HclFile(msgspec.Struct, frozen=True):
    """An HCL report without the padding, and its fields."""

    raw: bytes
    hcl: HclReport


class Paravisor:
    """What the paravisor and the host offer a guest, through its vTPM (``tools``) and the metadata service.

    ``pause_s``: between two looks for a new report, which the paravisor makes some seconds after user data was written.
    """

    def __init__(
        self, tools: TpmTools, transport: Transport, metadata_url: str = METADATA_URL, pause_s: float = 0.5
    ) -> None:
        self._tools, self._transport, self._url, self._pause_s = tools, transport, metadata_url, pause_s
        self._lock = threading.Lock()
        self._chain: tuple[bytes, bytes] | None = None  # of which hardware report, PEM

    def report(self) -> HclFile:
        """The HCL report as it is. Raises CollectionFailed."""
        return self._read()[0]

    def report_over(self, user_data: bytes) -> HclFile:
        """A new HCL report over ``user_data`` (64 bytes). Raises CollectionFailed, also when none comes in time."""
        with self._lock:
            self._tools.write_nv(USER_DATA, user_data)
            for _ in range(_LOOKS):
                found, claims = self._read()
                if claims.user_data == user_data:
                    return found
                threading.Event().wait(self._pause_s)
        raise CollectionFailed(f"no HCL report over the new user data after {_LOOKS} looks", code="azure_failed")

    def _read(self) -> tuple[HclFile, RuntimeClaims]:
        raw = self._tools.read_nv(HCL_REPORT)
        try:
            hcl = parse_hcl(raw)
            claims = parse_claims(hcl.raw_claims)
        except AttestError as error:
            raise CollectionFailed(
                f"the machine's own HCL report is malformed: {error}", code="azure_failed"
            ) from error
        return HclFile(raw[: CLAIMS_OFFSET + len(hcl.raw_claims)], hcl), claims

    def chain(self, hardware: bytes) -> bytes:
        """VCEK and chain, PEM, for an SNP report: asked for once, because one report's VCEK stays the same."""
        if self._chain is None or self._chain[0] != hardware:
            self._chain = hardware, chip_certificates(self._transport, self._url)
        return self._chain[1]

    def quote(self, hardware: bytes) -> bytes:
        """A quote of the TDREPORT in an HCL report."""
        return td_quote(self._transport, hardware[:TD_REPORT_BYTES], self._url)


class AzureCollector:
    """Collector of scheme "azure". Nothing is touched before the first use. Raises CollectionFailed.

    ``tcti``, ``pcrs``, ``timeout_s``: as of ``TpmCollector``. ``ak_certificates``: DER, sent behind the AK's own
    certificate, which NV has: the intermediates that Azure keeps elsewhere.
    """

    scheme = "azure"

    def __init__(
        self,
        tcti: str,
        pcrs: Sequence[int],
        transport: Transport,
        *,
        ak_certificates: Sequence[bytes] = (),
        metadata_url: str = METADATA_URL,
        timeout_s: float = 10.0,
    ) -> None:
        self._tpm = TpmCollector(
            tcti,
            pcrs,
            ak_handle=AK_HANDLE,
            ak_certificate=AK_CERTIFICATE,
            ak_certificates=ak_certificates,
            timeout_s=timeout_s,
        )
        self._paravisor = Paravisor(self._tpm.tools, transport, metadata_url)

    def close(self) -> None:
        self._tpm.close()

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        """HCL report, quote over ``data_hash`` (32 bytes), certificates; looked at before they are handed out."""
        found = self._paravisor.report()
        parts = self._tpm.parts(data_hash)
        ak_public = decode_quote_part(parts[TPM_QUOTE].body).ak_public
        if load_ak(ak_public)[1] != parse_claims(found.hcl.raw_claims).ak:
            raise CollectionFailed(f"{AK_HANDLE} is not the key that the HCL report names", code="azure_failed")
        certified = self._tpm.certificates
        if found.hcl.kind == "tdx":
            body = tdx_part(found.raw, self._paravisor.quote(found.hcl.hardware))
        else:
            body = found.raw
            chain = load_certificates(self._paravisor.chain(found.hcl.hardware))
            # The relying party has its own root.
            kept = (c.public_bytes(Encoding.DER) for c in chain if not common_name(c).startswith("ARK-"))
            certified = (*kept, *certified)
        return {**parts, HARDWARE: Part(AZURE_HCL_TYPE, body), ENDORSEMENTS: encode_certificates(certified)}


class MaaCollector:
    """Collector of scheme "maa": what Microsoft Azure Attestation at ``maa_url`` says of this VM's report.

    Raises CollectionFailed.
    """

    scheme = "maa"

    def __init__(
        self,
        tcti: str,
        maa_url: str,
        transport: Transport,
        *,
        metadata_url: str = METADATA_URL,
        timeout_s: float = 10.0,
        pause_s: float = 0.5,
    ) -> None:
        self._maa_url, self._transport = maa_url.rstrip("/"), transport
        self._paravisor = Paravisor(TpmTools(tcti, timeout_s), transport, metadata_url, pause_s)

    def parts(self, data_hash: bytes) -> dict[int, Part]:
        """A token over ``data_hash`` (32 bytes), which the hardware's report covers as user data."""
        found = self._paravisor.report_over(user_data(data_hash))
        hcl = found.hcl
        if hcl.kind == "tdx":
            quote = self._paravisor.quote(hcl.hardware)
            token = attest_tdx(self._transport, self._maa_url, quote, hcl.raw_claims)
        else:
            report, chain = hcl.hardware[:REPORT_BYTES], self._paravisor.chain(hcl.hardware)
            token = attest_snp(self._transport, self._maa_url, report, chain, hcl.raw_claims)
        return {TOKEN: token_part(token, "Azure Attestation")}


def user_data(data_hash: bytes) -> bytes:
    """The 64 bytes of user data that speak for a data hash (32 bytes)."""
    return data_hash + bytes(32)
