"""Every file of the vectors' manifest that has an expected verdict gets it, at the manifest's time.

``cases.json`` pairs SEV-SNP and TDX evidence with endorsements and says both verdicts; :data:`CHECKS` has the rest. A
file without a check fails the test, so that a new vector cannot be forgotten.
"""

from __future__ import annotations

import base64
import csv
import datetime as dt
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from msgspec.structs import replace

from attest.anchors import amd_certificates, azure_certificates, gcp_certificates
from attest.chain import load_certificate, load_certificates, load_chain, verify_chain
from attest.collateral import parse_collateral, window
from attest.cose import cbor_read
from attest.errors import AttestError
from attest.eventlog import parse_event_log, replay
from attest.offline import Case, judge
from attest.schemes.azure.verify import verify_hcl_tdx
from attest.schemes.gcp.attestation import parse_attestation
from attest.schemes.gcp.certificate import verify_vtpm_certificate
from attest.schemes.gcp.endorsement import verify_endorsement
from attest.schemes.sev_snp.abi import parse_report
from attest.schemes.sev_snp.certtable import certificates_of
from attest.schemes.tdx.abi import parse_quote as parse_td_quote
from attest.schemes.tdx.abi import parse_tdreport
from attest.schemes.tdx.verify import Root, verify_collateral, verify_signatures
from attest.schemes.vtpm.abi import Alg, QuotePart, Signature, encode_quote_part, parse_quote, parse_signature
from attest.schemes.vtpm.eventlog import verify_event_log
from attest.schemes.vtpm.verify import verify_quote, verify_quote_by_key
from tests.support import require

pytestmark = [
    pytest.mark.filterwarnings("ignore:Parsed a serial number"),
    pytest.mark.filterwarnings("ignore:Attribute's length must be"),
]
Check = Callable[[Path, str], None]  # the vectors' directory, the file in it


def at(text: str) -> float:
    return dt.datetime.fromisoformat(text).timestamp()


TODAY = at("2026-11-24T12:00:00Z")
MAA_KEYS, SPACE_KEYS = "azure/maa-thomvanl/jwks.json", "gcp/synddb/jwks.json"


def _verdict(wanted: str, case: Case) -> None:
    """``wanted``: "ok", or the reason of refusal."""
    answer = judge(case)
    assert answer.reason == wanted, (case.scheme, answer.reason, answer.detail)
    assert (answer.verdict == "accept") == (wanted == "ok")


def _raises(code: str, call: Callable[[], object]) -> None:
    with pytest.raises(AttestError) as caught:
        call()
    assert caught.value.code == code, caught.value


# -- SEV-SNP and TDX: the pairs ----------------------------------------------------------------------------------------


def _pairs(files: Path, name: str) -> None:
    """Each pair in which the file is evidence or endorsement, with both of its verdicts."""
    pairs = [c for c in json.loads((files / "cases.json").read_text()) if name in (c["evidence"], *c["endorsements"])]
    assert pairs, f"{name} stands in no pair"
    for pair in pairs:
        case = Case(
            scheme=pair["scheme"],
            evidence=(files / pair["evidence"]).read_bytes(),
            endorsements=tuple((files / e).read_bytes() for e in pair["endorsements"]),
            now=at(pair["now"]),
            report_data=_report_data(files, pair["evidence"]),
        )
        for wanted, verify_only in ((pair["verify"], True), (pair["default"], False)):
            answer = judge(replace(case, verify_only=verify_only))
            assert answer.verdict == wanted, (pair, answer.reason, answer.detail)
    if name.endswith("collateral.json"):
        _inside_its_window(files, name)


def _report_data(files: Path, name: str) -> bytes | None:
    value = next(row["report_data or nonce"] for row in rows(files) if row["file"] == name)
    return bytes.fromhex(value) if re.fullmatch("[0-9a-f]{128}", value) else None


def _inside_its_window(files: Path, name: str) -> None:
    collateral = parse_collateral((files / name).read_bytes())
    span = window(collateral)
    verify_collateral(collateral, span.refresh_at)
    for now in (span.start - 1, span.end + 1):
        with pytest.raises(AttestError):
            verify_collateral(collateral, now)


def _snp_report_parses(files: Path, name: str) -> None:
    raw = (files / name).read_bytes()
    parse_report(raw[:1184])


def _amd_chain(files: Path, name: str) -> None:
    """Leaf first where there is one; the ARK at the end is the pinned one."""
    *chain, root = load_certificates((files / name).read_bytes())
    assert root in amd_certificates()
    for certificate in chain:
        verify_chain(certificate, chain, [root], TODAY)


def _turin_vcek(files: Path, name: str) -> None:
    ask, ark = load_certificates((files / "snp/virtee-sev/cert_chain_turin.pem").read_bytes())
    verify_chain(load_certificate((files / name).read_bytes()), [ask], [ark], TODAY)


def _tsm(files: Path, name: str) -> None:
    """A report with its certificate table, as veraison wraps what configfs-tsm gave: JSON, CBOR, or in a CMW."""
    raw = (files / name).read_bytes()
    if name.endswith("-token"):
        collection = json.loads(_decoded(json.loads(raw)["cmw"]))
        raw = _decoded(collection["tsm-report"][1])
    content = cbor_read(raw) if raw[:1] == b"\xa3" else json.loads(raw)
    report, table = (
        content[key] if isinstance(content[key], bytes) else _decoded(content[key]) for key in ("outblob", "auxblob")
    )
    _verdict("ok", Case(scheme="sev-snp", evidence=report, endorsements=certificates_of(table), now=TODAY))


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(re.sub(r"\s", "", text) + "==")


def _td_signatures(files: Path, name: str) -> None:
    quote = parse_td_quote((files / name).read_bytes())
    verify_signatures(quote, TODAY)


def _td_report(files: Path, name: str) -> None:
    parse_tdreport((files / name).read_bytes())


def _intel_sample(files: Path, name: str) -> None:
    quote = parse_td_quote((files / name).read_bytes())
    root = load_certificate((files / name).with_name("trustedRootCaCert.pem").read_bytes())
    verify_signatures(quote, TODAY, [Root(root)])
    _raises("untrusted_root", lambda: verify_signatures(quote, TODAY))


# -- vTPM --------------------------------------------------------------------------------------------------------------


def _swtpm(files: Path, name: str) -> None:
    folder = (files / name).parent
    facts = json.loads((folder / "pcrs.json").read_text())
    _verdict("ok", Case(
        scheme="vtpm", evidence=(files / name).read_bytes(), now=TODAY, nonce=bytes.fromhex(facts["nonce"]),
        signature=(folder / "q.sig").read_bytes(), ak=(folder / "ak.pub").read_bytes(),
        pcrs=(folder / "pcrs.json").read_bytes(),
    ))  # fmt: skip


def _keylime(files: Path, name: str) -> None:
    folder = (files / name).parent
    attest, values = (files / name).read_bytes(), (folder / "quotepcr.out").read_bytes()
    # A list of three digests as tpm2-tools writes it in host order: count u32, then size u16 and 64 bytes for each.
    start = values.index(b"\x03\x00\x00\x00\x20\x00") + 4
    digests = [values[start + 66 * n + 2 : start + 66 * n + 34] for n in range(3)]
    quote, public = parse_quote(attest), (folder / "ak.pub").read_bytes()
    public = public[2:] if public[:2] == (len(public) - 2).to_bytes(2, "big") else public
    pcrs = {int(Alg.SHA256): dict(zip(quote.selections[0].indexes, digests, strict=True))}
    part = QuotePart(attest, (folder / "quotesig.out").read_bytes(), public, pcrs)
    verify_quote(encode_quote_part(part), quote.extra_data)


def _windows(files: Path, name: str) -> None:
    """SHA-1 alone: a good quote where a policy allows that, and none by default."""
    dump = json.loads((files / name).read_text())
    quote, decode = dump["Quote"], base64.b64decode
    pcrs = {int(Alg.SHA1): {pcr["Index"]: decode(pcr["Digest"]) for pcr in dump["Log"]["PCRs"]}}
    part = QuotePart(decode(quote["Quote"]), decode(quote["Signature"]), decode(dump["AK"]["Public"]), pcrs)
    verify_quote(encode_quote_part(part), b"", unsafe_allow_sha1=True)
    _raises("signature_algorithm", lambda: verify_quote(encode_quote_part(part), b""))


def _tpm_parses(files: Path, name: str) -> None:
    raw = (files / name).read_bytes()
    if name.endswith(".sig"):
        assert len(raw) == 256 or parse_signature(raw)  # Azure's tools leave the bare number
    else:
        parse_quote(raw)


def _log_replays(files: Path, name: str) -> None:
    log = parse_event_log((files / name).read_bytes())
    values = [replay(log, bank) for bank in log.algorithms if bank in (Alg.SHA1, Alg.SHA256, Alg.SHA384)]
    assert all(values) or name.endswith("short_no_action_eventlog")


# -- Azure -------------------------------------------------------------------------------------------------------------


def _azure_evidence(nonce: bytes) -> Check:
    """HCL report, hardware evidence, and a vTPM quote by the AK that the runtime claims name."""

    def check(files: Path, name: str) -> None:
        content = json.loads((files / name).read_text())
        content = content.get("evidence", content)
        old = "quote" in content
        quote = content["quote" if old else "tpm_quote"]
        read: Callable[[Any], bytes] = bytes if old else bytes.fromhex
        pcrs = [read(pcr).hex() for pcr in quote["pcrs"]]
        fields: dict[str, Any] = {"endorsements": (), "now": TODAY}
        if "td_quote" in content:
            fields = {"td_quote": _decoded(content["td_quote"]), "now": at("2026-02-10T00:00:00Z")}
            fields["endorsements"] = ((files / "tdx/collateral/00806f-2026-01/collateral.json").read_bytes(),)
        else:
            fields["endorsements"] = (content["vcek"].encode() if old else _decoded(content["vcek"]),)
        hcl = bytes(content["report"]) if old else _decoded(content["hcl_report"])
        case = Case(scheme="azure", evidence=hcl, quote=read(quote["message"]), signature=read(quote["signature"]),
                    pcrs=json.dumps({"pcrs": pcrs}).encode(), nonce=nonce, **fields)  # fmt: skip
        _verdict("ok", case)
        _verdict(
            "nonce_mismatch", Case(**{f: getattr(case, f) for f in case.__struct_fields__} | {"nonce": nonce[::-1]})
        )

    return check


def _flashbots(files: Path, name: str) -> None:
    """Its own set of collateral is not among the vectors: the next of the same family of platforms serves."""
    text = (files / name).read_text()

    def block(key: str) -> bytes:
        return _decoded(re.search(rf"{key}: \|-\n((?: +\S+\n)+)", text)[1])  # type: ignore[index]

    def numbers(text: str) -> bytes:
        return bytes(map(int, re.findall(r"\d+", text)))

    signature, message = (numbers(re.search(rf"{key}: \[([^]]*)\]", text)[1]) for key in ("signature", "message"))  # type: ignore[index]
    pcrs = [numbers(line).hex() for line in re.findall(r"^ +- \[([^]]*)\]", text, re.MULTILINE)]
    _verdict("ok", Case(
        scheme="azure", evidence=block("hcl_report_base64"), td_quote=block("tdx_quote_base64"), nonce=bytes(32),
        quote=message, signature=signature, pcrs=json.dumps({"pcrs": pcrs}).encode(), now=at("2026-04-01T00:00:00Z"),
        endorsements=((files / "tdx/collateral/90c06f-2026-03/collateral.json").read_bytes(),),
    ))  # fmt: skip


def _kinvolk_snp(files: Path, name: str) -> None:
    """The VCEK beside it is another chip's, so that it stops there, after everything before has held."""
    certificates = (files / name).with_name("certs.pem").read_bytes()
    raw = (files / name).read_bytes()
    _verdict("hwid_mismatch", Case(scheme="azure", evidence=raw, endorsements=(certificates,), now=TODAY))


def _hcl_of_td(files: Path, name: str) -> None:
    """Without its quote: the claims are those that the TDREPORT names."""
    raw = (files / name).read_bytes()
    verify_hcl_tdx(raw, raw[32 + 128 : 32 + 192])


def _hcl_with_vcek(files: Path, name: str) -> None:
    vcek = (files / name).with_name("vcek.pem").read_bytes()
    _verdict("ok", Case(scheme="azure", evidence=(files / name).read_bytes(), endorsements=(vcek,), now=TODAY))


def _kinvolk_quote(files: Path, name: str) -> None:
    """bincode: two byte strings with 64-bit lengths, then the 24 PCRs."""
    raw, parts, start = (files / name).read_bytes(), [], 0
    for _ in range(2):
        size = int.from_bytes(raw[start : start + 8], "little")
        parts.append(raw[start + 8 : start + 8 + size])
        start += 8 + size
    signature, message = parts
    values = raw[-24 * 32 :]
    pcrs = {int(Alg.SHA256): {n: values[32 * n : 32 * n + 32] for n in range(24)}}
    key: Any = load_pem_public_key((files / name).with_name("akpub.pem").read_bytes())
    verify_quote_by_key(message, Signature(Alg.RSASSA, Alg.SHA256, (signature,)), key, pcrs, b"challenge")


# -- tokens ------------------------------------------------------------------------------------------------------------


def _token(*expected: tuple[str, str, bool], scheme: str, keys: str = "") -> Check:
    """``expected``: time, reason, and whether policy is asked too."""

    def check(files: Path, name: str) -> None:
        for now, reason, policy in expected:
            jwks = (files / keys).read_bytes() if keys else None
            evidence = (files / name).read_bytes()
            _verdict(reason, Case(scheme=scheme, evidence=evidence, jwks=jwks, now=at(now), verify_only=not policy))

    return check


# -- Google ------------------------------------------------------------------------------------------------------------


def _endorsement(files: Path, name: str) -> None:
    root = load_certificate((files / name).with_name("root.crt").read_bytes())
    raw = (files / name).read_bytes()
    assert verify_endorsement(raw, TODAY, roots=[root]).snp
    _raises("untrusted_chain", lambda: verify_endorsement(raw, TODAY, roots=gcp_certificates()))
    _raises("launch_root_missing", lambda: verify_endorsement(raw, TODAY, certificates=[root]))


def _attestation(files: Path, name: str) -> None:
    """Three banks; the one of SHA-1 where a policy allows it."""
    found = parse_attestation((files / name).read_bytes())
    assert len(found.quotes) == 3
    for part in found.quotes:
        quote = verify_quote(encode_quote_part(part), b"\x90\x09", unsafe_allow_sha1=Alg.SHA1 in part.pcrs)
        assert verify_event_log(found.event_log, quote).covered == tuple(range(10))


def _to_ek_ak_root(files: Path, name: str) -> None:
    folder = (files / name).parent
    known = [load_certificate((folder / n).read_bytes()) for n in ("ak_intermediate.crt", "ek_intermediate.crt")]
    leaf = load_certificate((files / name).read_bytes())
    if leaf in known:
        verify_chain(leaf, known, [load_certificate((files / "gcp/roots/gcp_ek_ak_ca_root.crt").read_bytes())], TODAY)
    else:
        key: Any = leaf.public_key()
        verify_vtpm_certificate(key, [leaf, *known], TODAY)


# -- anchors, and NVIDIA, which is no scheme of the library ------------------------------------------------------------


def _anchor(files: Path, name: str) -> None:
    """Built in, and the same bytes; NVIDIA's two sign themselves."""
    certificate = load_certificate((files / name).read_bytes())
    if name.startswith("nvidia/"):
        verify_chain(certificate, [], [certificate], TODAY)
    else:
        assert certificate in (*amd_certificates(), *azure_certificates(), *gcp_certificates())


def _nvidia(files: Path, name: str) -> None:
    """SPDM: request and response, and 96 bytes of signature over both. Only chains and signatures are ours."""
    text = (files / name).read_text()
    raw = bytes.fromhex(text)
    chain = load_chain((files / name).with_name("hopperCertChain.txt").read_bytes())
    root = load_certificate((files / "nvidia/roots/verifier_device_root.pem").read_bytes())
    assert chain[-1] == root
    for certificate, issuer in itertools.pairwise(chain):
        certificate.verify_directly_issued_by(issuer)
    key = chain[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey) and isinstance(chain[0], x509.Certificate)
    r, s = (int.from_bytes(half, "big") for half in (raw[-96:-48], raw[-48:]))
    key.verify(encode_dss_signature(r, s), raw[:-96], ec.ECDSA(hashes.SHA384()))


# -- the table ---------------------------------------------------------------------------------------------------------

GENOA_NONCE = "0218488bae25d2509232bf676f1a66a30d7372add909109b36016ef136f2938ca05475f8b46094de6b64270ea35d950f"
# The first pattern that fits a file; what none fits must stand in a pair.
CHECKS: dict[str, Check] = {
    "*/roots/*": _anchor,
    "snp/cocos/*": _snp_report_parses,
    "snp/veraison/sevsnp-*": _tsm,
    "snp/virtee-sev/vcek_turin.der": _turin_vcek,
    "snp/*chain*.pem": _amd_chain,
    "tdx/attestation-rs/tdx_quote_live.dat": _td_signatures,
    "tdx/attestation-rs/tdx_tdreport_live.bin": _td_report,
    "tdx/go-tdx-guest/report.dat": _td_report,
    "tdx/intel-sample-testroot/quote.dat": _intel_sample,
    "vtpm/swtpm/q.msg": _swtpm,
    "vtpm/keylime/quote.out": _keylime,
    "vtpm/go-attestation/*": _windows,
    "vtpm/dstack/*": _tpm_parses,
    "vtpm/eventlogs/*": _log_replays,
    "azure/trustee-az-snp/tpm-quote.*": _tpm_parses,
    "azure/attestation-rs/*": _azure_evidence(b"attestation-test-fixture"),
    "azure/trustee-az-snp/evidence-genoa.json": _azure_evidence(bytes.fromhex(GENOA_NONCE)),
    "azure/trustee-az-*/evidence-v1.json": _azure_evidence(b"challenge"),
    "azure/trustee-az-snp/hcl-report.bin": _hcl_with_vcek,
    "azure/flashbots/*": _flashbots,
    "azure/kinvolk/hcl-report-snp.bin": _kinvolk_snp,
    "azure/kinvolk/hcl-report-tdx.bin": _hcl_of_td,
    "azure/kinvolk/quote.bin": _kinvolk_quote,
    "azure/maa-msft/*": _token(("2022-04-15T00:00:00Z", "kid_unknown", False), scheme="maa", keys=MAA_KEYS),
    "azure/maa-thomvanl/*": _token(
        ("2022-12-24T00:00:00Z", "ok", True), ("2026-11-24T12:00:00Z", "token_expired", False),
        scheme="maa", keys=MAA_KEYS,
    ),
    "gcp/flare/cs_oidc_token.jwt": _token(
        ("2024-11-04T00:00:00Z", "kid_unknown", False), scheme="gcp", keys=SPACE_KEYS,
    ),
    "gcp/flare/cs_pki_token.jwt": _token(
        ("2024-11-04T00:00:00Z", "ok", False), ("2026-11-24T12:00:00Z", "certificate_expired", False), scheme="gcp",
    ),
    "gcp/synddb/*": _token(
        ("2025-12-02T21:00:00Z", "ok", False), ("2025-12-02T21:00:00Z", "debug", True), scheme="gcp", keys=SPACE_KEYS,
    ),
    "gcp/gce-tcb-verifier/*": _endorsement,
    "gcp/go-tpm-tools/*": _attestation,
    "gcp/salrashid-vtpm/*": _to_ek_ak_root,
    "nvidia/nvtrust/*": _nvidia,
}  # fmt: skip


def rows(files: Path) -> list[dict[str, str]]:
    with (files / "MANIFEST.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def counts() -> dict[str, int]:
    """Files with an expected verdict, by platform."""
    return dict(Counter(row["platform"] for row in rows(require.vectors()) if row["expected verdict"]))


def _expected(files: Path) -> dict[str, str]:
    return {row["file"]: row["expected verdict"] for row in rows(files) if row["expected verdict"]}


def test_every_file_gets_its_verdict(vectors: Path) -> None:
    wrong: dict[str, str] = {}
    for name, wanted in _expected(vectors).items():
        check = next((check for pattern, check in CHECKS.items() if fnmatch(name, pattern)), _pairs)
        try:
            check(vectors, name)
        except (AttestError, AssertionError, LookupError, ValueError, pytest.fail.Exception) as error:
            wrong[name] = f"{wanted}: {type(error).__name__}: {error}"
    print(counts())
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())
    assert sum(counts().values()) >= 100


def test_every_check_is_of_a_file(vectors: Path) -> None:
    names = _expected(vectors)
    assert not [pattern for pattern in CHECKS if not any(fnmatch(name, pattern) for name in names)]
