"""What the archive's Parquet files say of their row groups, kept from read to read.

A read of one key decodes a few row groups of a file per month. To find them Arrow parses the file's footer and weighs
the condition against each row group, which for three months of ten million records took 30 of a read's 40 ms. A file
of a Delta table is never written a second time, so what was read of its footer holds as long as the file does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow.dataset as ds
import pyarrow.parquet as pq

# Columns times row groups whose places and statistics are held: some 50 MB.
_MOST_CHUNKS = 65_536
_FILES_AT_ONCE = 8


class Bound(NamedTuple):
    """What a row's value in a column has to lie within, both ends included; ``None`` leaves an end open."""

    column: str
    first: Any
    last: Any


_Extremes = list[tuple[Any, Any] | None]
"""Per row group the least and the largest value of a column, or bounds of them; ``None``: unknown."""


class _Footer:
    """A file whose footer was parsed."""

    def __init__(self, fragment: ds.ParquetFileFragment) -> None:
        self.fragment = fragment
        self._metadata: pq.FileMetaData = fragment.metadata
        self._columns = {self._metadata.schema.column(n).path: n for n in range(self._metadata.num_columns)}
        self._extremes: dict[str, _Extremes] = {}

    @property
    def chunks(self) -> int:
        """What of it is held in memory grows with this."""
        return int(self._metadata.num_row_groups * self._metadata.num_columns)

    def groups_within(self, bounds: Sequence[Bound]) -> list[int]:
        """Row groups that may hold a row within all of these."""
        groups = list(range(self._metadata.num_row_groups))
        for column, first, last in bounds:
            extremes = self._extremes_of(column)
            groups = [group for group in groups if _meet(extremes[group], first, last)]
        return groups

    def _extremes_of(self, column: str) -> _Extremes:
        if column not in self._extremes:
            place = self._columns.get(column)
            self._extremes[column] = [
                None if place is None else _extremes(self._metadata.row_group(group).column(place).statistics)
                for group in range(self._metadata.num_row_groups)
            ]
        return self._extremes[column]


class Footers:
    """The footers that were read last, of the files of any number of tables. Threads may share it."""

    def __init__(self, most_chunks: int = _MOST_CHUNKS) -> None:
        self._most_chunks = most_chunks
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[str, str], _Footer] = OrderedDict()

    def narrowed(
        self, table: str, stored: ds.FileSystemDataset, files: ds.Expression | None, bounds: Sequence[Bound]
    ) -> ds.FileSystemDataset:
        """The part of a table's files that may hold rows within bounds; other rows may be in it too.

        Args:
            table: where it lies, under which its files are remembered.
            stored: its files.
            files: what a file's partition has to fit; ``None``: any does.
            bounds: of the rows.
        """
        parts = []
        for footer in self._of(table, stored, list(stored.get_fragments(filter=files))):
            groups = footer.groups_within(bounds)
            if groups:
                parts.append(footer.fragment.subset(row_group_ids=groups))
        return ds.FileSystemDataset(parts, stored.schema, stored.format, stored.filesystem)

    def _of(
        self, table: str, stored: ds.FileSystemDataset, files: Sequence[ds.ParquetFileFragment]
    ) -> Iterator[_Footer]:
        with self._lock:
            held = [self._held.get((table, file.path)) for file in files]
            for file, footer in zip(files, held, strict=True):
                if footer is not None:
                    self._held.move_to_end((table, file.path))
        missing = [file for file, footer in zip(files, held, strict=True) if footer is None]
        read = iter(_read_all(stored, missing))
        for file, footer in zip(files, held, strict=True):
            yield footer or self._kept((table, file.path), next(read))

    def _kept(self, name: tuple[str, str], footer: _Footer) -> _Footer:
        with self._lock:
            self._held[name] = footer
            while len(self._held) > 1 and sum(each.chunks for each in self._held.values()) > self._most_chunks:
                self._held.popitem(last=False)
        return footer


def _read_all(stored: ds.FileSystemDataset, files: Sequence[ds.ParquetFileFragment]) -> list[_Footer]:
    if not files:
        return []
    # Side by side: an object store takes its time for every file.
    with ThreadPoolExecutor(min(len(files), _FILES_AT_ONCE)) as threads:
        return list(threads.map(lambda file: _read(stored, file), files))


def _read(stored: ds.FileSystemDataset, file: ds.ParquetFileFragment) -> _Footer:
    # A fragment of its own: the table's would keep what was read of it for as long as the table is held.
    made = stored.format.make_fragment(file.path, stored.filesystem, partition_expression=file.partition_expression)
    return _Footer(made)


def _extremes(statistics: pq.Statistics | None) -> tuple[Any, Any] | None:
    return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None


def _meet(extremes: tuple[Any, Any] | None, first: Any, last: Any) -> bool:
    if extremes is None:
        return True
    return (last is None or extremes[0] <= last) and (first is None or extremes[1] >= first)
