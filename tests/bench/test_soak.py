"""The soak's clients know the end of an answer, its verdict names what did not hold, and a short form holds."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from bench.load import answers
from bench.soak import __main__ as soak
from bench.soak.clients import Crowd, Kind, whole
from tests.support.mesh import make_tenant


@pytest.mark.parametrize("answer", [answers.WHOLE, answers.STREAM], ids=["whole", "stream"])
def test_an_answer_ends_where_it_ends(answer: bytes) -> None:
    assert not any(whole(answer[:size]) for size in range(len(answer)))
    assert whole(answer)


def test_a_stream_without_its_end_is_not_whole() -> None:
    assert not whole(answers.BEGUN)
    assert not whole(answers.STREAM.replace(b"data: [DONE]\n\n", b""))


def test_the_mixture_is_what_the_documentation_says() -> None:
    kinds = soak.mixture(make_tenant("bench"))
    names = [kind.name for kind in kinds]
    assert len(kinds) == 20
    assert [names.count("JSON"), names.count("stream"), names.count("cancelled")] == [10, 5, 2]
    assert sum(name.startswith("refused") for name in names) == 3


async def test_clients_count_what_ended_otherwise() -> None:
    """A server that answers once as asked, once with another status, once with half of an answer, then not at all."""
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n"]
    answers += [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", b""]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(100):
            answer = answers.pop(0)
            writer.write(answer)
            if not answer or b": 9" in answer:
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        crowd = Crowd(server.sockets[0].getsockname()[1], (Kind("one", b"GET", b"200"),))
        await asyncio.wait_for(crowd.send(4, 1), 5)
    assert crowd.done == {"one": 1}
    assert crowd.odd == {"one: answered 503": 1, "one: cut": 1, "one: no answer": 1}


def found(**changes: Any) -> dict[str, Any]:
    state = {"worker": {"rss_kb": 50_000, "descriptors": 17}}
    known = {"seconds": 1.0, "done": {"JSON": 100}, "odd": {}, "after_a_tenth": state, "at_the_end": state}
    return {**known, "rss_kb": {}, **changes}


def at_the_end(rss_kb: int = 50_000, descriptors: int = 17) -> dict[str, Any]:
    return {"at_the_end": {"worker": {"rss_kb": rss_kb, "descriptors": descriptors}}}


ABOUT = {"requests": 100}
TOO_LARGE = {"worker": {"rss_kb": 81_000, "descriptors": 17}}
CASES = [
    (found(), ""),
    (found(**at_the_end(rss_kb=50_000 + 3072)), ""),
    (found(**at_the_end(rss_kb=50_000 + 3073)), "grew by 3,073 KiB"),
    (found(after_a_tenth=TOO_LARGE, **at_the_end(rss_kb=81_921)), "81,921 KiB, more than 81,920"),
    (found(**at_the_end(descriptors=18)), "17 descriptors and has 18"),
    (found(**at_the_end(descriptors=16)), "17 descriptors and has 16"),
    (found(at_the_end={}), "the processes were"),
    (found(after_a_tenth={}, at_the_end={}), "the processes were"),
    (found(done={"JSON": 99}), "99 of 100"),
    (found(done={"JSON": 99}, odd={"JSON: cut": 1}), "1 requests: JSON: cut"),
]


@pytest.mark.parametrize(("state", "word"), CASES)
def test_the_verdict_names_what_did_not_hold(state: dict[str, Any], word: str) -> None:
    result = soak.verdict(state, ABOUT)
    assert result["held"] == (not word)
    assert len(result["faults"]) == bool(word)
    assert all(word in fault for fault in result["faults"])
    assert ("NOT HELD" in soak.table(result)) == bool(word)


@pytest.mark.slow
def test_a_short_soak(tmp_path: Path) -> None:
    """Whether memory stays is not to be seen in so few: that every request ends as it should is."""
    out = tmp_path / "out.json"
    soak.main(["--requests", "2000", "--json", str(out)])
    result = json.loads(out.read_text())
    assert result["odd"] == {}
    assert result["done"]["JSON"] == 1000 and result["done"]["cancelled"] == 200
    assert result["at_the_end"]["worker"]["descriptors"] > 0
    assert len(result["rss_kb"]["worker"]) == 100
