"""The pump of records and the reads of an upstream at their bounds; what passes through them, tests/tls shows."""

from __future__ import annotations

import pytest

from cube_mesh._fastpath import ChannelCore
from cube_mesh.tls import channel
from tests.connection.wire import Rig

_HELLO = b"GET /v1/audio HTTP/1.1\r\nHost: h\r\n\r\n"


def test_nothing_passes_before_a_channel_stands_on_a_session() -> None:
    core = ChannelCore()
    sent: list[bytes] = []
    core._tcp_write = sent.append
    core._deliver = sent.append
    core.write(b"x")
    core.buffer_updated(10)
    core._flush()
    assert sent == [] and core._closing


@pytest.mark.parametrize("place", range(7))
def test_an_address_of_zero_is_refused(place: int) -> None:
    addresses = [1] * 7
    addresses[place] = 0
    with pytest.raises(ValueError):
        ChannelCore()._bind(object(), tuple(addresses[:4]), tuple(addresses[4:]))


def test_the_library_is_bound_once() -> None:
    core = ChannelCore()
    core._bind(object(), channel._FUNCTIONS, (1, 1, 1))
    with pytest.raises(ValueError):
        core._bind(object(), channel._FUNCTIONS, (1, 1, 1))
    assert all(channel._FUNCTIONS) and len(set(channel._FUNCTIONS)) == 4


async def test_one_read_of_an_upstream_is_bounded_and_read_at_once() -> None:
    rig = Rig()
    await rig.send(_HELLO)
    upstream = rig.upstreams.connections[0]
    buffer = upstream.get_buffer(-1)
    assert len(buffer) == 65_536
    for size in (-1, len(buffer) + 1):
        with pytest.raises(ValueError):
            upstream.buffer_updated(size)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    buffer[: len(answer)] = answer
    upstream.buffer_updated(len(answer))
    buffer[: len(answer)] = bytes(len(answer))  # another connection's read
    assert rig.wire.sent.endswith(b"\r\n\r\nhello") and rig.ended.outcome == "completed"


async def test_an_answer_to_nobody_raises() -> None:
    rig = Rig()
    await rig.send(_HELLO)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    await rig.answer(head + b"hello")
    with pytest.raises(TypeError, match="nobody"):
        rig.down.on_body(b"x" * 20, False)
