"""Peer: the agent's counterpart of tenant and authn. The caller is the proxy at the other end of mutual TLS, whose
leaf the handshake has checked against the allow-list; it speaks for a domain that it names in ``x-cube-domain``.
"""

from __future__ import annotations

from cube_mesh._fastpath import PeerGate
from cube_mesh.endpoints import EndpointTable
from cube_mesh.errors import CubeMeshError, PeerError, PolicyError
from cube_mesh.exchange import Exchange
from cube_mesh.ports import Principal

_MAX_PEERS = 1024


class Peer(PeerGate):
    """Gate. Does not repeat the allow-list or authz: an allow-listed proxy has authorized the request. Without a peer
    identity, that is outside of mutual TLS, it refuses.
    """

    def __init__(self, endpoints: EndpointTable) -> None:
        super().__init__(endpoints.exact, endpoints.find)

    def _refusal(self, exchange: Exchange) -> CubeMeshError:
        if not exchange.peer_id:
            return PolicyError("peer_required", "This listener serves authenticated proxies only.")
        return PeerError("invalid_domain", "The request does not name its domain.")

    def _new(self, peer_id: str) -> Principal:
        if len(self.principals) >= _MAX_PEERS:
            self.principals.clear()
        principal = self.principals[peer_id] = Principal(peer_id, "mtls", "")
        return principal
