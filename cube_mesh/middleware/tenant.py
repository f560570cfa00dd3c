"""Tenant: the path contract. ``[prefix]/{domain}/rest?query`` or nothing: the domain is a UUID in its canonical form.

Sets the domain, the request-target for the upstream and, from the table, the endpoint: metrics and audit need its
name also for requests that are refused next. Whether the domain exists is not asked here, so that the answer cannot
tell.
"""

from __future__ import annotations

from cube_mesh._fastpath import TenantGate
from cube_mesh.endpoints import EndpointTable
from cube_mesh.errors import ConfigError, PeerError


class Tenant(TenantGate):
    """Gate. Refuses with 400 ``invalid_domain`` what has no tenant; RFC 9562 section 4, lower case, hyphens, no
    braces.
    """

    def __init__(self, endpoints: EndpointTable, path_prefix: str = "") -> None:
        if path_prefix and (path_prefix[0] != "/" or path_prefix[-1] == "/" or not path_prefix.isascii()):
            raise ConfigError("must start with a slash and not end with one", key="listen.path_prefix")
        super().__init__(path_prefix.encode("ascii"), endpoints.exact, endpoints.find)

    def _invalid(self) -> PeerError:
        return PeerError("invalid_domain", "The path must start with the id of a domain, a UUID in canonical form.")
