"""What a pipeline reads: which log partitions feed which key groups, from where, and how far behind that is.

A group has a position in every input partition of its pipeline. Where rows fold under the key of their log, a
partition holds records of some groups only; the others' positions in it mean nothing and hold nobody back.

A reader that was away for long finds the hot log trimmed. What is missing there is in the archive: a record leaves
the log only once a committed archive version holds it, so the snapshot opened *after* it was missed has it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import pyarrow as pa

from featurelib.definitions import DatasetDef, ref
from featurelib.engine.input_partitions import InputPartition, Positions, Reading
from featurelib.engine.keys import KEY_GROUPS
from featurelib.engine.program import Program
from featurelib.engine.records import OFFSET, record_schema
from featurelib.errors import CorruptState
from featurelib.stores.archive import with_schema
from featurelib.stores.history import Archived
from featurelib.stores.log import Log

# Rows of one look into the archive: compaction mixes offsets, so a look may go through every file of the months.
_ARCHIVE_ROWS = 262_144


def input_partitions(program: Program, log: Log) -> list[InputPartition]:
    """Every input partition of a pipeline, left dataset first: the order of positions."""
    return [
        InputPartition(dataset, partition)
        for dataset in program.sources
        for partition in range(log.partitions(ref(dataset)))
    ]


def lowest_positions(program: Program, partitions: Sequence[InputPartition], standings: Positions) -> list[int]:
    """How far a whole pipeline has applied each input partition: below it no group needs the log any more.

    Args:
        program: the pipeline.
        partitions: of :func:`input_partitions`.
        standings: of ``OnlineStore.progress``; a group that is missing there has applied nothing.
    """
    nothing = [0] * len(partitions)
    positions = {group: standings.get(group, nothing) for group in range(KEY_GROUPS)}
    reading = Reading(program, partitions)
    return [reading.lowest(index, positions) for index in range(len(partitions))]


class ArchivedRecords(Protocol):
    """Where records are found that the hot log no longer holds (stores/history.py)."""

    def archived(self, dataset: DatasetDef, partition: int, offset: int, max_rows: int) -> Archived:
        """Archived records from an offset on."""
        ...


class InputReader:
    """Reads the input partitions of some key groups of a pipeline, from the log or, where that is trimmed, the archive.

    Args:
        program: the pipeline.
        groups: the key groups of the worker.
        log: the hot log.
        archive: what the log no longer holds.
        batch_rows: most rows of one :meth:`read`.
    """

    def __init__(
        self, program: Program, groups: Collection[int], *, log: Log, archive: ArchivedRecords, batch_rows: int
    ) -> None:
        self._log = log
        self._archive = archive
        self._batch_rows = batch_rows
        self.partitions = input_partitions(program, log)
        self._schemas = [record_schema(partition.dataset) for partition in self.partitions]
        self._reading = Reading(program, self.partitions)
        self._groups = {i: self._reading.groups_reading(i, groups) for i in range(len(self.partitions))}
        mine = [index for index, reading in self._groups.items() if reading]
        self.lefts = [index for index in mine if self.partitions[index].dataset == program.left]
        self.rights = [index for index in mine if self.partitions[index].dataset != program.left]
        self._chunks: dict[int, Archived] = {}
        self.behind = False
        """Whether the last :meth:`read` left records that were there already."""
        self._empty: dict[int, range] = {}

    def lowest(self, index: int, positions: Positions) -> int:
        """Where to read a partition on: the lowest position of the groups that read it."""
        return min((positions[group][index] for group in self._groups[index]), default=0)

    def even(self, positions: Positions) -> bool:
        """Whether all groups that read a partition stand at the same offset, in every partition."""
        return all(len({positions[group][index] for group in reading}) <= 1 for index, reading in self._groups.items())

    def reached(self, marks: Positions, positions: Positions) -> bool:
        """Whether every group stands at or beyond its mark in each partition it reads."""
        return all(positions[g][index] >= marks[g][index] for index, reading in self._groups.items() for g in reading)

    def lag(self, positions: Positions) -> int:
        """Records not applied yet."""
        mine = (*self.lefts, *self.rights)
        names = {self.partitions[index].address[0] for index in mine}
        ends = {name: self._log.heads(name, self._log.partitions(name)) for name in names}
        behind = 0
        for index in mine:
            name, partition = self.partitions[index].address
            behind += max(0, ends[name][partition].next_offset - self._next(index, positions))
        return behind

    def applied(self, positions: Positions) -> dict[tuple[str, int], int]:
        """Per ``(dataset ref, partition)`` it reads, the offset below which all is applied. Asks no store."""
        return {self.partitions[i].address: self._next(i, positions) for i in (*self.lefts, *self.rights)}

    def wait(self, positions: Positions, timeout_ms: int) -> bool:
        """Block until a partition has something new; False on time-out."""
        return self._log.wait(self.applied(positions), timeout_ms)

    def read(self, indexes: Sequence[int], positions: Positions) -> dict[int, pa.Table]:
        """One batch of some partitions, each from its lowest position on, by ascending offset.

        Offsets may have gaps, where what was archived has been erased: a table ends at :func:`end_of` it.

        Raises:
            StoreUnavailable: log or archive does not answer.
            CorruptState: neither of them holds the wanted offset.
        """
        batch: dict[int, pa.Table] = {}
        self.behind = False
        rows = max(1, self._batch_rows // max(1, len(indexes)))
        for index in indexes:
            table = self._read_one(index, self._next(index, positions), rows)
            if table is not None:
                batch[index] = with_schema(table, self._schemas[index])
        return batch

    def _next(self, index: int, positions: Positions) -> int:
        lowest = self.lowest(index, positions)
        empty = self._empty.get(index, range(0))
        return empty.stop if lowest in empty else lowest

    def _read_one(self, index: int, offset: int, rows: int) -> pa.Table | None:
        chunk = self._chunks.get(index)
        if chunk is None or not chunk.first <= offset < chunk.end:
            self._chunks.pop(index, None)
            tail = self._log.tail(*self.partitions[index].address, offset, rows)
            if not tail.trimmed:
                self.behind |= tail.more
                return tail.records
            chunk = self._chunks[index] = self._from_archive(index, offset)
        self.behind = True  # the log goes on behind the archive
        found = chunk.from_offset(offset)
        if len(found):
            return found.slice(0, rows)
        # Nothing is left of what was archived there: the position stays, and reading goes on behind it.
        self._empty[index] = range(offset, chunk.end)
        return self._read_one(index, chunk.end, rows)

    def _from_archive(self, index: int, offset: int) -> Archived:
        dataset, partition = self.partitions[index]
        chunk = self._archive.archived(dataset, partition, offset, _ARCHIVE_ROWS)
        if chunk.end <= offset:
            message = (
                f"neither log nor archive of {ref(dataset)}/{partition} holds offset {offset}: {chunk.end} archived"
            )
            raise CorruptState(message)
        return chunk


def end_of(records: pa.Table) -> int:
    """The offset after a partition's last record of a batch."""
    return int(records[OFFSET][-1].as_py()) + 1
