"""Who the client is: its certificate, and its address behind peers that we trust to tell: ``X-Forwarded-For`` or
``Forwarded`` (RFC 7239).

One of the two fields, by configuration, and only from configured peers: what a peer does not write itself it may pass
on from anybody. The list is read from its end, the nearest hop, while the hops are trusted; the first one that is not
is the client. What a trusted peer sends must be well formed, or the request is refused: a guess would stand on record
as a fact.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from cryptography import x509

from cube_mesh._fastpath import RequestHead
from cube_mesh.errors import ConfigError, FramingError

K = TypeVar("K")
V = TypeVar("V")

MAX_HOPS = 32
_MAX_SEEN = 1024
_UNKNOWN = re.compile(r"unknown|_[A-Za-z0-9._-]+", re.I).fullmatch  # RFC 7239 section 6.2 and 6.3
_WITH_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?").fullmatch
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"((?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t\x20-\x7e])*)"'
_PAIR = re.compile(rf"[ \t]*({_TOKEN})=(?:({_TOKEN})|{_QUOTED})[ \t]*([;,]|\Z)")


def normal(address: str) -> str:
    """The one spelling of an IP address, without a zone; an IPv4 address in an IPv6 one is IPv4. ValueError if it is
    none.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


class Trust:
    """``peers``: addresses or networks whose word counts; ``field``: the one they write, lower case."""

    def __init__(self, peers: Iterable[str], field: str) -> None:
        self._networks = [_network(peer) for peer in peers]
        self._field = field.encode("ascii")
        self._hops = _forwarded if field == "forwarded" else _x_forwarded_for
        self._covered: dict[str, bool] = {}
        self._seen: dict[tuple[bytes, str], str] = {}

    def covers(self, address: str) -> bool:
        """Whether this address, as the kernel or a trusted hop gave it, is one of the peers."""
        known = self._covered.get(address)
        if known is None:
            known = _remember(self._covered, address, self._is_covered(address))
        return known

    def _is_covered(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(normal(address))
        except ValueError:
            return False  # a Unix socket, or nothing
        return any(parsed in network for network in self._networks)

    def client(self, head: RequestHead, peer: str) -> str:
        """The client of a request that came from ``peer``, which the caller knows to be covered.

        Without the field that is the peer. Raises FramingError ``bad_forwarded`` for a field that is not well formed.
        """
        value = head.get(self._field)
        if value is None:
            return peer
        if head.count(self._field) > 1:
            value = b", ".join(text for name, text in head.fields() if name == self._field)
        known = self._seen.get((value, peer))
        if known is None:
            known = _remember(self._seen, (value, peer), self._nearest_stranger(value, peer))
        return known

    def _nearest_stranger(self, value: bytes, peer: str) -> str:
        try:
            hops = list(self._hops(value.decode("ascii")))
        except ValueError as error:
            raise _malformed() from error
        if not 0 < len(hops) <= MAX_HOPS:
            raise _malformed()
        for hop in reversed(hops):
            if not hop:
                return peer  # the peer knows no more, or hides it
            peer = hop
            if not self.covers(hop):
                break
        return peer


def _remember(cache: dict[K, V], key: K, value: V) -> V:
    if len(cache) >= _MAX_SEEN:
        cache.clear()
    cache[key] = value
    return value


def _malformed() -> FramingError:
    return FramingError("bad_forwarded", "The forwarding field is malformed.")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(str(error), key="listen.trusted_peers") from None


def _x_forwarded_for(value: str) -> Iterator[str]:
    """Addresses, client first. No standard says so, but some peers add a port."""
    for element in value.split(","):
        yield _node(element.strip(" \t"))


def _forwarded(value: str) -> Iterator[str]:
    """The ``for`` of each element; an element without one is a hop that does not say."""
    node, named, at, names = "", False, 0, set[str]()
    while at < len(value):
        pair = _PAIR.match(value, at)
        if pair is None or pair[1].lower() in names:
            raise ValueError("not the grammar of RFC 7239")
        names.add(pair[1].lower())
        if pair[1].lower() == "for":
            node = _node(pair[2] if pair[3] is None else re.sub(r"\\(.)", r"\1", pair[3]))
        at = pair.end()
        named = pair[4] != ""
        if pair[4] != ";":
            yield node
            node, names = "", set()
    if named or not value:
        raise ValueError("ends in a separator")


def _node(text: str) -> str:
    """The address of a node; "" for one that does not say who it is. ValueError for anything else."""
    if _UNKNOWN(text) is not None:
        return ""
    match = _WITH_PORT(text)
    address = (match[1] or match[2]) if match is not None else text
    if "%" in address:
        raise ValueError("a zone means nothing on another machine")
    return normal(address)


def tls_facts(transport: Any) -> tuple[str, str]:
    """TLS version of a connection, and subject (RFC 4514) of the certificate that its context has verified; "" for what
    there is not. The peer of an attested channel is known by its SPIFFE id, so it has no subject here.
    """
    attestation = transport.get_extra_info("attestation")
    if attestation is not None:
        return attestation.tls_version, ""
    tls = transport.get_extra_info("ssl_object")
    if tls is None:
        return "", ""
    der = tls.getpeercert(True)
    return tls.version(), x509.load_der_x509_certificate(der).subject.rfc4514_string() if der else ""
