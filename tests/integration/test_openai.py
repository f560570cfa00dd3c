"""The PyPI ``openai`` client through proxy and agent to a real llama.cpp server, and tenants who stay apart."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.support.mesh import ROLES, Mesh, Tenant, read_events
from tests.support.node import Node

ASK = [{"role": "user", "content": "Say hello."}]
MODEL = "smollm2"


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, llama: str, llama_embeddings: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The agent sends embeddings to the second server: llama.cpp does one or the other."""
    directory = tmp_path_factory.mktemp("llama-way")
    upstreams = [{"name": "text", "url": llama}, {"name": "vectors", "url": llama_embeddings}]
    routes = [
        {"name": "embeddings", "upstream": "vectors", "priority": 1, "match": {"path": "/v1/embeddings"}},
        {"name": "rest", "upstream": "text", "match": {"path_prefix": "/"}},
    ]
    with (
        mesh.agent(directory / "agent", llama, upstreams=upstreams, routes=routes) as agent,
        mesh.proxy(directory / "proxy", agent.port) as running,
    ):
        yield running


def client(proxy: Node, tenant: Tenant, key: str = "") -> openai.OpenAI:
    url = f"{proxy.url}/{tenant.domain}/v1"
    return openai.OpenAI(base_url=url, api_key=key or tenant.key, max_retries=0, timeout=60)


def last_event(proxy: Node) -> dict[str, object]:
    return read_events(proxy.log.parent)[-1]


def test_chat(proxy: Node, mesh: Mesh) -> None:
    with client(proxy, mesh.tenants[0]) as ai:
        reply = ai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=12, temperature=0, seed=1)
    assert reply.choices[0].message.content
    event = last_event(proxy)
    assert (event["input_tokens"], event["output_tokens"]) == (reply.usage.prompt_tokens, reply.usage.completion_tokens)
    assert (event["model"], event["max_tokens"], event["attestation_type"]) == (MODEL, 12, "vtpm")


def test_stream_with_usage(proxy: Node, mesh: Mesh) -> None:
    with client(proxy, mesh.tenants[0]) as ai:
        asked = {"model": MODEL, "messages": ASK, "max_tokens": 12, "temperature": 0, "seed": 1}
        whole = ai.chat.completions.create(**asked)
        chunks = list(ai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    event = last_event(proxy)
    assert (event["stream"], event["output_tokens"]) == (True, whole.usage.completion_tokens)


def test_models_completions_and_embeddings(proxy: Node, mesh: Mesh) -> None:
    with client(proxy, mesh.tenants[0]) as ai:
        assert [model.id for model in ai.models.list()] == [MODEL]
        assert ai.completions.create(model=MODEL, prompt="One, two,", max_tokens=4).choices[0].text
        vectors = ai.embeddings.create(model=MODEL, input=["one", "two"]).data
    assert len(vectors) == 2
    assert len(vectors[0].embedding) == len(vectors[1].embedding) > 100
    assert vectors[0].embedding != vectors[1].embedding


def test_the_backends_own_refusal_comes_through(proxy: Node, mesh: Mesh) -> None:
    with client(proxy, mesh.tenants[0]) as ai, pytest.raises(openai.BadRequestError) as caught:
        ai.chat.completions.create(model=MODEL, messages="none")
    assert caught.value.response.headers["x-request-id"]


def test_two_tenants_cannot_use_each_others_keys(proxy: Node, mesh: Mesh) -> None:
    red, blue = mesh.tenants
    for owner, other in ((red, blue), (blue, red)):
        with client(proxy, owner) as own:
            assert own.models.list().data
        for role in ROLES:
            with client(proxy, other, owner.keys[role]) as foreign, pytest.raises(openai.PermissionDeniedError):
                foreign.models.list()
            event = last_event(proxy)
            assert (event["domain_id"], event["error_code"]) == (other.domain, "domain_forbidden")


def test_a_wrong_key_is_an_authentication_error_of_the_client_library(proxy: Node, mesh: Mesh) -> None:
    red = mesh.tenants[0]
    with client(proxy, red, red.key[:-1] + "x") as ai, pytest.raises(openai.AuthenticationError) as caught:
        ai.models.list()
    assert caught.value.code == "invalid_api_key"


# Role by role: what the built-in table lets it do, seen from outside.
MAY = {
    "platform-admin": {"chat", "models", "pull"},
    "admin": {"chat", "models"},
    "member": {"chat", "models"},
    "viewer": {"models"},
    "auditor": set(),
}


@pytest.mark.parametrize("role", ROLES)
def test_roles(proxy: Node, mesh: Mesh, role: str) -> None:
    pull = f"{proxy.url}/{mesh.tenants[0].domain}/api/pull"
    with client(proxy, mesh.tenants[0], mesh.tenants[0].keys[role]) as ai:
        attempts = {
            "chat": lambda: ai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=1),
            "models": lambda: ai.models.list(),
            "pull": lambda: ai.post(pull, body={"model": "x"}, cast_to=object),
        }
        done = {name for name, attempt in attempts.items() if _allowed(attempt)}
    assert done == MAY[role]


def _allowed(attempt: object) -> bool:
    """Whether it got past the proxy: what the backend then says (it has no /api/pull) does not matter."""
    try:
        attempt()  # type: ignore[operator]
    except openai.PermissionDeniedError:
        return False
    except openai.NotFoundError:
        return True
    return True
