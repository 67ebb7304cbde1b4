"""What a worker does with tombstones in its batches: a batch ends before one, and one is applied by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurelib.engine.input_partitions import InputPartition
from featurelib.engine.records import ERASED, OFFSET
from featurelib.stores.log import texts_of


class Erasure(NamedTuple):
    """Tombstones that follow each other in one input partition: records of the keys below ``first`` are erased.

    ``place`` is the partition's among the pipeline's inputs; after the tombstones comes ``end``.
    """

    place: int
    keys: tuple[str, ...]
    first: int
    end: int


def up_to_tombstones(
    batch: Mapping[int, pa.Table], inputs: Sequence[InputPartition]
) -> tuple[dict[int, pa.Table], Erasure | None]:
    """Each partition's records before its first tombstone; if one begins with a tombstone, that and nothing else.

    Args:
        batch: per input partition, records by ascending offset; no table is empty.
        inputs: the pipeline's input partitions.
    """
    records: dict[int, pa.Table] = {}
    for index, table in batch.items():
        if table[ERASED].null_count == len(table):
            records[index] = table  # as nearly always
            continue
        erased = _erased(table)
        if erased[0]:
            return {}, _erasure(index, table.slice(0, _run(erased)), inputs[index])
        records[index] = table.slice(0, int(erased.argmax())) if erased.any() else table
    return records, None


def _erased(table: pa.Table) -> np.ndarray:
    return pc.fill_null(table[ERASED], False).to_numpy()  # type: ignore[no-any-return]


def _run(erased: np.ndarray) -> int:
    return len(erased) if erased.all() else int(erased.argmin())


def _erasure(index: int, tombstones: pa.Table, source: InputPartition) -> Erasure:
    offsets = tombstones[OFFSET]
    keys = tuple(dict.fromkeys(texts_of(tombstones[source.dataset.key.name])))
    return Erasure(index, keys, offsets[0].as_py(), offsets[-1].as_py() + 1)
