"""Principals: whom keys belong to and roles are given to. Users, service accounts, groups of both, and workspaces.

A workspace is there as soon as something is given to it; the others are made by an admin. Members of a group hold
what the group holds; groups do not contain groups.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence

from pydantic import Field
from sqlalchemy import Connection, delete, or_, select, update

from featurelib.clock import Clock, Instant
from featurelib.definitions import Record
from featurelib.errors import Conflict, InvalidRequest, NotFound
from featurelib.secrets import NAME
from featurelib.stores import keys, schema
from featurelib.stores.database import Database, record_of
from featurelib.stores.event_log import insert_event
from featurelib.stores.registry import NewEvent, moved
from featurelib.stores.standings import PrincipalKind

OWNERS = frozenset({"user", "service_account"})
"""Whom keys can belong to, and who can be in a group."""

_NAME = re.compile(NAME)


class Principal(Record):
    """One principal. ``about`` holds texts for people: ``description``, ``first_name``, ``last_name``, ``login_email``.

    ``creator`` is the id of the principal that made it, where a key of one did. Keys of one that is not active open
    nothing.
    """

    id: str
    kind: PrincipalKind
    name: str
    about: Mapping[str, str] = Field(default_factory=dict)
    is_active: bool = True
    creator: str | None = None
    created_at: Instant


class Author(Record):
    """Who changes something: the fingerprint of the key, and whose key it is."""

    fingerprint: str | None = None
    principal: str | None = None


class Principals:
    """Principals in the registry's database. Changes move the registry's version, so that replicas see them.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use the database of a registry: ``Principals(registry.database, clock)``."""
        self._database = database
        self._clock = clock

    def create(self, kind: PrincipalKind, name: str, about: Mapping[str, str], by: Author) -> Principal:
        """Make a principal.

        Raises:
            InvalidRequest: the name cannot be one.
            Conflict: there is one of that kind and name.
        """
        with self._database.exclusive() as connection:
            if named(connection, kind, name) is not None:
                raise Conflict(f"there is a {kind} {name!r} already")
            made = insert(connection, kind, name, self._clock.now(), about=about, creator=by.principal)
            self._told_within(connection, "principal_created", made, by)
        return made

    def all(self, kind: PrincipalKind | None = None) -> list[Principal]:
        """Every principal, in the order made; of one kind if it is named."""
        table = schema.principals
        query = select(table).order_by(table.c.sequence)
        with self._database.read() as connection:
            rows = connection.execute(query if kind is None else query.where(table.c.kind == kind)).all()
        return [record_of(Principal, row) for row in rows]

    def get(self, name: str, kind: PrincipalKind | None = None) -> Principal:
        """The principal of that id or name.

        Raises:
            NotFound: there is none.
            InvalidRequest: several kinds have one of that name.
        """
        with self._database.read() as connection:
            return found(connection, name, kind)

    def members(self) -> dict[str, list[str]]:
        """By a group's id, the ids of its members."""
        table = schema.group_members
        with self._database.read() as connection:
            rows = connection.execute(select(table).order_by(table.c.group_id, table.c.member_id)).all()
        groups: dict[str, list[str]] = {}
        for row in rows:
            groups.setdefault(row.group_id, []).append(row.member_id)
        return groups

    def change_members(self, group: str, added: Sequence[str], removed: Sequence[str], by: Author) -> list[Principal]:
        """Take principals into a group and out of it; all of them, or none. Done again it changes nothing.

        Args:
            group: its id or name.
            added: ids or names of users and service accounts.
            removed: the same.
            by: who asks.

        Returns:
            Who is in it now.

        Raises:
            NotFound: the group or one of the principals does not exist.
            InvalidRequest: one of them is neither a user nor a service account.
        """
        with self._database.exclusive() as connection:
            holder = found(connection, group, "group")
            before = _members(connection, holder.id)
            leaving = {found(connection, name).id for name in removed}
            joining = [_member(connection, name).id for name in added]
            after = dict.fromkeys([*(each.id for each in before if each.id not in leaving), *joining])
            if list(after) != [each.id for each in before]:
                _replace_members(connection, holder.id, list(after))
                self._told_within(connection, "principal_changed", holder, by)
            return _members(connection, holder.id)

    def set_active(self, name: str, *, active: bool, by: Author) -> Principal:
        """Let the keys of a user or service account open something, or nothing from now on.

        Raises:
            NotFound: there is none of that id or name.
            InvalidRequest: it has no keys.
            Conflict: every valid admin key is its own: nobody could undo it.
        """
        table = schema.principals
        with self._database.exclusive() as connection:
            before = found(connection, name)
            if before.kind not in OWNERS:
                raise InvalidRequest(f"{before.name!r} is a {before.kind}, which has no keys")
            if not active:
                _refuse_lock_out(connection, before, self._clock.now())
            after = before.model_copy(update={"is_active": active})
            if after != before:
                connection.execute(update(table).where(table.c.id == before.id).values(is_active=active))
                self._told_within(connection, "principal_activated" if active else "principal_deactivated", after, by)
        return after

    def _told_within(self, connection: Connection, event_type: str, principal: Principal, by: Author) -> None:
        moved(connection)
        event = NewEvent(
            event_type=event_type,
            source="definition-service",
            subject=f"{principal.kind}/{principal.name}",
            message=f"{principal.kind} {principal.name!r} {event_type.removeprefix('principal_')}",
            detail={"id": principal.id, "by": by.fingerprint},
        )
        insert_event(connection, event, self._clock.now())


def insert(
    connection: Connection,
    kind: PrincipalKind,
    name: str,
    now: Instant,
    *,
    about: Mapping[str, str] | None = None,
    creator: str | None = None,
) -> Principal:
    """Add a principal in the transaction of the connection.

    Raises:
        InvalidRequest: the name cannot be one.
    """
    made = Principal(
        id=str(uuid.uuid4()),
        kind=kind,
        name=checked_name(name, "name"),
        about=dict(about or {}),
        creator=creator,
        created_at=now,
    )
    connection.execute(schema.principals.insert(), made.model_dump())
    return made


def checked_name(name: str, what: str) -> str:
    """The name, if one can be like this.

    Raises:
        InvalidRequest: it cannot; the message says what is allowed.
    """
    if not is_name(name):
        raise InvalidRequest(
            f"{what}: {name[:128]!r} is none; it has 1 to 128 of the characters A-Z a-z 0-9 _ . @ + - "
            "and begins with a letter, a digit or _"
        )
    return name


def is_name(text: str) -> bool:
    """Whether a name can be like this. What cannot is not looked for: databases differ in what they compare at all."""
    return _NAME.fullmatch(text) is not None


def named(connection: Connection, kind: PrincipalKind, name: str) -> Principal | None:
    """The principal of that kind and name, if there is one."""
    if not is_name(name):
        return None
    table = schema.principals
    row = connection.execute(select(table).where(table.c.kind == kind, table.c.name == name)).first()
    return None if row is None else record_of(Principal, row)


def found(connection: Connection, name: str, kind: PrincipalKind | None = None) -> Principal:
    """The principal of that id or name; of one kind, if it is given.

    Raises:
        NotFound: there is none.
        InvalidRequest: several kinds have one of that name.
    """
    table = schema.principals
    query = select(table).where(or_(table.c.id == name, table.c.name == name))
    query = query if kind is None else query.where(table.c.kind == kind)
    those = [record_of(Principal, row) for row in connection.execute(query)] if is_name(name) else []
    exact = [each for each in those if each.id == name] or those
    if not exact:
        raise NotFound(f"there is no {kind or 'principal'} {name[:128]!r}")
    if len(exact) > 1:
        kinds = ", ".join(each.kind for each in exact)
        raise InvalidRequest(f"{name!r} is the name of several principals: {kinds}; name the kind, or give the id")
    return exact[0]


def _refuse_lock_out(connection: Connection, principal: Principal, now: Instant) -> None:
    admins = keys.valid_admins(connection, now)
    if admins and all(key.principal == principal.id for key in admins):
        raise Conflict(f"every valid admin key is one of {principal.name!r}; create another one first")


def _member(connection: Connection, name: str) -> Principal:
    member = found(connection, name)
    if member.kind not in OWNERS:
        raise InvalidRequest(f"a {member.kind} cannot be in a group: {member.name!r}")
    return member


def _members(connection: Connection, group_id: str) -> list[Principal]:
    table, members = schema.principals, schema.group_members
    query = select(table).join(members, members.c.member_id == table.c.id).where(members.c.group_id == group_id)
    return [record_of(Principal, row) for row in connection.execute(query.order_by(table.c.sequence))]


def _replace_members(connection: Connection, group_id: str, members: Sequence[str]) -> None:
    table = schema.group_members
    connection.execute(delete(table).where(table.c.group_id == group_id))
    if members:
        connection.execute(table.insert(), [{"group_id": group_id, "member_id": member} for member in members])
