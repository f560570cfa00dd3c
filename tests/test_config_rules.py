"""Each rule: a configuration that is right, changed in one thing, has exactly that one problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from attest.policy import load_policy
from cube_mesh import config, config_rules
from cube_mesh.attesters import AGENTS
from cube_mesh.config import Loaded, Role
from cube_mesh.errors import ConfigError
from cube_mesh.settings import Attester, Settings
from cube_mesh.tls.ca import init_ca, issue_leaf
from tests.support.example_scheme.install import install_example

DOMAIN = "6b0e3a52-6d3c-4b76-9f0e-0f6a2c1d9e11"
HASH = "sha256:" + "0" * 64
POLICY = """id = "demo"
unsafe_accept_vtpm_only = true
[vtpm]
pcrs = [0]
unsafe_any_pcr_values = true
unsafe_any_ak = true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mesh")
    init_ca(folder / "ca", "cube")
    issue_leaf(folder / "ca", "proxy", "p1", folder)
    (folder / "policy.toml").write_text(POLICY)
    (folder / "empty-policy.toml").write_text("")
    (folder / "seed").write_bytes(bytes(32))
    (folder / "secret").write_text("k" * 64)
    (folder / "loose.key").write_text((folder / "proxy-p1.key").read_text())
    (folder / "loose.key").chmod(0o644)
    load_policy(folder / "policy.toml")
    return folder


def proxy(folder: Path) -> dict[str, Any]:
    return {
        "upstreams": [
            {"name": "plain", "url": "http://127.0.0.1:9000"},
            {
                "name": "agent",
                "url": "atls://10.0.0.2:8901",
                "node_id": "spiffe://cube/agent/a1",
                "policy": f"{folder}/policy.toml",
            },
        ],
        "routes": [{"name": "all", "upstream": "agent"}],
        "identity": {
            "domains": [{"id": DOMAIN, "members": [{"subject": "alice", "role": "admin"}]}],
            "api_keys": [{"id": "k1", "hash": HASH, "subject": "alice", "domain": DOMAIN}],
            "jwt": [
                {
                    "issuer": "https://id",
                    "audience": "cube",
                    "algorithms": ["RS256"],
                    "jwks_url": "https://id.example/keys",
                }
            ],
        },
        "mesh": {
            "node_id": "p1",
            "ca_file": f"{folder}/ca/ca.crt",
            "cert_file": f"{folder}/proxy-p1.crt",
            "key_file": f"{folder}/proxy-p1.key",
        },
        "attestation": {"attester": "none"},
    }


def agent(folder: Path) -> dict[str, Any]:
    return {
        "listen": {"host": "0.0.0.0"},
        "upstreams": [{"name": "model", "url": "http://127.0.0.1:8000"}],
        "mesh": {"node_id": "a1", "ca_file": f"{folder}/ca/ca.crt", "allowed_proxies": ["spiffe://cube/proxy/p1"]},
        "attestation": {"attester": "vtpm"},
    }


def found(role: Role, tree: dict[str, Any], **changes: Any) -> list[ConfigError]:
    """Problems after each dotted key (``__`` for the dot) has been set; None deletes it."""
    tree.setdefault("listen", {}).setdefault("port", 8900 if role == "proxy" else 8901)
    for key, value in changes.items():
        *path, last = (int(part) if part.isdecimal() else part for part in key.split("__"))
        node: Any = tree
        for part in path:
            node = node[part] if isinstance(part, int) else node.setdefault(part, {})
        if value is None:
            del node[last]
        else:
            node[last] = value
    return list(config_rules.problems(Loaded(msgspec.convert(tree, Settings), {}), role))


def one(problems: list[ConfigError], key: str, reason: str) -> None:
    assert [(problem.key, reason in problem.reason) for problem in problems] == [(key, True)], [
        str(p) for p in problems
    ]


def test_the_two_starting_points_are_right(folder: Path) -> None:
    assert found("proxy", proxy(folder)) == []
    assert found("agent", agent(folder)) == []


NO_UPSTREAM = "there is none: nothing could be forwarded"


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        # the edge
        ({"listen__proxy_protocol": True}, "listen.proxy_protocol", "nobody may speak it"),
        ({"listen__trusted_peers": ["10.0.0.1/8"]}, "listen.trusted_peers", "host bits"),
        ({"listen__tls__cert_file": __file__}, "listen.tls.cert_file", "go together"),
        ({"listen__tls__require_client_certificate": True}, "listen.tls.cert_file", "client certificates need TLS"),
        ({"cors__allowed_origins": ["https://App.example"]}, "cors.allowed_origins", "not an origin"),
        ({"cors__allowed_origins": ["https://app.example/"]}, "cors.allowed_origins", "not an origin"),
        ({"cors__allowed_headers": ["a: b"]}, "cors.allowed_headers", "not a field name"),
        # numbers
        ({"listen__port": 65_536}, "listen.port", "not a port"),
        ({"listen__port": -1}, "listen.port", "not a port"),
        ({"metrics__port": -2}, "metrics.port", "not a port"),
        ({"timeouts__head_s": 0.0}, "timeouts.head_s", "more than 0 seconds"),
        ({"timeouts__idle_s": float("nan")}, "timeouts.idle_s", "more than 0 seconds"),
        ({"timeouts__drain_s": float("inf")}, "timeouts.drain_s", "more than 0 seconds"),
        ({"upstreams__0__pool__idle_timeout_s": -1.0}, "upstreams.0.pool.idle_timeout_s", "more than 0 seconds"),
        ({"limits__max_fields": 0}, "limits.max_fields", "at least 1"),
        ({"limits__write_low_water": 262_144}, "limits.write_low_water", "below"),
        ({"limits__max_body_bytes": 1}, "limits.max_json_body", "not be above"),
        ({"identity__cache_entries": -1}, "identity.cache_entries", "not be negative"),
        ({"tracing__sample_ratio": 1.5}, "tracing.sample_ratio", "between 0 and 1"),
        ({"attestation__interval_s": 7200.0}, "attestation.interval_s", "not be above"),
        ({"attestation__leaf_lifetime_s": 3_601.0}, "attestation.leaf_lifetime_s", "at most 3600"),
        # listeners
        ({"listen__host": "0.0.0.0"}, "listen.host", "without TLS must be on loopback"),
        ({"listen__host": "gateway.example"}, "listen.host", "without TLS must be on loopback"),
        ({"listen__path_prefix": "proxy"}, "listen.path_prefix", "like /proxy"),
        ({"listen__path_prefix": "/proxy/"}, "listen.path_prefix", "like /proxy"),
        ({"metrics__host": "0.0.0.0"}, "metrics.host", "loopback only"),
        ({"metrics__port": 8900}, "metrics.port", "is listen.port too"),
        # simulated evidence stays on this machine
        ({"unsafe_allow_simulated": True}, "upstreams.1.url", "must be on loopback"),
        (
            {
                "unsafe_allow_simulated": True,
                "upstreams__1__url": "atls://127.0.0.1:1",
                "listen__host": "0.0.0.0",
                "listen__unsafe_plain_non_loopback": True,
            },
            "listen.host",
            "starts only on loopback",
        ),
        # upstreams
        ({"upstreams__0__name": "a b"}, "upstreams.0.name", "not a name"),
        ({"upstreams__0__name": "agent"}, "upstreams", "there twice"),
        ({"upstreams__0__url": "http://10.0.0.1:80"}, "upstreams.plain.url", "must be on loopback"),
        ({"upstreams__0__url": "ftp://127.0.0.1"}, "upstreams.plain.url", "must be http://"),
        ({"upstreams__0__url": "http://127.0.0.1/v1"}, "upstreams.plain.url", "nothing else"),
        ({"upstreams__0__url": "http://me:pw@127.0.0.1"}, "upstreams.plain.url", "nothing else"),
        ({"upstreams__0__node_id": "spiffe://cube/agent/a1"}, "upstreams.0.policy", "is not attested"),
        ({"upstreams__0__tls__server_name": "x"}, "upstreams.0.tls", "no effect"),
        ({"upstreams__0__api_key": "a b"}, "upstreams.plain.api_key", "printable ASCII"),
        ({"upstreams__1__api_key": "k"}, "upstreams.agent.api_key", "belongs to the agent"),
        ({"upstreams__1__node_id": ""}, "upstreams.agent.node_id", "not spiffe://"),
        ({"upstreams__1__node_id": "a1"}, "upstreams.agent.node_id", "not spiffe://"),
        ({"upstreams__1__node_id": "spiffe://cube/proxy/a1"}, "upstreams.agent.node_id", "no agent of trust domain"),
        ({"upstreams__1__policy": ""}, "upstreams.agent.policy", ""),
        ({"upstreams__1__policy": "/nowhere"}, "upstreams.1.policy", "no such file"),
        # routes
        ({"routes": []}, "routes", "nothing would be forwarded"),
        ({"routes__0__upstream": "x"}, "routes.0.upstream", "unknown upstream 'x'; known: agent, plain"),
        ({"routes__0__match": {"path_regex": "("}}, "routes.all.match.path_regex", "not an RE2 pattern"),
        ({"routes__0__match": {"headers": {"X-Team": "a"}}}, "routes.0.match.headers", "lower case"),
        # identity
        (
            {"identity__domains__0__id": DOMAIN.upper(), "identity__api_keys": []},
            "identity.domains.id",
            "not a canonical UUID",
        ),
        ({"identity__domains__0__members": []}, "identity.api_keys.0.subject", "no member of the domain"),
        ({"identity__domains__0__members__0__role": "x"}, f"identity.domains.{DOMAIN}.members", "unknown role 'x'"),
        ({"identity__api_keys__0__hash": "0" * 64}, "identity.api_keys.k1.hash", "must be sha256:"),
        ({"identity__api_keys__0__hash": "sha256:" + "F" * 64}, "identity.api_keys.k1.hash", "must be sha256:"),
        ({"identity__api_keys__0__subject": "bob"}, "identity.api_keys.0.subject", "no member of the domain"),
        ({"identity__api_keys__0__expires": "2030-01-01"}, "identity.api_keys.k1.expires", "time zone"),
        ({"identity__jwt__0__algorithms": []}, "identity.jwt.https://id.algorithms", "must be of"),
        ({"identity__jwt__0__algorithms": ["none"]}, "identity.jwt.https://id.algorithms", "must be of"),
        ({"identity__jwt__0__algorithms": ["HS256"]}, "identity.jwt.https://id.algorithms", "need key_file"),
        ({"identity__jwt__0__audience": ""}, "identity.jwt.https://id", "must not be empty"),
        ({"identity__jwt__0__jwks_url": ""}, "identity.jwt.https://id", "exactly one of"),
        ({"identity__jwt__0__jwks_url": "http://id.example/k"}, "identity.jwt.https://id.jwks_url", "https"),
        # the proxy's place in the mesh
        ({"mesh__node_id": ""}, "mesh.node_id", "not spiffe://"),
        ({"mesh__node_id": "a/b"}, "mesh.node_id", "not spiffe://"),
        ({"mesh__cert_file": ""}, "mesh.cert_file", "needs its leaf and key"),
        ({"mesh__key_file": ""}, "mesh.cert_file", "needs its leaf and key"),
        ({"mesh__node_id": "p2"}, "mesh.node_id", "the leaf is spiffe://cube/proxy/p1"),
        ({"mesh__ca_file": ""}, "mesh.ca_file", "CA's certificate is needed"),
        ({"attestation__attester": ""}, "attestation.attester", 'says "none"'),
        ({"audit__path": "/"}, "audit.path", "is a directory"),
        ({"audit__path": ""}, "audit.path", "every request is audited"),
        ({"audit__rotate_bytes": 4095}, "audit.rotate_bytes", "at least 4096"),
        ({"audit__max_spool_bytes": 536_870_911}, "audit.max_spool_bytes", "two files"),
        ({"tracing__otlp_endpoint": "collector:4318"}, "tracing.otlp_endpoint", "http or https"),
    ],
)
def test_proxy(folder: Path, changes: dict[str, Any], key: str, reason: str) -> None:
    one(found("proxy", proxy(folder), **changes), key, reason)


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({"listen__trusted_peers": ["10.0.0.1"]}, "listen", "a proxy's"),
        ({"upstreams": []}, "upstreams", NO_UPSTREAM),
        ({"upstreams__0__url": "atls://127.0.0.1:1"}, "upstreams", "cannot be attested"),
        ({"attestation__attester": ""}, "attestation.attester", 'role agent says "vtpm"'),
        ({"attestation__attester": "none"}, "attestation.attester", 'role agent says "vtpm"'),
        ({"attestation__tcti": ""}, "attestation.tcti", "must not be empty"),
        ({"attestation__pcrs": []}, "attestation", "PCR indexes"),
        ({"attestation__pcrs": [24]}, "attestation", "PCR indexes"),
        ({"attestation__attester": "azure", "attestation__tcti": ""}, "attestation.tcti", "must not be empty"),
        (
            {"attestation": {"attester": "sev-snp", "event_log_file": __file__}},
            "attestation.event_log_file",
            "'sev-snp' quotes none",
        ),
        ({"attestation__event_log_file": "/absent"}, "attestation.event_log_file", "no such file"),
        ({"attestation__attester": "scheme"}, "attestation.schemes", "the one that is named"),
        ({"attestation": {"attester": "scheme", "schemes": ["absent"]}}, "attestation.schemes", "no installed package"),
        ({"attestation": {"attester": "scheme", "schemes": ["tdx"]}}, "attestation.schemes", "built in"),
        ({"attestation__attester": "gcp"}, "attestation.gcp.audience", "must not be empty"),
        ({"attestation__attester": "maa"}, "attestation.azure.maa_url", "not a plain URL"),
        (
            {"attestation__attester": "maa", "attestation__azure": {"maa_url": "http://maa.example"}},
            "attestation.azure.maa_url",
            "must be https",
        ),
        (
            {"attestation__attester": "azure", "attestation__azure": {"metadata_url": "http://10.0.0.1"}},
            "attestation.azure.metadata_url",
            "must be https",
        ),
        ({"mesh__allowed_proxies": []}, "mesh.allowed_proxies", "the list is empty"),
        ({"mesh__allowed_proxies": ["spiffe://cube/agent/a"]}, "mesh.allowed_proxies", "no proxy of trust domain"),
        ({"mesh__allowed_proxies": ["*"]}, "mesh.allowed_proxies", "not spiffe://"),
        ({"mesh__ca_file": ""}, "mesh.ca_file", "CA's certificate is needed"),
        ({"mesh__node_id": ""}, "mesh.node_id", "not spiffe://"),
        ({"mesh__trust_domain": "other"}, "mesh.allowed_proxies", "no proxy of trust domain other"),
        ({"mesh__ca_file": "/nowhere"}, "mesh.ca_file", "no such file"),
    ],
)
def test_agent(folder: Path, changes: dict[str, Any], key: str, reason: str) -> None:
    one(found("agent", agent(folder), **changes), key, reason)


@pytest.mark.parametrize("attester", sorted(AGENTS))
def test_every_attester_is_one_word_and_its_own_settings(
    folder: Path, attester: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else is needed, no device is touched; what is simulated stays refused without its switch."""
    own = {
        "attester": attester,
        "azure": {"maa_url": "https://maa.example"},
        "gcp": {"audience": "https://proxy.example"},
        "simulated_seed_file": f"{folder}/seed",
        "schemes": ["example"] if attester == "scheme" else [],
    }
    install_example(monkeypatch, folder)
    problems = found("agent", agent(folder), attestation=own)
    if not attester.startswith("simulated-"):
        assert problems == []
        return
    one(problems, "attestation.attester", "needs unsafe_allow_simulated")
    safe = {"unsafe_allow_simulated": True, "listen__host": "127.0.0.1"}
    assert found("agent", agent(folder), attestation=own, **safe) == []


def test_the_settings_know_the_attesters_that_there_are() -> None:
    assert set(get_args(Attester)) - {"", "none"} == set(AGENTS)


def test_files_named_by_the_settings(folder: Path) -> None:
    one(found("proxy", proxy(folder), mesh__key_file=f"{folder}/loose.key"), "mesh.key_file", "chmod 600")
    one(found("proxy", proxy(folder), mesh__ca_file=f"{folder}/seed"), "mesh.ca_file", "no usable certificate")
    policy = f"{folder}/empty-policy.toml"
    one(found("proxy", proxy(folder), upstreams__1__policy=policy), "upstreams.agent.policy", "empty-policy.toml")
    ca = {"upstreams__0__url": "https://10.0.0.1", "upstreams__0__tls__ca_file": f"{folder}/seed"}
    one(found("proxy", proxy(folder), **ca), "upstreams.plain.tls", "unusable TLS file")


def test_simulated_evidence_needs_its_unsafe_switch_and_loopback(folder: Path) -> None:
    simulated = {"attestation__attester": "simulated-sev-snp", "attestation__simulated_seed_file": f"{folder}/seed"}
    safe = {**simulated, "listen__host": "127.0.0.1", "unsafe_allow_simulated": True}
    assert found("agent", agent(folder), **safe) == []
    one(found("agent", agent(folder), **simulated), "attestation.attester", "needs unsafe_allow_simulated")
    one(found("agent", agent(folder), **{**safe, "listen__host": "0.0.0.0"}), "listen.host", "only on loopback")
    seedless = {**safe, "attestation__simulated_seed_file": ""}
    one(found("agent", agent(folder), **seedless), "attestation.simulated_seed_file", "seed")


def test_a_proxy_without_tenants_or_credentials_does_not_start(folder: Path) -> None:
    nobody = {"identity__api_keys": [], "identity__jwt": []}
    one(found("proxy", proxy(folder), **nobody), "identity", "nobody could log in")
    no_domain = {"identity__domains": [], "identity__api_keys": []}
    one(found("proxy", proxy(folder), **no_domain), "identity.domains", "every request would be refused")


def test_every_problem_is_found_and_the_source_named(folder: Path) -> None:
    file = folder / "bad.toml"
    file.write_text('[listen]\nhost = "0.0.0.0"\n[mesh]\nca_file = "absent"\n')
    loaded = config.load("proxy", file, {"CUBE_MESH_LIMITS__MAX_FIELDS": "0"})
    told = [str(problem) for problem in config_rules.problems(loaded, "proxy")]
    assert f"{file}: listen.host: a listener without TLS" in "\n".join(told)
    assert f"{file}: mesh.ca_file: no such file: {folder}/absent" in told
    assert "CUBE_MESH_LIMITS__MAX_FIELDS: limits.max_fields: must be at least 1, not 0" in told
    assert "upstreams: " + NO_UPSTREAM in told
    with pytest.raises(ConfigError, match=r"limits\.max_fields"):
        config_rules.check(loaded, "proxy")


def test_a_domains_evidence_policy_needs_something_attested(folder: Path) -> None:
    own = {"identity__domains__0__evidence_policy": f"{folder}/policy.toml"}
    assert found("proxy", proxy(folder), **own) == []
    plain = {"upstreams": [{"name": "agent", "url": "http://127.0.0.1:9000"}], "mesh": {}, **own}
    one(found("proxy", proxy(folder), **plain), "identity.domains.0.evidence_policy", "no upstream is attested")
