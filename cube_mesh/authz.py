"""Who may do what in which domain: members from the configuration, permissions by role from
``policies/authz/roles.toml``.

The embedded authorizer; SpiceDB comes behind the same port. Everything is decided when the table is built: a request
costs three look-ups and no allocation. A domain that does not exist and one of which the caller is no member are
answered alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from cube_mesh._fastpath import GrantTable
from cube_mesh.data import policies
from cube_mesh.errors import ConfigError, PolicyError
from cube_mesh.ports import Grant, Principal
from cube_mesh.settings import Domain

_PERMISSION = re.compile(r"[a-z][a-z0-9_]{0,63}").fullmatch
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch


class _Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    permissions: tuple[str, ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: dict[str, _Role]


def parse_roles(text: str, where: str = "roles") -> dict[str, frozenset[str]]:
    """Role name to permissions. Raises ConfigError for unknown keys, an empty role and a doubled permission."""
    try:
        roles = msgspec.toml.decode(text, type=_File).role
    except msgspec.DecodeError as error:
        raise ConfigError(str(error), where=where) from None
    for name, role in roles.items():
        if not role.permissions or len(set(role.permissions)) != len(role.permissions):
            raise ConfigError("a role needs permissions, each once", key=f"role.{name}.permissions", where=where)
        for permission in role.permissions:
            if not _PERMISSION(permission):
                raise ConfigError(f"not a permission name: {permission!r}", key=f"role.{name}", where=where)
    return {name: frozenset(role.permissions) for name, role in roles.items()}


def load_roles(path: str = "") -> dict[str, frozenset[str]]:
    """The operator's roles, or the built-in ones for an empty path. Raises ConfigError."""
    file = Path(path) if path else policies() / "authz" / "roles.toml"
    try:
        return parse_roles(file.read_text("utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", key="authz.roles_file", where=str(file)) from None


class DomainAuthorizer(GrantTable):
    """The ``Authorizer`` of a fixed set of domains. Immutable; a changed configuration is a new one.

    Does not look at the credential's expiry (authn does). Raises ConfigError for a doubled domain or member, an unknown
    role, or a domain id that is no canonical UUID.
    """

    def __init__(self, domains: Iterable[Domain], roles: Mapping[str, frozenset[str]]) -> None:
        grants: dict[str, dict[str, dict[str, Grant]]] = {}
        for domain in domains:
            if not _UUID(domain.id):
                raise ConfigError(f"not a canonical UUID: {domain.id!r}", key="identity.domains.id")
            if domain.id in grants:
                raise ConfigError(f"the domain {domain.id} is there twice", key="identity.domains.id")
            grants[domain.id] = _members(domain, roles)
        super().__init__(grants)
        self._members = {domain: frozenset(members) for domain, members in grants.items()}

    def authorize(self, principal: Principal, domain_id: str, permission: str) -> Grant:
        """The grant, or PolicyError 403: ``domain_forbidden`` (not a member), ``permission_denied`` (the role lacks
        it).
        """
        grant = self.granted(principal, domain_id, permission)
        if grant is not None:
            return grant
        if principal.domain_id is not None and principal.domain_id != domain_id:
            raise _forbidden(f"the credential belongs to the domain {principal.domain_id}")
        if principal.subject not in self._members.get(domain_id, ()):
            raise _forbidden("not a member")
        raise PolicyError("permission_denied", "Your role does not allow this operation.", detail=permission)


def _members(domain: Domain, roles: Mapping[str, frozenset[str]]) -> dict[str, dict[str, Grant]]:
    members: dict[str, dict[str, Grant]] = {}
    for member in domain.members:
        key = f"identity.domains.{domain.id}.members"
        if member.role not in roles:
            raise ConfigError(f"unknown role {member.role!r}; known: {', '.join(sorted(roles))}", key=key)
        if not member.subject or member.subject in members:
            raise ConfigError(f"a member is empty or there twice: {member.subject!r}", key=key)
        member_id = f"{domain.id}_{member.subject}"
        members[member.subject] = {p: Grant(domain.id, member_id, member.role, p) for p in roles[member.role]}
    return members


def _forbidden(detail: str) -> PolicyError:
    return PolicyError("domain_forbidden", "You have no access to this domain.", detail=detail)
