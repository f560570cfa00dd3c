"""What an Azure VM asks for its evidence: certificates of its chip and a quote (metadata service), a token (MAA).

Requests and answers as Microsoft documents them ("Trusted Hardware Identity Management", "IMDS", "Azure Attestation
REST API"); a transport carries them. Answers are read, not verified.
"""

from __future__ import annotations

import base64

import msgspec

from attest.chain import load_certificates
from attest.collateral import thim_chain
from attest.errors import AttestError, CollectionFailed
from attest.jws import decode_base64url
from attest.transport import Ask, Transport, answered, json_member

__all__ = ["METADATA_URL", "attest_snp", "attest_tdx", "chip_certificates", "td_quote"]

METADATA_URL = "http://169.254.169.254"
MAX_QUOTE_BYTES = 65_536
_METADATA = {"metadata": "true"}  # without it the service refuses: no forwarded request has it
_JSON = {"content-type": "application/json"}


def chip_certificates(transport: Transport, metadata_url: str = METADATA_URL) -> bytes:
    """The VCEK of this VM's chip and its chain, PEM, VCEK first (THIM). Raises CollectionFailed."""
    what = "Azure's THIM"
    body = answered(transport, Ask(url=f"{metadata_url}/metadata/THIM/amd/certification", fields=_METADATA), what)
    try:
        chain = thim_chain(body)
        load_certificates(chain)
    except AttestError as error:
        raise CollectionFailed(f"{what}: {error}", code="endpoint_answer") from None
    return chain


def td_quote(transport: Transport, td_report: bytes, metadata_url: str = METADATA_URL) -> bytes:
    """A quote of ``td_report`` (1024 bytes), which the metadata service has the host's quoting enclave make."""
    what = "Azure's quote service"
    body = msgspec.json.encode({"report": _text(td_report)})
    url, fields = f"{metadata_url}/acc/tdquote", _METADATA | _JSON
    ask = Ask(url=url, method="POST", fields=fields, body=body, max_bytes=2 * MAX_QUOTE_BYTES)
    text = json_member(answered(transport, ask, what), "quote", what)
    try:
        return decode_base64url(text.rstrip("=").encode(), "quote")
    except AttestError as error:
        raise CollectionFailed(f"{what}: {error}", code="endpoint_answer") from None


def attest_snp(transport: Transport, maa_url: str, report: bytes, chain: bytes, raw_claims: bytes) -> bytes:
    """MAA's token about an SNP report (1184 bytes) with its certificates (PEM), whose report data is the hash of
    ``raw_claims`` (JSON). Raises CollectionFailed.
    """
    evidence = msgspec.json.encode({"SnpReport": _text(report), "VcekCertChain": _text(chain)})
    return _token(transport, f"{maa_url}/attest/SevSnpVm?api-version=2022-08-01", "report", evidence, raw_claims)


def attest_tdx(transport: Transport, maa_url: str, quote: bytes, raw_claims: bytes) -> bytes:
    """MAA's token about a TD quote whose report data is the hash of ``raw_claims`` (JSON). Raises CollectionFailed."""
    return _token(transport, f"{maa_url}/attest/TdxVm?api-version=2023-04-01-preview", "quote", quote, raw_claims)


def _token(transport: Transport, url: str, name: str, evidence: bytes, raw_claims: bytes) -> bytes:
    what = "Azure Attestation"
    body = {name: _text(evidence), "runtimeData": {"data": _text(raw_claims), "dataType": "JSON"}}
    ask = Ask(url=url, method="POST", fields=_JSON, body=msgspec.json.encode(body))
    return json_member(answered(transport, ask, what), "token", what).encode("ascii", "replace")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
