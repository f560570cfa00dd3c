"""The demo's tenant: one streamed chat completion, as any HTTP client would ask for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException

from cube_mesh.demo.processes import DemoError

_TIMEOUT_S = 60.0


class Completion:
    """Iterate for the pieces of the answer. ``request_id`` is there from the start, ``whole`` after the last piece."""

    def __init__(self, port: int, path: str, key: str, prompt: str, model: str) -> None:
        self.whole = False
        body = {
            "model": model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 48,
            "messages": [{"role": "user", "content": prompt}],
        }
        headers = {
            "authorization": f"Bearer {key}",
            "content-type": "application/json",
            "user-agent": "cube-mesh-demo",
        }
        self._connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        try:
            self._connection.request("POST", path, json.dumps(body), headers)
            self._response = self._connection.getresponse()
            self.request_id = self._response.getheader("x-request-id") or ""
            if self._response.status != 200:
                raise DemoError(f"the proxy answered {self._response.status}: {self._response.read(2000).decode()}")
        except (OSError, HTTPException) as error:
            raise DemoError(f"the proxy did not answer: {error!r}") from error

    def __iter__(self) -> Iterator[str]:
        try:
            for line in self._response:
                data = line.removeprefix(b"data: ").strip()
                if data == b"[DONE]":
                    self.whole = True
                elif line.startswith(b"data: "):
                    yield from _text(json.loads(data))
        except (OSError, HTTPException, ValueError) as error:
            raise DemoError(f"the answer broke off: {error!r}") from error
        finally:
            self._connection.close()


def _text(event: dict[str, object]) -> Iterator[str]:
    if "error" in event:
        raise DemoError(f"the answer ended with an error: {event['error']}")
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        content = choice.get("delta", {}).get("content")
        if content:
            yield content
