"""Records as a log partition holds them, for tests of what comes after the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from featurelib.definitions import DatasetDef
from featurelib.engine.records import record_schema


def log_records(dataset: DatasetDef, rows: Mapping[int, Mapping[str, Any]]) -> pa.Table:
    """Records of partition 0, none late, each accepted at its offset.

    Args:
        dataset: whose.
        rows: by offset the values of its columns, instants in µs; a column left out is null.
    """
    whole = [
        {
            **row,
            "__time": row[dataset.timestamp.name],
            "__accepted_at": offset,
            "__partition": 0,
            "__offset": offset,
            "__late": False,
        }
        for offset, row in rows.items()
    ]
    schema = record_schema(dataset)
    columns = [pa.array([row.get(name) for row in whole]) for name in schema.names]
    return pa.Table.from_arrays(columns, names=schema.names).cast(schema)
