"""The command line: argv to settings to a node. Exit codes: 0 done, 1 failed, 2 usage, 78 wrong configuration.

Each command imports what it needs when it runs, so that ``version`` and ``--help`` are quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from cube_mesh import __version__, attest_cli
from cube_mesh.errors import ConfigError

if TYPE_CHECKING:
    from cube_mesh.config import Loaded, Role

EX_CONFIG = 78

app = typer.Typer(
    name="cube-mesh",
    help="Gateway for confidential AI inference: a proxy for tenants, an agent inside the confidential VM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
ca = typer.Typer(help="The mesh CA: certificates by which agents know their proxies.", no_args_is_help=True)
admin = typer.Typer(help="Credentials for the configuration file.", no_args_is_help=True)
app.add_typer(ca, name="ca")
app.add_typer(admin, name="admin")
app.add_typer(attest_cli.app, name="attest")

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", envvar="CUBE_MESH_CONFIG", help="TOML file.", dir_okay=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, for example listen.path_prefix=/proxy."),
]
Host = Annotated[str | None, typer.Option(help="Sets listen.host.")]
Port = Annotated[int | None, typer.Option(help="Sets listen.port.")]
Workers = Annotated[
    int | None, typer.Option(help="Sets workers: processes that serve; -1 = one for each core, 0 = all in one process.")
]
Level = Annotated[str | None, typer.Option("--log-level", help="Sets log.level: debug, info, warning, error.")]
Print = Annotated[
    bool, typer.Option("--print-config", help="Show every setting, its source, secrets masked; do not start.")
]


def main() -> NoReturn:
    """Entry point. A ConfigError from any command is one line on stderr and exit code 78."""
    try:
        app()
    except ConfigError as error:
        print(f"cube-mesh: {error}", file=sys.stderr)
        sys.exit(EX_CONFIG)
    sys.exit(0)


# -- nodes -------------------------------------------------------------------------------------------------------------


@app.command()
def proxy(
    config: ConfigFile = None,
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    log_level: Level = None,
    set_: Set = None,
    print_config: Print = False,
) -> None:
    """Run the gateway that tenants' applications talk to."""
    _run("proxy", _load("proxy", config, _flags(host, port, workers, log_level, set_)), print_config)


@app.command()
def agent(
    config: ConfigFile = None,
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    log_level: Level = None,
    set_: Set = None,
    print_config: Print = False,
) -> None:
    """Run the node in front of a model server, inside the confidential VM."""
    _run("agent", _load("agent", config, _flags(host, port, workers, log_level, set_)), print_config)


@app.command()
def validate(
    role: Annotated[Literal["proxy", "agent"], typer.Argument(help="The role to check it for.")],
    config: ConfigFile = None,
    set_: Set = None,
    print_config: Print = False,
) -> None:
    """Check a configuration as that role would at its start: every problem with file, key and reason."""
    from cube_mesh import config_rules

    loaded = _load(role, config, _flags(None, None, None, None, set_))
    if print_config:
        _print(loaded)
    found = list(config_rules.problems(loaded, role))
    for problem in found:
        print(f"cube-mesh: {problem}", file=sys.stderr)
    if found:
        raise typer.Exit(EX_CONFIG)
    if not print_config:
        print(f"ok: {'an agent' if role == 'agent' else 'a proxy'} can start with this configuration")


def _flags(
    host: str | None, port: int | None, workers: int | None, level: str | None, sets: list[str] | None
) -> Iterator[tuple[str, str, str]]:
    """(key, text, as written). The named flags come last: they win over --set."""
    for item in sets or ():
        key, equals, text = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"{item!r} is not KEY=VALUE", param_hint="--set")
        yield key.strip(), text, "--set"
    for flag, key, value in (
        ("--host", "listen.host", host),
        ("--port", "listen.port", port),
        ("--workers", "workers", workers),
        ("--log-level", "log.level", level),
    ):
        if value is not None:
            yield key, str(value), flag


def _load(role: Role, file: Path | None, flags: Iterator[tuple[str, str, str]]) -> Loaded:
    from cube_mesh import config

    return config.load(role, file, os.environ, flags)


def _print(loaded: Loaded) -> None:
    from cube_mesh.config_text import to_toml

    print(to_toml(loaded), end="")


def _run(role: Role, loaded: Loaded, print_only: bool) -> None:
    if print_only:
        _print(loaded)
        return
    from cube_mesh import config_rules, plan

    _own_attest()
    config_rules.check(loaded, role)
    if plan.worker_count(role, loaded.settings):
        plan.launch(role, loaded.settings)
    from cube_mesh import node

    raise typer.Exit(node.run(role, loaded.settings))


def _own_attest() -> None:
    """A registry has another distribution called ``attest``: the one that verifies evidence must be ours."""
    spec = find_spec("attest")
    found = Path(spec.origin).parent.parent if spec is not None and spec.origin else None
    if found != Path(__file__).parent.parent:
        raise ConfigError(f"another package called attest is in the way: {found}", where="sys.path")


# -- the rest ----------------------------------------------------------------------------------------------------------


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="scripted, or smollm2 for a real llama.cpp server.")] = "scripted",
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
    directory: Annotated[Path, typer.Option("--dir", help="Where the demo keeps its files.")] = Path("var/demo"),
) -> None:
    """Run the whole path on this machine: software TPM, CA, agent, model, proxy, one attested completion."""
    from cube_mesh.demo.story import run

    raise typer.Exit(run(model, keep, directory))


@app.command()
def healthcheck(
    url: Annotated[str, typer.Option(help="Base URL of the node's health listener.")] = "http://127.0.0.1:8900",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds.")] = 3.0,
) -> None:
    """Ask /readyz: exit 0 when the node may serve, else 1 with what is not ready. For container health checks."""
    from cube_mesh.probe import readyz

    ready, detail = readyz(url, timeout)
    print(detail, file=sys.stdout if ready else sys.stderr)
    raise typer.Exit(0 if ready else 1)


@app.command()
def version() -> None:
    """Print the version."""
    print(f"cube-mesh {__version__}")


@ca.command("init")
def ca_init(
    directory: Annotated[Path, typer.Argument(help="New or empty; ca.key in it stays on the operator's machine.")],
    trust_domain: Annotated[str, typer.Option(help="As in spiffe://<trust-domain>/...")] = "cube",
    days: Annotated[int, typer.Option(min=1, max=36_500)] = 3650,
) -> None:
    """Make a mesh CA: ca.crt and ca.key."""
    from cube_mesh.tls.ca import init_ca

    files = init_ca(directory, trust_domain, days=days)
    print(f"{files.cert_file}\n{files.key_file}")


@ca.command("issue")
def ca_issue(
    directory: Annotated[Path, typer.Argument(help="The CA's folder.")],
    node_id: Annotated[str, typer.Argument(help="The node's id, as in spiffe://<trust-domain>/proxy/<id>.")],
    out: Annotated[Path, typer.Option(help="Where to put certificate and key.")] = Path(),
    days: Annotated[int, typer.Option(min=1, max=397)] = 90,
) -> None:
    """Issue a proxy's certificate and key. (An agent needs none: its identity is its evidence.)"""
    from cube_mesh.tls.ca import issue_leaf

    files = issue_leaf(directory, "proxy", node_id, out, days)
    print(f"{files.spiffe_id}\n{files.cert_file}\n{files.key_file}")


@admin.command("key")
def admin_key(
    subject: Annotated[str, typer.Option(help="Who will use the key; a member of the domain.")],
    domain: Annotated[str, typer.Option(help="The domain's id (UUID).")],
    key_id: Annotated[str, typer.Option("--id", help="Name of the key; made up when absent.")] = "",
    expires: Annotated[str, typer.Option(help="RFC 3339 time; never when absent.")] = "",
) -> None:
    """Make an API key. The key is shown once, here; the configuration gets its hash."""
    from cube_mesh.admin.keys import new_key

    key, block = new_key(subject, domain, key_id, expires)
    print(f"{key}\n", file=sys.stderr)
    print(block, end="")
