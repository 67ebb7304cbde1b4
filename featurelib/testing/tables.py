"""What a test hands over as rows: lists of mappings or of row objects, and Polars, pandas and Arrow tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import pyarrow as pa

from featurelib.engine.coerce import RawRecords
from featurelib.errors import InvalidRequest

_ACCEPTED = "a list of mappings, or a Polars, pandas or Arrow table"


def records_of(given: Any) -> RawRecords:
    """Records as they came.

    Raises:
        InvalidRequest: they are none.
    """
    table = _table(given)
    if table is not None:
        return table
    rows = [given] if isinstance(given, Mapping) else given
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        raise InvalidRequest(f"events: expected {_ACCEPTED}; found a {type(given).__name__}")
    return [_record(row, number) for number, row in enumerate(rows)]


def rows_of(given: Any) -> list[Mapping[str, Any]]:
    """Rows to read features for.

    Raises:
        InvalidRequest: they are none.
    """
    records = records_of(given)
    return records.to_pylist() if isinstance(records, pa.Table) else list(records)


def _table(given: Any) -> pa.Table | None:
    if isinstance(given, pa.Table):
        return given
    if isinstance(given, pa.RecordBatch):
        return pa.Table.from_batches([given])
    package = type(given).__module__.partition(".")[0]
    if package == "polars" and hasattr(given, "columns") and hasattr(given, "to_arrow"):
        return given.to_arrow()
    if package == "pandas" and hasattr(given, "columns"):
        return pa.Table.from_pandas(given, preserve_index=False)
    return None


def _record(row: Any, number: int) -> Mapping[str, Any]:
    if is_dataclass(row) and not isinstance(row, type):
        return asdict(row)
    if isinstance(row, Mapping):
        return row
    raise InvalidRequest(f"events[{number}]: expected a mapping; found a {type(row).__name__}")
