"""Peer: the agent's counterpart of tenant and authn. The caller is the proxy at the other end of mutual TLS, whose
leaf the handshake has checked against the allow-list; it speaks for a domain that it names in ``x-cube-domain``.
"""

from __future__ import annotations

import re

from cube_mesh.endpoints import EndpointTable
from cube_mesh.errors import PeerError, PolicyError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import Principal

_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_MAX_PEERS = 1024


class Peer:
    """Gate. Does not repeat the allow-list or authz: an allow-listed proxy has authorized the request. Without a peer
    identity, that is outside of mutual TLS, it refuses.
    """

    def __init__(self, endpoints: EndpointTable) -> None:
        self._find = endpoints.find
        self._principals: dict[str, Principal] = {}

    def enter(self, exchange: Exchange) -> None:
        head = exchange.head
        if not exchange.peer_id:
            raise PolicyError("peer_required", "This listener serves authenticated proxies only.")
        domain = head.get(b"x-cube-domain")
        if domain is None or _UUID(domain) is None or head.count(b"x-cube-domain") != 1:
            raise PeerError("invalid_domain", "The request does not name its domain.")
        exchange.domain_id = domain.decode("ascii")
        exchange.principal = self._principals.get(exchange.peer_id) or self._new(exchange.peer_id)
        exchange.upstream_target = head.target
        exchange.endpoint = self._find(exchange.method, exchange.path)

    def _new(self, peer_id: str) -> Principal:
        if len(self._principals) >= _MAX_PEERS:
            self._principals.clear()
        principal = self._principals[peer_id] = Principal(peer_id, "mtls", "")
        return principal
