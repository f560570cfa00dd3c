"""What verification costs beside its bare signatures, and beside dcap-qvl. Simulated platforms: the sizes are real.

"Known" is the second time that a chain, a set of collateral or an AK is met; "all new" begins with no certificate
loaded and no signature known, and what was handed in is bytes. For SEV-SNP that is the VCEK: ASK and ARK are the
library's own and were read before, but what the ASK signed and was signed by is verified again. The ARK's signature of
itself is in the yardstick and not in the verification: the ARK is trusted because its hash is pinned, so a signature by
its own key would prove nothing. Each bar is a line of the issue that asked for the library.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from attest.attester import evidence_for
from attest.binding import Claims, Expected, Phase, Role, check_binding, data_hash, encode_claims
from attest.chain import forget, load_certificate
from attest.collateral import parse_collateral
from attest.evidence import TPM_QUOTE
from attest.policy import first_report_policy
from attest.schemes.sev_snp.abi import parse_report
from attest.schemes.sev_snp.verify import verify_report
from attest.schemes.tdx.abi import parse_quote
from attest.schemes.tdx.tcb import decode_qe_identity, decode_tcb_info
from attest.schemes.tdx.verify import verify_collateral, verify_quote
from attest.schemes.vtpm.verify import verify_quote as verify_tpm_quote
from attest.testkit.intel import collateral, root_certificate, simulated_intel_roots
from attest.testkit.pki import ca_certificate, simulated_roots
from attest.testkit.snp import SimulatedSnpCollector, SnpPlatform
from attest.testkit.tdx import TdxPlatform
from attest.testkit.tokens import fixed_key
from attest.testkit.tpm import SoftwareTpm
from attest.verifier import Verifier
from bench.micro.case import Case

__all__ = ["evidence_cases"]

TDX_NOW, NOW = 1_790_000_000.0, 1_799_999_000.0
_CLAIMS = Claims(
    role=Role.SERVER, phase=Phase.POST_HANDSHAKE, node_id="spiffe://cube/agent/a1", not_after=1_800_000_000,
    boot_id=b"b" * 16, spki_hash=b"s" * 32, nonce=b"n" * 32, channel_binding=b"c" * 32, peer_spki_hash=b"p" * 32,
)  # fmt: skip
_EXPECTED = Expected(**{name: getattr(_CLAIMS, name) for name in Expected.__struct_fields__})


def evidence_cases() -> Iterator[Case]:
    encoded = encode_claims(_CLAIMS)
    yield Case("bind: encode and hash claims", lambda: data_hash(encode_claims(_CLAIMS)))
    yield Case("bind: check claims", lambda: check_binding(encoded, _EXPECTED, NOW, 7200.0))
    yield from _snp()
    yield from _tdx()
    yield from _vtpm("ECDSA P-256", SoftwareTpm(), ec.ECDSA(hashes.SHA256()))
    yield from _vtpm("RSA-2048", SoftwareTpm(key=fixed_key("vtpm-ak")), padding.PKCS1v15(), hashes.SHA256())


def _snp() -> Iterator[Case]:
    platform, algorithm = SnpPlatform(b"bench"), ec.ECDSA(hashes.SHA384())
    report, leaf = platform.report(bytes(64)), platform.leaf
    ask, ark = ca_certificate("ask", "Milan"), ca_certificate("ark", "Milan")
    signature, public = platform.key.sign(report[:0x2A0], algorithm), platform.key.public_key()
    raw_leaf = leaf.public_bytes(Encoding.DER)

    def bare_report() -> None:
        public.verify(signature, report[:0x2A0], algorithm)

    def bare_chain() -> None:
        ark.verify_directly_issued_by(ark)
        ask.verify_directly_issued_by(ark)
        leaf.verify_directly_issued_by(ask)
        bare_report()

    def verify() -> None:
        verify_report(report, [load_certificate(raw_leaf)], TDX_NOW, simulated_roots())

    collected = evidence_for(SimulatedSnpCollector(b"bench" * 8), _CLAIMS)
    verifier = Verifier(first_report_policy("sev-snp"), allow_simulated=True)
    one, all_four = "SEV-SNP: one ECDSA P-384 signature", "SEV-SNP: three RSA-4096-PSS, one ECDSA P-384 signature"
    yield Case("SEV-SNP: parse a report", lambda: parse_report(report), bar=10_000)
    yield Case(one, bare_report)
    yield Case(all_four, bare_chain)
    yield Case("SEV-SNP: verify, chain known", verify, one, bar=1.15)
    yield Case("SEV-SNP: verify, all new", verify, all_four, bar=1.15, before=forget)
    yield Case("SEV-SNP: appraise, chain known", lambda: verifier.appraise(collected, _EXPECTED, now=NOW), one)


def _tdx() -> Iterator[Case]:
    """Beside dcap-qvl on the same bytes, where that is installed."""
    quote, raw = TdxPlatform(b"bench", version=5).quote(bytes(64)), collateral()
    known = verify_collateral(parse_collateral(raw), TDX_NOW, simulated_intel_roots())

    def forget_all() -> None:
        forget()
        for cached in (decode_tcb_info, decode_qe_identity):
            cached.cache_clear()

    def cold() -> None:
        verify_quote(quote, verify_collateral(parse_collateral(raw), TDX_NOW, simulated_intel_roots()), TDX_NOW)

    yield Case("TDX: parse a quote", lambda: parse_quote(quote))
    oracle = ""
    if (theirs := _dcap_qvl(quote, raw)) is not None:
        oracle = "TDX: dcap-qvl"
        yield Case(oracle, theirs)
    bars = (1.3, 3.0) if oracle else (0.0, 0.0)
    yield Case("TDX: verify, collateral known", lambda: verify_quote(quote, known, TDX_NOW), oracle, bar=bars[0])
    yield Case("TDX: verify, all new", cold, oracle, bar=bars[1], before=forget_all)


def _dcap_qvl(quote: bytes, raw: bytes) -> Callable[[], Any] | None:
    try:
        dcap_qvl = importlib.import_module("dcap_qvl")
    except ImportError:
        return None
    members = json.loads(raw)
    members |= {n: bytes.fromhex(v) for n, v in members.items() if n.endswith(("crl", "signature"))}
    given, root = dcap_qvl.QuoteCollateralV3(**members), root_certificate().public_bytes(Encoding.DER)
    return lambda: dcap_qvl.verify_with_root_ca(quote, given, root, int(TDX_NOW))


def _vtpm(kind: str, tpm: SoftwareTpm, *algorithm: Any) -> Iterator[Case]:
    """``appraise``: the whole of it, from the collection as it came to the result."""
    message = b"m" * 145  # as long as a quote of one bank
    signature: bytes = tpm.key.sign(message, *algorithm)
    public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey = tpm.key.public_key()
    body, bound = tpm.parts(bytes(32))[TPM_QUOTE].body, bytes(32)
    collected, verifier = evidence_for(tpm, _CLAIMS), Verifier(first_report_policy("vtpm"))
    one = f"vTPM: one {kind} signature"
    yield Case(one, partial(public.verify, signature, message, *algorithm))
    yield Case(f"vTPM: verify, {kind}", lambda: verify_tpm_quote(body, bound), one, bar=3.0)
    yield Case(f"vTPM: appraise, {kind}", lambda: verifier.appraise(collected, _EXPECTED, now=NOW), one)
