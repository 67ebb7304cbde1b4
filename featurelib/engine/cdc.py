"""Change data at the door: what came becomes records, and those that take their key away (decision 13).

    cdc       a record is                                     it takes its key away
    --------  ----------------------------------------------  ----------------------------
    append    itself                                          never
    upsert    the newest row of its key                       where ``__deleted`` is true
    debezium  an envelope, or one under ``payload``: the row  with op ``d``: ``before`` then
              ``after``, with op ``c``, ``r`` or ``u``        names the key

The event time of an envelope is the first of these that is there: the dataset's time column in ``after``, a member of
that name beside ``op``, ``source.ts_ms``, ``ts_ms`` (milliseconds). A delete does not look into a row: the time in
``before`` is that of the row it takes away.

A message that only deletes has no row. A connector brings it to an ``upsert`` source as ``{"__key": …, "__time": …,
"__deleted": true}``: the key by itself, or an object that names the key's column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurelib.clock import to_datetime
from featurelib.definitions import Cdc, DatasetDef, FieldDef
from featurelib.engine.coerce import (
    EARLIEST,
    LATEST,
    RawRecords,
    Rejected,
    coerce,
    coerce_value,
    raw_column,
    raw_record,
)
from featurelib.engine.records import DELETED, TIME
from featurelib.errors import RecordError

KEY = "__key"
"""The key of a deletion that has no row."""
_MILLI = 1_000
_OPS = ("c", "r", "u", "d")  # not a set: what came may not be hashable
_FLAG = FieldDef(name=DELETED, type="bool", optional=True)


class Unwrapped(NamedTuple):
    """Rows to be typed, the place each came from, which of them take their key away, and what is no change at all."""

    records: RawRecords
    kept: npt.NDArray[np.int64]
    deleted: npt.NDArray[np.bool_]
    rejected: list[Rejected]


class Admitted(NamedTuple):
    """What :func:`~featurelib.engine.coerce.coerce` gives, and which records of the table take their key away."""

    table: pa.Table
    kept: npt.NDArray[np.int64]
    deleted: npt.NDArray[np.bool_]
    rejected: list[Rejected]


def admit(records: RawRecords, dataset: DatasetDef, cdc: Cdc = "append") -> Admitted:
    """The typed records of what came; ``kept`` and the rows of ``rejected`` count what came."""
    changes = unwrap(records, dataset, cdc)
    typed = coerce(changes.records, dataset, changes.deleted)
    refused = [_as_it_came(rejected, records, changes) for rejected in typed.rejected]
    return Admitted(
        typed.table,
        changes.kept[typed.kept],
        changes.deleted[typed.kept],
        sorted([*changes.rejected, *refused], key=lambda rejected: rejected.row),
    )


def unwrap(records: RawRecords, dataset: DatasetDef, cdc: Cdc) -> Unwrapped:
    """The rows that changes bring or take away; one that is malformed is rejected on its own."""
    if cdc == "append":
        return _kept(records, np.zeros(len(records), dtype=np.bool_), [])
    if cdc == "upsert":
        return _flagged(records if isinstance(records, pa.Table) else _with_rows(records, dataset))
    changes = records.to_pylist() if isinstance(records, pa.Table) else records
    return _opened(changes, lambda change: _opened_envelope(change, dataset))


def _as_it_came(rejected: Rejected, records: RawRecords, changes: Unwrapped) -> Rejected:
    row = int(changes.kept[rejected.row])
    return rejected._replace(row=row, record=raw_record(records, row))


def _kept(records: RawRecords, deleted: npt.NDArray[np.bool_], rejected: list[Rejected]) -> Unwrapped:
    return Unwrapped(records, np.arange(len(records), dtype=np.int64), deleted, rejected)


# Upsert: rows with a mark.


def _with_rows(records: Sequence[Mapping[str, Any]], dataset: DatasetDef) -> Sequence[Mapping[str, Any]]:
    """The records, those that hold a bare key written as rows."""
    if not any(KEY in record for record in records):
        return records
    return [_row_of_key(record, dataset) if KEY in record else record for record in records]


def _row_of_key(record: Mapping[str, Any], dataset: DatasetDef) -> dict[str, Any]:
    key = record[KEY]
    named = key if isinstance(key, Mapping) else {dataset.key.name: key}
    return {**named, dataset.timestamp.name: record.get(TIME), DELETED: record.get(DELETED)}


def _flagged(records: RawRecords) -> Unwrapped:
    array, cell = raw_column(records, DELETED)
    if array is not None and array.null_count == len(array):
        return _kept(records, np.zeros(len(records), dtype=np.bool_), [])
    deleted, bad = np.zeros(len(records), dtype=np.bool_), []
    for row in range(len(records)):
        try:
            deleted[row] = coerce_value(cell(row), _FLAG) or False
        except RecordError as error:
            bad.append(_rejected(row, raw_record(records, row), error))
    if not bad:
        return _kept(records, deleted, [])
    kept = np.setdiff1d(np.arange(len(records), dtype=np.int64), [rejected.row for rejected in bad])
    taken = records.take(kept) if isinstance(records, pa.Table) else [records[row] for row in kept.tolist()]
    return Unwrapped(taken, kept, deleted[kept], bad)


# Debezium: envelopes.


def _opened(changes: Sequence[Mapping[str, Any]], open_one: Callable[[Any], tuple[dict[str, Any], bool]]) -> Unwrapped:
    rows: list[dict[str, Any]] = []
    kept, deleted, bad = [], [], []
    for place, change in enumerate(changes):
        try:
            row, taken_away = open_one(change)
        except RecordError as error:
            bad.append(_rejected(place, change, error))
            continue
        rows.append(row)
        kept.append(place)
        deleted.append(taken_away)
    return Unwrapped(rows, np.array(kept, dtype=np.int64), np.array(deleted, dtype=np.bool_), bad)


def _rejected(row: int, record: Any, error: RecordError) -> Rejected:
    return Rejected(row, record, error.reason, error.field, error.message)


def _opened_envelope(change: Any, dataset: DatasetDef) -> tuple[dict[str, Any], bool]:
    """The row of an envelope with its event time, and whether it takes its key away.

    Raises:
        RecordError: it is no envelope of a change to a row.
    """
    envelope = _envelope(change)
    op = envelope.get("op")
    if op not in _OPS:
        raise RecordError("unknown_op", "op", f"op: {op!r:.40} is not one of c, r, u, d")
    deleted, time = op == "d", dataset.timestamp.name
    row = dict(_row(envelope, "before" if deleted else "after"))
    if deleted or row.get(time) is None:
        row[time] = _time_beside(envelope, time)
        if row[time] is None:
            text = f"{time}: missing in the row, beside op (`{time}`), and as ts_ms of the envelope or of source"
            raise RecordError("missing_field", time, text)
    return row, deleted


def _envelope(change: Any) -> Mapping[str, Any]:
    found = change
    if isinstance(change, Mapping) and "op" not in change and "payload" in change:
        found = change["payload"]
    if not isinstance(found, Mapping):
        raise RecordError("malformed_envelope", "op", f"{found!r:.80} is not an object with op, before and after")
    return found


def _row(envelope: Mapping[str, Any], member: str) -> Mapping[str, Any]:
    row = envelope.get(member)
    if isinstance(row, Mapping):
        return row
    text = f"{member}: an envelope with op {envelope['op']} holds the row here; found {row!r:.80}"
    raise RecordError("malformed_envelope", member, text)


def _time_beside(envelope: Mapping[str, Any], time: str) -> Any:
    """The event time an envelope has beside its row; ``None`` if there is none."""
    if envelope.get(time) is not None:
        return envelope[time]
    source = envelope.get("source")
    stamps = (source.get("ts_ms") if isinstance(source, Mapping) else None, envelope.get("ts_ms"))
    stamp = next((stamp for stamp in stamps if stamp is not None), None)
    if stamp is None:
        return None
    number = isinstance(stamp, int | float) and not isinstance(stamp, bool)
    if not number or not EARLIEST <= stamp * _MILLI <= LATEST:
        text = f"ts_ms: {stamp!r:.40} is not a time between 1900 and 2200 in milliseconds"
        raise RecordError("invalid_timestamp", "ts_ms", text)
    return to_datetime(round(stamp * _MILLI))
