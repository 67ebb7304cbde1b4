"""Derived datasets in the offline store: per pipeline's output a Delta table of what the row of a key was, and when.

A row is the key's as of ``__time``, an instant at which records changed it; ``__accepted_at`` says when the table
learnt of it. A record that came out of order changes rows that were written before: they are written again, so of the
rows of one key and ``__time`` the one accepted last is true. ``__deleted``: the key had no row by then.

Tables lie beside those of raw datasets and are cut in the same way: a folder per month of ``__time``, sorted by key
group and time within a file. How far the input is read stands in the table's own log, as app transactions: rows and
positions are committed together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from featurelib.clock import Instant
from featurelib.definitions import DatasetDef
from featurelib.engine.program import Program
from featurelib.engine.records import ACCEPTED_AT, DELETED, TIME
from featurelib.errors import ArchiveUnavailable
from featurelib.stores.archive import INDEXED_COLUMNS, KEY_GROUP, MONTH, WRITER, Archive, answering_archive

_MILLISECOND_US = 1_000
_COMMITS_READ = 50
_READ_AT = "thyme.readAt"

Positions = dict[str, tuple[int, ...]]
"""Per input dataset, as ``Name@version``, and log partition the offset up to which its records are in."""

LEADING = pa.schema(
    [
        (MONTH, pa.int32()),
        (KEY_GROUP, pa.int32()),
        (TIME, pa.int64()),
        (ACCEPTED_AT, pa.int64()),
        (DELETED, pa.bool_()),
    ]
)
"""The columns before the key and what the pipeline gives."""


class DerivedTable:
    """The table of one pipeline's output.

    Every method raises :class:`~featurelib.errors.ArchiveUnavailable`, which is retryable, when the folder or object
    store does not answer.

    Args:
        archive: says where it lies.
        dataset: the output.
        program: the pipeline, whose positions these are.
        partitions: per input dataset, as ``Name@version``, how many log partitions it has.
    """

    def __init__(self, archive: Archive, dataset: DatasetDef, program: Program, partitions: Mapping[str, int]) -> None:
        self.location = archive.location(dataset)
        self._options = archive.storage_options
        self._names = {name: [f"{program.ref}/{name}/{part}" for part in range(n)] for name, n in partitions.items()}

    def positions(self) -> Positions | None:
        """How far the input is in; ``None`` where nothing of this pipeline is in yet."""
        with answering_archive():
            try:
                table = DeltaTable(self.location, storage_options=self._options)
            except TableNotFoundError:
                return None
            stored = {name: [table.transaction_version(app) for app in apps] for name, apps in self._names.items()}
        if any(offset is None for offsets in stored.values() for offset in offsets):
            return None
        return {name: tuple(int(offset or 0) for offset in offsets) for name, offsets in stored.items()}

    def read_at(self) -> Instant:
        """When the reading of what was last written to it began; merging its files is no such time.

        Only for a table that is there.
        """
        with answering_archive():
            latest = DeltaTable(self.location, storage_options=self._options).history(_COMMITS_READ)
        # Where all of these are of its upkeep the oldest is told: rather too early than too late.
        written = next(filter(_adds_rows, latest), latest[-1])
        return int(written.get(_READ_AT) or written["timestamp"] * _MILLISECOND_US)

    def forget_earlier(self) -> None:
        """Delete every file that the newest version does not need: whoever reads an older one fails."""
        with answering_archive():
            table = DeltaTable(self.location, storage_options=self._options)
            table.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)

    def write(self, rows: Path, positions: Positions, read_at: Instant, *, anew: bool) -> None:
        """Commit the rows of a Parquet file, and how far the input is in with them.

        Args:
            rows: the file.
            positions: how far.
            read_at: when their reading began: what was erased since may still be in them.
            anew: put them in place of all that is there.
        """
        moved = [
            Transaction(app, offset)
            for name, apps in self._names.items()
            for app, offset in zip(apps, positions[name], strict=True)
        ]
        with answering_archive(), pq.ParquetFile(rows) as file:
            reader = pa.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches())
            try:
                write_deltalake(
                    self.location,
                    reader,
                    mode="overwrite" if anew else "append",
                    schema_mode="overwrite" if anew else "merge",
                    partition_by=[MONTH],
                    configuration=INDEXED_COLUMNS,
                    storage_options=self._options,
                    writer_properties=WRITER,
                    commit_properties=CommitProperties({_READ_AT: str(read_at)}, app_transactions=moved),
                )
            except CommitFailedError as error:
                raise ArchiveUnavailable(f"{self.location} is being written by others; try again") from error


def _adds_rows(commit: Mapping[str, Any]) -> bool:
    """Whether a commit is no merging of files; what sorts a month anew overwrites it by a predicate."""
    return commit["operation"] == "WRITE" and not commit.get("operationParameters", {}).get("predicate")
