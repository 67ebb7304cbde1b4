"""Bring the offline store's tables of derived datasets up to date with what is accepted; bounded work.

    ray job submit … -- python -m jobs.derived --dataset CarrierStats
    ray job submit … -- python -m jobs.derived --keep-up

The second is what the supervisor has run on a schedule (jobs/derived_schedule.py): all tables, their small files
merged and those of forgotten versions deleted, what can only be made anew not more often than the settings say.

Of a pipeline that only filters and computes, new records change the rows of their own keys at their own instants, and
later ones that their windows reach: those are computed and appended. Where a record may change rows of other records
(joins, versions of keys, tables), the whole table is made anew and put in place of the old one, in one commit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from featurelib.clock import SECOND, Clock, Duration, Instant, SystemClock
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.asof import KNOWN, evaluate
from featurelib.engine.fold import KEY
from featurelib.engine.keys import KEY_GROUPS, key_groups
from featurelib.engine.operators import UNTIL
from featurelib.engine.program import Program
from featurelib.engine.read_plan import View, compile_views
from featurelib.engine.records import ACCEPTED_AT, DELETED, OFFSET, PARTITION, TIME, arrow_type
from featurelib.engine.table import arrow_column
from featurelib.errors import NotFound, StoreUnavailable, ThymeError
from featurelib.settings import ArchiveSettings, Settings, load_settings
from featurelib.stores.archive import KEY_GROUP, MONTH, Archive, months_of
from featurelib.stores.derived import LEADING, DerivedTable, Positions
from featurelib.stores.erasures import Erasures
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.point_in_time import PointInTime
from featurelib.stores.registry import Registry

# A pass holds the history of its key groups and their rows in memory.
_PASSES = 8
_ROWS_AT_ONCE = 131_072
_MOST_ERASURES = 1_000


class Refreshed(NamedTuple):
    """What was done: rows written, and whether they took the place of all that was there."""

    dataset: str
    rows: int
    anew: bool


class KeptUp(NamedTuple):
    """What a scheduled run did; ``failures`` says of each table that was not brought up to date why."""

    done: list[Refreshed]
    failures: list[str]


class _Stores(NamedTuple):
    history: History
    log: Log


class _Range(NamedTuple):
    """Which records bear on the rows of a pass: of some key groups, dated at or after an instant."""

    groups: range | None
    since: Instant | None


class DerivedTables:
    """Keeps the tables of derived datasets.

    Args:
        settings: where records, definitions and tables are.
        clock: says when rows are learnt of.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._log = Log(settings.online.redis_url.get_secret_value(), clock)
        self._registry = Registry(settings.registry_url, clock)
        self._archive = Archive(settings.archive_url)
        self._history = History(self._archive, self._log)

    def close(self) -> None:
        """Close connections."""
        self._log.close()
        self._registry.close()

    def refresh(self, dataset: str | None = None) -> list[Refreshed]:
        """Bring the tables of all derived datasets, or of one, up to date.

        Raises:
            NotFound: no pipeline gives that dataset.
            StoreUnavailable: a store does not answer; what is written stays as it was.
        """
        derived = self._derived()
        if dataset is not None and dataset not in derived:
            names = ", ".join(derived) or "none"
            raise NotFound(f"{dataset!r} is no dataset that a pipeline gives; those are {names}")
        return [self._refresh(view) for name, view in derived.items() if dataset in (None, name)]

    def keep_up(self, settings: ArchiveSettings) -> KeptUp:
        """Bring all tables up to date, merge their small files, and delete those of forgotten versions.

        A table that fails holds up no other.

        Raises:
            StoreUnavailable: the registry does not answer.
        """
        kept = KeptUp([], [])
        for view in self._derived().values():
            try:
                kept.done.append(self._refresh(view, settings.derived_anew_every_s * SECOND))
                self._archive.compact(view.dataset)
                self._archive.vacuum(view.dataset, settings.history_hours)
            except ThymeError as error:
                kept.failures.append(f"{ref(view.dataset)}: {error.code}: {error}")
        return kept

    def _derived(self) -> dict[str, View]:
        views, _ = compile_views(self._registry.definitions())
        return {name: view for name, view in sorted(views.items()) if not view.is_index}

    def _refresh(self, view: View, anew_every_us: Duration = 0) -> Refreshed:
        program, now = view.program, self._clock.now()
        ends = dict(PointInTime(self._history, self._log).spine([program]).cut)
        end = {name: tuple(offsets) for name, offsets in ends.items()}
        table = DerivedTable(self._archive, view.dataset, program, {name: len(each) for name, each in end.items()})
        start = table.positions()
        if start == end:
            return Refreshed(ref(view.dataset), 0, anew=False)
        erased = start is not None and self._erased_since(program, table.read_at())
        alone = program.plain and not program.rights and not erased
        costly = start is not None and not (alone or erased)
        if costly and anew_every_us and now - table.read_at() < anew_every_us:
            return Refreshed(ref(view.dataset), 0, anew=False)
        update = _Update(view, _Stores(self._history, self._log), start if alone else None, end, now)
        # In a file first: Delta takes batches in a thread of its own, from which its tables cannot be read.
        with tempfile.TemporaryDirectory() as folder:
            staged = Path(folder) / "rows.parquet"
            with pq.ParquetWriter(staged, update.schema) as writer:
                for batch in update.batches():
                    writer.write_batch(batch)
            table.write(staged, end, now, anew=update.anew)
        if erased:
            table.forget_earlier()
        return Refreshed(ref(view.dataset), update.rows, update.anew)

    def _erased_since(self, program: Program, instant: Instant) -> bool:
        """Whether records that the table may hold something of were erased."""
        names = {dataset.name for dataset in program.sources}
        erasures = Erasures(self._registry.database, self._clock).list(_MOST_ERASURES)
        return any(each.dataset in names and (each.completed_at or instant) >= instant for each in erasures)


class _Update:
    """The rows of one table that are to be written.

    Args:
        view: the dataset and its pipeline.
        stores: archive and log as one, and the log.
        start: how far the input is in; ``None``: every row is to be written.
        end: how far it shall be in.
        now: when the rows are learnt of.
    """

    def __init__(self, view: View, stores: _Stores, start: Positions | None, end: Positions, now: Instant) -> None:
        self.anew = start is None
        self.rows = 0
        self.schema = _schema(view)
        self._view = view
        self._history, self._log = stores
        self._start = start
        self._end = end
        self._now = now

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Rows, some at a time, by key group and time."""
        for wanted in self._passes():
            shaped = self._shaped(wanted)
            pairs = self._pairs(shaped, wanted)
            for start in range(0, len(pairs), _ROWS_AT_ONCE):
                table = self._rows_of(shaped, pairs.slice(start, _ROWS_AT_ONCE))
                self.rows += len(table)
                yield from table.to_batches()

    def _passes(self) -> Iterator[_Range]:
        keyed = self._view.program.keyed_like_its_dataset()
        since = self._reach()
        if not keyed:
            yield _Range(None, since)
            return
        size = KEY_GROUPS // _PASSES
        yield from (_Range(range(first, first + size), since) for first in range(0, KEY_GROUPS, size))

    def _reach(self) -> Instant | None:
        """The oldest instant whose records bear on what is to be written; ``None``: there is no oldest."""
        horizon = self._view.program.horizon
        if self._start is None or horizon is None:
            return None
        left = self._view.program.left
        bounds = zip(self._start[ref(left)], self._end[ref(left)], strict=True)
        times = [self._times(left, part, first, end) for part, (first, end) in enumerate(bounds)]
        return min((min(each) for each in times if each), default=self._now) - horizon

    def _times(self, dataset: DatasetDef, partition: int, first: int, end: int) -> list[Instant]:
        """Of the records of a partition with these offsets, the oldest event time of each piece they come in."""
        found = self._history.archived(dataset, partition, first, end - first)
        pieces, offset = [found.records], max(first, found.end)
        while offset < end:
            tail = self._log.tail(ref(dataset), partition, offset, end - offset)
            if tail.trimmed or tail.records is None:
                raise StoreUnavailable(f"the log of {ref(dataset)} was trimmed while it was read; try again")
            pieces.append(tail.records)
            offset += len(tail.records)
        return [int(piece[TIME].to_numpy().min()) for piece in pieces if len(piece)]

    def _shaped(self, wanted: _Range) -> pl.DataFrame:
        program = self._view.program
        return program.shape_all({each.name: self._records(each, wanted) for each in program.sources})

    def _records(self, dataset: DatasetDef, wanted: _Range) -> pa.Table:
        left = dataset == self._view.program.left
        offsets = self._end[ref(dataset)]
        return self._history.read(
            dataset,
            len(offsets),
            groups=wanted.groups if left else None,
            since=wanted.since if left else None,
            cut=dict(enumerate(offsets)),
        )

    def _pairs(self, shaped: pl.DataFrame, wanted: _Range) -> pl.DataFrame:
        """Keys, and the instants at which records change them, in the order of a file."""
        changes = pl.concat(
            [
                shaped.select(KEY, TIME),
                shaped.filter(pl.col(UNTIL).is_not_null()).select(KEY, pl.col(UNTIL).alias(TIME)),
            ]
        ).unique()
        if self._start is not None:
            changes = self._changed(changes, wanted)
        groups = pl.Series(KEY_GROUP, key_groups(changes[KEY]), dtype=pl.Int32)
        return changes.with_columns(groups).sort(KEY_GROUP, TIME, KEY)

    def _changed(self, changes: pl.DataFrame, wanted: _Range) -> pl.DataFrame:
        """Those that new records bear on: dated at or after the key's oldest of them, within its windows' reach."""
        program = self._view.program
        new = program.shape_all({program.left.name: self._new(self._records(program.left, wanted))})
        touched = new.group_by(KEY).agg(pl.col(TIME).min().alias("first"), pl.col(TIME).max().alias("last"))
        found = changes.join(touched, on=KEY).filter(pl.col(TIME) >= pl.col("first"))
        if program.horizon is not None:
            found = found.filter(pl.col(TIME) <= pl.col("last") + program.horizon)
        return found.select(KEY, TIME)

    def _new(self, records: pa.Table) -> pa.Table:
        assert self._start is not None
        start = np.array(self._start[ref(self._view.program.left)], dtype=np.int64)
        return records.filter(pa.array(records[OFFSET].to_numpy() >= start[records[PARTITION].to_numpy()]))

    def _rows_of(self, shaped: pl.DataFrame, pairs: pl.DataFrame) -> pa.Table:
        view, times = self._view, pairs[TIME].to_numpy()
        frame = evaluate(view.program, shaped, pairs[KEY], times)
        known = frame.drop_in_place(KNOWN)
        leading = {
            MONTH: pa.array(months_of(times), pa.int32()),
            KEY_GROUP: pairs[KEY_GROUP].to_arrow(),
            TIME: pa.array(times, pa.int64()),
            ACCEPTED_AT: pa.repeat(pa.scalar(self._now, pa.int64()), len(pairs)),
            DELETED: (~known).to_arrow(),
            view.dataset.key.name: _keys(view, pairs[KEY]),
        }
        columns = {**leading, **{name: frame[name].to_arrow() for name in frame.columns}}
        return pa.table([columns[field.name].cast(field.type) for field in self.schema], schema=self.schema)


def _schema(view: View) -> pa.Schema:
    """The columns of a table: those of every one, the key, and what the pipeline gives."""
    nothing = view.program.shape_all({})
    frame = evaluate(view.program, nothing, [], np.zeros(0, dtype=np.int64)).drop(KNOWN)
    given = [pa.field(name, _stored(column.to_arrow().type)) for name, column in zip(frame.columns, frame, strict=True)]
    return pa.schema([*LEADING, pa.field(view.dataset.key.name, arrow_type(view.dataset.key.type)), *given])


def _stored(kind: pa.DataType) -> pa.DataType:
    """The type as tables of raw datasets have it, where polars has one of its own."""
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return pa.list_(_stored(kind.value_type))
    return pa.timestamp("us", "UTC") if pa.types.is_timestamp(kind) else kind


def _keys(view: View, texts: pl.Series) -> pa.Array:
    """The values of a key column, of which the engine has the texts."""
    distinct = texts.unique()
    values = {text: view.key_form.read(text).value for text in distinct.to_list()}
    return arrow_column(view.dataset.key.type, [values[text] for text in texts.to_list()])


def summary(done: Sequence[Refreshed]) -> str:
    """A line per table."""
    return "\n".join(f"{each.dataset}: {each.rows} rows{', all anew' if each.anew else ''}" for each in done)


def main() -> None:
    """Command line of the job."""
    parser = argparse.ArgumentParser(prog="jobs.derived", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="name of one derived dataset; default: all")
    parser.add_argument("--keep-up", action="store_true", help="all, with the upkeep of their files; for a schedule")
    arguments, settings = parser.parse_args(), load_settings()
    if arguments.keep_up:
        os.nice(settings.pipeline.niceness)  # nobody waits for it
    try:
        with closing(DerivedTables(settings, SystemClock())) as tables:
            if not arguments.keep_up:
                print(summary(tables.refresh(arguments.dataset)))  # noqa: T201  # the job's own output
                return
            kept = tables.keep_up(settings.archive)
        print(summary(kept.done))  # noqa: T201
        if kept.failures:
            sys.exit("\n".join(kept.failures))
    except ThymeError as error:
        sys.exit(f"{error.code}: {error}\n{error.remedy}")


if __name__ == "__main__":
    main()
