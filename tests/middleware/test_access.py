"""Who may do what: the endpoint table times the roles, and two tenants with each other's keys."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from cube_mesh.authz import DomainAuthorizer, load_roles, parse_roles
from cube_mesh.endpoints import load_endpoints, parse_endpoints
from cube_mesh.errors import ConfigError, CubeMeshError, PolicyError
from cube_mesh.exchange import Exchange
from cube_mesh.middleware.authz import Authz
from cube_mesh.middleware.tenant import Tenant
from cube_mesh.ports import Principal
from cube_mesh.settings import Domain, Member
from tests.middleware.fakes import CHAT, KEY_A, KEY_B, A, B, Mesh, bearer, exchange

ENDPOINTS = load_endpoints()
ROLES = load_roles()
INFERENCE = {
    "llm_chat_completions", "llm_completions", "llm_embeddings", "llm_read", "llm_transcription", "llm_translation",
    "llm_speech", "llm_rerank", "llm_scoring", "llm_pooling", "llm_classification", "llm_utility",
}  # fmt: skip
MODELS = {"llm_create", "llm_update", "llm_delete"}
AUDIT = {"audit_log_read", "audit_log_export"}
# Written out a second time on purpose: a change of policies/authz/*.toml must be made twice.
ALLOWED = {
    "platform-admin": INFERENCE | MODELS | AUDIT,
    "admin": INFERENCE | AUDIT,
    "member": INFERENCE,
    "viewer": {"llm_read"},
    "auditor": AUDIT,
}
TABLE = {
    "POST /v1/chat/completions": ("llm_chat_completions", "chat", "json"),
    "POST /v1/responses": ("llm_chat_completions", "chat", "json"),
    "POST /v1/completions": ("llm_completions", "text_completion", "json"),
    "POST /v1/embeddings": ("llm_embeddings", "embeddings", "json"),
    "POST /v1/moderations": ("llm_classification", "", "json"),
    "GET /v1/models": ("llm_read", "", "stream"),
    "GET /v1/models/{model}": ("llm_read", "", "stream"),
    "DELETE /v1/models/{model}": ("llm_delete", "", "stream"),
    "POST /v1/audio/transcriptions": ("llm_transcription", "", "stream"),
    "POST /v1/audio/translations": ("llm_translation", "", "stream"),
    "POST /v1/audio/speech": ("llm_speech", "", "json"),
    "POST /v1/rerank": ("llm_rerank", "", "json"),
    "POST /v2/rerank": ("llm_rerank", "", "json"),
    "POST /rerank": ("llm_rerank", "", "json"),
    "POST /v1/score": ("llm_scoring", "", "json"),
    "POST /score": ("llm_scoring", "", "json"),
    "POST /pooling": ("llm_pooling", "", "json"),
    "POST /classify": ("llm_classification", "", "json"),
    "POST /tokenize": ("llm_utility", "", "json"),
    "POST /detokenize": ("llm_utility", "", "json"),
    "POST /api/chat": ("llm_chat_completions", "chat", "json"),
    "POST /api/generate": ("llm_completions", "text_completion", "json"),
    "POST /api/embed": ("llm_embeddings", "embeddings", "json"),
    "POST /api/embeddings": ("llm_embeddings", "embeddings", "json"),
    "GET /api/tags": ("llm_read", "", "stream"),
    "GET /api/ps": ("llm_read", "", "stream"),
    "GET /api/version": ("llm_read", "", "stream"),
    "POST /api/show": ("llm_read", "", "json"),
    "POST /api/pull": ("llm_create", "", "json"),
    "POST /api/push": ("llm_create", "", "json"),
    "POST /api/create": ("llm_create", "", "json"),
    "POST /api/copy": ("llm_create", "", "json"),
    "DELETE /api/delete": ("llm_delete", "", "json"),
}


def test_the_built_in_tables_are_the_reviewed_ones() -> None:
    shipped = {f"{e.method} {e.path}": (e.permission, e.operation, e.body) for e in ENDPOINTS.endpoints}
    assert shipped == TABLE
    assert {name: set(permissions) for name, permissions in ROLES.items()} == ALLOWED


def passed(stage: Authz, subject: str, domain: str, method: str, path: str, bound: str | None = None) -> Exchange:
    passing = exchange(f"/{domain}{path}", method)
    Tenant(ENDPOINTS).enter(passing)
    passing.principal = Principal(subject, "jwt", "", bound)
    assert stage.enter(passing) is None
    return passing


@pytest.mark.parametrize(("line", "role"), list(itertools.product(TABLE, ALLOWED)))
def test_every_endpoint_for_every_role(line: str, role: str) -> None:
    method, template = line.split(" ")
    permission = TABLE[line][0]
    stage = Authz(DomainAuthorizer([Domain(id=A, members=(Member(subject="s", role=role),))], ROLES))
    path = template.replace("{model}", "llama-3")
    if permission in ALLOWED[role]:
        grant = passed(stage, "s", A, method, path).grant
        assert grant is not None
        assert (grant.domain_id, grant.member_id, grant.role, grant.permission) == (A, f"{A}_s", role, permission)
    else:
        with pytest.raises(PolicyError) as caught:
            passed(stage, "s", A, method, path)
        assert (caught.value.status, caught.value.code) == (403, "permission_denied")


@pytest.mark.parametrize("line", TABLE)
def test_no_other_method_opens_an_endpoint(line: str) -> None:
    template = line.split(" ")[1]
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        listed = f"{'GET' if method == 'HEAD' else method} {template}" in TABLE
        found = ENDPOINTS.find(method, template.replace("{model}", "m"))
        assert (found is not None) == listed


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/", "/V1/chat/completions", "/v1/chat/completions/x", "/foo/v1/chat/completions",
        "/v1/chat%2Fcompletions", "/v1/%63hat/completions", "/v1//chat/completions", "/v1/models/", "/v1/models/a/b",
        "/v1/models/x/score", "/api", "/", "", "/v1/files", "/v1/responses/r1", "/metrics", "/attestation",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_what_only_looks_like_an_endpoint_is_none(method: str, path: str) -> None:
    assert ENDPOINTS.find(method, path) is None


DENY: list[tuple[str, str, str | None, str, str]] = [
    ("mallory", A, None, CHAT, "domain_forbidden"),  # no member
    ("alice", B, A, CHAT, "domain_forbidden"),  # a credential of another domain, though a member of this one
    ("bob", A, None, CHAT, "domain_forbidden"),  # member of another domain
    ("alice", "00000000-0000-4000-8000-000000000000", None, CHAT, "domain_forbidden"),  # no such domain
    ("alice", A, A, "/v1/files", "endpoint_not_allowed"),
    ("alice", A, A, "/api/pull", "permission_denied"),
    ("vera", A, A, CHAT, "permission_denied"),
]


@pytest.mark.parametrize(("subject", "domain", "bound", "path", "code"), DENY)
def test_denials(subject: str, domain: str, bound: str | None, path: str, code: str) -> None:
    members = (Member(subject="alice", role="member"), Member(subject="vera", role="viewer"))
    domains = [
        Domain(id=A, members=members),
        Domain(id=B, members=(Member(subject="bob", role="member"), Member(subject="alice", role="member"))),
    ]
    with pytest.raises(PolicyError) as caught:
        passed(Authz(DomainAuthorizer(domains, ROLES)), subject, domain, "POST", path, bound)
    assert (caught.value.status, caught.value.code) == (403, code)


def test_a_missing_domain_and_a_foreign_one_are_answered_alike() -> None:
    stage = Authz(DomainAuthorizer([Domain(id=A, members=())], ROLES))
    answers = set()
    for domain in (A, B):
        with pytest.raises(PolicyError) as caught:
            passed(stage, "alice", domain, "POST", CHAT)
        answers.add((caught.value.code, caught.value.message, caught.value.status))
    assert len(answers) == 1


def test_authz_without_authn_is_our_mistake_and_a_refusal() -> None:
    passing = exchange()
    Tenant(ENDPOINTS).enter(passing)
    with pytest.raises(CubeMeshError) as caught:
        Authz(DomainAuthorizer([], ROLES)).enter(passing)
    assert caught.value.code == "no_principal"


@pytest.mark.parametrize(
    ("domain", "key", "status", "code"),
    [
        (A, KEY_A, 0, ""),
        (B, KEY_B, 0, ""),
        (B, KEY_A, 403, "domain_forbidden"),
        (A, KEY_B, 403, "domain_forbidden"),
        (A, KEY_A + "x", 401, "invalid_api_key"),
        (A, KEY_A[:-1], 401, "invalid_api_key"),
        (A, KEY_A.replace("key-a", "key-b"), 401, "invalid_api_key"),
        (A, KEY_A.upper(), 401, "invalid_api_key"),
    ],
)
def test_two_tenants_and_each_others_keys(domain: str, key: str, status: int, code: str) -> None:
    mesh = Mesh()
    passing = exchange(f"/{domain}{CHAT}", "POST", bearer(key))
    answer: Any = mesh.chain.enter(passing)
    if not status:
        assert answer is None and passing.target is not None
        return
    assert answer.status == status and passing.target is None and passing.route is None
    assert passing.error is not None and passing.error.code == code


def row(method: str = "POST", path: str = "/a", permission: str = "p", more: str = "") -> str:
    return f"[[endpoint]]\nmethod='{method}'\npath='{path}'\npermission='{permission}'\n{more}\n"


def test_a_good_row_loads() -> None:
    assert parse_endpoints(row() + row("GET") + row(path="/{a}/b")).find("GET", "/a") is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not toml",
        "endpoint = []",
        "[[endpoint]]\nmethod='POST'\npath='/a'",
        row(method="BREW"),
        row(method="post"),
        row(path="a"),
        row(path=""),
        row(path="/a//b"),
        row(path="/a b"),
        row(path="/a/../b"),
        row(path="/{a}x"),
        row(permission=""),
        row(permission="P"),
        row(permission="*"),
        row(more="extra=1"),
        row(more="body='xml'"),
        row() * 2,
        row(path="/{a}") + row(path="/{b}", permission="q"),
    ],
)
def test_a_bad_endpoint_table_does_not_load(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_endpoints(text)


@pytest.mark.parametrize(
    "text",
    ["", "[role.a]", "[role.a]\npermissions=[]", "[role.a]\npermissions=['*']", "[role.a]\npermissions=['p','p']"],
)
def test_bad_roles_do_not_load(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_roles(text)


@pytest.mark.parametrize(
    "domains",
    [
        [Domain(id=A.upper())],
        [Domain(id=A), Domain(id=A)],
        [Domain(id=A, members=(Member(subject="s", role="god"),))],
        [Domain(id=A, members=(Member(subject="", role="member"),))],
        [Domain(id=A, members=(Member(subject="s", role="member"), Member(subject="s", role="admin")))],
    ],
)
def test_bad_domains_do_not_load(domains: list[Domain]) -> None:
    with pytest.raises(ConfigError):
        DomainAuthorizer(domains, ROLES)
