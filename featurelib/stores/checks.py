"""Where the monitor keeps what it found: how often served values differed from true ones, by feature and hour.

Who differed most is kept as query runs and places in them, never as entities: an erased entity is then erased here too,
since its runs are. A mark of the entity, under the platform's key, tells entities apart over many runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, delete, select

from featurelib.clock import HOUR, Duration, Instant
from featurelib.definitions import Record
from featurelib.stores import schema
from featurelib.stores.audit import QueryRun
from featurelib.stores.database import Database, record_of, upsert

Kind = Literal["dataset", "featureset"]
Cause = Literal["late_record", "not_applied", "backfill", "version_change", "erasure", "unknown"]
SERVED_ONLINE = ("online", "batch", "lookup")
"""Kinds of runs that were answered from the online store."""

MOST_WORST = 10
"""Entities kept per feature and hour."""

_KEPT: Duration = 14 * 24 * HOUR
# A minute at 2,000 reads a second; of more the first are sampled from.
_MOST_LISTED = 120_000
_RUNS_AT_ONCE = 500
_Tallies = list["Tally"]


class Worst(BaseModel):
    """An entity whose value differed: its mark, a run that read it, its place among that run's ids, and how often.

    Of a batch that nobody could reproduce it is not known which of its entities it was: the place is -1.
    """

    model_config = ConfigDict(frozen=True)

    mark: str
    run: str
    place: int
    times: int = 1


class Feature(NamedTuple):
    """What is compared: a feature of a featureset, or a column of a dataset that is looked up."""

    kind: Kind
    target: str
    feature: str


class Tally(Record):
    """What was found of one feature within an hour, which begins at ``hour``."""

    kind: Kind
    target: str
    feature: str
    hour: Instant
    compared: int = 0
    different: int = 0
    causes: dict[str, int] = Field(default_factory=dict)
    worst: tuple[Worst, ...] = ()
    updated_at: Instant = 0

    @property
    def of(self) -> Feature:
        """The feature."""
        return Feature(self.kind, self.target, self.feature)

    def plus(self, more: Tally) -> Tally:
        """Both together; the hour is the earlier one."""
        return self.model_copy(
            update={
                "hour": min(self.hour, more.hour),
                "compared": self.compared + more.compared,
                "different": self.different + more.different,
                "causes": _added(self.causes, more.causes),
                "worst": _worst((*self.worst, *more.worst)),
                "updated_at": max(self.updated_at, more.updated_at),
            }
        )


class Listed(NamedTuple):
    """A run as it is sampled from: its number and what it read."""

    sequence: int
    kind: str
    target: str


class Checks:
    """Samples query runs, and keeps what became of comparing them.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, database: Database) -> None:
        """Use the database of a registry: ``Checks(registry.database)``."""
        self._database = database

    def sample(self, since: Instant, until: Instant, most: int, largest: int) -> list[QueryRun]:
        """Some of the runs answered from the online store after ``since`` and up to ``until``, of every target alike.

        Args:
            since: excluded.
            until: included.
            most: how many runs.
            largest: most entities of one run.
        """
        runs = schema.query_runs
        answered = (runs.c.error.is_(None), runs.c.digests.is_not(None), runs.c.inputs.is_not(None))
        query = (
            select(runs.c.sequence, runs.c.kind, runs.c.featureset)
            .where(runs.c.created_at > since, runs.c.created_at <= until, *answered)
            .where(runs.c.kind.in_(SERVED_ONLINE), runs.c.entity_count <= largest)
            .order_by(runs.c.created_at)
            .limit(_MOST_LISTED)
        )
        with self._database.read() as connection:
            listed = [Listed(*row) for row in connection.execute(query)]
        chosen = select(runs).where(runs.c.sequence.in_(_spread(listed, most))).order_by(runs.c.sequence)
        with self._database.read() as connection:
            return [record_of(QueryRun, row) for row in connection.execute(chosen)]

    def add(self, tallies: Iterable[Tally]) -> None:
        """Count what was found, with what is known of the same hours."""
        with self._database.exclusive() as connection:
            for tally in tallies:
                before = _stored(connection, tally)
                whole = tally if before is None else before.plus(tally)
                upsert(connection, schema.consistency_checks, whole.model_dump(mode="json"))

    def of(self, since: Instant, kind: Kind | None = None, target: str | None = None) -> _Tallies:
        """What was found in the hours from the one of an instant on, a tally per feature, by name."""
        table = schema.consistency_checks
        query = select(table).where(table.c.hour >= since // HOUR * HOUR).order_by(table.c.hour)
        for column, value in ((table.c.kind, kind), (table.c.target, target)):
            query = query if value is None else query.where(column == value)
        with self._database.read() as connection:
            found = [record_of(Tally, row) for row in connection.execute(query)]
        return together(found)

    def entities(self, runs: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The entity ids of runs, of those that are still kept; pseudonyms stand for those that were erased."""
        table, wanted = schema.query_runs, sorted(set(runs))
        found: dict[str, tuple[str, ...]] = {}
        for start in range(0, len(wanted), _RUNS_AT_ONCE):
            query = select(table.c.id, table.c.entity_ids).where(table.c.id.in_(wanted[start : start + _RUNS_AT_ONCE]))
            with self._database.read() as connection:
                found |= {row.id: tuple(row.entity_ids) for row in connection.execute(query)}
        return found

    def forget_old(self, now: Instant) -> None:
        """Delete what was found more than a fortnight ago."""
        table = schema.consistency_checks
        with self._database.write() as connection:
            connection.execute(delete(table).where(table.c.hour < now - _KEPT))

    def mark(self, name: str) -> Instant | None:
        """How far the monitor got with something; ``None``: it never began."""
        table = schema.monitor_marks
        with self._database.read() as connection:
            found: Instant | None = connection.scalar(select(table.c.at).where(table.c.name == name))
        return found

    def move(self, name: str, at: Instant, now: Instant) -> None:
        """Note how far it got."""
        with self._database.write() as connection:
            upsert(connection, schema.monitor_marks, {"name": name, "at": at, "updated_at": now})


def together(tallies: Iterable[Tally]) -> _Tallies:
    """One tally per feature, by name."""
    found: dict[Feature, Tally] = {}
    for each in tallies:
        found[each.of] = found[each.of].plus(each) if each.of in found else each
    return [found[feature] for feature in sorted(found)]


def _stored(connection: Connection, tally: Tally) -> Tally | None:
    table = schema.consistency_checks
    mine = [table.c[name] == getattr(tally, name) for name in ("kind", "target", "feature", "hour")]
    row = connection.execute(select(table).where(*mine)).first()
    return None if row is None else record_of(Tally, row)


def _spread(listed: Sequence[Listed], most: int) -> list[int]:
    """Numbers of some runs: in turn one of every target, so that those that are seldom read are looked at too."""
    by_target: dict[tuple[str, str], list[int]] = {}
    # By a hash of the number: what is asked in a rhythm is not sampled in one, and again gives the same sample.
    for each in sorted(listed, key=lambda run: _shuffled(run.sequence)):
        by_target.setdefault((each.kind, each.target), []).append(each.sequence)
    # Where there are more targets than places, another part of them has its turn each time.
    turns = sorted(by_target.values(), key=lambda numbers: _shuffled(numbers[0]))
    chosen: list[int] = []
    for turn in range(max((len(numbers) for numbers in turns), default=0)):
        chosen += [numbers[turn] for numbers in turns if turn < len(numbers)]
        if len(chosen) >= most:
            break
    return chosen[:most]


def _shuffled(sequence: int) -> int:
    return zlib.crc32(str(sequence).encode())


def _added(before: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {name: before.get(name, 0) + more.get(name, 0) for name in sorted({*before, *more})}


def _worst(found: Iterable[Worst]) -> tuple[Worst, ...]:
    """Of every entity one, the newest run's, and those that differed most often."""
    by_mark: dict[str, Worst] = {}
    for each in found:
        times = each.times + (by_mark[each.mark].times if each.mark in by_mark else 0)
        by_mark[each.mark] = each.model_copy(update={"times": times})
    ranked = sorted(by_mark.values(), key=lambda each: (-each.times, each.mark))
    return tuple(ranked[:MOST_WORST])
