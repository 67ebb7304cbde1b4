"""What each principal may do: its roles and those of its groups, read whole, so that replicas hold it in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from sqlalchemy import Connection, select

from featurelib.stores import schema

PrincipalKind = Literal["user", "service_account", "group", "workspace"]
ResourceType = Literal["organization", "workspace", "secret_scope"]
Role = Literal["consumer", "editor", "owner", "read_scope_role", "write_scope_role", "manage_scope_role", "admin"]

RESOURCE_TYPES: tuple[ResourceType, ...] = get_args(ResourceType)

ORGANIZATION = ""
"""The id of the one organisation; a workspace role held on it is held on every workspace."""

WORKSPACE_ROLES: tuple[Role, ...] = ("consumer", "editor", "owner")
"""Each may do what the ones before it may: read features; change definitions; give roles away."""

SCOPE_ROLES: tuple[Role, ...] = ("read_scope_role", "write_scope_role", "manage_scope_role")
"""Each may do what the ones before it may: read secrets; put and delete them; delete the scope and give roles away."""

ROLES_ON: Mapping[ResourceType, tuple[Role, ...]] = {
    "organization": (*WORKSPACE_ROLES, "admin"),
    "workspace": WORKSPACE_ROLES,
    "secret_scope": SCOPE_ROLES,
}
"""Which roles can be held on what."""

_NO_ROLES: frozenset[str] = frozenset()
_ENOUGH: Mapping[Role, frozenset[Role]] = {
    # Made once: who may read a feature service is looked up here at every request.
    role: frozenset(ladder[place:])
    for ladder in (WORKSPACE_ROLES, SCOPE_ROLES, ROLES_ON["organization"][-1:])
    for place, role in enumerate(ladder)
}


class Resource(NamedTuple):
    """What a role is held on."""

    type: ResourceType
    id: str = ORGANIZATION


EVERYWHERE = Resource("organization")
"""The organisation."""


class Standing(NamedTuple):
    """A principal, whether its keys open anything, and by resource the roles it holds, those of its groups included."""

    id: str
    kind: PrincipalKind
    is_active: bool
    roles: Mapping[Resource, frozenset[str]]

    @property
    def is_admin(self) -> bool:
        """Whether it may do everything."""
        return "admin" in self.roles.get(EVERYWHERE, _NO_ROLES)

    def holds(self, role: Role, resource: Resource) -> bool:
        """Whether it holds a role on something, or one that includes it."""
        if self.is_admin:
            return True
        return not _ENOUGH[role].isdisjoint(self._held(resource))

    def _held(self, resource: Resource) -> frozenset[str]:
        held = self.roles.get(resource, _NO_ROLES)
        if resource.type == "workspace":
            return held | self.roles.get(EVERYWHERE, _NO_ROLES)
        return held


def standings(connection: Connection) -> dict[str, Standing]:
    """By a principal's id, what it may do."""
    groups = _groups(connection)
    held = _held(connection)
    table = schema.principals
    found: dict[str, Standing] = {}
    for row in connection.execute(select(table.c.id, table.c.kind, table.c.is_active)):
        holders = [row.id, *groups.get(row.id, ())]
        found[row.id] = Standing(row.id, row.kind, row.is_active, _joined([held.get(each, {}) for each in holders]))
    return found


def _groups(connection: Connection) -> dict[str, list[str]]:
    """By a member's id, the ids of its groups."""
    groups: dict[str, list[str]] = {}
    for row in connection.execute(select(schema.group_members)):
        groups.setdefault(row.member_id, []).append(row.group_id)
    return groups


def _held(connection: Connection) -> dict[str, dict[Resource, frozenset[str]]]:
    """By a principal's id, what is given to itself."""
    held: dict[str, dict[Resource, frozenset[str]]] = {}
    for row in connection.execute(select(schema.role_assignments)):
        resource = Resource(row.resource_type, row.resource_id)
        own = held.setdefault(row.principal, {})
        own[resource] = own.get(resource, _NO_ROLES) | {row.role}
    return held


def _joined(parts: list[dict[Resource, frozenset[str]]]) -> dict[Resource, frozenset[str]]:
    joined: dict[Resource, frozenset[str]] = {}
    for part in parts:
        for resource, roles in part.items():
            joined[resource] = joined.get(resource, _NO_ROLES) | roles
    return joined
