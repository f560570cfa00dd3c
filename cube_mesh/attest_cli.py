"""``cube-mesh attest``: evidence in files, judged by the ``attest`` library. Exit codes: 0 accept, 1 reject, 2 usage,
3 malformed. Files are read and the clock is asked here; everything else is the library's.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cube_mesh import attest_cli_collateral
from cube_mesh.attest_cli_policy import collect, policy_app
from cube_mesh.cli_inputs import moment_of, read_file
from cube_mesh.errors import ConfigError

if TYPE_CHECKING:
    from attest.offline import Case, Verdict

__all__ = ["app"]

ACCEPT, REJECT, MALFORMED = 0, 1, 3
# What each scheme can compare with; an option that would be ignored is an error, not a silent yes.
_OPTIONS: dict[str, frozenset[str]] = {
    "sev-snp": frozenset({"endorsements", "report_data"}),
    "tdx": frozenset({"endorsements", "report_data", "event_log"}),
    "vtpm": frozenset({"endorsements", "nonce", "signature", "ak", "pcrs", "event_log"}),
    "azure": frozenset({"endorsements", "nonce", "quote", "signature", "ak", "pcrs", "event_log", "td_quote"}),
    "maa": frozenset({"nonce", "jwks", "issuer"}),
    "gcp": frozenset({"nonce", "jwks", "issuer", "audience"}),
    "bundle": frozenset({"endorsements", "nonce", "jwks"}),
}

app = typer.Typer(help="Verify, explain and show attestation evidence in files; no server.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")
app.command("collect")(collect)
app.add_typer(attest_cli_collateral.app, name="collateral")

Scheme = Annotated[
    str,
    typer.Option(
        metavar="[sev-snp|tdx|vtpm|azure|maa|gcp|bundle|NAME]",
        help="Kind of evidence; NAME enables the installed third-party scheme of that name.",
    ),
]
EvidenceFile = Annotated[
    Path,
    typer.Option("--evidence", help="Raw report or quote, TPMS_ATTEST, HCL report, or token.", dir_okay=False),
]
More = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More endorsements.", show_default=False)]
Endorsements = Annotated[
    list[Path] | None,
    typer.Option("--endorsements", help="Certificates, PEM or DER, any order; collateral as JSON. Repeatable."),
]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="TOML policy; without it the built-in one, which pins nothing.")
]
VerifyOnly = Annotated[bool, typer.Option("--verify-only", help="Stop before appraisal: signatures and chains only.")]
ReportData = Annotated[
    str | None, typer.Option("--report-data", metavar="HEX", help="64 bytes that report or quote must carry.")
]
Nonce = Annotated[str | None, typer.Option("--nonce", metavar="HEX", help="What quote or token must repeat.")]
Now = Annotated[str | None, typer.Option("--now", metavar="RFC3339", help="Judge as of then; default: the clock.")]
Quote = Annotated[Path | None, typer.Option("--quote", help="azure: the vTPM's TPMS_ATTEST.")]
Signature = Annotated[Path | None, typer.Option("--signature", help="TPMT_SIGNATURE, or bare RSA signature.")]
Ak = Annotated[Path | None, typer.Option("--ak", help="TPMT_PUBLIC, TPM2B_PUBLIC, PEM key or certificate.")]
Pcrs = Annotated[Path | None, typer.Option("--pcrs", help='PCR values: {"sha256": {"0": "<hex>"}}.')]
EventLog = Annotated[Path | None, typer.Option("--event-log", help="binary_bios_measurements; tdx: CCEL.")]
TdQuote = Annotated[Path | None, typer.Option("--td-quote", help="azure on TDX: the trust domain's quote.")]
Jwks = Annotated[Path | None, typer.Option("--jwks", help="Key set of the token's issuer.")]
Issuer = Annotated[str | None, typer.Option("--issuer", help="Exact issuer of the token.")]
Audience = Annotated[str | None, typer.Option("--audience", help="Exact audience of the token.")]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="Take what is missing from this collateral cache.", file_okay=False)
]
Json = Annotated[bool, typer.Option("--json", help="The verdict as JSON.")]


def _run(
    context: typer.Context,
    scheme: Scheme,
    evidence: EvidenceFile,
    more: More = None,
    endorsements: Endorsements = None,
    policy: PolicyFile = None,
    verify_only: VerifyOnly = False,
    report_data: ReportData = None,
    nonce: Nonce = None,
    now: Now = None,
    quote: Quote = None,
    signature: Signature = None,
    ak: Ak = None,
    pcrs: Pcrs = None,
    event_log: EventLog = None,
    td_quote: TdQuote = None,
    jwks: Jwks = None,
    issuer: Issuer = None,
    audience: Audience = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    given = dict(locals())  # the parameters by name, before there is anything else
    del given["context"], given["as_json"]
    answer = _judge(_case(**given))
    print(_json(answer) if as_json else _words(answer) if context.info_name == "explain" else _line(answer))
    raise typer.Exit(MALFORMED if answer.malformed else ACCEPT if answer.verdict == "accept" else REJECT)


app.command("verify", help="Verify evidence and appraise it: exit 0 accept, 1 reject, 2 usage, 3 malformed.")(_run)
app.command("explain", help="The same in words: which check, expected, actual, whose side, what to do.")(_run)


@app.command()
def show(file: Annotated[Path, typer.Argument(help="Any known kind of evidence, endorsement or collateral.")]) -> None:
    """Decode a file of any known format as JSON. Nothing in it is verified: exit 0, or 3 for an unknown format."""
    from attest.errors import AttestError
    from attest.show import show as decode

    try:
        print(json.dumps(decode(read_file(file)), indent=2))
    except AttestError as error:
        typer.echo(f"cube-mesh: {file}: {error}", err=True)
        raise typer.Exit(MALFORMED) from None


def _case(**given: Any) -> Case:
    from attest.errors import PolicyFormatError
    from attest.offline import Case
    from attest.policy import load_policy

    scheme, files = given.pop("scheme"), [*(given.pop("endorsements") or ()), *(given.pop("more") or ())]
    policy, now = given.pop("policy"), given.pop("now")
    evidence, verify_only, cache = given.pop("evidence"), given.pop("verify_only"), given.pop("cache")
    given = {name: value for name, value in given.items() if value is not None}
    schemes = () if scheme in _OPTIONS else (_third_party(scheme),)
    allowed = _OPTIONS.get(scheme, frozenset({"endorsements", "nonce"}))
    for name in [*given, *(["endorsements"] if files else [])]:
        if name not in allowed:
            raise typer.BadParameter(f"has no meaning with --scheme {scheme}", param_hint="--" + name.replace("_", "-"))
    try:
        case = Case(
            scheme=scheme,
            evidence=read_file(evidence),
            now=moment_of(now),
            endorsements=tuple(read_file(file) for file in files),
            policy=load_policy(policy) if policy is not None else None,
            verify_only=verify_only,
            schemes=schemes,
            **{name: _value(name, value) for name, value in given.items()},
        )
        return case if cache is None else _with_cache(case, cache)
    except PolicyFormatError as error:
        raise typer.BadParameter(str(error), param_hint="--policy") from None


def _with_cache(case: Case, cache: Path) -> Case:
    """The case with what it lacks and the cache has. What was handed in on the command line counts first."""
    import msgspec

    from attest.errors import AttestError

    try:
        added, jwks = attest_cli_collateral.endorsements_of(
            cache, case.evidence, case.endorsements, td_quote=case.td_quote, now=case.now
        )
    except (AttestError, ConfigError) as error:
        raise typer.BadParameter(str(error), param_hint="--cache") from None
    return msgspec.structs.replace(case, endorsements=(*case.endorsements, *added), jwks=case.jwks or jwks)


def _third_party(name: str) -> Any:
    from attest.errors import UnsupportedEvidence
    from attest.plugins import load_scheme

    try:
        return load_scheme(name)
    except UnsupportedEvidence as error:
        raise typer.BadParameter(str(error), param_hint="--scheme") from None


def _value(name: str, value: Any) -> Any:
    if isinstance(value, Path):
        return read_file(value)
    return _hex(name, value) if name in ("report_data", "nonce") else value


def _hex(name: str, text: str) -> bytes:
    hint = "--" + name.replace("_", "-")
    try:
        data = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise typer.BadParameter("is not hex", param_hint=hint) from None
    if not data or (name == "report_data" and len(data) != 64):
        raise typer.BadParameter("is empty, or not 64 bytes", param_hint=hint)
    return data


def _judge(case: Case) -> Verdict:
    from attest.offline import judge

    return judge(case)


def _json(answer: Verdict) -> str:
    import msgspec

    fields = msgspec.to_builtins(answer)
    if answer.expires is not None:
        fields["expires"] = dt.datetime.fromtimestamp(answer.expires, dt.UTC).isoformat()
    return json.dumps(fields, indent=2)


def _words(answer: Verdict) -> str:
    from attest.explain import explain

    return explain(answer)


def _line(answer: Verdict) -> str:
    lines = [f"{answer.verdict}: {answer.reason}: {answer.detail}"]
    return "\n".join(lines + [f"not checked: {text}" for text in answer.unchecked])
