"""What the scripted backend says: OpenAI-shaped replies made from the request alone. No I/O and no clock.

The answer repeats a few words of the question and then fills up, one word an event, so that a test or a reader can see
that it belongs to its own request. A token is a word between spaces, and ``usage`` counts exactly those. The vectors of
an embedding are a digest of the text: the same text gives the same vector, and nothing more is meant by it.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import msgspec

Json = dict[str, Any]

ECHOED_WORDS = 8
DIMENSIONS = 8
_OPENING = ("You", "said:")
_FILLER = ("-", "the", "scripted", "backend", "has", "nothing", "to", "add", "and", "says", "so", "word", "by", "word.")
_DEFAULT_WORDS = 24

encode = msgspec.json.Encoder().encode


class BadRequest(Exception):
    """The request cannot be answered: 400, with this text in OpenAI's envelope."""


class Answer(msgspec.Struct, frozen=True):
    """One generated text. ``prompt_tokens`` and ``len(words)`` are the usage; ``finish`` is OpenAI's finish_reason."""

    id: str
    model: str
    words: tuple[str, ...]
    prompt_tokens: int
    finish: str
    chat: bool

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def usage(self) -> Json:
        tokens = len(self.words)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }


def make_answer(request: Json, number: int, *, chat: bool, events: int = 0) -> Answer:
    """The answer to a parsed request body. ``events`` is the number of words (0: a default), cut by ``max_tokens``."""
    prompt = _chat_prompt(request) if chat else _strings(request, "prompt")
    said = prompt[-1].split() if prompt else []
    wanted = events or _DEFAULT_WORDS
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or wanted
    if not isinstance(limit, int) or limit < 1:
        raise BadRequest("max_tokens must be a positive integer")
    words = tuple(islice((*_OPENING, *said[:ECHOED_WORDS], *islice(cycle(_FILLER), wanted)), min(wanted, limit)))
    return Answer(
        id=f"{'chatcmpl' if chat else 'cmpl'}-scripted-{number}",
        model=_model(request),
        words=words,
        prompt_tokens=sum(len(text.split()) for text in prompt),
        finish="length" if limit < wanted else "stop",
        chat=chat,
    )


def whole(answer: Answer, created: int) -> bytes:
    """The reply when ``stream`` is not asked for."""
    choice: Json = {"index": 0, "finish_reason": answer.finish, "logprobs": None}
    if answer.chat:
        choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
    else:
        choice["text"] = answer.text
    return encode(_object(answer, created, "", choices=[choice], usage=answer.usage))


def stream(answer: Answer, created: int, *, include_usage: bool) -> Iterator[Json]:
    """The payloads of a stream, in order; the caller writes each as one event, and ``[DONE]`` after the last.

    A chat begins with the role. Every word is an event of its own; then comes the finish reason, then the usage.
    """
    extra: Json = {"usage": None} if include_usage else {}
    if answer.chat:
        yield _chunk(answer, created, {"role": "assistant", "content": ""}, None, extra)
    for index, word in enumerate(answer.words):
        text = word if index == 0 else " " + word
        yield _chunk(answer, created, {"content": text} if answer.chat else text, None, extra)
    yield _chunk(answer, created, {} if answer.chat else "", answer.finish, extra)
    if include_usage:
        yield _object(answer, created, ".chunk", choices=[], usage=answer.usage)


def embeddings(request: Json) -> bytes:
    """A vector of ``DIMENSIONS`` numbers in [-1, 1) for each input; ``encoding_format`` float or base64."""
    inputs = _strings(request, "input")
    as_base64 = request.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(text, as_base64)}
        for index, text in enumerate(inputs)
    ]
    tokens = sum(len(text.split()) for text in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return encode({"object": "list", "data": data, "model": _model(request), "usage": usage})


def model_object(name: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "cube-mesh"}


def error(message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    return encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def parse(body: bytes) -> Json:
    """The request body as an object; BadRequest otherwise."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError as problem:
        raise BadRequest(f"the body is not JSON: {problem}") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


def _object(answer: Answer, created: int, suffix: str, **fields: Any) -> Json:
    kind = f"chat.completion{suffix}" if answer.chat else "text_completion"
    return {"id": answer.id, "object": kind, "created": created, "model": answer.model, **fields}


def _chunk(answer: Answer, created: int, piece: Json | str, finish: str | None, extra: Json) -> Json:
    choice: Json = {"index": 0, "finish_reason": finish, "logprobs": None, ("delta" if answer.chat else "text"): piece}
    return _object(answer, created, ".chunk", choices=[choice], **extra)


def _model(request: Json) -> str:
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("model is required")
    return model


def _chat_prompt(request: Json) -> list[str]:
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message")
    return [_content(message) for message in messages]


def _content(message: object) -> str:
    """The text of one message: its content, or the text parts of it."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _strings(request: Json, key: str) -> list[str]:
    value = request.get(key)
    texts: Sequence[object] = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest(f"{key} must be a string or a list of strings")
    return [str(text) for text in texts]


def _vector(text: str, as_base64: bool) -> list[float] | str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    numbers = [value / 32_768 for value in struct.unpack(f"<{DIMENSIONS}h", digest[: 2 * DIMENSIONS])]
    if not as_base64:
        return numbers
    return base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *numbers)).decode()
