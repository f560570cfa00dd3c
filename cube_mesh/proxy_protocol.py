"""The PROXY protocol, versions 1 and 2: what a peer in front says about a connection, before its first byte.

A core without I/O. ``wants`` is how many bytes may be read next without touching what lies behind the header, so that
TLS or HTTP finds its first byte where it expects it. haproxy.org's proxy-protocol.txt, sections 2.1 and 2.2; TCP only.
Not checked: whether the peer may speak for others (the caller's question) and the checksum among the extensions.
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
        return _binary(read[12], read[13], read[16:])


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


def _binary(command: int, family: int, rest: bytes) -> Source:
    if command not in (_LOCAL, _PROXY):
        raise _bad()
    if command == _LOCAL or family == _UNSPECIFIED:
        return Source()
    width = {_TCP4: 4, _TCP6: 16}.get(family)
    if width is None or len(rest) < 2 * width + 4:
        raise _bad()
    _walk_extensions(rest[2 * width + 4 :])
    (port,) = struct.unpack_from("!H", rest, 2 * width)
    return Source(str(ipaddress.ip_address(rest[:width])), port)


def _walk_extensions(rest: bytes) -> None:
    """Type, length, value, to the last byte; what they say is not used."""
    at = 0
    while at < len(rest):
        if at + 3 > len(rest):
            raise _bad()
        at += 3 + (rest[at + 1] << 8 | rest[at + 2])
    if at != len(rest):
        raise _bad()
