"""What verification costs beside its bare signatures, and beside dcap-qvl. Simulated platforms: the sizes are real."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attest.chain import load_certificate, load_crl
from attest.collateral import parse_collateral
from attest.schemes.sev_snp.abi import parse_report
from attest.schemes.sev_snp.verify import verify_report
from attest.schemes.tdx.abi import parse_quote
from attest.schemes.tdx.tcb import decode_qe_identity, decode_tcb_info
from attest.schemes.tdx.verify import verify_collateral, verify_quote
from attest.testkit.intel import collateral, root_certificate, simulated_intel_roots
from attest.testkit.pki import ca_certificate, simulated_roots
from attest.testkit.snp import SnpPlatform
from attest.testkit.tdx import TdxPlatform

__all__ = ["snp_cases", "tdx_cases"]

NOW = 1_790_000_000.0
Named = tuple[str, Callable[[], object], str]  # name, call, the case that it is compared with


def snp_cases() -> Iterator[Named]:
    """Parse; verify with the chain known ("warm") and not ("cold"), each beside the signatures that it must verify."""
    platform = SnpPlatform(b"bench")
    report, raw_leaf = platform.report(bytes(64)), platform.endorsements[0]
    leaf, ask, ark = platform.leaf, ca_certificate("ask", "Milan"), ca_certificate("ark", "Milan")
    signature, algorithm = platform.key.sign(report[:0x2A0], ec.ECDSA(hashes.SHA384())), ec.ECDSA(hashes.SHA384())
    public = platform.key.public_key()

    def bare_report() -> None:
        public.verify(signature, report[:0x2A0], algorithm)

    def bare_chain() -> None:
        ark.verify_directly_issued_by(ark)
        ask.verify_directly_issued_by(ark)
        leaf.verify_directly_issued_by(ask)
        bare_report()

    def cold() -> None:
        load_certificate.cache_clear()
        verify_report(report, [load_certificate(raw_leaf)], NOW, simulated_roots())

    known = load_certificate(raw_leaf)
    yield "SEV-SNP: parse a report", lambda: parse_report(report), ""
    yield "SEV-SNP: the report's signature", bare_report, ""
    yield "SEV-SNP: the signatures of report and chain", bare_chain, ""
    warm = lambda: verify_report(report, [known], NOW, simulated_roots())  # noqa: E731
    yield "SEV-SNP: verify, chain known", warm, "SEV-SNP: the report's signature"
    yield "SEV-SNP: verify, chain new", cold, "SEV-SNP: the signatures of report and chain"


def tdx_cases() -> Iterator[Named]:
    """Parse; verify with collateral known and not, beside dcap-qvl on the same bytes where that is installed."""
    quote, raw = TdxPlatform(b"bench", version=5).quote(bytes(64)), collateral()
    known = verify_collateral(parse_collateral(raw), NOW, simulated_intel_roots())

    def cold() -> None:
        for cached in (load_certificate, load_crl, decode_tcb_info, decode_qe_identity):
            cached.cache_clear()
        verify_quote(quote, verify_collateral(parse_collateral(raw), NOW, simulated_intel_roots()), NOW)

    yield "TDX: parse a quote", lambda: parse_quote(quote), ""
    oracle = ""
    if (theirs := _dcap_qvl(quote, raw)) is not None:
        oracle = "TDX: dcap-qvl"
        yield oracle, theirs, ""
    yield "TDX: verify, collateral known", lambda: verify_quote(quote, known, NOW), oracle
    yield "TDX: verify, all new", cold, oracle


def _dcap_qvl(quote: bytes, raw: bytes) -> Callable[[], Any] | None:
    try:
        dcap_qvl = importlib.import_module("dcap_qvl")
    except ImportError:
        return None
    members = json.loads(raw)
    members |= {n: bytes.fromhex(v) for n, v in members.items() if n.endswith(("crl", "signature"))}
    given, root = dcap_qvl.QuoteCollateralV3(**members), root_certificate().public_bytes(Encoding.DER)
    return lambda: dcap_qvl.verify_with_root_ca(quote, given, root, int(NOW))
