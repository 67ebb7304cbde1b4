"""Records as tables: the system columns every record carries, their order, and the late mark.

Columns beside the dataset's own:

    __time         int64  event time, µs
    __accepted_at  int64  when the log accepted the record, µs
    __partition    int32  log partition
    __offset       int64  position in that partition: 0, 1, 2, …
    __late         bool   decided once, at append (decision 6)
    __deleted      bool   the record takes its key away (cdc); null means false
    __erased       bool   no record but a tombstone: those of its key below its offset were erased; null means false
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurelib.clock import Duration, Instant
from featurelib.definitions import DatasetDef
from featurelib.types import decimal_scale, element_type, members_of, value_type

TIME, ACCEPTED_AT, PARTITION, OFFSET, LATE = "__time", "__accepted_at", "__partition", "__offset", "__late"
DELETED, ERASED = "__deleted", "__erased"
SYSTEM_COLUMNS = (TIME, ACCEPTED_AT, PARTITION, OFFSET, LATE, DELETED, ERASED)
ORDER = (TIME, ACCEPTED_AT, PARTITION, OFFSET)
"""The total order of records (decision 8): "newest" and every tie follow it."""


class Mark(NamedTuple):
    """How far a stream of a source is read; marks of one stream order like tuples.

    ``sequence`` counts records. ``token`` is what the source itself needs to go on from there; where records
    are named rather than numbered it alone orders, and ``sequence`` stays 0.
    """

    sequence: int
    token: str = ""


_ARROW = {
    "int": pa.int64(),
    "float": pa.float64(),
    "str": pa.string(),
    "bool": pa.bool_(),
    "datetime": pa.timestamp("us", tz="UTC"),
}


def arrow_type(type_name: str) -> pa.DataType:
    """The Arrow type of a column type. A decimal has 38 digits, of which its scale says how many follow the point."""
    element, scale = element_type(type_name), decimal_scale(type_name)
    if element:
        return pa.list_(arrow_type(element))
    value, members = value_type(type_name), members_of(type_name)
    if value:
        return pa.map_(pa.string(), arrow_type(value))
    if members:
        return pa.struct([(name, arrow_type(kind)) for name, kind in members])
    return _ARROW[type_name] if scale is None else pa.decimal128(38, scale)


def dataset_schema(dataset: DatasetDef) -> pa.Schema:
    """Arrow schema of a dataset's own columns."""
    return pa.schema([(field.name, arrow_type(field.type)) for field in dataset.fields])


def record_schema(dataset: DatasetDef) -> pa.Schema:
    """Arrow schema of a dataset's records, system columns included."""
    system = [
        (TIME, pa.int64()),
        (ACCEPTED_AT, pa.int64()),
        (PARTITION, pa.int32()),
        (OFFSET, pa.int64()),
        (LATE, pa.bool_()),
        (DELETED, pa.bool_()),
        (ERASED, pa.bool_()),
    ]
    return pa.schema([*dataset_schema(dataset), *(pa.field(name, kind) for name, kind in system)])


def in_order(records: pa.Table) -> pa.Table:
    """Sort records by the total order."""
    return records.sort_by([(name, "ascending") for name in ORDER])


def mark_late(
    times: npt.NDArray[np.int64], newest: Instant | None, max_lateness: Duration | None, horizon: Instant
) -> tuple[npt.NDArray[np.bool_], Instant | None]:
    """Which records are late when they arrive in this order, and the partition's newest event time after them.

    Args:
        times: event times, µs, in arrival order.
        newest: newest event time the partition saw before, clamped as below; ``None`` for none.
        max_lateness: how far behind the newest a record may be; ``None``: nothing is late.
        horizon: a record dated after it never moves the watermark beyond it (now + clock skew).
    """
    if not len(times):
        return np.zeros(0, dtype=np.bool_), newest
    floor = np.iinfo(np.int64).min if newest is None else newest
    seen = np.maximum(np.maximum.accumulate(np.minimum(times, horizon)), floor)
    after = int(seen[-1])
    if max_lateness is None:
        return np.zeros(len(times), dtype=np.bool_), after
    before = np.concatenate(([floor], seen[:-1]))
    known = before != np.iinfo(np.int64).min
    watermark = np.where(known, before, times) - max_lateness
    return known & (times < watermark), after
