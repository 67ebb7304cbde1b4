"""Entity keys as text, and how keys spread over key groups, log partitions and workers.

A key has one text, the same in a request, in the log and in the online store. 64 key groups are
fixed for ever; ``partition_count`` only assigns groups to workers, so rescaling moves no keys.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import polars as pl
import pyarrow as pa

from featurelib.clock import Instant, format_instant

KEY_GROUPS = 64
# Below it the two queries of a whole batch cost more than a look-up per text: 0.8 ms against 0.2 µs each.
_FEW_TEXTS = 2_000


LONGEST_KEY = 1_024
"""Most characters of an entity's id: longer ones are a mistake, or an attack; Redis itself would take 512 MB."""


def is_key(text: str) -> bool:
    """Whether a read can name an entity by the text: 1 to 1,024 characters without NUL."""
    return 0 < len(text) <= LONGEST_KEY and "\0" not in text


def key_text(parts: Sequence[object]) -> str:
    """The text of a key: parts joined by ``:``; a backslash escapes both in composite keys (decision 16)."""
    if len(parts) == 1:
        return _part_text(parts[0])
    return ":".join(_part_text(part).replace("\\", "\\\\").replace(":", "\\:") for part in parts)


@lru_cache(maxsize=131_072)
def key_group(text: str) -> int:
    """The key group of a key text, 0 to 63."""
    return zlib.crc32(text.encode()) % KEY_GROUPS


def owner_of_group(group: int, partitions: int) -> int:
    """The partition, of ``partitions``, that owns a key group: contiguous ranges."""
    return group * partitions // KEY_GROUPS


def groups_of(partition: int, partitions: int) -> range:
    """The key groups a partition owns."""
    first = -(-partition * KEY_GROUPS // partitions)
    return range(first, -(-(partition + 1) * KEY_GROUPS // partitions))


def key_texts(columns: Sequence[pl.Series]) -> pl.Series:
    """Key texts of a whole batch, one column per key part."""
    if len(columns) == 1:
        return _column_text(columns[0]).alias("__key")
    escaped = [
        _column_text(column).str.replace_all("\\", "\\\\", literal=True).str.replace_all(":", "\\:", literal=True)
        for column in columns
    ]
    frame = pl.DataFrame({str(index): column for index, column in enumerate(escaped)})
    return frame.select(pl.concat_str(pl.all(), separator=":").alias("__key")).to_series()


def key_groups(texts: pl.Series) -> np.ndarray:
    """Key groups (int64) of a whole batch; each distinct text is hashed once."""
    if len(texts) <= _FEW_TEXTS:
        return np.fromiter(map(key_group, texts.to_list()), dtype=np.int64, count=len(texts))
    distinct = texts.unique()
    groups = pl.Series([key_group(text) for text in distinct.to_list()], dtype=pl.Int64)
    return texts.replace_strict(distinct, groups, return_dtype=pl.Int64).to_numpy()


def groups_of_column(column: pa.ChunkedArray) -> np.ndarray:
    """Key groups (int64) of a batch with a single key column."""
    if len(column) <= _FEW_TEXTS and pa.types.is_string(column.type):
        return np.fromiter(map(key_group, column.to_pylist()), dtype=np.int64, count=len(column))
    return key_groups(key_texts([pl.Series("key", pl.from_arrow(column))]))


def _part_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def instant_key(instant: Instant) -> str:
    """The text of a datetime key part."""
    return format_instant(instant)


def _column_text(column: pl.Series) -> pl.Series:
    if column.dtype == pl.String:
        return column
    if isinstance(column.dtype, pl.Datetime):
        micros = column.dt.epoch("us")
        return pl.Series(column.name, [None if m is None else format_instant(m) for m in micros.to_list()])
    return column.cast(pl.String)
