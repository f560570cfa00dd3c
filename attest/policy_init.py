"""A strict policy from one piece of evidence: everything pinned that it shows. Nothing is verified here.

What the evidence says is taken as found: compare the values with what your image build says before you use the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from attest.chain import load_certificate
from attest.errors import AttestError, MalformedEvidence, UnsupportedEvidence
from attest.evidence import (
    ENDORSEMENTS,
    HARDWARE,
    LAUNCH_ENDORSEMENT,
    TOKEN,
    TPM_QUOTE,
    Part,
    decode_certificates,
    decode_evidence,
)
from attest.jws import parse_token, payload_for_display
from attest.policy import parse_policy
from attest.schemes.azure.abi import parse_claims, parse_hcl
from attest.schemes.gcp.certificate import Instance, instance_of
from attest.schemes.gcp.endorsement import read_unverified
from attest.schemes.gcp.roots import vtpm_roots
from attest.schemes.sev_snp.abi import Report, parse_report, product_of, tcb_of
from attest.schemes.tdx.abi import TdReport, parse_quote, parse_tdreport
from attest.schemes.tdx.eventlog import explained, verify_event_log
from attest.schemes.vtpm.abi import BANK_NAMES, decode_quote_part
from attest.schemes.vtpm.verify import ak_name, load_ak
from attest.tomltext import toml_text

__all__ = ["Draft", "draft_policy"]

Tables = dict[str, tuple[dict[str, Any], dict[str, Any]]]  # table → rules, reference values


class Draft(msgspec.Struct, frozen=True):
    """``text``: TOML that loads. ``pinned``: reference values and floors in it. ``notes``: what it could not pin."""

    format: str
    text: str
    pinned: tuple[str, ...]
    notes: tuple[str, ...]


def draft_policy(raw: bytes, policy_id: str, event_log: bytes | None = None) -> Draft:
    """From a report, quote, HCL report, token or collection. MalformedEvidence ("unknown_format") for anything else;
    PolicyFormatError for an id that is none.

    ``event_log``: the CCEL beside a TDX quote; then rules ask for one. UnsupportedEvidence beside anything else,
    VerificationFailed when it does not belong to the quote.
    """
    for name, read in _READERS:
        notes: list[str] = []
        try:
            tables = read(raw, notes)
        except (AttestError, UnicodeDecodeError):
            continue
        if event_log is not None and name != "tdx":
            raise UnsupportedEvidence("an event log is looked at beside a TDX quote only", code="part_unknown")
        if event_log is not None:
            tables["tdx"][0].update(_log_rules(parse_quote(raw).report, event_log, notes))
        return _draft(name, tables, notes, policy_id)
    raise MalformedEvidence("no report, quote, HCL report, token or collection", code="unknown_format")


def _draft(name: str, tables: Tables, notes: list[str], policy_id: str) -> Draft:
    head: dict[str, Any] = {"id": policy_id}
    if set(tables) == {"vtpm"}:
        head["unsafe_accept_vtpm_only"] = True
        notes.append("a vTPM alone shows integrity, not confidentiality")
    values = {table: pinned for table, (_, pinned) in tables.items()}
    body = {table: rules for table, (rules, _) in tables.items()}
    text = toml_text(
        {**head, **body, "reference_values": values}, ("Nothing trusted by it: compare before use.", *notes)
    )
    unsafe = parse_policy(text).unsafe
    pinned = [f"reference_values.{table}.{key}" for table, kept in values.items() for key in kept if kept[key]]
    pinned += [f"{table}.{key}" for table, (rules, _) in tables.items() for key in rules if key.startswith("min_")]
    return Draft(name, text, tuple(pinned), (*notes, *(f"not pinned: {setting}" for setting in unsafe)))


def _snp(raw: bytes, notes: list[str]) -> Tables:
    return {"sev-snp": _snp_tables(parse_report(raw), notes)}


def _snp_tables(report: Report, notes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    product = product_of(report.cpuid)
    if product is None:
        notes.append("the report does not name its product: any is accepted")
    tcb = tcb_of(report.reported_tcb, product or "Milan")
    levels = {name: level for name in tcb.__struct_fields__ if (level := getattr(tcb, name)) is not None}
    guest = report.policy
    for flag in ("debug", "migrate_ma"):
        if getattr(guest, flag):
            notes.append(f"this very evidence is refused by the policy: {flag} is on")
    rules: dict[str, Any] = {
        "products": [product] if product else None, "signing_keys": [report.signing_key], "vmpl": [report.vmpl],
        "min_guest_svn": report.guest_svn, "min_tcb": levels,
        "min_policy_abi": {"major": guest.abi_major, "minor": guest.abi_minor},
        "allow_smt": guest.smt, "allow_cxl": guest.cxl,
    }  # fmt: skip
    for flag in ("single_socket", "aes256_xts", "rapl_disabled", "ciphertext_hiding", "page_swap_disabled"):
        if getattr(guest, flag):
            rules[f"require_{flag}"] = True
    if report.current_version != report.committed_version or report.current_tcb != report.committed_tcb:
        notes.append("this very evidence is refused by the policy: its firmware is provisional")
    values: dict[str, Any] = {
        "measurements": [report.measurement.hex()], "host_data": [report.host_data.hex()],
        "family_ids": [report.family_id.hex()], "image_ids": [report.image_id.hex()],
        "id_key_digests": [report.id_key_digest.hex()],
    }  # fmt: skip
    if report.author_key_en:
        values["author_key_digests"] = [report.author_key_digest.hex()]
    if report.signing_key == "vcek" and any(report.chip_id):
        values["chip_ids"] = [report.chip_id.hex()]
    else:
        notes.append("the report does not name its chip: any that AMD vouches for is accepted")
    return rules, values


def _tdx(raw: bytes, notes: list[str]) -> Tables:
    quote = parse_quote(raw)
    rules, values = _td_tables(quote.report)
    rules["min_qe_svn"] = quote.qe_report.isv_svn
    notes.append("the platform itself (FMSPC, PPID) is in the certificate and is not pinned")
    return {"tdx": (rules, values)}


def _td_tables(report: TdReport) -> tuple[dict[str, Any], dict[str, Any]]:
    names = ["mr_td", "mr_config_id", "mr_owner", "mr_owner_config", "mr_seam", "mr_signer_seam", "seam_attributes",
             "td_attributes", "xfam"]  # fmt: skip
    if report.mr_service_td is not None and any(report.mr_service_td):
        names.append("mr_service_td")
    values: dict[str, Any] = {name: [getattr(report, name).hex()] for name in names}
    values["rtmr_values"] = {str(n): [getattr(report, f"rtmr{n}").hex()] for n in range(4)}
    return {"min_tee_tcb_svn": report.tee_tcb_svn.hex(), "rtmrs": [0, 1, 2, 3]}, values


def _log_rules(report: TdReport, event_log: bytes, notes: list[str]) -> dict[str, Any]:
    rtmrs = explained(event_log, report)
    log = verify_event_log(event_log, report, rtmrs)
    notes += [f"RTMR{n} was measured on when the log had ended" for n in range(4) if n not in rtmrs]
    if not log.secure_boot:
        notes.append("the log does not show secure boot: it is not asked for")
    rules: dict[str, Any] = {"event_log_rtmrs": list(rtmrs), "require_event_log": True}
    rules |= {"require_secure_boot": True} if log.secure_boot else {}
    return rules | ({"require_exit_boot_services": True} if 1 in rtmrs and log.exited_boot_services else {})


def _hcl(raw: bytes, notes: list[str]) -> Tables:
    hcl = parse_hcl(raw)
    claims = parse_claims(hcl.raw_claims)
    tables: Tables = {"azure": ({"require_ak_certificate": True}, {})}
    if (vm_id := claims.configuration.get("vmUniqueId")) is not None:
        tables["azure"][1]["vm_unique_ids"] = [str(vm_id)]
    notes.append("an HCL report has no PCR values: fill in [reference_values.vtpm.pcr_values]")
    tables["vtpm"] = ({"pcrs": [4, 7], "unsafe_any_pcr_values": True}, {})
    if hcl.kind == "sev-snp":
        tables["sev-snp"] = _snp_tables(parse_report(hcl.hardware), notes)
    else:
        tables["tdx"] = _td_tables(parse_tdreport(hcl.hardware[:1024]))
    return tables


def _token(raw: bytes, notes: list[str]) -> Tables:
    claims = payload_for_display(parse_token(raw))
    if "x-ms-attestation-type" in claims:
        return {"maa": _maa(claims, notes)}
    if claims.get("swname") == "CONFIDENTIAL_SPACE":
        return {"gcp": _gcp(claims)}
    raise MalformedEvidence("a token of no known service", code="unknown_format")


def _maa(claims: dict[str, Any], notes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    outer = claims["x-ms-attestation-type"]
    inner = claims.get("x-ms-isolation-tee")
    tee: dict[str, Any] = inner if outer == "azurevm" and isinstance(inner, dict) else claims
    kind = tee.get("x-ms-attestation-type")
    snp = kind == "sevsnpvm"
    measurement = tee.get("x-ms-sevsnpvm-launchmeasurement" if snp else "tdx_mrtd")
    rules: dict[str, Any] = {"issuers": [claims.get("iss")], "types": [outer], "tees": [kind]}
    if snp:
        names = {"bootloader": "bootloader", "tee": "tee", "snp": "snpfw", "microcode": "microcode"}
        rules["min_svn"] = {n: tee.get(f"x-ms-sevsnpvm-{short}-svn", 0) for n, short in names.items()}
    if not isinstance(measurement, str):
        raise MalformedEvidence("a token without a measurement", code="unknown_format")
    notes.append("the service's own policy is pinned by its hash")
    values: dict[str, Any] = {"measurements": [measurement], "policy_hashes": [claims.get("x-ms-policy-hash", "none")]}
    if snp and isinstance(data := tee.get("x-ms-sevsnpvm-hostdata"), str):
        values["host_data"] = [data]
    return rules, values


def _gcp(claims: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    submods = _object(claims, "submods")
    container, gce = _object(submods, "container"), _object(submods, "gce")
    audience = claims.get("aud")
    rules = {"audiences": audience if isinstance(audience, list) else [audience], "hardware": [claims.get("hwmodel")]}
    values = {"image_digests": [container.get("image_digest")], "project_ids": [gce.get("project_id")],
              "zones": [gce.get("zone")]}  # fmt: skip
    return rules, {name: kept for name, kept in values.items() if kept != [None]}


def _object(claims: dict[str, Any], name: str) -> dict[str, Any]:
    value = claims.get(name)
    return value if isinstance(value, dict) else {}


def _bundle(raw: bytes, notes: list[str]) -> Tables:
    parts = decode_evidence(raw).parts
    tables: Tables = {}
    if HARDWARE in parts:
        body = parts[HARDWARE].body
        for read in (_snp, _tdx, _hcl):
            try:
                tables |= read(body, notes)
                break
            except AttestError:
                continue
        else:
            raise MalformedEvidence("hardware evidence of a kind that is not known", code="unknown_format")
    if TPM_QUOTE in parts:
        part = decode_quote_part(parts[TPM_QUOTE].body)
        bank = min(part.pcrs)
        values = {str(index): [value.hex()] for index, value in sorted(part.pcrs[bank].items())}
        rules = {"pcr_bank": BANK_NAMES[bank], "pcrs": [int(index) for index in values]}
        pinned = {"ak_names": [ak_name(part.ak_public)], "pcr_values": values} | _instance(parts, part.ak_public)
        tables["vtpm"] = (rules, pinned)
    if LAUNCH_ENDORSEMENT in parts:
        _launch(parts[LAUNCH_ENDORSEMENT].body, tables, notes)
    if TOKEN in parts:
        tables |= _token(parts[TOKEN].body, notes)
    if not tables:
        raise MalformedEvidence("a collection without evidence", code="unknown_format")
    return tables


def _instance(parts: dict[int, Part], ak_public: bytes) -> dict[str, Any]:
    """Where the AK's certificate names an instance of Google Cloud, that instance and Google's roots."""
    carried = decode_certificates(parts[ENDORSEMENTS].body) if ENDORSEMENTS in parts else ()
    key = load_ak(ak_public)[1]
    for certificate in map(load_certificate, carried):
        if certificate.public_key() == key and (instance := instance_of(certificate)) is not None:
            named = {f"{name}s": [str(getattr(instance, name))] for name in Instance.__struct_fields__}
            roots = [root.public_bytes(Encoding.PEM).decode() for root in vtpm_roots()]
            return {"ak_roots": roots, "gce": named}
    return {}


def _launch(raw: bytes, tables: Tables, notes: list[str]) -> None:
    """The firmware's version as a floor, beside the measurement that is pinned."""
    endorsement = read_unverified(raw)
    for table, svn in (("sev-snp", endorsement.snp_svn), ("tdx", endorsement.tdx_svn)):
        if table in tables:
            tables[table][0]["launch_endorsement"] = {"min_svn": max(svn, 1)}
            notes.append("the launch endorsement must lead to Google's root, which whoever judges hands in")


_READERS: tuple[tuple[str, Callable[[bytes, list[str]], Tables]], ...] = (
    ("azure-hcl", _hcl),
    ("sev-snp", _snp),
    ("tdx", _tdx),
    ("bundle", _bundle),
    ("token", _token),
)
