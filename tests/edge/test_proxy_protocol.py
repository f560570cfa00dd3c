"""Headers of the PROXY protocol: whole, byte by byte, and never a byte beyond."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube_mesh.errors import FramingError
from cube_mesh.proxy_protocol import HeaderReader, Source, _crc32c

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V4 = socket.inet_aton("9.9.9.9") + socket.inet_aton("10.0.0.1") + struct.pack("!HH", 4711, 443)
V6 = b"".join(socket.inet_pton(socket.AF_INET6, text) for text in ("2001:db8::1", "::1")) + struct.pack("!HH", 1, 2)


def v2(body: bytes, command: int = 0x21, family: int = 0x11, size: int | None = None) -> bytes:
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(body) if size is None else size) + body


def checked(body: bytes, wrong: int = 0, size: int = 4) -> bytes:
    """With the checksum extension, RFC 9260's CRC32C, and another extension behind it."""
    before, after = body + b"\x03" + struct.pack("!H", size), b"\x01\x00\x02h2"
    crc = _crc32c(v2(before + bytes(size) + after)) ^ wrong
    return v2(before + crc.to_bytes(4, "big")[:size].ljust(size, b"\0") + after)


def test_the_checksum_is_the_known_one() -> None:
    assert _crc32c(b"123456789") == 0xE3069283


GOOD = [
    (b"PROXY TCP4 9.9.9.9 10.0.0.1 4711 443\r\n", Source("9.9.9.9", 4711)),
    (b"PROXY TCP6 2001:DB8::1 ::1 65535 0\r\n", Source("2001:db8::1", 65535)),
    (b"PROXY UNKNOWN\r\n", Source()),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Source()),
    (v2(V4), Source("9.9.9.9", 4711)),
    (v2(V6, family=0x21), Source("2001:db8::1", 1)),
    (v2(V4 + b"\x01\x00\x02h2" + b"\x05\x00\x00"), Source("9.9.9.9", 4711)),
    (checked(V4), Source("9.9.9.9", 4711)),
    (v2(b"", command=0x20, family=0x00), Source()),
    (v2(V4, command=0x20), Source()),
    (v2(b"anything", family=0x00), Source()),
]


def read(data: bytes, step: int) -> tuple[Source | None, int]:
    """The Source, and how many bytes were taken for it."""
    reader, at = HeaderReader(), 0
    while at < len(data):
        assert reader.wants > 0
        piece = data[at : at + min(step, reader.wants)]
        at += len(piece)
        source = reader.feed(piece)
        if source is not None:
            return source, at
    return None, at


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(("header", "source"), GOOD)
def test_the_header_and_no_byte_more(header: bytes, source: Source, step: int) -> None:
    assert read(header + b"GET / HTTP/1.1\r\n", step) == (source, len(header))
    for cut in range(len(header)):
        assert read(header[:cut], step)[0] is None


BAD = [
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaa",
    b"proxy TCP4 9.9.9.9 10.0.0.1 1 2\r\n",
    b"PROXY  TCP4 9.9.9.9 10.0.0.1 1 2\r\n",
    b"PROXY TCP4 9.9.9.9 10.0.0.1 1 2\n\n",
    b"PROXY TCP4 9.9.9.9 10.0.0.1 1 2 \r\n",
    b"PROXY TCP4 9.9.9.9 10.0.0.1 1\r\n",
    b"PROXY TCP4 9.9.9.9 10.0.0.1 01 2\r\n",
    b"PROXY TCP4 9.9.9.9 10.0.0.1 65536 2\r\n",
    b"PROXY TCP4 9.9.9.9 10.0.0.1 1 70000\r\n",
    b"PROXY TCP4 9.9.9.9 10.0.0.1 -1 2\r\n",
    b"PROXY TCP4 9.9.9 10.0.0.1 1 2\r\n",
    b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
    b"PROXY TCP6 9.9.9.9 10.0.0.1 1 2\r\n",
    b"PROXY TCP4 9.9.9.9 x 1 2\r\n....",
    b"PROXY UDP4 9.9.9.9 10.0.0.1 1 2\r\n",
    b"PROXY UNKNOWN" + b"x" * 200,
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    b"PROXY UNKNOWN a\x00b\r\n",
    v2(V4, command=0x11),
    v2(V4, command=0x22),
    v2(V4, family=0x12),
    v2(V4, family=0x31),
    v2(V4, family=0x21),
    v2(V4[:-1]),
    v2(V4 + b"\x01\x00"),
    checked(V4, wrong=1),
    checked(V4, size=3),
    checked(V4, size=5),
    v2(V4 + b"\x01\x00\x05ab"),
    v2(b"a" * 5000),
    SIGNATURE[:-1] + b"X" + b"\x21\x11\x00\x0c" + V4,
]


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("data", BAD)
def test_anything_else_is_refused(data: bytes, step: int) -> None:
    with pytest.raises(FramingError) as caught:
        read(data, step)
    assert caught.value.code == "bad_proxy_header"


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", SIGNATURE, SIGNATURE + b"\x21\x11"]))
def test_any_bytes_end_in_a_source_a_refusal_or_a_bounded_wait(data: bytes, start: bytes) -> None:
    try:
        read(start + data, 10_000)
    except FramingError as error:
        assert error.code == "bad_proxy_header"
