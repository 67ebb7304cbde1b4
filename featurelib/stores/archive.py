"""The archive: the offline store, one Delta table per dataset version, in an open format people can read.

Layout, and why: a table is partitioned by the month of the event time and, within a file, sorted by key group and
event time in small row groups; once files are merged, a month is sorted by key group, key and time. So a read of one
key over a long history opens one file per month and, by the row groups' statistics, decodes one or two of them, and
some 1/13 of a commit that is not merged yet; a read bounded in time (every window) opens its months only; a backfill
reads everything in large sequential files. Partitioning by key group instead would cut each commit, made every 20 s or
sooner, into as many small files as there are buckets.

Exactly once: a commit carries, per log partition, the next offset as the app transaction ``Name@version/partition``.
Delta refuses two commits on one snapshot that carry the same one, but not a commit whose version is too low; so the
stored version is compared here, on the very snapshot that is committed to. Rows below it are skipped, a gap is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property, reduce
from operator import and_, or_
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from pyarrow import fs

from featurelib.clock import Instant
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.coerce import coerce_value
from featurelib.engine.keys import KEY_GROUPS, groups_of, groups_of_column, key_group, key_texts
from featurelib.engine.records import OFFSET, PARTITION, SYSTEM_COLUMNS, TIME, record_schema
from featurelib.errors import ArchiveUnavailable, CorruptState, RecordError, StoreUnavailable
from featurelib.stores.archive_footers import Bound, Footers

KEY_GROUP, MONTH = "__key_group", "__month"

# A read of one key decodes whole row groups: 16,384 rows make 13 of a 200,000-row commit.
WRITER = WriterProperties(max_row_group_size=16_384, compression="ZSTD", compression_level=3)
# A month that still grows, up to the size below, is written anew from so many files on: 15 s of CPU at that size.
_COMPACT_ABOVE_FILES = 8
_TARGET_BYTES = 128 * 1024 * 1024
_ATTEMPTS = 5
_REWRITE_ROWS = 65_536
# Sorted in memory at once: some 300 MB.
_SORTED_ROWS = 1_000_000
_PIECE_ROWS = 65_536
# With the usual reading ahead, every byte of a file that was read stays in memory until its last row is: 250 MB more
# of a build of ten million records. An object store is read ahead all the same, where every request takes its time.
_NOT_AHEAD = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True, buffer_size=65_536)
_AHEAD = ds.ParquetFragmentScanOptions(pre_buffer=True)
_NO_MONTH = 999_999
# No value of a user's column gets into the table's own log, where a rewrite of the data would leave it.
INDEXED_COLUMNS = {"delta.dataSkippingNumIndexedCols": str(1 + len(SYSTEM_COLUMNS))}
# Tables that are kept open between reads.
_MOST_HELD = 64
_Mark = tuple[int, int]
_LOG_RETENTION, _LOG_KEPT, _LOG_FORGOTTEN = "delta.logRetentionDuration", "interval 30 days", "interval 0 seconds"


class Compacted(NamedTuple):
    """Files before and after a compaction."""

    before: int
    after: int


class ArchiveSnapshot:
    """One version of a dataset's table: its offsets and its rows belong together, whatever is written meanwhile."""

    def __init__(self, dataset: DatasetDef, table: DeltaTable | None, footers: Footers | None = None) -> None:
        self.dataset = dataset
        self._table = table
        self._footers = footers or Footers()
        self._offsets: dict[int, int] = {}

    @property
    def version(self) -> int:
        """The table's version, as time travel takes it; -1 where there is no table yet."""
        return -1 if self._table is None else int(self._table.version())

    def archived_offset(self, partition: int) -> int:
        """The first offset of a log partition that is not in this snapshot."""
        if self._table is None:
            return 0
        # Asked several times in a read, a millisecond each.
        if partition not in self._offsets:
            self._offsets[partition] = _archived(self._table, self.dataset, partition)
        return self._offsets[partition]

    def read(
        self,
        *,
        keys: Sequence[str] | None = None,
        groups: Collection[int] | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
        below: Mapping[int, int] | None = None,
        columns: Collection[str] | None = None,
    ) -> pa.Table:
        """Archived records, unordered. Every bound left out does not restrict.

        Args:
            keys: key texts.
            groups: key groups.
            since: earliest event time, included.
            until: latest event time, included.
            below: per log partition the offset at which to stop; partitions not named are left out.
            columns: those wanted; ``None``: all.
        """
        schema = self._schema(columns)
        if self._table is None:
            return schema.empty_table()
        with answering_archive():
            below = below if below is None or self._is_cut(below) else None
            wanted = _condition(self.dataset, keys, groups, since, until, below)
            stored = self._of_keys(keys, groups, since, until) if keys is not None else files_of(self._table)
            names = [name for name in schema.names if name in stored.schema.names]
            table = stored.to_table(columns=names, filter=wanted)
        return with_schema(table, schema)

    def _of_keys(
        self, keys: Sequence[str], groups: Collection[int] | None, since: Instant | None, until: Instant | None
    ) -> ds.FileSystemDataset:
        """The row groups that may hold records of some keys."""
        assert self._table is not None
        wanted = _groups_of_keys(keys, groups)
        bounds = [Bound(KEY_GROUP, min(wanted, default=0), max(wanted, default=-1)), Bound(TIME, since, until)]
        values = [value for text in keys for value in _key_values(self.dataset, text)]
        # Of other types the statistics need not be in the order of Python's values.
        if values and {type(value) for value in values} in ({str}, {int}) and _is_plain(_key_type(self.dataset)):
            bounds.append(Bound(self.dataset.key.name, min(values), max(values)))
        months = _months(since, until)
        return self._footers.narrowed(
            self._table.table_uri, self._stored, reduce(and_, months) if months else None, bounds
        )

    @cached_property
    def _stored(self) -> ds.FileSystemDataset:
        # Only ever asked for its files: what is read of them would stay in memory with it.
        assert self._table is not None
        return files_of(self._table)

    def batches(
        self,
        *,
        groups: Collection[int] | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
        below: Mapping[int, int] | None = None,
        columns: Collection[str] | None = None,
    ) -> Iterator[pa.Table]:
        """Like :meth:`read`, a piece at a time: memory holds a few of them, however large the table is.

        Args:
            groups: as for :meth:`read`, like the bounds after it.
            since: likewise.
            until: likewise.
            below: likewise.
            columns: those wanted; ``None``: all.
        """
        if self._table is None:
            return
        schema = self._schema(columns)
        with answering_archive():
            below = below if below is None or self._is_cut(below) else None
            wanted = _condition(self.dataset, None, groups, since, until, below)
            stored = files_of(self._table)
            names = [name for name in schema.names if name in stored.schema.names]
            options = _NOT_AHEAD if _is_local(self._table) else _AHEAD
            pieces = (
                each.to_table(columns=names, filter=wanted, fragment_scan_options=options)
                for each in _pieces(stored, wanted)
            )
            for piece in _one_ahead(pieces):
                if len(piece):
                    yield with_schema(piece, schema)

    def _schema(self, columns: Collection[str] | None) -> pa.Schema:
        return pa.schema([each for each in record_schema(self.dataset) if columns is None or each.name in columns])

    def _is_cut(self, below: Mapping[int, int]) -> bool:
        """Whether some rows may not lie below these offsets; looking at each row costs as much as reading it."""
        last = self._last_partition
        return last is None or any(
            part not in below or self.archived_offset(part) > below[part] for part in range(last + 1)
        )

    @cached_property
    def _last_partition(self) -> int | None:
        """The highest log partition of any record, -1 without one; ``None``: a file does not say."""
        assert self._table is not None
        files = pa.table(self._table.get_add_actions(flatten=True))
        name = f"max.{PARTITION}"
        most = files[name].to_pylist() if name in files.column_names else [None] * len(files)
        return None if None in most else max(most, default=-1)

    def count(
        self,
        *,
        groups: Collection[int] | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
        below: Mapping[int, int] | None = None,
    ) -> int:
        """How many rows :meth:`read` would give; only the columns of the bounds are looked at."""
        if self._table is None:
            return 0
        with answering_archive():
            stored = files_of(self._table)
            return int(stored.count_rows(filter=_condition(self.dataset, None, groups, since, until, below)))

    def size_bytes(self, since: Instant | None = None, until: Instant | None = None) -> int:
        """Bytes of the files that may hold rows dated within both instants."""
        if self._table is None:
            return 0
        first = int(months_of(np.array([since]))[0]) if since is not None else 0
        last = int(months_of(np.array([until]))[0]) if until is not None else _NO_MONTH
        with answering_archive():
            by_month = _files_by_month(self._table)
        return sum(size for month, (_, size) in by_month.items() if first <= month <= last)

    def read_offsets(self, partition: int, first: int, end: int) -> pa.Table:
        """Archived records of one log partition with offsets from ``first`` to below ``end``, ascending."""
        schema = record_schema(self.dataset)
        if self._table is None or first >= end:
            return schema.empty_table()
        wanted = (ds.field(PARTITION) == partition) & (ds.field(OFFSET) >= first) & (ds.field(OFFSET) < end)
        with answering_archive():
            stored = files_of(self._table)
            names = [name for name in schema.names if name in stored.schema.names]
            table = stored.to_table(columns=names, filter=wanted)
        return with_schema(table, schema).sort_by(OFFSET)


def _mark(location: str) -> _Mark | None:
    """What changes with every commit to a table in a folder; ``None`` where only opening it says what is committed.

    Opening it takes 9 ms, a quarter of a read of one key.
    """
    try:
        found = Path(location, "_delta_log").stat()
    except OSError:  # an object store, or no table yet
        return None
    return found.st_ino, found.st_mtime_ns


def _is_newest(location: str, held: tuple[_Mark, ArchiveSnapshot], mark: _Mark) -> bool:
    # A folder's time moves on every few milliseconds only: a commit right after the one that was opened is looked for.
    following = Path(location, "_delta_log", f"{held[1].version + 1:020}.json")
    return held[0] == mark and not following.exists()


def files_of(table: DeltaTable) -> ds.FileSystemDataset:
    """A table's files as Arrow reads them.

    Local ones by Arrow's own file system: delta-rs's is called in Python from Arrow's threads, and a process that ends
    while one of them is still in it aborts (one to three of six that read and ended).
    """
    if not _is_local(table):
        return table.to_pyarrow_dataset()
    uri = table.table_uri
    folder = url2pathname(urlsplit(uri).path) if uri.startswith("file:") else uri
    return table.to_pyarrow_dataset(filesystem=fs.SubTreeFileSystem(folder, fs.LocalFileSystem()))


def _is_local(table: DeltaTable) -> bool:
    return table.table_uri.startswith("file:") or "://" not in table.table_uri


def _pieces(stored: ds.FileSystemDataset, wanted: ds.Expression | None) -> Iterator[ds.FileSystemDataset]:
    """The row groups of a table that may hold such rows, some at a time.

    A scan of all of it reads ahead of whoever takes the rows by up to a gigabyte, whatever its options say.
    """
    parts, rows = list[ds.ParquetFileFragment](), 0
    for file in stored.get_fragments(filter=wanted):
        # A fragment of its own, which goes with its piece: the table's would keep the footer.
        whole = stored.format.make_fragment(
            file.path, stored.filesystem, partition_expression=file.partition_expression
        )
        ids = list[int]()
        found = whole if wanted is None else whole.subset(filter=wanted, schema=stored.schema)
        for group in found.row_groups:
            ids.append(group.id)
            rows += group.num_rows
            if rows >= _PIECE_ROWS:
                yield _dataset_of([*parts, whole.subset(row_group_ids=ids)], stored)
                parts, ids, rows = [], [], 0
        if ids:
            parts.append(whole.subset(row_group_ids=ids))
    if parts:
        yield _dataset_of(parts, stored)


def _dataset_of(parts: Sequence[ds.ParquetFileFragment], stored: ds.FileSystemDataset) -> ds.FileSystemDataset:
    return ds.FileSystemDataset(parts, stored.schema, stored.format, stored.filesystem)


def _one_ahead(pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same; while one is being used the next is on its way."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = thread.submit(next, pieces, None)
            yield piece


class Archive:
    """All archived datasets below one root. Every call sees what is committed when it is made."""

    def __init__(self, root: str, storage_options: Mapping[str, str] | None = None) -> None:
        self._root = root.rstrip("/")
        self._storage_options = dict(storage_options or {})
        self._footers = Footers()
        self._newest: dict[str, tuple[_Mark, ArchiveSnapshot]] = {}

    @property
    def storage_options(self) -> dict[str, str]:
        """Of the object store, as Delta takes them."""
        return dict(self._storage_options)

    def location(self, dataset: DatasetDef) -> str:
        """Folder or URL of a dataset's Delta table."""
        return f"{self._root}/{dataset.name}/v{dataset.version}"

    def snapshot(self, dataset: DatasetDef) -> ArchiveSnapshot:
        """The newest committed version.

        Raises:
            StoreUnavailable: the folder or object store does not answer.
        """
        location = self.location(dataset)
        # Before it is opened: whatever is committed meanwhile changes it.
        mark = _mark(location)
        if mark is None:
            return ArchiveSnapshot(dataset, self._open(dataset), self._footers)
        held = self._newest.get(location)
        if held is not None and _is_newest(location, held, mark) and held[1].dataset == dataset:
            return held[1]
        snapshot = ArchiveSnapshot(dataset, self._open(dataset), self._footers)
        if len(self._newest) >= _MOST_HELD:
            self._newest.clear()
        self._newest[location] = mark, snapshot
        return snapshot

    def archived_offset(self, dataset: DatasetDef, partition: int) -> int:
        """The first offset of a log partition that is not archived yet."""
        return self.snapshot(dataset).archived_offset(partition)

    def append(self, dataset: DatasetDef, records: pa.Table) -> int:
        """Archive log records of any number of partitions in one commit; those archived before are skipped.

        Returns:
            How many rows were new.

        Raises:
            CorruptState: offsets are missing between the archive and these records.
            StoreUnavailable: nothing is known to be archived; append again.
        """
        for _ in range(_ATTEMPTS):
            with answering_archive():
                table = self._open(dataset) or self._create(dataset)
                if table is None:
                    continue
                fresh = _unarchived(table, dataset, records)
                if not len(fresh) or self._commit(table, dataset, fresh):
                    return len(fresh)
        raise StoreUnavailable(f"the archive of {ref(dataset)} is being written by others; try again")

    def read(
        self,
        dataset: DatasetDef,
        *,
        keys: Sequence[str] | None = None,
        groups: Collection[int] | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
        below: Mapping[int, int] | None = None,
    ) -> pa.Table:
        """Records of the newest snapshot; see :meth:`ArchiveSnapshot.read`."""
        return self.snapshot(dataset).read(keys=keys, groups=groups, since=since, until=until, below=below)

    def compact(self, dataset: DatasetDef) -> Compacted:
        """Merge small files, keeping keys together. Appends and reads go on meanwhile; offsets do not change."""
        table = self._open(dataset)
        if table is None:
            return Compacted(0, 0)
        with answering_archive():
            before = _files_by_month(table)
            newest = max(before, default=0)
            for month, (files, size) in before.items():
                if files <= (_COMPACT_ABOVE_FILES if month == newest else 1 + size // _TARGET_BYTES):
                    continue
                if month == newest and size > _TARGET_BYTES:
                    _join(table, month)
                elif month == newest or not _lies_sorted(table, month):
                    with suppress(CommitFailedError):  # a record came meanwhile: the next time
                        _sort(table, dataset, month)
            after = _files_by_month(table)
        return Compacted(sum(f for f, _ in before.values()), sum(f for f, _ in after.values()))

    def vacuum(self, dataset: DatasetDef, retention_hours: int = 168) -> int:
        """Delete files that no snapshot of the last hours needs, and what a writer that died left; returns how many."""
        table = self._open(dataset)
        if table is None:
            return 0
        with answering_archive():
            return len(_delete_unneeded(table, retention_hours))

    def erase(self, dataset: DatasetDef, tombstones: Mapping[str, int]) -> int:
        """Rewrite the table without what some keys have at or below the offsets of their tombstones.

        Offsets of other records and the app transactions stay as they are.

        Args:
            dataset: whose table.
            tombstones: per key text, the offset of its tombstone, which is removed with the rest.

        Returns:
            How many rows were removed.

        Raises:
            StoreUnavailable: some may have been removed; do it again.
        """
        removed = 0
        for _ in range(_ATTEMPTS):
            found = self._erased_rows(dataset, tombstones)
            if not len(found):
                return removed
            table = self._open(dataset)
            assert table is not None
            with answering_archive(), suppress(CommitFailedError):  # another writer was faster: look again
                for month in sorted(set(found[MONTH].to_pylist())):
                    removed += _rewrite_without(table, month, found.filter(ds.field(MONTH) == month))
        raise ArchiveUnavailable(f"the archive of {ref(dataset)} is being written by others; try again")

    def purge(self, dataset: DatasetDef) -> None:
        """Delete every file that the newest version does not need, and the table's log of how it came to be.

        Whoever is reading an older version fails and reads again. Only the archive's one writer may call it: files of
        a commit under way would be deleted, and one made from a version before the one that is kept would be
        forgotten with its log (and made again, since what is archived is always asked of the newest version).

        Raises:
            StoreUnavailable: do it again.
        """
        table = self._open(dataset)
        if table is None:
            return
        with answering_archive():
            _delete_unneeded(table, 0)
            table.alter.set_table_properties({**INDEXED_COLUMNS, _LOG_RETENTION: _LOG_FORGOTTEN})
            table = DeltaTable(self.location(dataset), storage_options=self._storage_options)
            table.create_checkpoint()
            table.cleanup_metadata()
            table.alter.set_table_properties({_LOG_RETENTION: _LOG_KEPT})

    def _erased_rows(self, dataset: DatasetDef, tombstones: Mapping[str, int]) -> pa.Table:
        """Month, partition and offset of the rows of some keys at or below their tombstones."""
        table = self._open(dataset)
        schema = pa.schema([(MONTH, pa.int32()), (PARTITION, pa.int32()), (OFFSET, pa.int64())])
        if table is None or not tombstones:
            return schema.empty_table()
        groups = sorted({key_group(text) for text in tombstones})
        conditions = [*key_conditions(dataset, list(tombstones)), ds.field(KEY_GROUP).isin(groups)]
        with answering_archive():
            found = files_of(table).to_table(columns=[*schema.names, dataset.key.name], filter=reduce(and_, conditions))
        texts = key_texts([pl.Series("key", pl.from_arrow(found[dataset.key.name].cast(_key_type(dataset))))])
        through = texts.replace_strict(tombstones, default=-1, return_dtype=pl.Int64)
        theirs = found[OFFSET].to_numpy() <= through.to_numpy()
        return found.filter(pa.array(theirs)).select(schema.names)

    def _open(self, dataset: DatasetDef) -> DeltaTable | None:
        with answering_archive():
            try:
                return DeltaTable(self.location(dataset), storage_options=self._storage_options)
            except TableNotFoundError:
                return None

    def _create(self, dataset: DatasetDef) -> DeltaTable | None:
        """The new table; ``None`` when another writer is creating it: look again."""
        try:
            return DeltaTable.create(
                self.location(dataset),
                _stored_schema(dataset),
                mode="ignore",
                partition_by=[MONTH],
                name=ref(dataset),
                configuration=INDEXED_COLUMNS,
                storage_options=self._storage_options,
            )
        except CommitFailedError:
            return None

    def _commit(self, table: DeltaTable, dataset: DatasetDef, records: pa.Table) -> bool:
        following = _next_offsets(records)
        transactions = [Transaction(_app_id(dataset, part), offset) for part, offset in following.items()]
        try:
            write_deltalake(
                table,
                _stored(dataset, records),
                mode="append",
                schema_mode="merge",
                writer_properties=WRITER,
                commit_properties=CommitProperties(app_transactions=transactions),
            )
        except CommitFailedError:  # another writer archived rows of these partitions first: look again
            return False
        return True


def _condition(
    dataset: DatasetDef,
    keys: Sequence[str] | None,
    groups: Collection[int] | None,
    since: Instant | None,
    until: Instant | None,
    below: Mapping[int, int] | None,
) -> ds.Expression | None:
    conditions = [*key_conditions(dataset, keys), *time_conditions(since, until), *_months(since, until)]
    wanted = groups if keys is None else _groups_of_keys(keys, groups)
    if wanted is not None:
        conditions.append(_one_of(ds.field(KEY_GROUP), wanted))
    if below is not None:
        conditions.append(_below(below))
    return reduce(and_, conditions) if conditions else None


def _groups_of_keys(keys: Sequence[str], groups: Collection[int] | None) -> set[int]:
    of_keys = {key_group(text) for text in keys}
    return of_keys if groups is None else of_keys & set(groups)


def _one_of(field: ds.Expression, numbers: Collection[int]) -> ds.Expression:
    # Row groups are left out by bounds at a tenth of what it costs to look for each row's value in a set.
    first, last = min(numbers, default=0), max(numbers, default=-1)
    bounds = (field >= first) & (field <= last)
    return bounds if len(numbers) == last - first + 1 else bounds & field.isin(sorted(numbers))


def key_conditions(dataset: DatasetDef, keys: Sequence[str] | None) -> list[ds.Expression]:
    """The key column is one of these key texts; a text that is no value of the key's type matches nothing."""
    if keys is None:
        return []
    values = [value for text in keys for value in _key_values(dataset, text)]
    kind = record_schema(dataset).field(dataset.key.name).type
    storage = pa.int64() if pa.types.is_timestamp(kind) else kind
    wanted = pa.array(values, storage).cast(kind)
    # Of one value the row groups that cannot hold it are left out; of a set none is.
    return [ds.field(dataset.key.name) == wanted[0] if len(wanted) == 1 else ds.field(dataset.key.name).isin(wanted)]


def time_conditions(since: Instant | None, until: Instant | None) -> list[ds.Expression]:
    """Both bounds are included."""
    lower = [] if since is None else [ds.field(TIME) >= since]
    return lower if until is None else [*lower, ds.field(TIME) <= until]


def with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of ``schema`` in its order; those the table does not have yet are null."""
    held = {name: table.column(place) for place, name in enumerate(table.column_names)}
    columns = []
    for field in schema:
        column = held.get(field.name)
        if column is None:
            column = pa.nulls(len(table), field.type)
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_integer(kind))


def _key_type(dataset: DatasetDef) -> pa.DataType:
    return record_schema(dataset).field(dataset.key.name).type


def _rewrite_without(table: DeltaTable, month: int, rows: pa.Table) -> int:
    """Write a month anew, all but these rows, in one commit; how many rows those were.

    Not by the table's own delete: its log would keep the predicate, and its files come out with a type of text
    (string_view) whose statistics Arrow cannot compare with.
    """
    partitions = sorted(set(rows[PARTITION].to_pylist()))
    theirs = [
        (ds.field(PARTITION) == part)
        & ds.field(OFFSET).isin(rows.filter(ds.field(PARTITION) == part)[OFFSET].combine_chunks())
        for part in partitions
    ]
    kept = (ds.field(MONTH) == month) & ~reduce(or_, theirs)
    stored = files_of(table)
    # A stream: a month may be larger than memory. Few files at once keep what is sorted within each together.
    reader = stored.scanner(filter=kept, batch_size=_REWRITE_ROWS, fragment_readahead=1, batch_readahead=2).to_reader()
    write_deltalake(table, reader, mode="overwrite", predicate=f"{MONTH} = {month}", writer_properties=WRITER)
    return len(rows)


def _key_values(dataset: DatasetDef, text: str) -> list[Any]:
    try:
        return [coerce_value(text, dataset.key)]
    except RecordError:
        return []


def _stored_schema(dataset: DatasetDef) -> pa.Schema:
    """System columns first: Delta keeps statistics of the first 32 columns only."""
    schema = record_schema(dataset)
    own = [field for field in schema if field.name not in SYSTEM_COLUMNS]
    system = [schema.field(name) for name in SYSTEM_COLUMNS]
    return pa.schema([(MONTH, pa.int32()), (KEY_GROUP, pa.int32()), *system, *own])


def _stored(dataset: DatasetDef, records: pa.Table) -> pa.Table:
    added = records.append_column(MONTH, pa.array(months_of(records[TIME].to_numpy()), pa.int32()))
    added = added.append_column(KEY_GROUP, pa.array(groups_of_column(records[dataset.key.name]), pa.int32()))
    order = [(KEY_GROUP, "ascending"), (TIME, "ascending")]
    return with_schema(added, _stored_schema(dataset)).sort_by(order)


def months_of(times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """202604 for an event time in April 2026."""
    months = times.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64)
    return (1970 + months // 12) * 100 + months % 12 + 1


def _months(since: Instant | None, until: Instant | None) -> list[ds.Expression]:
    conditions = []
    if since is not None:
        conditions.append(ds.field(MONTH) >= int(months_of(np.array([since]))[0]))
    if until is not None:
        conditions.append(ds.field(MONTH) <= int(months_of(np.array([until]))[0]))
    return conditions


def _below(below: Mapping[int, int]) -> ds.Expression:
    parts = [(ds.field(PARTITION) == part) & (ds.field(OFFSET) < offset) for part, offset in below.items()]
    return reduce(or_, parts, ds.scalar(False))


def _app_id(dataset: DatasetDef, partition: int) -> str:
    return f"{ref(dataset)}/{partition}"


def _archived(table: DeltaTable, dataset: DatasetDef, partition: int) -> int:
    return int(table.transaction_version(_app_id(dataset, partition)) or 0)


def _next_offsets(records: pa.Table) -> dict[int, int]:
    newest = records.group_by(PARTITION).aggregate([(OFFSET, "max")])
    found = zip(newest[PARTITION].to_pylist(), newest[f"{OFFSET}_max"].to_pylist(), strict=True)
    return {part: offset + 1 for part, offset in found}


def _unarchived(table: DeltaTable, dataset: DatasetDef, records: pa.Table) -> pa.Table:
    partitions, offsets = records[PARTITION].to_numpy(), records[OFFSET].to_numpy()
    keep = np.ones(len(records), dtype=bool)
    for part in np.unique(partitions).tolist():
        rows = partitions == part
        archived = _archived(table, dataset, part)
        keep &= ~rows | (offsets >= archived)
        fresh = np.sort(offsets[rows & keep])
        if not np.array_equal(fresh, np.arange(archived, archived + len(fresh))):
            raise CorruptState(f"archive of {_app_id(dataset, part)} needs offset {archived} next, not {fresh[0]}")
    return records if keep.all() else records.filter(pa.array(keep))


def _delete_unneeded(table: DeltaTable, hours: int) -> list[str]:
    # "Full": files that no commit ever named, too. A writer that dies between its files and its commit leaves some.
    return table.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True)


def _files_by_month(table: DeltaTable) -> dict[int, tuple[int, int]]:
    """Per month: number of files and their bytes."""
    files = pa.table(table.get_add_actions(flatten=True))
    found: dict[int, tuple[int, int]] = {}
    for month, size in zip(files[f"partition.{MONTH}"].to_pylist(), files["size_bytes"].to_pylist(), strict=True):
        count, total = found.get(month, (0, 0))
        found[month] = (count + 1, total + size)
    return found


def _lies_sorted(table: DeltaTable, month: int) -> bool:
    """Whether a month's files are as :func:`_sort` leaves them, with hardly anything added since."""
    # The writer ends a file by what it takes the last row group for, so ten files may lie where nine would do, and a
    # month would be written anew, gigabytes of it, every time somebody looks.
    files = pa.table(table.get_add_actions(flatten=True)).filter(ds.field(f"partition.{MONTH}") == month)
    first, last = f"min.{KEY_GROUP}", f"max.{KEY_GROUP}"
    if first not in files.column_names or files[first].null_count:
        return False
    spans = files[last].to_numpy() - files[first].to_numpy()
    half_full = len(files) <= 1 + 2 * sum(files["size_bytes"].to_pylist()) // _TARGET_BYTES
    return half_full and float(spans.mean()) <= KEY_GROUPS / 2


def _sort(table: DeltaTable, dataset: DatasetDef, month: int) -> None:
    """Write a month anew, sorted by key group, key and time.

    delta-rs writes pieces of 65,536 rows side by side, so the order holds within a piece, and a key's rows lie in two
    to five row groups of a large month.
    """
    stored = files_of(table)
    order = [(KEY_GROUP, "ascending"), (dataset.key.name, "ascending"), (TIME, "ascending")]
    reader = pa.RecordBatchReader.from_batches(stored.schema, _sorted(stored, order, month))
    write_deltalake(
        table,
        reader,
        mode="overwrite",
        predicate=f"{MONTH} = {month}",
        target_file_size=_TARGET_BYTES,
        writer_properties=WRITER,
    )


def _sorted(stored: ds.Dataset, order: Sequence[tuple[str, str]], month: int) -> Iterator[pa.RecordBatch]:
    # Some key groups at a time: a month may be larger than memory.
    rows = stored.count_rows(filter=ds.field(MONTH) == month)
    parts = min(KEY_GROUPS, 1 + rows // _SORTED_ROWS)
    for part in range(parts):
        wanted = (ds.field(MONTH) == month) & _one_of(ds.field(KEY_GROUP), groups_of(part, parts))
        yield from stored.to_table(filter=wanted).sort_by(order).to_batches(_REWRITE_ROWS)


def _join(table: DeltaTable, month: int) -> None:
    """Join the small files of a large month that still grows, as they come."""
    table.optimize.compact(
        partition_filters=[(MONTH, "=", str(month))], target_size=_TARGET_BYTES, writer_properties=WRITER
    )


@contextmanager
def answering_archive() -> Iterator[None]:
    """Turn what reading and writing Delta tables raises into ours.

    Raises:
        ArchiveUnavailable: the folder or the object store does not answer.
        CorruptState: a file is no whole Parquet file.
    """
    try:
        yield
    except pa.ArrowInvalid as error:
        raise CorruptState(f"a file of the archive cannot be read: {error}") from error
    except (DeltaError, OSError) as error:
        raise ArchiveUnavailable(f"the archive does not answer: {error}") from error
