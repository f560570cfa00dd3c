"""Loading: precedence, names, types, paths, secrets; every error says source, key and reason."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube_mesh import config, config_text
from cube_mesh.errors import ConfigError
from cube_mesh.settings import RouteMatch, RouteRule, Settings, Timeouts, Upstream

UPSTREAM = '[[upstreams]]\nname = "a"\nurl = "http://127.0.0.1:1"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "node.toml"


def load(file: Path | None = None, text: str = "", env: dict[str, str] | None = None, **flags: str) -> config.Loaded:
    if file is not None:
        file.write_text(text)
    pairs = [(key.replace("__", "."), value, f"--{key}") for key, value in flags.items()]
    return config.load("proxy", file, env or {}, pairs)


def test_precedence_is_flag_environment_file_default(file: Path) -> None:
    text, env = "[listen]\nport = 1\n", {"CUBE_MESH_LISTEN__PORT": "2"}
    assert load().settings.listen.port == 8900
    assert load(file, text).settings.listen.port == 1
    assert load(file, text, env).settings.listen.port == 2
    loaded = load(file, text, env, listen__port="3")
    assert loaded.settings.listen.port == 3
    assert loaded.origins["listen.port"] == "--listen__port"


def test_role_defaults() -> None:
    agent = config.load("agent", None, {}).settings
    assert (agent.listen.port, agent.metrics.port) == (8901, 8911)
    assert load(metrics__port="-1").settings.metrics.port == -1


def test_without_sources_the_rest_is_settings_py() -> None:
    settings, default = load().settings, Settings()
    for name in Settings.__struct_fields__:
        if name not in ("listen", "metrics"):
            assert getattr(settings, name) == getattr(default, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[listne]\nport = 1", "{}: listne: unknown key; did you mean 'listen'?"),
        ("[listen]\nprot = 1", "{}: listen.prot: unknown key; did you mean 'listen.port'?"),
        ("[timeouts]\nhead = 3", "{}: timeouts.head: unknown key; did you mean 'timeouts.head_s'?"),
        ("max_fields = 3", "{}: max_fields: unknown key; did you mean 'limits.max_fields'?"),
        (
            UPSTREAM + "[upstreams.pool]\nidle = 3",
            "{}: upstreams.0.pool.idle: unknown key; the nearest known one is 'upstreams.0.pool.",
        ),
        ("[listen]\nport = 'x'", "{}: listen.port: Expected int, got str"),
        ("[listen]\nport = true", "{}: listen.port: Expected int, got bool"),
        ("[timeouts]\nhead_s = '3'", "{}: timeouts.head_s: Expected float, got str"),
        ("[[upstreams]]\nurl = 'x'", "{}: upstreams.0: missing required key name"),
        ("listen = 3", "{}: listen: expected a table"),
        ("[upstreams]\nname = 'x'", "{}: upstreams: expected an array of tables: [[upstreams]]"),
        ("upstreams = [3]", "{}: upstreams.0: expected a table"),
        (
            "[log]\nlevel = 'warn'",
            "{}: log.level: Invalid enum value 'warn'; one of 'debug', 'info', 'warning', 'error'",
        ),
        ("[attestation]\npcrs = ['a']", "{}: attestation.pcrs.0: Expected int, got str"),
        ("a = ", "{}: not TOML: Invalid value (at end of document)"),
        (UPSTREAM + "api_key = 's'", "{}: upstreams.0.api_key: a secret does not stand in the file: use api_key_file"),
    ],
)
def test_what_is_wrong_in_a_file(file: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    assert str(caught.value).startswith(message.format(file))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"LISTEN__PROT": "1"}, "listen.prot: unknown key; did you mean 'listen.port'?"),
        ({"LISTEN__PORT": "many"}, "listen.port: not a TOML value: 'many'"),
        ({"LISTEN__PORT": "1\nhost = 2"}, "listen.port: not a TOML value: '1\\nhost = 2'"),
        ({"LISTEN__PORT": '"1"'}, "listen.port: Expected int, got str"),
        ({"LISTEN__PORT__X": "1"}, "listen.port: is a single value and has no members"),
        ({"LISTEN": "{}"}, "listen: is a section: set its members one by one"),
        ({"UPSTREAMS": "[]"}, "upstreams: is a section: set its members one by one"),
        ({"UPSTREAMS__0": "{}"}, "upstreams.0: is a section: set its members one by one"),
        ({"UPSTREAMS__1__NAME": "x"}, "upstreams: no element '1'; the next one is 0"),
        ({"UPSTREAMS__X__NAME": "x"}, "upstreams: no element 'x'; the next one is 0"),
        ({"LOG__LEVEL": "loud"}, "log.level: Invalid enum value 'loud'; one of 'debug', 'info', 'warning', 'error'"),
        ({"UNSAFE_ALLOW_SIMULATED": "yes"}, "unsafe_allow_simulated: not a TOML value: 'yes'"),
        ({"": "x"}, "unknown key; the nearest known one is '"),
    ],
)
def test_what_is_wrong_in_the_environment(env: dict[str, str], message: str) -> None:
    variables = {f"CUBE_MESH_{name}": value for name, value in env.items()}
    with pytest.raises(ConfigError) as caught:
        load(env=variables)
    assert str(caught.value).startswith(f"{next(iter(variables))}: {message}")


def test_a_whole_node_can_be_configured_by_environment() -> None:
    names = {f"CUBE_MESH_UPSTREAMS__{i}__NAME": f"u{i}" for i in range(12)}
    urls = {f"CUBE_MESH_UPSTREAMS__{i}__URL": f"http://127.0.0.1:{i}" for i in range(12)}
    loaded = load(env=names | urls | {"CUBE_MESH_ATTESTATION__PCRS": "[1, 2]", "CUBE_MESH_MESH__NODE_ID": "1"})
    assert [upstream.name for upstream in loaded.settings.upstreams] == [f"u{i}" for i in range(12)]
    assert loaded.settings.attestation.pcrs == (1, 2)
    assert loaded.settings.mesh.node_id == "1"  # text stays text


def test_variables_of_others_and_of_the_tests_are_not_settings() -> None:
    env = {
        "CUBE_MESH_CONFIG": "x",
        "CUBE_MESH_REQUIRE": "all",
        "CUBE_MESH_VECTORS": "x",
        "CUBE_MESHX": "y",
        "PORT": "1",
    }
    assert load(env=env).origins == {}


def test_paths_are_relative_to_the_file_that_names_them(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    text = '[mesh]\nca_file = "ca.crt"\nkey_file = "/abs/key"\n[audit]\npath = "../a.jsonl"\n'
    text += UPSTREAM + 'policy = "p.toml"\n[[routes]]\nname = "r"\nupstream = "a"\nmatch.path = "v1"\n'
    settings = load(file, text, {"CUBE_MESH_MESH__CERT_FILE": "me.crt"}).settings
    assert settings.mesh.ca_file == str(file.parent / "ca.crt")
    assert settings.mesh.key_file == "/abs/key"
    assert settings.mesh.cert_file == str(elsewhere / "me.crt")
    assert Path(settings.audit.path).resolve() == file.parent.parent / "a.jsonl"
    assert settings.upstreams[0].policy == str(file.parent / "p.toml")
    assert settings.upstreams[0].api_key_file == ""
    assert settings.routes[0].match.path == "v1"  # a URL path is not a file


def test_secrets_come_from_the_environment_and_are_masked(file: Path) -> None:
    loaded = load(file, UPSTREAM, {"CUBE_MESH_UPSTREAMS__0__API_KEY": "sk-very-secret"})
    assert loaded.settings.upstreams[0].api_key == "sk-very-secret"
    shown = config_text.to_toml(loaded)
    assert "sk-very-secret" not in shown
    assert '# api_key = "********"  # CUBE_MESH_UPSTREAMS__0__API_KEY' in shown


def test_a_secret_is_refused_on_the_command_line(file: Path) -> None:
    with pytest.raises(ConfigError, match="every user of the machine can read"):
        load(file, UPSTREAM, upstreams__0__api_key="s")


def test_every_secret_and_path_key_exists() -> None:
    known = set(config.keys())
    assert known >= config.SECRETS
    assert {key for key in known if config.is_path(key)} >= {"audit.path", "upstreams.*.policy", "mesh.key_file"}
    secret_names = {key for key in known if key.endswith(("api_key", "password", "secret", "token"))}
    assert secret_names == config.SECRETS


def test_unreadable_files_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: "):
        config.load("proxy", tmp_path / "absent.toml", {})
    (tmp_path / "latin.toml").write_bytes(b'[mesh]\nnode_id = "\xe9"\n')
    with pytest.raises(ConfigError, match=r"latin\.toml: cannot be read: "):
        config.load("proxy", tmp_path / "latin.toml", {})


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(name=text, headers=st.dictionaries(text, text, max_size=3), idle=st.floats(0.1, 1e6), on=st.booleans())
def test_what_is_printed_loads_again(name: str, headers: dict[str, str], idle: float, on: bool) -> None:
    upstream = Upstream(name=name, url="x", unsafe_plain_non_loopback=on)
    route = RouteRule(name=name, upstream=name, match=RouteMatch(headers=headers, methods=(name,)))
    settings = Settings(upstreams=(upstream, upstream), routes=(route,), timeouts=Timeouts(idle_s=idle))
    shown = config_text.to_toml(config.Loaded(settings, {}))
    assert msgspec.convert(tomllib.loads(shown), Settings) == settings
