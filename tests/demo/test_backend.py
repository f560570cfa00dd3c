"""The scripted backend does what its script says and remembers what it saw: tests of others stand on that."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from itertools import pairwise

import openai
import pytest

from cube_mesh.demo.backend import Script, ScriptedBackend

ASK = {"model": "m", "messages": [{"role": "user", "content": "red green blue"}]}


@pytest.fixture
async def backend() -> AsyncIterator[ScriptedBackend]:
    async with ScriptedBackend() as running:
        yield running


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=backend.url + "/v1", api_key="k", max_retries=0) as made:
        yield made


async def test_chat_echoes_and_counts_words(client: openai.AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(**ASK)
    text = reply.choices[0].message.content
    assert text.startswith("You said: red green blue")
    assert reply.usage.prompt_tokens == 3
    assert reply.usage.completion_tokens == len(text.split())
    assert (await client.chat.completions.create(**ASK)).choices[0].message.content == text


async def test_stream_is_the_same_answer_word_by_word_with_usage(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**ASK)
    stream = await client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


async def test_max_tokens_ends_with_length(client: openai.AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(**ASK, max_tokens=3)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("You said: red", "length")


async def test_the_other_endpoints(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    assert [model.id async for model in await client.models.list()] == ["scripted"]
    assert (await client.models.retrieve("scripted")).id == "scripted"
    completion = await client.completions.create(model="m", prompt="one two")
    assert completion.choices[0].text.startswith("You said: one two")
    same, again = (await client.embeddings.create(model="m", input=["a", "a"])).data
    floats = (await client.embeddings.create(model="m", input="a", encoding_format="float")).data[0]
    assert same.embedding == again.embedding == pytest.approx(floats.embedding)
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("none")
    assert [seen.method for seen in backend.requests][:2] == ["GET", "GET"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b'{"messages":[{"role":"user","content":"x"}]}', "model"),
        (b'{"model":"m","messages":[]}', "messages"),
        (b'{"model":"m","messages":[{"content":"x"}],"max_tokens":-1}', "max_tokens"),
    ],
)
async def test_bad_bodies_are_400_in_the_envelope(backend: ScriptedBackend, body: bytes, said: str) -> None:
    status, answer = await exchange(backend, post("/v1/chat/completions", body))
    assert status == 400
    assert said in json.loads(answer)["error"]["message"]


async def test_status_and_key(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    backend.script = Script(status=503)
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(**ASK)
    backend.script = Script(api_key="other")
    with pytest.raises(openai.AuthenticationError):
        await client.chat.completions.create(**ASK)


async def test_events_gap_and_first_byte(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    backend.script = Script(events=4, gap_s=0.02, first_byte_s=0.05)
    started = time.perf_counter()
    stream = await client.chat.completions.create(**ASK, stream=True)
    first = time.perf_counter() - started
    count = len([chunk async for chunk in stream])
    sent = backend.requests[0].sent_at
    assert (count, len(sent)) == (6, 6)  # role, four words, finish reason
    assert first >= 0.05
    assert min(b - a for a, b in pairwise(sent)) >= 0.019


async def test_cut_resets_and_is_not_the_clients_doing(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    backend.script = Script(cut_after=3)
    stream = await client.chat.completions.create(**ASK, stream=True)
    got = []
    with pytest.raises(openai.APIConnectionError):
        async for chunk in stream:
            got.append(chunk)
    assert len(got) == len(backend.requests[0].sent_at) == 3
    assert backend.cancelled_at == []


async def test_status_zero_is_a_reset_without_an_answer(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    backend.script = Script(status=0)
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(**ASK)
    assert len(backend.requests) == 1


async def test_a_client_that_leaves_a_stalled_stream_is_noticed(backend: ScriptedBackend) -> None:
    backend.script = Script(stall_after=2)
    reader, writer = await asyncio.open_connection("127.0.0.1", backend.port)
    writer.write(post("/v1/chat/completions", json.dumps({**ASK, "stream": True}).encode()))
    seen = b""
    while seen.count(b"data: ") < 2:
        seen += await reader.read(4096)
    left = time.perf_counter()
    writer.close()
    await asyncio.sleep(0.05)
    assert len(backend.cancelled_at) == 1
    assert 0 <= backend.cancelled_at[0] - left < 0.05


async def test_pieces_and_byte_count(backend: ScriptedBackend) -> None:
    backend.script = Script(piece_bytes=1)
    request = post("/v1/chat/completions", json.dumps(ASK).encode())
    status, small = await exchange(backend, request)
    assert (status, backend.received_bytes) == (200, len(request))
    backend.script = Script()
    assert json.loads(small)["choices"] == json.loads((await exchange(backend, request))[1])["choices"]


async def test_garbage_is_400_and_a_second_request_on_the_connection_is_answered(backend: ScriptedBackend) -> None:
    assert (await exchange(backend, b"\x16\x03\x01\x00\r\n\r\n"))[0] == 400
    reader, writer = await asyncio.open_connection("127.0.0.1", backend.port)
    writer.write(b"HEAD /health HTTP/1.1\r\nhost: x\r\n\r\n" * 2)
    await asyncio.sleep(0.05)
    assert (await reader.read(4096)).count(b"HTTP/1.1 200") == 2
    writer.close()
    await writer.wait_closed()


async def test_the_command_line_prints_where_it_listens_and_stops_on_sigterm() -> None:
    command = (sys.executable, "-m", "cube_mesh.demo.backend", "--port", "0", "--events", "2", "--gap-s", "0.01")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), 10)).decode().strip()
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="k") as client:
            reply = await client.chat.completions.create(**ASK)
    finally:
        process.terminate()
        code = await asyncio.wait_for(process.wait(), 5)
    assert (reply.usage.completion_tokens, code) == (2, 0)


def post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def exchange(backend: ScriptedBackend, request: bytes) -> tuple[int, bytes]:
    """(status, body) of one raw request on a connection of its own; the body is read by its Content-Length."""
    reader, writer = await asyncio.open_connection("127.0.0.1", backend.port)
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    body = await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), body
