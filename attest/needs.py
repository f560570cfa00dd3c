"""What a relying party must have beside a piece of evidence: the items to fetch, read from evidence that nobody has
verified. A forger can name any chip or issuer: a host fetches only what its configuration allows.
"""

from __future__ import annotations

from collections.abc import Iterable

from attest.errors import AttestError, EndorsementUnavailable, MalformedEvidence, UnsupportedEvidence
from attest.evidence import HARDWARE, TOKEN, decode_evidence, split_aux
from attest.items import Item
from attest.jws import parse_token, payload_for_display
from attest.schemes.azure.abi import parse_hcl
from attest.schemes.azure.verify import split_tdx_part
from attest.schemes.sev_snp.abi import Report, parse_report
from attest.schemes.sev_snp.verify import needs as snp_needs
from attest.schemes.tdx.abi import parse_quote
from attest.schemes.tdx.verify import needs as tdx_needs
from attest.vouch import tdx_items

__all__ = ["needed_items"]


def needed_items(raw: bytes, *, product: str = "") -> tuple[Item, ...]:
    """The items that evidence of any kind calls for: an SNP report, TDX quote, HCL report, token, or a collection.

    ``product``: of a version 2 SNP report, which does not say. AMD's and Intel's intermediates are built in or come
    with the items. Raises MalformedEvidence (``unknown_format``) for anything else, UnsupportedEvidence for evidence
    for which nothing can be fetched.
    """
    for read in (_bundle, _azure, _snp, _tdx, _token):
        try:
            return tuple(dict.fromkeys(read(raw, product)))
        except (MalformedEvidence, UnicodeDecodeError):
            continue
    raise MalformedEvidence("no evidence of a kind that needs collateral", code="unknown_format")


def _bundle(raw: bytes, product: str) -> Iterable[Item]:
    parts = decode_evidence(split_aux(raw)[0]).parts
    if TOKEN in parts:
        yield from _token(parts[TOKEN].body, product)
    if HARDWARE in parts:
        yield from _hardware(parts[HARDWARE].body, product)


def _hardware(raw: bytes, product: str) -> Iterable[Item]:
    for read in (_azure, _snp, _tdx):
        try:
            return tuple(read(raw, product))
        except MalformedEvidence:
            continue
    try:
        return tuple(_tdx(split_tdx_part(raw)[1], product))
    except AttestError:
        raise UnsupportedEvidence("hardware evidence of an unknown kind", code="part_unknown") from None


def _azure(raw: bytes, product: str) -> Iterable[Item]:
    """On TDX the quote stands in a file of its own, which then says what is needed."""
    hcl = parse_hcl(raw)
    if hcl.kind != "sev-snp":
        raise UnsupportedEvidence("an HCL report of TDX: give the quote, which says its needs", code="td_quote_needed")
    return _snp(hcl.hardware, product)


def _snp(raw: bytes, product: str) -> Iterable[Item]:
    return _report(parse_report(raw), product)


def _report(report: Report, product: str) -> Iterable[Item]:
    need = snp_needs(report, product)
    crl = Item("amd-crl", need.product)
    if need.signing_key != "vcek":  # a VLEK is the cloud's to hand out
        return (crl,)
    fmc = [] if need.tcb.fmc is None else [need.tcb.fmc]
    levels = [*fmc, need.tcb.bootloader, need.tcb.tee, need.tcb.snp, need.tcb.microcode]
    return (Item("amd-vcek", f"{need.product}/{need.hwid}/{'.'.join(map(str, levels))}"), crl)


def _tdx(raw: bytes, product: str) -> Iterable[Item]:
    need = tdx_needs(parse_quote(raw))
    return tdx_items(need.fmspc, need.ca)


def _token(raw: bytes, product: str) -> Iterable[Item]:
    """The key set of the issuer that the token names; none for a token that carries its chain."""
    token = parse_token(raw)
    issuer = payload_for_display(token).get("iss")
    if "x5c" in token.header and token.header.get("jku") is None:
        return ()
    try:
        return (Item("jwks", str(issuer)),)
    except ValueError as error:
        raise EndorsementUnavailable(f"the token's issuer is no address: {error}", code="issuer") from None
