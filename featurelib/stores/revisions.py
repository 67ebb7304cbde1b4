"""Every form a definition has had: one revision per commit that changed it, and when each was written.

A featureset has no version in the user's code; on the platform its revisions are its versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, func, select, tuple_

from featurelib.clock import Instant
from featurelib.definitions import Definition, Record
from featurelib.stores import schema
from featurelib.stores.database import Database, record_of
from featurelib.stores.metadata_edits import metadata_of
from featurelib.stores.registry import CommitRecord, Identity, definition_of

_REVISION_COLUMNS = [c for c in schema.definition_revisions.c if c.name not in {"body", "sequence"}]


class Written(NamedTuple):
    """When a definition was first stored, and when last."""

    created_at: Instant
    updated_at: Instant


class Revision(Record):
    """One form of a definition: the ``revision``-th, stored by a commit."""

    kind: str
    name: str
    version: int
    revision: int
    digest: str
    commit_id: str
    created_at: Instant


class Changed(NamedTuple):
    """What a commit made of a definition; ``before`` is ``None`` for one that was new."""

    identity: Identity
    before: Definition | None
    after: Definition


class Revisions:
    """The history of definitions in the registry's database.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, database: Database) -> None:
        """Use the database of a registry: ``Revisions(registry.database)``."""
        self._database = database

    def written(self) -> dict[Identity, Written]:
        """When every definition was stored."""
        table = schema.definitions
        query = select(table.c.kind, table.c.name, table.c.version, table.c.created_at, table.c.updated_at)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {_identity(row): Written(row.created_at, row.updated_at) for row in rows}

    def of(self, identity: Identity) -> list[Revision]:
        """Every revision of a definition, oldest first; none for one that is not committed."""
        with self._database.read() as connection:
            rows = connection.execute(_revisions_of([identity], *_REVISION_COLUMNS)).all()
        return [record_of(Revision, row) for row in rows]

    def newest(self, kind: str) -> dict[str, int]:
        """By name, the number of the newest revision of every definition of a kind that has no versions."""
        table = schema.definition_revisions
        query = select(table.c.name, func.max(table.c.revision).label("revision")).where(table.c.kind == kind)
        with self._database.read() as connection:
            rows = connection.execute(query.group_by(table.c.name)).all()
        return {row.name: row.revision for row in rows}

    def at(self, identity: Identity, revision: int) -> Definition | None:
        """A definition as that revision had it.

        Raises:
            CorruptState: it cannot be read by this version of the code.
        """
        table = schema.definition_revisions
        query = _revisions_of([identity], table).where(table.c.revision == revision)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else definition_of(row)

    def deprecated_since(self, identities: Iterable[Identity]) -> dict[Identity, Instant]:
        """Since when the code has said that each of these is deprecated; one that it does not is left out."""
        wanted = list(identities)
        if not wanted:
            return {}
        with self._database.read() as connection:
            rows = connection.execute(_revisions_of(wanted, schema.definition_revisions)).all()
        since: dict[Identity, Instant] = {}
        for row in rows:
            if metadata_of(row.body).deprecated:
                since.setdefault(_identity(row), row.created_at)
            else:
                since.pop(_identity(row), None)
        return since

    def commit(self, commit_id: str) -> CommitRecord | None:
        """The newest commit of that id: one whose content came again after other commits has several entries."""
        table = schema.commits
        query = select(table).where(table.c.commit_id == commit_id).order_by(table.c.version.desc()).limit(1)
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return None if row is None else record_of(CommitRecord, row)

    def changed_by(self, commit: CommitRecord) -> list[Changed]:
        """What a commit changed, in the order of kinds and names.

        Raises:
            CorruptState: a definition cannot be read by this version of the code.
        """
        table, commits = schema.definition_revisions, schema.commits
        query = select(table).join(commits, commits.c.sequence == table.c.commit_sequence)
        query = query.where(commits.c.version == commit.version).order_by(table.c.kind, table.c.name, table.c.version)
        with self._database.read() as connection:
            after = connection.execute(query).all()
        before = self._before(after)
        return [Changed(_identity(row), before.get(_identity(row)), definition_of(row)) for row in after]

    def _before(self, rows: Iterable[Row[Any]]) -> Mapping[Identity, Definition]:
        """The forms that came right before these revisions."""
        wanted = {_identity(row): row.revision - 1 for row in rows if row.revision > 1}
        if not wanted:
            return {}
        with self._database.read() as connection:
            found = connection.execute(_revisions_of(wanted, schema.definition_revisions)).all()
        return {_identity(row): definition_of(row) for row in found if row.revision == wanted[_identity(row)]}


def _revisions_of(identities: Iterable[Identity], *columns: Any) -> Select[Any]:
    """Revisions of some definitions, oldest first."""
    table, commits = schema.definition_revisions, schema.commits
    query = select(*columns, commits.c.commit_id).join(commits, commits.c.sequence == table.c.commit_sequence)
    named = tuple_(table.c.kind, table.c.name, table.c.version).in_(list(identities))
    return query.where(named).order_by(table.c.kind, table.c.name, table.c.version, table.c.revision)


def _identity(row: Any) -> Identity:
    return Identity(row.kind, row.name, row.version)
