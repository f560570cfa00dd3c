"""What an endpoint answered, as what a collector may use of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attest.errors import CollectionFailed
from attest.evidence import TOKEN_TYPE, Part
from attest.testkit.tokens import sign
from attest.transport import BUSY, Answer, Ask, answered, json_member, token_part

ASK = Ask(url="http://metadata.example/x", max_bytes=5)


def _failure(call: Callable[[], object]) -> CollectionFailed:
    with pytest.raises(CollectionFailed) as caught:
        call()
    return caught.value


def test_the_transport_gets_the_question_and_its_answer_is_the_body() -> None:
    asked = []

    def transport(ask: Ask) -> Answer:
        asked.append(ask)
        return Answer(200, b"\x00body")

    assert answered(transport, ASK, "metadata") == b"\x00body" and asked == [ASK]


@pytest.mark.parametrize("status", [*sorted(BUSY), 201, 204, 301, 400, 401, 404, 501])
def test_any_other_status_is_a_failure(status: int) -> None:
    failure = _failure(lambda: answered(lambda _: Answer(status, b"no\r\n\x1b[31m" + b"x" * 300), ASK, "metadata"))
    assert failure.code == ("endpoint_busy" if status in BUSY else "endpoint_refused")
    assert str(failure) == f"metadata: status {status}: no [31m{'x' * 193}", "one line of plain text, not all of it"


def test_a_member_is_a_text() -> None:
    assert json_member(b'{"a": 1, "token": "t"}', "token", "metadata") == "t"
    for body in (b"", b"{", b"\xff", b"[]", b'"token"', b"{}", b'{"token": ""}', b'{"token": 1}', b"[" * 100_000):
        assert _failure(lambda body=body: json_member(body, "token", "metadata")).code == "endpoint_answer"


def test_a_token_has_the_form_of_one() -> None:
    token = sign({"iss": "x"})
    assert token_part(token, "metadata") == Part(TOKEN_TYPE, token)
    for body in (b"", b"<html>", token[:-1] + b"=", b"a.b.c"):
        assert _failure(lambda body=body: token_part(body, "metadata")).code == "endpoint_answer"
