"""Secrets: texts in scopes, encrypted at rest. What happens to them is told without them."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, select, update

from featurelib.clock import Clock
from featurelib.errors import Conflict, FailedPrecondition, InvalidRequest, NotFound
from featurelib.stores import role_assignments, schema
from featurelib.stores.database import Database, upsert
from featurelib.stores.encryption import Encrypted, KeySource
from featurelib.stores.event_log import insert_event
from featurelib.stores.principals import Author, checked_name, is_name
from featurelib.stores.registry import NewEvent, moved
from featurelib.stores.standings import Resource

MOST_BYTES = 65_536
"""Longest value, in bytes of UTF-8: certificates and service accounts' JSON have a few thousand."""


class Place(NamedTuple):
    """Where a secret is."""

    scope: str
    key: str

    def __str__(self) -> str:
        return f"{self.scope}/{self.key}"


class Rotation(NamedTuple):
    """What a rotation did: how many values were encrypted anew, and under which key all are now."""

    values: int
    key_id: str


class SecretReader:
    """Reads secrets in the registry's database. Who may see them is for the caller to see to."""

    def __init__(self, database: Database, keys: KeySource) -> None:
        """Use the database of a registry: ``SecretReader(registry.database, key_source(settings))``."""
        self._database = database
        self._keys = keys

    def get(self, place: Place) -> str:
        """A secret.

        Raises:
            NotFound: there is no such scope, or no such secret in it.
            CorruptState: the key it was encrypted under is not there.
            StoreUnavailable: the database does not answer.
        """
        encrypted = self._encrypted(place)
        keys = self._keys.keys()
        if not keys.has(encrypted.key_id):
            # A rotation may have passed between the two.
            encrypted = self._encrypted(place)
        return keys.decrypt(encrypted, str(place))

    def _encrypted(self, place: Place) -> Encrypted:
        with self._database.read() as connection:
            if place.key not in _keys(connection, place.scope):
                raise _missing(place)
            row = connection.execute(select(schema.secret_values).where(*_at(place))).first()
        if row is None:
            raise _missing(place)
        return Encrypted(row.key_id, row.sealed)


class SecretValues(SecretReader):
    """Secrets in the registry's database. Who may do what is for the caller to see to.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer, and :class:`~featurelib.errors.CorruptState` when the keys are not there.
    """

    def __init__(self, database: Database, clock: Clock, keys: KeySource) -> None:
        """Use the database of a registry: ``SecretValues(registry.database, clock, key_source(settings))``."""
        super().__init__(database, keys)
        self._clock = clock

    def create_scope(self, name: str, by: Author) -> None:
        """Make a scope; the principal that asks may manage it.

        Raises:
            InvalidRequest: the name cannot be one.
            Conflict: there is one of that name.
        """
        row = {"name": checked_name(name, "scope"), "created_at": self._clock.now()}
        with self._database.exclusive() as connection:
            if _is_scope(connection, name):
                raise Conflict(f"there is a secret scope {name!r} already")
            connection.execute(schema.secret_scopes.insert(), row)
            if by.principal is not None:
                role_assignments.grant(connection, by.principal, _resource(name), "manage_scope_role")
                moved(connection)
            self._told_within(connection, "secret_scope_created", name, f"secret scope {name!r} created", by)

    def delete_scope(self, name: str, by: Author) -> None:
        """End an empty scope, and the roles held on it.

        Raises:
            NotFound: there is none of that name.
            FailedPrecondition: it holds secrets.
        """
        scopes = schema.secret_scopes
        with self._database.exclusive() as connection:
            held = _keys(connection, name)
            if held:
                raise FailedPrecondition(f"secret scope {name!r} holds {len(held)} secrets; delete them first")
            role_assignments.forget(connection, _resource(name))
            connection.execute(delete(scopes).where(scopes.c.name == name))
            moved(connection)
            self._told_within(connection, "secret_scope_deleted", name, f"secret scope {name!r} deleted", by)

    def scopes(self) -> list[str]:
        """The names of all scopes, in order."""
        table = schema.secret_scopes
        with self._database.read() as connection:
            return list(connection.scalars(select(table.c.name).order_by(table.c.name)))

    def keys(self, scope: str) -> list[str]:
        """The names of the secrets of a scope, in order.

        Raises:
            NotFound: there is no such scope.
        """
        with self._database.read() as connection:
            return _keys(connection, scope)

    def put(self, place: Place, value: str, by: Author) -> None:
        """Store a secret, in place of the one before; putting it again is as putting it once.

        Raises:
            InvalidRequest: the key cannot be one, or the value is empty or too long.
            NotFound: there is no such scope.
        """
        _check(place, value)
        with self._database.exclusive() as connection:
            is_new = place.key not in _keys(connection, place.scope)
            # Read under the lock: a rotation that went before has its key in the file, one that follows sees this row.
            encrypted = self._keys.keys().encrypt(value, str(place))
            row = {**place._asdict(), **encrypted._asdict(), "updated_at": self._clock.now()}
            upsert(connection, schema.secret_values, row)
            message = f"secret {place} {'created' if is_new else 'changed'}"
            self._told_within(connection, "secret_created" if is_new else "secret_changed", str(place), message, by)

    def delete(self, place: Place, by: Author) -> None:
        """Delete a secret.

        Raises:
            NotFound: there is no such scope, or no such secret in it.
        """
        with self._database.exclusive() as connection:
            if place.key not in _keys(connection, place.scope):
                raise _missing(place)
            connection.execute(delete(schema.secret_values).where(*_at(place)))
            self._told_within(connection, "secret_deleted", str(place), f"secret {place} deleted", by)

    def rotate(self, by: Author) -> Rotation:
        """Encrypt every value under the newest key, and forget the keys that nothing needs any more.

        Where the platform makes its keys itself, a new one is made first. A rotation that was cut short leaves every
        value readable; the next one finishes it.
        """
        with self._database.exclusive() as connection:
            keys = self._keys.begin_rotation()
            table, values = schema.secret_values, 0
            for row in connection.execute(select(table).where(table.c.key_id != keys.current)).all():
                place = Place(row.scope, row.key)
                text = keys.decrypt(Encrypted(row.key_id, row.sealed), str(place))
                connection.execute(update(table).where(*_at(place)).values(**keys.encrypt(text, str(place))._asdict()))
                values += 1
            message = f"{values} secrets encrypted under the key {keys.current}"
            self._told_within(connection, "secrets_rotated", "secrets", message, by)
        with self._database.exclusive() as connection:
            used = frozenset(connection.scalars(select(schema.secret_values.c.key_id).distinct()))
            self._keys.retire(used)
        return Rotation(values, keys.current)

    def _told_within(self, connection: Connection, event_type: str, subject: str, message: str, by: Author) -> None:
        event = NewEvent(
            event_type=event_type,
            source="definition-service",
            subject=subject,
            message=message,
            detail={"by": by.fingerprint, "principal": by.principal},
        )
        insert_event(connection, event, self._clock.now())


def _missing(place: Place) -> NotFound:
    return NotFound(f"there is no secret {place.key[:128]!r} in scope {place.scope!r}")


def _check(place: Place, value: str) -> None:
    checked_name(place.key, "key")
    if not value:
        raise InvalidRequest("value: it is empty; to end a secret, delete it")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidRequest("value: not a text that UTF-8 can spell; send bytes as Base64") from None
    if size > MOST_BYTES:
        raise InvalidRequest(f"value: {size} bytes are more than {MOST_BYTES}")


def _at(place: Place) -> tuple[ColumnElement[bool], ...]:
    table = schema.secret_values.c
    return table.scope == place.scope, table.key == place.key


def _resource(scope: str) -> Resource:
    return Resource("secret_scope", scope)


def _is_scope(connection: Connection, name: str) -> bool:
    table = schema.secret_scopes
    query = select(table.c.name).where(table.c.name == name)
    return is_name(name) and connection.execute(query).first() is not None


def _keys(connection: Connection, scope: str) -> list[str]:
    """The secrets of a scope that exists."""
    if not _is_scope(connection, scope):
        raise NotFound(f"there is no secret scope {scope[:128]!r}")
    table = schema.secret_values
    return list(connection.scalars(select(table.c.key).where(table.c.scope == scope).order_by(table.c.key)))
