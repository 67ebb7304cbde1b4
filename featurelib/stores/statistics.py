"""Where the statistics of columns and features are kept: a summary per day, and how far it is from the days before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from sqlalchemy import ColumnElement, delete, func, select, update

from featurelib.clock import Instant
from featurelib.definitions import Record
from featurelib.engine.statistics import Summary
from featurelib.stores import schema
from featurelib.stores.database import Database, insert_new, record_of

Kind = Literal["dataset", "featureset"]
DAY_ITSELF = ""
"""Name of the row of a day that says that it was looked at, and holds the number of rows it is of."""


class Subject(NamedTuple):
    """What statistics are of: a featureset by name, or a dataset as ``Name@version``."""

    kind: Kind
    name: str


class Figures(Record):
    """Statistics of one column on one day, and how far it drifted, without its summary.

    Attributes:
        kind: of the subject.
        subject: its name.
        name: of the feature or column; empty for the day itself.
        day: its first instant, UTC.
        definition: digest of what the values are made by.
        rows: how many values there are, nulls included.
        nulls: how many of them are null.
        psi: population stability index against the days before, where there are any.
        js: Jensen-Shannon divergence, likewise.
        reference_rows: how many values the days before have.
        made_at: when it was made.
    """

    kind: Kind
    subject: str
    name: str
    day: Instant
    definition: str
    rows: int
    nulls: int = 0
    psi: float | None = None
    js: float | None = None
    reference_rows: int | None = None
    made_at: Instant

    @property
    def of(self) -> Subject:
        """The subject."""
        return Subject(self.kind, self.subject)


class ColumnDay(Figures):
    """The same with the summary."""

    summary: Summary


class Drifted(NamedTuple):
    """A column's drift on a day; all ``None``: there is nothing to compare it with."""

    name: str
    day: Instant
    psi: float | None
    js: float | None
    reference_rows: int | None


_FIGURES = [schema.column_statistics.c[name] for name in Figures.model_fields]
_Days = list[ColumnDay]


class Statistics:
    """Statistics in the registry's database.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, database: Database) -> None:
        """Use the database of a registry: ``Statistics(registry.database)``."""
        self._database = database

    def put(self, subject: Subject, day: Instant, columns: Sequence[ColumnDay]) -> None:
        """Keep a day of a subject, the row of the day itself among the columns, in place of what was kept of it."""
        table = schema.column_statistics
        with self._database.write() as connection:
            connection.execute(delete(table).where(*_is(subject), table.c.day == day))
            insert_new(connection, table, [column.model_dump() for column in columns])

    def days(self) -> dict[tuple[Subject, Instant], Figures]:
        """Every day that was looked at."""
        table = schema.column_statistics
        with self._database.read() as connection:
            rows = connection.execute(select(*_FIGURES).where(table.c.name == DAY_ITSELF)).all()
        found = [record_of(Figures, row) for row in rows]
        return {(each.of, each.day): each for each in found}

    def of(self, subject: Subject, since: Instant, until: Instant, name: str | None = None) -> _Days:
        """What is kept of a subject's days from one to another, both included, by name and day.

        The rows of the days themselves come first; of one column, without them.
        """
        table = schema.column_statistics
        query = select(table).where(*_is(subject), table.c.day >= since, table.c.day <= until)
        query = query if name is None else query.where(table.c.name == name)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(table.c.name, table.c.day)).all()
        return [record_of(ColumnDay, row) for row in rows]

    def set_drift(self, subject: Subject, drifted: Iterable[Drifted]) -> None:
        """Note how far columns drifted."""
        table = schema.column_statistics
        with self._database.write() as connection:
            for each in drifted:
                values = {"psi": each.psi, "js": each.js, "reference_rows": each.reference_rows}
                query = update(table).where(*_is(subject), table.c.day == each.day, table.c.name == each.name)
                connection.execute(query.values(values))

    def newest(self, before: Instant) -> list[Figures]:
        """The newest day of every column that began before an instant, by name."""
        table = schema.column_statistics
        key = (table.c.kind, table.c.subject, table.c.name)
        last = (
            select(*key, func.max(table.c.day).label("last"))
            .where(table.c.day < before, table.c.name != DAY_ITSELF)
            .group_by(*key)
            .subquery()
        )
        same = [table.c[column.name] == last.c[column.name] for column in key]
        query = select(*_FIGURES).join(last, (table.c.day == last.c.last) & same[0] & same[1] & same[2])
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(*key)).all()
        return [record_of(Figures, row) for row in rows]

    def forget(self, before: Instant, subjects: Iterable[Subject]) -> None:
        """Delete days before an instant, and all of what is not among the subjects."""
        table = schema.column_statistics
        known = set(subjects)
        with self._database.read() as connection:
            kept = {Subject(*row) for row in connection.execute(select(table.c.kind, table.c.subject).distinct())}
        with self._database.write() as connection:
            connection.execute(delete(table).where(table.c.day < before))
            for gone in kept - known:
                connection.execute(delete(table).where(*_is(gone)))


def by_name(days: Iterable[ColumnDay]) -> Mapping[str, dict[Instant, ColumnDay]]:
    """Per column its days; those of the days themselves are left out."""
    found: dict[str, dict[Instant, ColumnDay]] = {}
    for each in days:
        if each.name != DAY_ITSELF:
            found.setdefault(each.name, {})[each.day] = each
    return found


def _is(subject: Subject) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    table = schema.column_statistics
    return table.c.kind == subject.kind, table.c.subject == subject.name
