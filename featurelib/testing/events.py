"""The records a test has added: typed, judged, marked late and numbered as the log of a dataset does, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurelib.clock import MINUTE, Clock, Duration, Instant, format_instant, parse_instant
from featurelib.definitions import Cdc, DatasetDef, ExpectationDef
from featurelib.engine.cdc import admit, unwrap
from featurelib.engine.coerce import RawRecords, raw_record
from featurelib.engine.expect import failures
from featurelib.engine.keys import KEY_GROUPS, groups_of_column
from featurelib.engine.operators import PLACE_BITS
from featurelib.engine.records import (
    ACCEPTED_AT,
    DELETED,
    ERASED,
    LATE,
    OFFSET,
    PARTITION,
    SYSTEM_COLUMNS,
    TIME,
    in_order,
    mark_late,
    record_schema,
)
from featurelib.errors import InvalidRequest

# As the platform's own default (settings, ingest.max_clock_skew_ms).
_MAX_CLOCK_SKEW: Duration = 5 * MINUTE
_NEVER: Instant = int(np.iinfo(np.int64).max)


class ExpectationViolation(NamedTuple):
    """A record that does not meet an expectation of its dataset. It was accepted all the same."""

    expectation_type: str
    column: str
    message: str
    record: Mapping[str, Any]


class DeadLetter(NamedTuple):
    """A record that was not accepted: the reason's code, the column at fault, and the record as it came."""

    reason: str
    field: str
    message: str
    record: Mapping[str, Any]


class Arrival(NamedTuple):
    """When records are accepted, and how far ahead their event times may move the watermark."""

    accepted_at: Instant
    horizon: Instant


class Acceptance:
    """Gives every call of ``add_events`` its accepted-at, later than the one before.

    With a clock, its time. Without one, a counter: the first call is accepted at its earliest event time, each
    later one a microsecond after the one before; then nothing lies in the future, since there is no now.
    """

    def __init__(self, clock: Clock | None) -> None:
        self._clock = clock
        self._last: Instant | None = None

    def now(self) -> Instant:
        """The clock's time; without a clock the newest accepted-at, of nothing the epoch."""
        return self._clock.now() if self._clock else self._last or 0

    def next(self, given: object, times: npt.NDArray[np.int64]) -> Arrival:
        """When records of these event times are accepted; ``given`` is what the caller asks for, if anything."""
        if given is not None:
            at = parse_instant(given, "accepted_at")
            self._last = at if self._last is None else max(self._last, at)
            return Arrival(at, at + _MAX_CLOCK_SKEW)
        if self._clock is not None:
            now = self._clock.now()
            at = self._last = now if self._last is None else max(now, self._last + 1)
            return Arrival(at, now + _MAX_CLOCK_SKEW)
        if len(times):
            self._last = int(times.min()) if self._last is None else self._last + 1
        return Arrival(self._last or 0, _NEVER)


@dataclass
class _Partition:
    next_offset: int = 0
    newest_us: Instant | None = None
    ids: set[Any] = field(default_factory=set)


class EventLog:
    """The records of one dataset.

    Args:
        dataset: whose records.
        cdc: how they follow each other.
        max_lateness: how far behind the newest of its partition a record may be; ``None``: nothing is late.
        partitions: log partitions, each with a watermark and event ids of its own.

    Attributes:
        dead: what was not accepted, oldest first.
    """

    def __init__(self, dataset: DatasetDef, cdc: Cdc, max_lateness: Duration | None, partitions: int) -> None:
        self.dead: list[DeadLetter] = []
        self._dataset = dataset
        self._cdc = cdc
        self._max_lateness = max_lateness
        self._partitions = [_Partition() for _ in range(partitions)]
        self._records = record_schema(dataset).empty_table()
        self._accepted: list[Instant] = []

    def __len__(self) -> int:
        return len(self._accepted)

    def accepted_by(self, known_at: Instant | None) -> int:
        """How many records were accepted at or before an instant; ``None``: all."""
        if known_at is None:
            return len(self)
        return int(np.searchsorted(np.array(self._accepted, dtype=np.int64), known_at, side="right"))

    def first(self, count: int) -> pa.Table:
        """The first records accepted, in total order."""
        return in_order(self._records.slice(0, count))

    @property
    def newest_us(self) -> Instant | None:
        """The newest event time; ``None`` without records."""
        return pc.max(self._records[TIME]).as_py() if len(self) else None

    def record_at(self, time: Instant, place: int) -> dict[str, Any] | None:
        """The record of that event time and place in its partition's log, its own columns alone."""
        part, offset = place >> PLACE_BITS, place & (1 << PLACE_BITS) - 1
        there = (pc.field(TIME) == time) & (pc.field(PARTITION) == part) & (pc.field(OFFSET) == offset)
        found = _own(self._records.filter(there))
        return found[0] if found else None

    def late(self) -> list[dict[str, Any]]:
        """The records that came too late, their own columns alone."""
        return _own(self._records.filter(self._records[LATE]))

    def take(self, raw: RawRecords, acceptance: Acceptance, accepted_at: object) -> list[ExpectationViolation]:
        """Take records as they came: those that fit, and that their partition does not hold already.

        Returns:
            Every expectation a record fails.

        Raises:
            InvalidRequest: others were accepted after ``accepted_at``.
        """
        admitted = admit(raw, self._dataset, self._cdc)
        arrival = acceptance.next(accepted_at, admitted.table[TIME].to_numpy())
        if self._accepted and arrival.accepted_at < self._accepted[-1]:
            last = format_instant(self._accepted[-1])
            raise InvalidRequest(f"accepted_at: {self._dataset.name} accepted records at {last} already")
        self.dead += [DeadLetter(bad.reason, bad.field, bad.message, bad.record) for bad in admitted.rejected]
        if len(admitted.table):
            self._append(admitted.table.append_column(DELETED, pa.array(admitted.deleted)), arrival)
        # Of an envelope the rules hold for the row in it.
        rows = raw if self._cdc != "debezium" else unwrap(raw, self._dataset, self._cdc).records
        return violations_of(rows, self._dataset)

    def _append(self, records: pa.Table, arrival: Arrival) -> None:
        owners = groups_of_column(records[self._dataset.key.name]) * len(self._partitions) // KEY_GROUPS
        for number, partition in enumerate(self._partitions):
            mine = _unheld(records.filter(pa.array(owners == number)), self._dataset, partition.ids)
            if len(mine):
                self._extend(mine, number, arrival)

    def _extend(self, records: pa.Table, number: int, arrival: Arrival) -> None:
        partition, count = self._partitions[number], len(records)
        late, partition.newest_us = mark_late(
            records[TIME].to_numpy(), partition.newest_us, self._max_lateness, arrival.horizon
        )
        system: dict[str, npt.NDArray[Any]] = {
            ACCEPTED_AT: np.full(count, arrival.accepted_at, dtype=np.int64),
            PARTITION: np.full(count, number, dtype=np.int32),
            OFFSET: np.arange(partition.next_offset, partition.next_offset + count, dtype=np.int64),
            LATE: late,
        }
        partition.next_offset += count
        self._records = pa.concat_tables([self._records, _whole(records, system, self._dataset)])
        self._accepted += [arrival.accepted_at] * count


def _own(records: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = records.drop_columns(list(SYSTEM_COLUMNS)).to_pylist()
    return rows


def _whole(records: pa.Table, system: Mapping[str, npt.NDArray[Any]], dataset: DatasetDef) -> pa.Table:
    schema = record_schema(dataset)
    columns = {name: records[name] for name in records.column_names}
    columns |= {name: pa.array(values) for name, values in system.items()}
    columns[ERASED] = pa.nulls(len(records), pa.bool_())
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _unheld(records: pa.Table, dataset: DatasetDef, held: set[Any]) -> pa.Table:
    """The first record of each event id that is new."""
    if dataset.event_id is None:
        return records
    first: dict[Any, int] = {}
    for row, event_id in enumerate(records[dataset.event_id].to_pylist()):
        if event_id not in held:
            first.setdefault(event_id, row)
    held.update(first)
    return records.take(pa.array(first.values(), pa.int64()))


def violations_of(records: RawRecords, dataset: DatasetDef) -> list[ExpectationViolation]:
    """Every record that fails an expectation, record by record; ``mostly`` has no meaning here."""
    return [_violation(rule, raw_record(records, row)) for rule, rows in failures(records, dataset) for row in rows]


def _violation(rule: ExpectationDef, record: Mapping[str, Any]) -> ExpectationViolation:
    demands = rule.model_dump(mode="json", exclude_defaults=True, exclude={"type", "column", "mostly"})
    stated = ", ".join(f"{name}={value!r}" for name, value in demands.items())
    message = f"{rule.column}: {record.get(rule.column)!r:.80} fails {rule.type}" + (f" ({stated})" if stated else "")
    return ExpectationViolation(rule.type, rule.column, message, record)
