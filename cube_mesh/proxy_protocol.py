"""The PROXY protocol, versions 1 and 2: what a peer in front says about a connection, before its first byte.

A core without I/O. ``wants`` is how many bytes may be read next without touching what lies behind the header, so that
TLS or HTTP finds its first byte where it expects it. haproxy.org's proxy-protocol.txt, sections 2.1 and 2.2; TCP only.
Not checked: whether the peer may speak for others, which is the caller's question.
"""

from __future__ import annotations

import ipaddress
import re
import struct

import msgspec

from cube_mesh.errors import FramingError

MAX_V1 = 107  # bytes of a line, its end included
MAX_V2 = 4096  # bytes behind the fixed part: addresses and extensions
_FIRST = 15  # the shortest header of version 1; of version 2 it holds all but a byte of the fixed part
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_CRC32C = 0x03  # the extension with a checksum over the whole header, its own bytes taken as zeros
_LINE = re.compile(
    rb"PROXY (?:TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
    rb"|UNKNOWN(?: [ -~]*)?)\r\n"
).fullmatch


class Source(msgspec.Struct, frozen=True):
    """The client's end of the connection. ``address`` "": the peer speaks for itself (a health check)."""

    address: str = ""
    port: int = 0


class HeaderReader:
    """Feed it at most ``wants`` bytes at a time until it gives a Source."""

    __slots__ = ("_data", "wants")

    def __init__(self) -> None:
        self._data = b""
        self.wants = _FIRST

    def feed(self, data: bytes) -> Source | None:
        """None: more is needed. Raises FramingError ``bad_proxy_header``."""
        self._data += data
        read = self._data
        if read.startswith((_SIGNATURE[: len(read)], _SIGNATURE)):
            return self._version_2(read)
        if read.startswith((b"PROXY "[: len(read)], b"PROXY ")):
            return self._version_1(read)
        raise _bad()

    def _version_1(self, read: bytes) -> Source | None:
        if len(read) < _FIRST:
            self.wants = _FIRST - len(read)
            return None
        if read.endswith(b"\r\n"):
            return _line(read)
        if len(read) >= MAX_V1 or b"\n" in read:
            raise _bad()
        self.wants = 1  # the line says nowhere how long it is
        return None

    def _version_2(self, read: bytes) -> Source | None:
        size = 16 + (read[14] << 8 | read[15]) if len(read) >= 16 else 16
        if size > 16 + MAX_V2:
            raise _bad()
        if len(read) < size or size == 16 > len(read):
            self.wants = size - len(read)
            return None
        return _binary(read)


def _bad() -> FramingError:
    return FramingError("bad_proxy_header", "The PROXY protocol header is malformed.")


def _line(line: bytes) -> Source:
    match = _LINE(line)
    if match is None:
        raise _bad()
    if match[1] is None:
        return Source()
    kind = ipaddress.IPv4Address if match[1] == b"4" else ipaddress.IPv6Address
    try:
        kind(match[3].decode())
        source = kind(match[2].decode())
    except ValueError:
        raise _bad() from None
    if max(int(match[4]), int(match[5])) > 65_535:
        raise _bad()
    return Source(str(source), int(match[4]))


def _binary(header: bytes) -> Source:
    command, family = header[12], header[13]
    if command not in (_LOCAL, _PROXY):
        raise _bad()
    if command == _LOCAL or family == _UNSPECIFIED:
        return Source()
    width = {_TCP4: 4, _TCP6: 16}.get(family)
    if width is None or len(header) < 16 + 2 * width + 4:
        raise _bad()
    _walk_extensions(header, 16 + 2 * width + 4)
    (port,) = struct.unpack_from("!H", header, 16 + 2 * width)
    return Source(str(ipaddress.ip_address(header[16 : 16 + width])), port)


def _walk_extensions(header: bytes, at: int) -> None:
    """Type, length, value, to the last byte. Of what they say only the checksum is used."""
    while at < len(header):
        if at + 3 > len(header):
            raise _bad()
        kind, start = header[at], at + 3
        at = start + (header[at + 1] << 8 | header[at + 2])
        if kind == _CRC32C:
            zeroed = header[:start] + bytes(4) + header[at:]
            if at - start != 4 or header[start:at] != _crc32c(zeroed).to_bytes(4, "big"):
                raise _bad()
    if at != len(header):
        raise _bad()


def _crc32c(data: bytes) -> int:
    """RFC 9260 appendix A: reflected, polynomial 0x1EDC6F41."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
