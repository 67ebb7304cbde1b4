"""Iceberg: the snapshots of a table's main branch, one after the other.

A stream is a table, and *numbered*: the rows that a snapshot adds or removes are counted on and on, data files by path
and rows by position, and every snapshot takes one number more for its end. A mark's token is

    <place>                      all is read up to and with the snapshot of that place
    <place>><snapshot>:<rows>    and so many rows of what leads from there to another snapshot; with ``~`` for ``>``
                                 where both snapshots are needed to tell what does

A place is ``<snapshot>.<sequence number>.<rows in the table>``; the latter two tell what is new when the snapshot has
expired. The first poll walks the history from its first snapshot, or reads the oldest one that is left as it is.

What a snapshot brings:

    append             the rows of its files
    replace            nothing: compaction
    overwrite, delete  the rows that are there now and were not, after those (cdc ``upsert``: with ``__deleted``;
                       else only counted in a notice) that were there and are not; rows that were only moved to another
                       file cancel out, and row deletes are applied on either side

Settings:

    table, database    its name, and its namespace (``a.b``)
    catalog            a catalog by its name in pyiceberg's own configuration, or an address; default: ``default``
    catalog_uri        the catalog's address (``sqlite:///…``, ``postgresql+psycopg2://…``, ``https://…``)
    warehouse          where it keeps its tables
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyiceberg.exceptions
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan, _read_all_delete_files
from pyiceberg.manifest import ManifestContent, ManifestEntryStatus
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.snapshots import Operation, Snapshot, ancestors_of

from featurelib.clock import Clock
from featurelib.connectors.contract import NO_SEQUENCE, Position, SourceBatch
from featurelib.connectors.credentials import Setting, resolve
from featurelib.definitions import SourceDef
from featurelib.engine.records import DELETED, Mark
from featurelib.errors import SourceError

_UNKNOWN_ROWS = -1
# Rows that are given anew take numbers no partition of the log has seen: one may be a batch ahead of the others.
_MORE_THAN_A_BATCH = 1_000_000
_ANEW = "Keep snapshots longer; to read the table anew, commit the dataset as a new version"
_PYICEBERG_ERRORS = tuple(
    each for each in vars(pyiceberg.exceptions).values() if isinstance(each, type) and issubclass(each, Exception)
)
_DRIVER_ERRORS: tuple[type[Exception], ...] = (
    *_PYICEBERG_ERRORS,
    OSError,  # files, object stores, catalogs over HTTP
    ValueError,  # also what pyiceberg says of row deletes it cannot read
    NotImplementedError,
    pa.ArrowException,
)


class _Place(NamedTuple):
    """A snapshot that is read to its end, and what is needed to go on from it when it has expired."""

    snapshot: int
    sequence: int
    rows: int

    @property
    def text(self) -> str:
        return f"{self.snapshot}.{self.sequence}.{self.rows}"


class _Through(NamedTuple):
    """A token: the last place, and how many rows are read of what leads from it to a target (by comparing both)."""

    place: _Place | None
    target: int | None = None
    rows: int = 0
    compared: bool = False

    @property
    def text(self) -> str:
        place = self.place.text if self.place is not None else ""
        return place if self.target is None else f"{place}{'~' if self.compared else '>'}{self.target}:{self.rows}"


class _Change(NamedTuple):
    """What leads to a snapshot: files as they were before, and as they are after.

    ``gaps`` are numbers that no row takes: before the rows of each file that is there after, and behind all.
    """

    target: Snapshot
    before: list[FileScanTask]
    after: list[FileScanTask]
    notices: tuple[str, ...] = ()
    compared: bool = False
    gaps: Sequence[int] = ()


class IcebergTable:
    """Reads one table. The catalog is asked again at every poll."""

    def __init__(self, source: SourceDef, batch_rows: int, clock: Clock) -> None:  # noqa: ARG002  # as every connector
        """Checks the settings; connects at the first poll.

        Raises:
            SourceError: a setting is missing or cannot be.
        """
        config = source.connector.config
        self._what = f"iceberg source of {source.dataset}"
        table, database = _text(config, "table"), _text(config, "database")
        self._stream = f"{database}.{table}" if database else table
        if not table or "." not in self._stream:
            raise SourceError(f"{self._what}: table is {self._stream!r}; expected a name and, as database, a namespace")
        self._catalog_settings = _catalog_settings(config, self._what)
        self._catalog: Catalog | None = None
        self._upserts = source.cdc == "upsert"
        self._batch_rows = batch_rows

    def poll(self, position: Position) -> Iterator[SourceBatch]:
        """What the snapshots after ``position`` change, snapshot by snapshot.

        Raises:
            SourceError: the table cannot be read, or what is new in it cannot be told any more.
        """
        with self._failures():
            table = self._table()
            mark = position.get(self._stream, Mark(0))
            through, sequence = _through(mark.token), mark.sequence
            if through.target is not None:
                through, sequence = self._resumed(table, through, sequence)
            while (target := self._target(table, through)) is not None:
                for batch in self._batches(table, self._change(table, through, target), through, sequence):
                    yield batch
                    reached = batch.through
                sequence, through = reached.sequence, _through(reached.token)

    def close(self) -> None:
        """Give the catalog's connections back."""
        if self._catalog is not None:
            self._catalog.close()
            self._catalog = None

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except _driver_errors() as error:
            raise SourceError(f"{self._what}: {self._stream} cannot be read: {_sentence(error)}") from error

    def _table(self) -> Table:
        if self._catalog is None:
            name, settings = self._catalog_settings
            self._catalog = load_catalog(name, **settings)
        return self._catalog.load_table(self._stream)

    # Which snapshot comes next, and what leads to it.

    def _resumed(self, table: Table, through: _Through, sequence: int) -> tuple[_Through, int]:
        """Where to go on within a change: its rows are counted from the number before its first.

        Raises:
            SourceError: what was left of the change cannot be told any more.
        """
        place, target = through.place, through.target or 0
        base_is_held = place is None or table.snapshot_by_id(place.snapshot) is not None
        if table.snapshot_by_id(target) is not None and (base_is_held or not through.compared):
            return through, sequence - through.rows
        if self._upserts:
            return _Through(place), sequence + _MORE_THAN_A_BATCH
        message = (
            f"{self._what}: {through.rows} rows of what leads to snapshot {target} of {self._stream} were read when it "
            f"or the one before it, expired: which rows are new cannot be told. {_ANEW}"
        )
        raise SourceError(message)

    def _target(self, table: Table, through: _Through) -> Snapshot | None:
        """The snapshot to be read next; ``None`` when the newest one is read."""
        if through.target is not None:
            return table.snapshot_by_id(through.target)
        history = list(ancestors_of(table.current_snapshot(), table.metadata))[::-1]
        if not history and through.place is not None:
            raise SourceError(f"{self._what}: {self._stream} is empty, but was read before: it was replaced")
        if not history or through.place is None:
            return history[0] if history else None
        ids = [snapshot.snapshot_id for snapshot in history]
        if through.place.snapshot in ids:
            following = ids.index(through.place.snapshot) + 1
            return history[following] if following < len(history) else None
        # A place that is held but not behind the newest snapshot: the table was rolled back.
        return history[-1] if table.snapshot_by_id(through.place.snapshot) is not None else history[0]

    def _change(self, table: Table, through: _Through, target: Snapshot) -> _Change:
        """What leads from the place that is read to a snapshot."""
        place = through.place
        if place is None:
            # Not by what it added: a library that lets history expire also forgets that a snapshot had a parent.
            return _Change(target, [], _in_order(_files(table, target)), self._begun_late(target))
        if place.snapshot == target.parent_snapshot_id:
            if _operation(target) is Operation.REPLACE:
                return _Change(target, [], [])
            added = _appended(table, target)
            if added is not None:
                return _Change(target, [], added)
        held = table.snapshot_by_id(place.snapshot)
        if held is None:
            return self._after_expired(table, place, target)
        notices: tuple[str, ...] = ()
        if place.snapshot != target.parent_snapshot_id:
            notices = (
                f"{self._what}: {self._stream} went back from snapshot {place.snapshot} to {target.snapshot_id}",
            )
        before, after = _differing(_files(table, held), _files(table, target))
        return _Change(target, before, after, notices, compared=True)

    def _begun_late(self, target: Snapshot) -> tuple[str, ...]:
        added = target.summary["added-records"] if target.summary is not None else None
        if target.parent_snapshot_id is None and int(added or 0) == _rows_in(target):
            return ()
        before = f"the history of {self._stream} before snapshot {target.snapshot_id}"
        return (f"{self._what}: {before} has expired; its rows are read as they are there",)

    def _after_expired(self, table: Table, place: _Place, target: Snapshot) -> _Change:
        """What is new since a snapshot that has expired, by the sequence numbers of the files that are left.

        If the files younger than the place hold as many rows as the table has gained, then no older file was removed in
        between, not even by a compaction: they are what was added, exactly.
        """
        said = f"{self._what}: snapshot {place.snapshot} of {self._stream} has expired; the oldest one left after it is"
        files = {task.file.file_path: task for task in _files(table, target)}
        # In the order in which the snapshots in between would have given them.
        younger = [
            (number, files[path]) for number, path in sorted(_younger(table, target, place.sequence)) if path in files
        ]
        gained = _rows_in(target) - place.rows
        known = place.rows != _UNKNOWN_ROWS and _rows_in(target) != _UNKNOWN_ROWS and place.sequence > 0
        if known and sum(task.file.record_count for _, task in younger) == gained:
            notice = f"{said} {target.snapshot_id}; the rows added in between were found by their files"
            # Each snapshot took a number for its end, so a partition of the log that is one ahead skips the right rows.
            ends = np.diff([place.sequence + 1, *(number for number, _ in younger), target.sequence_number or 0])
            return _Change(target, [], [task for _, task in younger], (notice,), gaps=ends.tolist())
        if self._upserts:
            notice = (
                f"{said} {target.snapshot_id}; all rows it holds are taken anew, and keys that were removed in between "
                "are not taken away"
            )
            anew = _in_order(files.values())
            return _Change(target, [], anew, (notice,), gaps=[_MORE_THAN_A_BATCH, *[0] * len(anew)])
        why = "files were rewritten in between: which rows are new cannot be told"
        message = f"{said} {target.snapshot_id}, and {why}. {_ANEW}"
        raise SourceError(message)

    # Rows of a change as batches.

    def _batches(self, table: Table, change: _Change, through: _Through, start: int) -> Iterator[SourceBatch]:
        """The rows of a change that are not read; the last batch holds its end, which takes a number of its own.

        Args:
            table: whose rows they are.
            change: what is read.
            through: the place it leads from, and how many of its rows are read already.
            start: the number before its first row's.
        """
        target = change.target.snapshot_id
        rows = _Rows(table, change, upserts=self._upserts)
        waiting: SourceBatch | None = None
        for first, part in self._parts(rows, through.rows):
            if waiting is not None:
                yield waiting
            last = first + len(part)
            sequence = np.arange(start + first + 1, start + last + 1, dtype=np.int64)
            reached = Mark(start + last, _Through(through.place, target, last, change.compared).text)
            waiting = SourceBatch(self._stream, sequence, part, reached, cursor=str(target))
        notices = change.notices
        if rows.removed and not self._upserts:
            notices = (*notices, self._removal(change.target, rows.removed))
        if waiting is None:
            waiting = SourceBatch(self._stream, NO_SEQUENCE, [], Mark(0), cursor=str(target))
        end = Mark(start + max(through.rows, rows.given) + 1, _place(change.target).text)
        yield waiting._replace(through=end, notices=notices)

    def _parts(self, rows: _Rows, skip: int) -> Iterator[tuple[int, pa.Table]]:
        """Rows after the first ``skip``, at most a batch at a time, with how many come before them."""
        for first, table in rows.tables(skip):
            begin = max(0, skip - first)
            for offset in range(begin, len(table), self._batch_rows):
                yield first + offset, table.slice(offset, self._batch_rows)

    def _removal(self, target: Snapshot, removed: int) -> str:
        return (
            f"{self._what}: snapshot {target.snapshot_id} of {self._stream} removed {removed} rows, which stay: the "
            "source appends (cdc='upsert' takes keys away)"
        )


class _Rows:
    """The rows of a change in an order that is always the same: first what is removed, then what is added.

    Where files were both removed and added, rows that are equal on both sides cancel out. For that 16 bytes per row of
    the files at stake are held in memory, never the rows.
    """

    def __init__(self, table: Table, change: _Change, *, upserts: bool) -> None:
        self._table = table
        self._change = change
        self._upserts = upserts
        self._scan = ArrowScan(table.metadata, table.io, table.schema(), AlwaysTrue())
        self.removed = 0
        self.given = 0

    def tables(self, skip: int) -> Iterator[tuple[int, pa.Table]]:
        """Tables of rows, with how many numbers come before each. Whole files below ``skip`` are not opened."""
        moved: Counter[bytes] = Counter()
        if self._change.before:
            added = Counter(
                digest for task in self._change.after for part in self._read(task) for digest in _digests(part)
            )
            for task in self._change.before:
                for part in self._read(task):
                    gone = part.filter(pa.array(_without(part, added, moved)))
                    self.removed += len(gone)
                    if self._upserts and len(gone):
                        yield self._count(gone.append_column(DELETED, pa.array([True] * len(gone))))
        gaps = self._change.gaps or [0] * (len(self._change.after) + 1)
        for gap, task in zip(gaps, self._change.after, strict=False):
            self.given += gap
            if not moved and not task.delete_files and self.given + task.file.record_count <= skip:
                self.given += task.file.record_count
                continue
            for part in self._read(task):
                new = part.filter(pa.array(_without(part, moved, Counter()))) if moved else part
                if len(new):
                    yield self._count(new)
        self.given += gaps[-1]

    def _count(self, rows: pa.Table) -> tuple[int, pa.Table]:
        before = self.given
        self.given += len(rows)
        return before, rows

    def _read(self, task: FileScanTask) -> Iterator[pa.Table]:
        """A data file's rows, row deletes applied, a batch at a time."""
        # The scan's public methods hold all rows of a file, which may be gigabytes, before they give the first.
        deletes = _read_all_delete_files(self._table.io, [task])
        for batch in self._scan._record_batches_from_scan_tasks_and_deletes([task], deletes):  # noqa: SLF001
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


def _digests(rows: pa.Table) -> list[bytes]:
    """Sixteen bytes that say what a row holds."""
    return [hashlib.blake2b(repr(row).encode(), digest_size=16).digest() for row in rows.to_pylist()]


def _without(rows: pa.Table, others: Counter[bytes], met: Counter[bytes]) -> npt.NDArray[np.bool_]:
    """Which rows are not among others, each of which stands for one row only; those that are go over to ``met``."""
    kept = np.ones(len(rows), dtype=np.bool_)
    for place, digest in enumerate(_digests(rows)):
        if others.get(digest, 0):
            others[digest] -= 1
            met[digest] += 1
            kept[place] = False
    return kept


def _files(table: Table, snapshot: Snapshot) -> list[FileScanTask]:
    """All data files of a snapshot with the row deletes that hold for them.

    Raises:
        ValueError: there are equality deletes, which pyiceberg does not read.
    """
    return list(table.scan(snapshot_id=snapshot.snapshot_id).plan_files())


def _appended(table: Table, target: Snapshot) -> list[FileScanTask] | None:
    """The data files a snapshot adds; ``None`` when it does more than that."""
    if _operation(target) is not Operation.APPEND:
        return None
    added = []
    for manifest in target.manifests(table.io):
        if manifest.added_snapshot_id != target.snapshot_id:
            continue
        if manifest.content is not ManifestContent.DATA:
            return None
        entries = manifest.fetch_manifest_entry(table.io)
        mine = (entry for entry in entries if entry.status == ManifestEntryStatus.ADDED)
        added += [FileScanTask(entry.data_file) for entry in mine if entry.snapshot_id == target.snapshot_id]
    return _in_order(added)


def _younger(table: Table, target: Snapshot, sequence: int) -> list[tuple[int, str]]:
    """Sequence numbers and paths of a snapshot's data files that came after a sequence number."""
    return [
        (entry.sequence_number or 0, entry.data_file.file_path)
        for manifest in target.manifests(table.io)
        if manifest.content is ManifestContent.DATA
        for entry in manifest.fetch_manifest_entry(table.io)
        if (entry.sequence_number or 0) > sequence
    ]


def _differing(
    before: Iterable[FileScanTask], after: Iterable[FileScanTask]
) -> tuple[list[FileScanTask], list[FileScanTask]]:
    """The files that are not on both sides with the same row deletes."""
    old, new = ({_fingerprint(task): task for task in tasks} for tasks in (before, after))
    return (
        _in_order(task for mark, task in old.items() if mark not in new),
        _in_order(task for mark, task in new.items() if mark not in old),
    )


def _fingerprint(task: FileScanTask) -> tuple[str, frozenset[str]]:
    return task.file.file_path, frozenset(deletes.file_path for deletes in task.delete_files)


def _in_order(tasks: Iterable[FileScanTask]) -> list[FileScanTask]:
    return sorted(tasks, key=lambda task: task.file.file_path)


def _operation(snapshot: Snapshot) -> Operation | None:
    return snapshot.summary.operation if snapshot.summary is not None else None


def _rows_in(snapshot: Snapshot) -> int:
    """Rows in the data files of a snapshot, by its own account."""
    told = snapshot.summary["total-records"] if snapshot.summary is not None else None
    return int(told) if told is not None else _UNKNOWN_ROWS


def _place(snapshot: Snapshot) -> _Place:
    return _Place(snapshot.snapshot_id, snapshot.sequence_number or 0, _rows_in(snapshot))


def _through(token: str) -> _Through:
    compared = "~" in token
    place, halfway, rest = token.partition("~" if compared else ">")
    target, _, rows = rest.partition(":")
    known = _Place(*map(int, place.split("."))) if place else None
    return _Through(known, int(target), int(rows), compared) if halfway else _Through(known)


def _catalog_settings(config: Mapping[str, Setting], what: str) -> tuple[str, dict[str, str]]:
    """The catalog's name, and what is set beside pyiceberg's own configuration."""
    name, address = _text(config, "catalog"), resolve(config.get("catalog_uri"), f"{what}: catalog_uri")
    if "://" in name:
        if address:
            raise SourceError(f"{what}: catalog and catalog_uri are two addresses; leave one of them out")
        name, address = "", name
    # A source reads: it does not make the tables of a catalog that is not there.
    settings = {"uri": address, "warehouse": _text(config, "warehouse"), "init_catalog_tables": "false"}
    return name or "default", {setting: value for setting, value in settings.items() if value}


def _driver_errors() -> tuple[type[Exception], ...]:
    """What pyiceberg raises; errors of a catalog in a database only where such a catalog is in use."""
    sql = sys.modules.get("pyiceberg.catalog.sql")
    return (*_DRIVER_ERRORS, sql.OperationalError, sql.ProgrammingError) if sql is not None else _DRIVER_ERRORS


def _sentence(error: Exception) -> str:
    # A database's error goes on with the statement, a catalog's with its trace.
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _text(config: Mapping[str, Setting], name: str) -> str:
    value = config.get(name)
    return value if isinstance(value, str) else ""
