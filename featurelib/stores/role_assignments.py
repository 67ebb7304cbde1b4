"""Who holds which role on what: given, taken away, and listed with where each comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, select

from featurelib.clock import Clock
from featurelib.errors import InvalidRequest, NotFound
from featurelib.stores import principals, schema
from featurelib.stores.database import Database, insert_new, record_of
from featurelib.stores.event_log import insert_event
from featurelib.stores.principals import Author, Principal
from featurelib.stores.registry import NewEvent, moved
from featurelib.stores.standings import ORGANIZATION, ROLES_ON, PrincipalKind, Resource, ResourceType

_ROLE_ORDER: dict[str, int] = {role: place for roles in ROLES_ON.values() for place, role in enumerate(roles)}


class Holder(NamedTuple):
    """Who is to hold a role: a kind, and an id or a name."""

    kind: PrincipalKind
    name: str


class Assignment(NamedTuple):
    """A role for somebody on something."""

    holder: Holder
    role: str
    resource: Resource


class Granted(NamedTuple):
    """A role that a principal holds on something; ``via``: the group it comes from, ``None`` where it is its own."""

    principal: Principal
    resource: Resource
    role: str
    via: Principal | None


class RoleAssignments:
    """Role assignments in the registry's database. Changes move the registry's version, so that replicas see them.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use the database of a registry: ``RoleAssignments(registry.database, clock)``."""
        self._database = database
        self._clock = clock

    def assign(self, assignments: Sequence[Assignment], by: Author) -> None:
        """Give roles, all or none. What is held already stays; a workspace that is given something exists from then on.

        Raises:
            InvalidRequest: a role cannot be held on the resource, or not by that kind of principal.
            NotFound: there is no such principal or scope.
        """
        for assignment in assignments:
            check(assignment)
        with self._database.exclusive() as connection:
            for assignment in assignments:
                self._assign(connection, assignment, by)

    def unassign(self, assignments: Sequence[Assignment], by: Author) -> None:
        """Take roles away, all or none. What is not held stays so.

        Raises:
            InvalidRequest: a role cannot be held on the resource, or not by that kind of principal.
            NotFound: there is no such principal.
        """
        for assignment in assignments:
            check(assignment)
        with self._database.exclusive() as connection:
            for assignment in assignments:
                holder = self._known(connection, assignment.holder, create=False)
                self._unassign(connection, holder, assignment, by)

    def replace(self, holder: Holder, resource: Resource, roles: Sequence[str], by: Author) -> None:
        """Let a principal hold exactly these roles on something; none, if there are none.

        Raises:
            InvalidRequest: a role cannot be held on the resource, or not by that kind of principal.
            NotFound: there is no such principal or scope.
        """
        for role in roles:
            check(Assignment(holder, role, resource))
        with self._database.exclusive() as connection:
            principal = self._known(connection, holder, create=bool(roles))
            for role in _own_roles(connection, principal.id, resource) - set(roles):
                self._unassign(connection, principal, Assignment(holder, role, resource), by)
            for role in roles:
                self._assign(connection, Assignment(holder, role, resource), by)

    def granted(self, resource_type: ResourceType) -> list[Granted]:
        """Every role held on resources of a type, by principals in the order made; members' through groups included."""
        table, members = schema.role_assignments, schema.group_members
        with self._database.read() as connection:
            made = select(schema.principals).order_by(schema.principals.c.sequence)
            known = {row.id: record_of(Principal, row) for row in connection.execute(made)}
            given = connection.execute(select(table).where(table.c.resource_type == resource_type)).all()
            groups: dict[str, list[str]] = {}
            for row in connection.execute(select(members)):
                groups.setdefault(row.group_id, []).append(row.member_id)
        found = []
        for row in given:
            holder, resource = known[row.principal], Resource(row.resource_type, row.resource_id)
            found.append(Granted(holder, resource, row.role, None))
            found += [Granted(known[each], resource, row.role, holder) for each in groups.get(holder.id, ())]
        # Of two made in one instant the clock does not tell which came first.
        places = {each: place for place, each in enumerate(known)}
        return sorted(found, key=lambda granted: (places[granted.principal.id], *_order_of_one(granted)))

    def principal(self, holder: Holder) -> Principal:
        """Who is meant.

        Raises:
            NotFound: there is no such principal.
        """
        with self._database.read() as connection:
            return principals.found(connection, holder.name, holder.kind)

    def _assign(self, connection: Connection, assignment: Assignment, by: Author) -> None:
        resource = assignment.resource
        if resource.type == "secret_scope":
            _require_scope(connection, resource.id)
        holder = self._known(connection, assignment.holder, create=True)
        if assignment.role not in _own_roles(connection, holder.id, resource):
            grant(connection, holder.id, resource, assignment.role)
            self._told_within(connection, "role_assigned", holder, assignment, by)

    def _unassign(self, connection: Connection, holder: Principal, assignment: Assignment, by: Author) -> None:
        table = schema.role_assignments
        those = delete(table).where(*_on(holder.id, assignment.resource), table.c.role == assignment.role)
        if connection.execute(those).rowcount:
            self._told_within(connection, "role_unassigned", holder, assignment, by)

    def _known(self, connection: Connection, holder: Holder, *, create: bool) -> Principal:
        """The principal that is meant. A workspace needs nobody to make it."""
        try:
            return principals.found(connection, holder.name, holder.kind)
        except NotFound:
            if holder.kind != "workspace" or not create:
                raise
        return principals.insert(connection, "workspace", holder.name, self._clock.now())

    def _told_within(
        self, connection: Connection, event_type: str, holder: Principal, assignment: Assignment, by: Author
    ) -> None:
        moved(connection)
        resource = assignment.resource
        place = f"{resource.type}/{resource.id}" if resource.id else resource.type
        word = "given to" if event_type == "role_assigned" else "taken from"
        event = NewEvent(
            event_type=event_type,
            source="definition-service",
            subject=place,
            message=f"{assignment.role} on {place} {word} {holder.kind} {holder.name!r}",
            detail={"principal": holder.id, "role": assignment.role, "by": by.fingerprint},
        )
        insert_event(connection, event, self._clock.now())


def check(assignment: Assignment) -> None:
    """Refuse an assignment that can never be.

    Raises:
        InvalidRequest: the role cannot be held on the resource, or not by that kind of principal.
    """
    role, resource, kind = assignment.role, assignment.resource, assignment.holder.kind
    if role not in ROLES_ON[resource.type]:
        allowed = ", ".join(ROLES_ON[resource.type])
        raise InvalidRequest(f"role: {role[:128]!r} cannot be held on a {resource.type}; there are {allowed}")
    if kind == "workspace" and resource.type != "secret_scope":
        raise InvalidRequest(f"principal_type: a workspace cannot hold a role on a {resource.type}")
    if resource.type == "organization":
        if resource.id != ORGANIZATION:
            raise InvalidRequest(f"resource_id: there is one organisation; leave {resource.id[:128]!r} out")
    else:
        principals.checked_name(resource.id, "resource_id")


def grant(connection: Connection, principal: str, resource: Resource, role: str) -> None:
    """Let a principal hold a role, in the transaction of the connection."""
    row = {"principal": principal, "resource_type": resource.type, "resource_id": resource.id, "role": role}
    insert_new(connection, schema.role_assignments, [row])


def forget(connection: Connection, resource: Resource) -> None:
    """Take away every role on something that ends, in the transaction of the connection."""
    table = schema.role_assignments
    connection.execute(delete(table).where(table.c.resource_type == resource.type, table.c.resource_id == resource.id))


def by_principal(granted: Iterable[Granted]) -> Mapping[str, list[Granted]]:
    """The same, together per principal's id."""
    together: dict[str, list[Granted]] = {}
    for each in granted:
        together.setdefault(each.principal.id, []).append(each)
    return together


def _on(principal: str, resource: Resource) -> tuple[ColumnElement[bool], ...]:
    table = schema.role_assignments.c
    return (
        table.principal == principal,
        table.resource_type == resource.type,
        table.resource_id == resource.id,
    )


def _own_roles(connection: Connection, principal: str, resource: Resource) -> set[str]:
    query = select(schema.role_assignments.c.role).where(*_on(principal, resource))
    return set(connection.scalars(query))


def _require_scope(connection: Connection, name: str) -> None:
    table = schema.secret_scopes
    if connection.execute(select(table.c.name).where(table.c.name == name)).first() is None:
        raise NotFound(f"there is no secret scope {name!r}")


def _order_of_one(granted: Granted) -> tuple[str, int, bool]:
    """Where a role stands among those of the same principal."""
    return (granted.resource.id, _ROLE_ORDER[granted.role], granted.via is not None)
