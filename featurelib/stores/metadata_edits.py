"""Metadata that was edited on the platform, beside what the code says.

An edited member holds until the code's own value of that member changes: then the code has the last word, and the
edit of that member is forgotten within the commit that changed it. An edit belongs to a name: to the newest version
of a dataset, and through it to all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, delete, select

from featurelib.clock import Instant
from featurelib.definitions import Record
from featurelib.errors import NotFound
from featurelib.metadata import Metadata
from featurelib.stores import schema
from featurelib.stores.database import Database, record_of, upsert
from featurelib.stores.event_log import insert_event

EditedKind = Literal["featureset", "dataset", "source"]
Name = tuple[str, str]
"""Kind and name."""


class MetadataEdit(Record):
    """What was edited of a definition's metadata.

    Attributes:
        edit: by member, its value.
        committed: by the same members, what the code said when they were edited.
        deprecated_at: when it was marked deprecated here.
    """

    kind: EditedKind
    name: str
    edit: dict[str, Any]
    committed: dict[str, Any]
    deprecated_at: Instant | None = None
    updated_at: Instant = 0

    def over(self, code: Metadata) -> Metadata:
        """The metadata of any version with the edited members: what the code has overtaken is in no edit any more."""
        return Metadata(**{**code.model_dump(), **self.edit})

    def with_members(self, members: Mapping[str, Any], code: Metadata, now: Instant) -> MetadataEdit:
        """The same with more members edited, while the code says ``code``."""
        said = code.model_dump()
        marked = members.get("deprecated") is True and not self.over(code).deprecated
        return self.model_copy(
            update={
                "edit": {**self.edit, **members},
                "committed": {**self.committed, **{member: said[member] for member in members}},
                "deprecated_at": now if marked else self.deprecated_at,
                "updated_at": now,
            }
        )

    def settled(self, code: Metadata) -> MetadataEdit | None:
        """The same without members that say what the code says or has changed since; ``None`` when none is left."""
        said = code.model_dump()
        kept = [m for m, v in self.edit.items() if self.committed.get(m) == said[m] and v != said[m]]
        return self._only(kept) if kept else None

    def _only(self, members: list[str]) -> MetadataEdit:
        return self.model_copy(
            update={
                "edit": {member: self.edit[member] for member in members},
                "committed": {member: self.committed[member] for member in members},
                "deprecated_at": self.deprecated_at if "deprecated" in members else None,
            }
        )


class Edited(NamedTuple):
    """What an edit did: the metadata before and after it."""

    before: Metadata
    after: Metadata

    @property
    def changed(self) -> list[str]:
        """The members that differ, by name."""
        return sorted(m for m in Metadata.model_fields if getattr(self.before, m) != getattr(self.after, m))


class MetadataEdits:
    """Edits in the registry's database.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, database: Database) -> None:
        """Use the database of a registry: ``MetadataEdits(registry.database)``."""
        self._database = database

    def all(self) -> dict[Name, MetadataEdit]:
        """Every edit, by kind and name."""
        with self._database.read() as connection:
            return _edits(connection)

    def put(self, edited: tuple[EditedKind, str], members: Mapping[str, Any], event: Record, now: Instant) -> Edited:
        """Edit members of a definition's metadata, and tell it in the feed when that changes something.

        Args:
            edited: kind and name.
            members: by member, its new value.
            event: a :class:`~featurelib.stores.registry.NewEvent`.
            now: when this happens.

        Raises:
            NotFound: there is no such definition.
        """
        kind, name = edited
        with self._database.exclusive() as connection:
            code = _committed(connection, [name]).get((kind, name))
            if code is None:
                raise NotFound(f"{kind} {name[:128]!r} is not committed")
            before = _edits(connection).get((kind, name)) or MetadataEdit(kind=kind, name=name, edit={}, committed={})
            after = before.with_members(members, code, now)
            done = Edited(before.over(code), after.over(code))
            if done.changed:
                _store(connection, after, code)
                insert_event(connection, event, now)
        return done


def forget_overtaken(connection: Connection) -> None:
    """Forget edits of members of which the code says something else than when they were edited."""
    edits = _edits(connection)
    code = _committed(connection, [name for _, name in edits]) if edits else {}
    for key, edit in edits.items():
        if key in code:
            _store(connection, edit, code[key])


def _edits(connection: Connection) -> dict[Name, MetadataEdit]:
    rows = connection.execute(select(schema.metadata_edits)).all()
    return {(row.kind, row.name): record_of(MetadataEdit, row) for row in rows}


def _committed(connection: Connection, names: Sequence[str]) -> dict[Name, Metadata]:
    """What the code says of the definitions with these names, of the newest version of each."""
    table = schema.definitions
    query = select(table.c.kind, table.c.name, table.c.body).where(table.c.kind != "pipeline", table.c.name.in_(names))
    rows = connection.execute(query.order_by(table.c.version))
    return {(row.kind, row.name): metadata_of(row.body) for row in rows}


def metadata_of(body: str) -> Metadata:
    """The metadata within the stored form of a definition."""
    return Metadata.model_validate(json.loads(body)["metadata"])


def _store(connection: Connection, edit: MetadataEdit, code: Metadata) -> None:
    kept = edit.settled(code)
    table = schema.metadata_edits
    if kept is None:
        connection.execute(delete(table).where(table.c.kind == edit.kind, table.c.name == edit.name))
    else:
        upsert(connection, table, kept.model_dump())
