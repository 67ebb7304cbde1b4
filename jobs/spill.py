"""Rows of a pipeline put apart by key, so that memory holds some keys' rows at a time however many there are in all.

Rows come in any order. Whenever enough have come they are sorted by bucket and written to one file, each bucket as one
Arrow batch of it; a bucket is then read from every file. A bucket holds all rows of its keys, and keys of one key group
only. What fits in memory never becomes a file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from featurelib.engine.fold import KEY
from featurelib.engine.operators import IDENTITY
from featurelib.errors import StoreUnavailable

# Some 50 MB of a pipeline with ten value columns, and as much again while they are sorted.
_RUN_ROWS = 200_000
# As Python values they take about ten times what they take in Arrow: 100,000 of them some 60 MB.
_BUCKET_ROWS = 100_000
_BUCKET = "__bucket"


class _Run(NamedTuple):
    """A file: which buckets have a batch in it, in order, and where in it each begins, with the end of the last."""

    path: Path
    schema: pa.Schema
    buckets: np.ndarray
    starts: np.ndarray

    def place(self, bucket: int) -> tuple[int, int] | None:
        """Where a bucket's batch begins and ends."""
        at = int(np.searchsorted(self.buckets, bucket))
        if at == len(self.buckets) or self.buckets[at] != bucket:
            return None
        return int(self.starts[at]), int(self.starts[at + 1])


class Spill:
    """Rows as :meth:`Program.shape` lays them out, by key group.

    Args:
        folder: for its files; made when the first is needed, and removed by :meth:`close`.
        groups: key groups whose rows come.
        rows_expected: how many rows, about: what buckets are cut by.
        run_rows: from how many rows on they are written to a file.
    """

    def __init__(self, folder: Path, groups: Collection[int], rows_expected: int, *, run_rows: int = _RUN_ROWS) -> None:
        self._folder = folder
        self._per_group = max(1, -(-rows_expected // (_BUCKET_ROWS * max(1, len(groups)))))
        self._run_rows = run_rows
        self._held: list[pl.DataFrame] = []
        self._held_rows = 0
        self._runs: list[_Run] = []
        self.rows: dict[int, int] = dict.fromkeys(groups, 0)
        """Per key group, how many rows came."""

    def add(self, shaped: pl.DataFrame, groups: np.ndarray) -> None:
        """Take rows, and the key group of each; those of other groups are left out.

        Raises:
            StoreUnavailable: the disk is full, or does not answer.
        """
        mine = np.isin(groups, list(self.rows))
        if not mine.all():
            shaped, groups = shaped.filter(pl.Series(mine)), groups[mine]
        for group, count in zip(*np.unique(groups, return_counts=True), strict=True):
            self.rows[int(group)] += int(count)
        within = shaped[KEY].hash() % self._per_group
        bucket = pl.Series(_BUCKET, groups * self._per_group) + within.cast(pl.Int64)
        self._held.append(shaped.with_columns(bucket.alias(_BUCKET)))
        self._held_rows += len(shaped)
        if self._held_rows >= self._run_rows:
            self._write()

    def of(self, group: int) -> Iterator[pl.DataFrame]:
        """The rows of a key group, bucket by bucket, each in total order.

        Raises:
            StoreUnavailable: the disk does not answer.
        """
        held = self._sorted()
        for bucket in range(group * self._per_group, (group + 1) * self._per_group):
            parts = [part for run in self._runs for part in _read(run, bucket)]
            if held is not None:
                first, end = np.searchsorted(held[_BUCKET].to_numpy(), (bucket, bucket + 1)).tolist()
                parts.append(held.slice(first, end - first).drop(_BUCKET))
            rows = pl.concat(parts) if parts else None
            if rows is not None and len(rows):
                yield rows.sort(IDENTITY)

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _sorted(self) -> pl.DataFrame | None:
        if not self._held:
            return None
        if self._held_rows:
            self._held = [pl.concat(self._held).sort(_BUCKET)]
            self._held_rows = 0
        return self._held[0]

    def _write(self) -> None:
        rows = pl.concat(self._held).sort(_BUCKET)
        self._held, self._held_rows = [], 0
        starts = rows[_BUCKET].rle().struct.unnest()
        rows = rows.drop(_BUCKET)
        path = self._folder / f"{len(self._runs):06d}.batches"
        places = [0]
        with _on_disk(path):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with path.open("wb") as file:
                start = 0
                for length in starts["len"].to_list():
                    # Bucket by bucket: as one table they would be in memory a third time.
                    (batch,) = _as_arrow(rows.slice(start, length)).combine_chunks().to_batches()
                    places.append(places[-1] + file.write(batch.serialize()))
                    start += length
        schema = _as_arrow(rows.clear()).schema
        self._runs.append(_Run(path, schema, starts["value"].to_numpy(), np.array(places)))


def _as_arrow(rows: pl.DataFrame) -> pa.Table:
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest())


def _read(run: _Run, bucket: int) -> Iterator[pl.DataFrame]:
    place = run.place(bucket)
    if place is None:
        return
    with _on_disk(run.path), run.path.open("rb", buffering=0) as file:
        # Neither mapped into memory, which would count as this process's, nor found by a directory of the file, which
        # every one of as many reads as files times buckets would have to read.
        data = os.pread(file.fileno(), place[1] - place[0], place[0])
        frame = pl.from_arrow(pa.ipc.read_record_batch(pa.py_buffer(data), run.schema))
    assert isinstance(frame, pl.DataFrame)
    yield frame


@contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = (
            f"rows of a backfill cannot be put apart in {path.parent}: {error}; free space there, or move data_dir"
        )
        raise StoreUnavailable(message) from error
