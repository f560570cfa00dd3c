"""``cube-mesh attest policy`` (check, init, import, diff) and ``attest collect``. Exit codes: 0 good, 1 no policy or no
evidence came of it (diff: something differs), 2 usage, 3 malformed input. Policies go to stdout, remarks to stderr.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cube_mesh.cli_inputs import read_file

if TYPE_CHECKING:
    from attest.attester import Collector
    from attest.evidence import Part

__all__ = ["collect", "policy_app"]

REFUSED, MALFORMED = 1, 3
policy_app = typer.Typer(help="Policies for evidence.", no_args_is_help=True)

PolicyFile = Annotated[Path, typer.Argument(help="A TOML policy.", dir_okay=False)]
From = Annotated[Path, typer.Option("--from", help="The file to read.", dir_okay=False)]
Id = Annotated[str, typer.Option("--id", help="Id of what is written.")]
Directory = Annotated[Path | None, typer.Option("--tsm", help="Where configfs-tsm is, when not at its usual place.")]


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    from attest.errors import AttestError, MalformedEvidence

    try:
        yield
    except AttestError as error:
        typer.echo(f"cube-mesh: {error.code}: {error}", err=True)
        raise typer.Exit(MALFORMED if isinstance(error, MalformedEvidence) else REFUSED) from None


@policy_app.command("check")
def policy_check(file: PolicyFile) -> None:
    """Load a policy as a verifier would: its id, digest, reference values, branches and the checks that it skips."""
    from attest.policy import load_policy

    with _errors():
        policy = load_policy(file)
    shown: dict[str, Any] = {"id": policy.id, "digest": policy.digest, "reference_values": policy.reference_files}
    shown |= {"branches": [branch.id for branch in policy.branches], "unsafe": list(policy.unsafe)}
    print(json.dumps(shown, indent=2))


@policy_app.command("init")
def policy_init(
    file: From,
    policy_id: Id = "first",
    endorsements: Annotated[
        list[Path] | None, typer.Option("--endorsements", help="sev-snp, tdx: verify with these first. Repeatable.")
    ] = None,
    event_log: Annotated[
        Path | None, typer.Option("--event-log", help="tdx: CCEL; then the policy asks for one.", dir_okay=False)
    ] = None,
) -> None:
    """Write a strict policy from a report, quote, HCL report, token or collection, verified only by endorsements."""
    from attest.policy_init import draft_policy

    raw = read_file(file)
    with _errors():
        draft = draft_policy(raw, policy_id, None if event_log is None else read_file(event_log))
    if endorsements:
        _verify(draft.format, raw, tuple(read_file(path) for path in endorsements))
    print(draft.text, end="")
    state = "verified now" if endorsements else "NOT verified; `cube-mesh attest verify --policy` does that"
    _remark(f"{draft.format}: {state}. Pinned as found:")
    for name in draft.pinned:
        _remark(f"  {name}")
    for note in draft.notes:
        _remark(f"note: {note}")


def _verify(kind: str, raw: bytes, endorsements: tuple[bytes, ...]) -> None:
    from attest.offline import Case, judge

    if kind not in ("sev-snp", "tdx"):
        raise typer.BadParameter(f"has no meaning with {kind}", param_hint="--endorsements")
    answer = judge(Case(scheme=kind, evidence=raw, now=time.time(), endorsements=endorsements, verify_only=True))
    if answer.verdict != "accept":
        _remark(f"cube-mesh: {answer.reason}: {answer.detail}")
        raise typer.Exit(MALFORMED if answer.malformed else REFUSED)


@policy_app.command("import")
def policy_import(
    file: From,
    kind: Annotated[Literal["corim", "go-sev-guest", "go-tdx-guest"], typer.Option("--format", help="What it is.")],
    policy_id: Id = "imported",
    trust_key: Annotated[
        Path | None, typer.Option("--trust-key", help="corim: the signer's public key or certificate, PEM.")
    ] = None,
) -> None:
    """Write what a foreign format says as ours: a policy, of a CoRIM reference values. Nothing is left out silently."""
    from attest.corim import import_corim
    from attest.cose import load_trust_key
    from attest.go_check import IMPORTS

    if (kind == "corim") != (trust_key is not None):
        raise typer.BadParameter("a CoRIM is read with its signer's key, and nothing else is", param_hint="--trust-key")
    with _errors():
        if trust_key is not None:
            print(
                import_corim(read_file(file), load_trust_key(read_file(trust_key)), policy_id, now=time.time()), end=""
            )
            _remark("reference values: the signature holds. Name this file in a policy's reference_values_files.")
            return
        imported = IMPORTS[kind](read_file(file), policy_id)
    print(imported.text, end="")
    for note in imported.notes:
        _remark(f"note: {note}")


@policy_app.command("diff")
def policy_diff(
    before: PolicyFile, after: PolicyFile, as_json: Annotated[bool, typer.Option("--json")] = False
) -> None:
    """What AFTER accepts more (looser), less (stricter) or else than BEFORE, rule by rule; exit 1 when they differ."""
    import msgspec

    from attest.policy import load_policy
    from attest.policy_diff import diff_policies

    with _errors():
        changes = diff_policies(load_policy(before), load_policy(after))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(changes), indent=2).decode())
    else:
        for change in changes:
            print(f"{change.direction:8} {change.rule}: {_shown(change.before)} -> {_shown(change.after)}")
    raise typer.Exit(REFUSED if changes else 0)


def collect(
    scheme: Annotated[
        Literal["sev-snp", "tdx", "vtpm", "gce-vtpm", "azure", "maa", "gcp"], typer.Option(help="Kind of evidence.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory for the files, made when absent.", file_okay=False)],
    nonce: Annotated[str, typer.Option("--nonce", metavar="HEX", help="32 bytes that the evidence must repeat.")],
    tsm: Directory = None,
    tcti: Annotated[str, typer.Option(help="How to reach the TPM.")] = "device:/dev/tpmrm0",
    pcrs: Annotated[str, typer.Option(help="The PCRs to quote.")] = "0,1,2,3,4,5,6,7",
    maa_url: Annotated[str, typer.Option(help="maa: the attestation provider.")] = "",
    audience: Annotated[str, typer.Option(help="gcp: whom the token is for.")] = "",
    metadata_url: Annotated[str, typer.Option(help="azure, maa: the metadata service.")] = "http://169.254.169.254",
    event_log: Annotated[
        Path | None, typer.Option("--event-log", help="The firmware's log, taken along as event-log.bin.")
    ] = None,
) -> None:
    """Make evidence on this machine: the files that `attest verify` takes. Exit 1 on a machine without."""
    from cube_mesh.attesters import AGENTS, QUOTING
    from cube_mesh.errors import ConfigError
    from cube_mesh.settings import Attestation, AzureAttester, GoogleAttester, Settings

    try:
        bound = bytes.fromhex(nonce)
    except ValueError:
        bound = b""
    if len(bound) != 32:
        raise typer.BadParameter("is not 32 bytes of hex", param_hint="--nonce")
    if event_log is not None and scheme not in QUOTING:
        raise typer.BadParameter(f"has no meaning with --scheme {scheme}", param_hint="--event-log")
    own: dict[str, Any] = {} if tsm is None else {"tsm_dir": str(tsm)}
    try:
        own |= {"pcrs": tuple(int(index) for index in pcrs.split(",")), "tcti": tcti}
        own |= {"azure": AzureAttester(metadata_url=metadata_url, maa_url=maa_url)}
        collector = AGENTS[scheme](Settings(attestation=Attestation(gcp=GoogleAttester(audience=audience), **own)))
    except (ValueError, ConfigError) as error:
        raise typer.BadParameter(str(error)) from None
    with _errors():
        files = {} if event_log is None else {"event-log.bin": read_file(event_log)}
        files |= _files(_collected(collector, bound))
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, body in files.items():
            (out / name).write_bytes(body)
            print(out / name)
    except OSError as error:
        raise typer.BadParameter(f"{out}: {error.strerror}", param_hint="--out") from None


def _collected(collector: Collector, bound: bytes) -> dict[int, Part]:
    from attest.attester import Closing

    try:
        return collector.parts(bound)
    finally:
        if isinstance(collector, Closing):
            collector.close()


def _files(parts: dict[int, Part]) -> dict[str, bytes]:
    """The parts under the names by which the documentation calls them, each in the form that ``verify`` takes."""
    from attest.evidence import ENDORSEMENTS, HARDWARE, LAUNCH_ENDORSEMENT, TOKEN, TPM_QUOTE, decode_certificates

    files = _hardware(parts[HARDWARE]) if HARDWARE in parts else {}
    files |= {"token.jwt": parts[TOKEN].body} if TOKEN in parts else {}
    files |= _quote(parts[TPM_QUOTE].body) if TPM_QUOTE in parts else {}
    files |= {"endorsement.binarypb": parts[LAUNCH_ENDORSEMENT].body} if LAUNCH_ENDORSEMENT in parts else {}
    if ENDORSEMENTS in parts:
        files |= {f"cert-{n}.der": der for n, der in enumerate(decode_certificates(parts[ENDORSEMENTS].body))}
    return files


def _hardware(part: Part) -> dict[str, bytes]:
    from attest.evidence import SNP_REPORT_TYPE, TDX_QUOTE_TYPE
    from attest.schemes.azure.verify import split_tdx_part

    if part.media_type in (SNP_REPORT_TYPE, TDX_QUOTE_TYPE):
        return {"report.bin" if part.media_type == SNP_REPORT_TYPE else "quote.bin": part.body}
    if part.body.startswith(b"HCLA"):
        return {"hcl.bin": part.body}
    return dict(zip(("hcl.bin", "td-quote.bin"), split_tdx_part(part.body), strict=True))


def _quote(body: bytes) -> dict[str, bytes]:
    from attest.schemes.vtpm.abi import BANK_NAMES, decode_quote_part

    part = decode_quote_part(body)
    values = {BANK_NAMES[bank]: {str(i): v.hex() for i, v in found.items()} for bank, found in part.pcrs.items()}
    return {"quote.msg": part.attest, "quote.sig": part.signature, "ak.pub": part.ak_public,
            "pcrs.json": json.dumps(values, indent=2).encode()}  # fmt: skip


def _shown(value: Any) -> str:
    return "absent" if value is None else json.dumps(value)


def _remark(text: str) -> None:
    typer.echo(text, err=True)
