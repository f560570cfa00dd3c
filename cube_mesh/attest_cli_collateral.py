"""``cube-mesh attest collateral``: fetch what evidence calls for into a cache, show a cache, and hand its items to
``verify`` and ``explain``, which never fetch. Exit codes: 0 all there, 1 something is missing or out of its time.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cube_mesh.cli_inputs import moment_of, read_file

if TYPE_CHECKING:
    from attest.items import Item, Record
    from cube_mesh.collateral.fetcher import Fetcher

__all__ = ["app", "default_cache", "endorsements_of"]

MISSING = 1

app = typer.Typer(
    help="Collateral for evidence: certificates, revocation lists, TCB info, key sets.", no_args_is_help=True
)

CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="Cache directory.", file_okay=False, show_default=False)
]


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/cube-mesh/collateral``, by default under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "cube-mesh" / "collateral"


@app.command()
def fetch(
    evidence: Annotated[
        list[Path] | None, typer.Option("--evidence", help="Report, quote, HCL report, token or bundle. Repeatable.")
    ] = None,
    tdx: Annotated[
        list[str] | None, typer.Option("--tdx", metavar="FMSPC[/CA]", help="Kind of TDX platform; CA: platform.")
    ] = None,
    amd: Annotated[list[str] | None, typer.Option("--amd", metavar="PRODUCT", help="AMD's chain and list.")] = None,
    issuer: Annotated[list[str] | None, typer.Option("--issuer", metavar="URL", help="Keys of a token issuer.")] = None,
    thim: Annotated[bool, typer.Option("--thim", help="This Azure VM's own VCEK and chain.")] = False,
    product: Annotated[str, typer.Option("--product", help="Of a version 2 SNP report, which does not say.")] = "",
    cache: CacheOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="Touch no network: say what is missing.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Fetch also what is fresh.")] = False,
    amd_url: Annotated[str, typer.Option(help="AMD's KDS, or a mirror.")] = "https://kdsintf.amd.com",
    intel_url: Annotated[str, typer.Option(help="Intel's PCS, or a mirror.")] = "https://api.trustedservices.intel.com",
    intel_root_crl_url: Annotated[
        str, typer.Option(help="Intel's root revocation list, or a mirror of it.")
    ] = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
) -> None:
    """Fetch items into the cache: for evidence, or for a platform, product or issuer. Prints a line an item."""
    import asyncio

    from cube_mesh.collateral.fetcher import Fetcher
    from cube_mesh.collateral.sources import Sources
    from cube_mesh.collateral.store import Store
    from cube_mesh.errors import ConfigError

    items = _asked_for(evidence or (), product, tdx or (), amd or (), issuer or (), thim)
    if not items:
        raise typer.BadParameter("nothing to fetch: give --evidence, --tdx, --amd, --issuer or --thim")
    try:
        store = Store(cache or default_cache(), create=not offline)
        sources = Sources(amd_url=amd_url, intel_url=intel_url, intel_root_crl_url=intel_root_crl_url)
        missing = asyncio.run(_fetch(Fetcher(store, sources, offline=offline), items, refresh=refresh and not offline))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(MISSING if missing else 0)


@app.command()
def show(
    cache: CacheOption = None,
    now: Annotated[str | None, typer.Option("--now", metavar="RFC3339", help="As of then; default: the clock.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List what a cache holds: state, age, until when, from where. Nothing is verified. Exit 1 if any is not usable."""
    from cube_mesh.collateral.store import Store
    from cube_mesh.errors import ConfigError

    moment = moment_of(now)
    try:
        rows = [_row(name, record, moment) for name, record in Store(cache or default_cache()).items()]
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--cache") from None
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(_line(row))
    raise typer.Exit(MISSING if any(row["state"] not in ("fresh", "due") for row in rows) else 0)


def endorsements_of(
    cache: Path, evidence: bytes, given: Sequence[bytes], *, td_quote: bytes | None, now: float
) -> tuple[tuple[bytes, ...], bytes | None]:
    """What a cache has for ``evidence`` and is usable at ``now``: endorsements beyond ``given``, and a key set.

    An item that is not there is left out: the verifier says what it misses. ConfigError for a cache that is none.
    """
    from attest.chain import common_name
    from attest.collateral import sort_endorsements
    from attest.errors import AttestError
    from attest.needs import needed_items
    from attest.vouch import tdx_set
    from cube_mesh.collateral.store import Store

    store = Store(cache)
    handed = sort_endorsements(given)
    found: dict[str, Record] = {}
    for raw in (evidence, td_quote):
        try:
            items = needed_items(raw) if raw is not None else ()
        except AttestError:
            continue  # what cannot be read is the verifier's to refuse
        found |= {item.kind: record for item in items if (record := _usable(store.get(item), now)) is not None}
    added = []
    if "amd-vcek" in found and not any(common_name(c) == "SEV-VCEK" for c in handed.certificates):
        added.append(found["amd-vcek"].body)
    if "amd-crl" in found and not handed.crls:
        added.append(found["amd-crl"].body)
    members = [found.get(kind) for kind in ("intel-tcb-info", "intel-qe-identity", "intel-pck-crl", "intel-root-crl")]
    whole = [record for record in members if record is not None]
    if len(whole) == 4 and not handed.collateral:
        added.append(tdx_set(*whole))
    return tuple(added), found["jwks"].body if "jwks" in found else None


def _usable(record: Record | None, now: float) -> Record | None:
    from attest.items import check

    return record if record is not None and check(record).state(now) in ("fresh", "due") else None


def _asked_for(
    evidence: Iterable[Path], product: str, tdx: Iterable[str], amd: Iterable[str], issuers: Iterable[str], thim: bool
) -> tuple[Item, ...]:
    from attest.errors import AttestError
    from attest.items import Item
    from attest.needs import needed_items
    from attest.vouch import tdx_items

    items: list[Item] = []
    try:
        for file in evidence:
            items += needed_items(read_file(file), product=product)
        for platform in tdx:
            fmspc, _, ca = platform.partition("/")
            items += tdx_items(fmspc, ca or "platform")
        for name in amd:
            items += [Item("amd-chain", f"{name}/vcek"), Item("amd-chain", f"{name}/vlek"), Item("amd-crl", name)]
        items += [Item("jwks", issuer) for issuer in issuers]
    except (AttestError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    items += [Item("azure-thim", "local")] if thim else []
    return tuple(dict.fromkeys(items))


async def _fetch(fetcher: Fetcher, items: Sequence[Item], *, refresh: bool) -> int:
    """One item after the other, for a vendor's sake; gives how many are missing."""
    from cube_mesh.collateral.fetcher import CollateralUnavailable

    missing = 0
    for item in items:
        try:
            record = await (fetcher.refresh(item) if refresh else fetcher.get(item))
            print(_line(_row(item.file_name, record, time.time())))
        except CollateralUnavailable as error:
            missing += 1
            typer.echo(f"missing  {error.detail}", err=True)
    return missing


def _row(name: str, record: Record | Exception, now: float) -> dict[str, Any]:
    from attest.items import check

    if isinstance(record, Exception):
        return {"item": name, "state": "damaged", "detail": str(record)}
    times = check(record)
    return {
        "item": record.item,
        "state": times.state(now),
        "age_s": round(now - record.fetched_at),
        "fetched_at": _text(record.fetched_at),
        "refresh_at": _text(times.refresh_at),
        "usable_until": _text(times.end),
        "url": record.url,
        "sha256": record.sha256,
    }


def _line(row: dict[str, Any]) -> str:
    if "detail" in row:
        return f"{row['state']:8} {row['item']}: {row['detail']}"
    return f"{row['state']:8} {row['item']}  fetched {row['fetched_at']}  usable until {row['usable_until']}"


def _text(moment: float) -> str:
    return dt.datetime.fromtimestamp(moment, dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
