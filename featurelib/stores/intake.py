"""The door of a dataset: raw records are typed, judged, spread over log partitions, appended; or dead letters.

Sources and ``POST /api/v1/log`` come through here, so a record means the same whichever way it came.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurelib.clock import DAY
from featurelib.definitions import Cdc, DatasetDef, SourceDef, ref
from featurelib.engine.cdc import Admitted, admit, unwrap
from featurelib.engine.coerce import RawRecords, Rejected
from featurelib.engine.expect import Violation, evaluate
from featurelib.engine.keys import KEY_GROUPS, groups_of_column
from featurelib.engine.records import DELETED
from featurelib.settings import IngestSettings
from featurelib.stores.log import Appended, DeadLetter, EventIds, Identity, Lateness, Log

_MOST_BITS = 4_096
# How long an event's id is remembered where the dataset has no retention of its own.
_EVENT_IDS_KEPT_US = 30 * DAY


class Taken(NamedTuple):
    """What became of a batch. ``dead`` counts rejected and malformed records."""

    accepted: int
    duplicates: int
    late: int
    dead: int
    rejected: list[Rejected]
    violations: list[Violation]


class Intake:
    """Takes the records of one dataset."""

    def __init__(self, log: Log, dataset: DatasetDef, partitions: int, lateness: Lateness, cdc: Cdc = "append") -> None:
        self._log = log
        self._dataset = dataset
        self._partitions = partitions
        self._lateness = lateness
        self._cdc = cdc

    def take(self, records: RawRecords, identity: Identity, malformed: Sequence[DeadLetter], cursor: str) -> Taken:
        """Append records of a source stream. Every partition's position moves, also where it gets no record.

        Args:
            records: as they came.
            identity: where each record stands in its source, and how far the stream is read with them.
            malformed: what stood between the records and is none; with its sequence or name.
            cursor: the source's cursor, kept for display.

        Raises:
            StoreUnavailable: some partitions may hold their share; take the records again, what is held is skipped.
        """
        admitted = admit(records, self._dataset, self._cdc)
        dead = _letters(admitted, identity, malformed)
        table, shares = self._table(admitted), self._shares(admitted.table)
        done = [
            self._append(
                table.filter(pa.array(mine)),
                part,
                _share(identity, admitted.kept[mine]),
                [letter for letter in dead if _place(letter) % self._partitions == part],
                cursor,
            )
            for part, mine in enumerate(shares)
        ]
        return _taken(done, len(dead), admitted, self._judged(records))

    def accept(self, events: Sequence[Mapping[str, Any]]) -> Taken:
        """Append records that have no identity: the same event sent twice counts twice.

        Raises:
            StoreUnavailable: some partitions may hold their share.
        """
        admitted = admit(events, self._dataset, self._cdc)
        dead = [DeadLetter(_storable(r.record), r.reason, r.field, r.message) for r in admitted.rejected]
        table = self._table(admitted)
        done = []
        for part, mine in enumerate(self._shares(admitted.table)):
            letters = dead if part == 0 else []
            if letters or mine.any():
                done.append(self._append(table.filter(pa.array(mine)), part, None, letters, None))
        return _taken(done, len(dead), admitted, self._judged(events))

    def _judged(self, records: RawRecords) -> list[Violation]:
        # Of an envelope the rule holds for the row in it.
        rows = records if self._cdc != "debezium" else unwrap(records, self._dataset, self._cdc).records
        return evaluate(rows, self._dataset)

    def _table(self, admitted: Admitted) -> pa.Table:
        if self._cdc == "append":
            return admitted.table
        return admitted.table.append_column(DELETED, pa.array(admitted.deleted))

    def _shares(self, records: pa.Table) -> list[npt.NDArray[np.bool_]]:
        owners = groups_of_column(records[self._dataset.key.name]) * self._partitions // KEY_GROUPS
        return [owners == part for part in range(self._partitions)]

    def _append(
        self, records: pa.Table, part: int, identity: Identity | None, dead: list[DeadLetter], cursor: str | None
    ) -> Appended:
        return self._log.append(
            ref(self._dataset),
            part,
            records,
            lateness=self._lateness,
            identity=identity,
            dead=dead,
            cursor=cursor,
            event_ids=self._event_ids(records),
        )

    def _event_ids(self, records: pa.Table) -> EventIds | None:
        column = self._dataset.event_id
        if column is None:
            return None
        keep_us = self._dataset.retention_us or _EVENT_IDS_KEPT_US
        return EventIds([str(value) for value in records[column].to_pylist()], keep_us)


def lateness_of(source: SourceDef | None, settings: IngestSettings) -> Lateness:
    """The lateness rules of a dataset's source; without a source nothing is late."""
    return Lateness(source.max_lateness_us if source else None, settings.max_clock_skew_ms * 1_000)


def _share(identity: Identity, rows: npt.NDArray[np.int64]) -> Identity:
    """The identity of some of the rows; it covers as much of the stream."""
    if identity.sequence is not None:
        return identity._replace(sequence=identity.sequence[rows])
    return identity._replace(names=[identity.names[row] for row in rows.tolist()])


def _letters(admitted: Admitted, identity: Identity, malformed: Sequence[DeadLetter]) -> list[DeadLetter]:
    rejected = []
    for row, record, reason, field, message in admitted.rejected:
        sequence = int(identity.sequence[row]) if identity.sequence is not None else None
        name = identity.names[row] if sequence is None else ""
        rejected.append(DeadLetter(_storable(record), reason, field, message, sequence, name))
    return sorted([*rejected, *malformed], key=lambda letter: (letter.sequence or 0, letter.name))


def _place(letter: DeadLetter) -> int:
    """A number that is the letter's for ever: it says which partition keeps it."""
    return letter.sequence if letter.sequence is not None else zlib.crc32(letter.name.encode())


def _storable(value: Any) -> Any:
    """The value in a form JSON can spell: a dead letter that cannot be stored would stop its whole stream."""
    if isinstance(value, Mapping):
        return {str(name): _storable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(each) for each in value]
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return hex(value)  # Python refuses to write thousands of decimal digits
    return value


def _taken(done: Sequence[Appended], dead: int, admitted: Admitted, violations: list[Violation]) -> Taken:
    return Taken(
        accepted=sum(part.accepted for part in done),
        duplicates=sum(part.duplicates for part in done),
        late=sum(part.late for part in done),
        dead=dead,
        rejected=admitted.rejected,
        violations=violations,
    )
