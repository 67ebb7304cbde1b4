"""What a backfill will read, write and take, told before it begins: records are counted, some keys built and weighed.

What a build costs per record depends on the pipeline's functions, windows and data, so it is measured: the engine folds
the whole history of a sample of keys, here and now, and nothing is written. Records are counted in the archive's
statistics and by the columns of the bounds. A pipeline keyed like its dataset is sampled by key group, so that only the
sample is read; any other plain one is prepared whole, since any record may belong to any key, and sampled by key. A
graph of up to a million records is built whole; of a larger one some key groups of its datasets stand for all, and the
price says that it is rough.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import polars as pl
import pyarrow as pa

from featurelib.clock import Instant
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.fold import KEY
from featurelib.engine.input_partitions import InputPartition
from featurelib.engine.keys import KEY_GROUPS
from featurelib.engine.operators import RightTable
from featurelib.engine.partials import Row
from featurelib.engine.program import Program
from featurelib.engine.sizing import hash_bytes
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.online import StateName

# As many rows of a sample give sizes within some percent, and cost less than a second.
_SAMPLE_ROWS = 100_000
_GRAPH_ROWS = 1_000_000
# As many rows are made whole: a few keys with most of them would tell nothing by some of them.
_WHOLE_ROWS = 500_000
_MANY_KEYS = 500
# What the records of some key groups may be of what they would be if all groups had as many.
_EVEN = (0.5, 2.0)
_SLICE_ROWS = 4_096
START_S = 15.0
"""Of every price: Ray's job, its actors and the live workers that take over; measured on two cores."""
# Per field and byte that is written, the server's share included.
_FIELD_S, _BYTE_S = 4e-6, 10e-9
# From here on a value is no longer stored within its hash's listpack.
_LISTPACK_BYTES = 64


class BackfillAsked(NamedTuple):
    """A backfill that may be asked for.

    Attributes:
        inputs: the input partitions of the pipeline.
        cut: per input partition, below what history is folded.
        since: only records dated at or after it, of the left input.
        until: only records dated at or before it, likewise.
        actors: how many build at once.
    """

    inputs: Sequence[InputPartition]
    cut: Sequence[int]
    since: Instant | None = None
    until: Instant | None = None
    actors: int = 1

    @classmethod
    def now(
        cls, program: Program, log: Log, actors: int, since: Instant | None = None, until: Instant | None = None
    ) -> BackfillAsked:
        """One that would begin now.

        Raises:
            StoreUnavailable: the log does not answer.
        """
        heads = {dataset.name: log.heads(ref(dataset), log.partitions(ref(dataset))) for dataset in program.sources}
        inputs = [InputPartition(d, part) for d in program.sources for part in range(len(heads[d.name]))]
        cut = [heads[each.dataset.name][each.partition].next_offset for each in inputs]
        return cls(inputs, cut, since, until, actors)


class Price(NamedTuple):
    """What a backfill will take.

    Attributes:
        records: records of its inputs that are read.
        archive_bytes: of the archive's files they are read from.
        rows: rows that are folded.
        keys: keys that are written.
        state_bytes: what their state takes in the online store.
        seconds: from when it is asked for until it is served.
        rough: whether some of it is more than a tenth uncertain.
    """

    records: int
    archive_bytes: int
    rows: int
    keys: int
    state_bytes: int
    seconds: float
    rough: bool


class _Sample(NamedTuple):
    """Rows of some keys, how many rows and times as many keys they stand for, and what making a row of a record took.

    ``rough``: they are too few keys, or a part of a graph.
    """

    shaped: pl.DataFrame
    rows: int
    keys_scale: float
    seconds_per_record: float
    rough: bool = False


class _Weighed(NamedTuple):
    keys: int
    fields: int
    value_bytes: int
    state_bytes: int
    seconds: float


class Pricing:
    """Prices backfills of one pipeline.

    Args:
        program: the pipeline.
        history: what will be read.
        seconds: a clock that only ever moves forward.
    """

    def __init__(self, program: Program, history: History, *, seconds: Callable[[], float] = time.perf_counter) -> None:
        self._program = program
        self._history = history
        self._seconds = seconds

    def price(self, asked: BackfillAsked) -> Price:
        """What it will take, of what there is now.

        Raises:
            StoreUnavailable: log or archive does not answer.
            UserCodeError: one of the pipeline's own functions cannot be run.
        """
        counts = {dataset.name: self._count(asked, dataset.name) for dataset in self._program.sources}
        records = counts[self._program.left.name][0]
        sample = self._sampled(asked, records)
        weighed = self._weighed(sample.shaped, len(asked.inputs))
        scale = sample.rows / len(sample.shaped) if len(sample.shaped) else 0.0
        every = sum(count for count, _ in counts.values())
        work = sample.seconds_per_record * every + scale * _seconds_of(weighed)
        return Price(
            records=every,
            archive_bytes=sum(size for _, size in counts.values()),
            rows=sample.rows,
            keys=round(weighed.keys * sample.keys_scale),
            state_bytes=round(weighed.state_bytes * scale),
            seconds=round(START_S + work / asked.actors, 1),
            rough=sample.rough,
        )

    def _count(self, asked: BackfillAsked, dataset: str) -> tuple[int, int]:
        of = next(source for source in self._program.sources if source.name == dataset)
        span = (asked.since, asked.until) if of == self._program.left else (None, None)
        return self._history.count(of, _cut_of(asked, dataset), *span)

    def _sampled(self, asked: BackfillAsked, records: int) -> _Sample:
        if not self._program.plain:
            return self._of_graph(asked, records)
        if self._program.keyed_like_its_dataset() and records > _SAMPLE_ROWS:
            return self._by_group(asked, records) or self._by_key(asked, records)
        return self._by_key(asked, records)

    def _by_group(self, asked: BackfillAsked, records: int) -> _Sample | None:
        """Every row of some key groups; ``None`` where a few keys have most records, so that they tell nothing."""
        groups = _some_groups(records)
        started, read, parts = self._seconds(), 0, []
        for piece, shaped in self._prepared(asked, groups):
            read += len(piece)
            parts.append(shaped)
        took = self._seconds() - started
        one_in = KEY_GROUPS / len(groups)
        if not parts or not _EVEN[0] < read * one_in / records < _EVEN[1]:
            return None
        found = pl.concat(parts)
        return _Sample(found, round(len(found) * records / read), one_in, took / read)

    def _by_key(self, asked: BackfillAsked, records: int) -> _Sample:
        """Every row of some keys; all rows are made to find them."""
        whole = records <= _WHOLE_ROWS
        one_in = 1 if whole else -(-records // _SAMPLE_ROWS)
        started, rows, parts = self._seconds(), 0, []
        for _, shaped in self._prepared(asked, None):
            rows += len(shaped)
            parts.append(shaped if whole else shaped.filter(shaped[KEY].hash() % one_in == 0))
        took = self._seconds() - started
        found = pl.concat(parts) if parts else pl.DataFrame(schema={KEY: pl.String})
        if whole and found[KEY].n_unique() >= _MANY_KEYS and rows > _SAMPLE_ROWS:
            one_in = -(-rows // _SAMPLE_ROWS)
            found = found.filter(found[KEY].hash() % one_in == 0)
        # Where rows fold under other keys than their dataset's, each actor reads everything.
        times = 1 if self._program.keyed_like_its_dataset() else asked.actors
        rough = not whole and found[KEY].n_unique() < _MANY_KEYS
        return _Sample(found, rows, one_in, times * took / max(1, records), rough)

    def _of_graph(self, asked: BackfillAsked, records: int) -> _Sample:
        """What the whole graph makes, or of a large one that of some key groups; each actor makes all of it."""
        groups = None if records <= _GRAPH_ROWS else _some_groups(records)
        started = self._seconds()
        inputs = {dataset.name: self._read(asked, dataset, groups) for dataset in self._program.sources}
        shaped = self._program.shape_all(inputs)
        read = sum(len(table) for table in inputs.values())
        one_in = 1.0 if groups is None else KEY_GROUPS / len(groups)
        took = asked.actors * (self._seconds() - started) / max(1, read)
        return _Sample(shaped, round(len(shaped) * one_in), one_in, took, rough=groups is not None)

    def _read(self, asked: BackfillAsked, dataset: DatasetDef, groups: Sequence[int] | None = None) -> pa.Table:
        cut = _cut_of(asked, dataset.name)
        since, until = (asked.since, asked.until) if dataset == self._program.left else (None, None)
        return self._history.read(dataset, len(cut), groups=groups, since=since, until=until, cut=cut)

    def _prepared(self, asked: BackfillAsked, groups: Sequence[int] | None) -> Iterator[tuple[pa.Table, pl.DataFrame]]:
        program = self._program
        rights, columns = self._rights(asked), program.left_columns()
        pieces = self._history.batches(
            program.left,
            cut=_cut_of(asked, program.left.name),
            groups=groups,
            since=asked.since,
            until=asked.until,
            columns=columns,
        )
        for piece in pieces:
            yield piece, program.prepare(piece.select(columns), rights, [])

    def _rights(self, asked: BackfillAsked) -> dict[str, RightTable]:
        tables = self._program.right_tables()
        for dataset in self._program.rights:
            tables[dataset.name] = tables[dataset.name].with_records(self._read(asked, dataset))
        return tables

    def _weighed(self, shaped: pl.DataFrame, inputs: int) -> _Weighed:
        """Fold some keys as a build does, and weigh what would be stored of them."""
        if not len(shaped):
            return _Weighed(0, 0, 0, 0, 0.0)
        keys = fields = value_bytes = state_bytes = 0
        seconds = 0.0
        before = self._seconds()
        for key, rows in self._program.rows_by_key(shaped):
            made = self._folded(rows, inputs)
            seconds += self._seconds() - before
            keys, fields = keys + 1, fields + len(made)
            value_bytes += sum(map(len, made.values()))
            state_bytes += _stored_bytes(self._program.ref, key, made)
            before = self._seconds()
        return _Weighed(keys, fields, value_bytes, state_bytes, seconds)

    def _folded(self, rows: list[Row], inputs: int) -> dict[bytes, bytes]:
        state = self._program.new_state(inputs)
        for start in range(0, len(rows), _SLICE_ROWS):
            state.add(rows[start : start + _SLICE_ROWS])
        return state.changes()


def _stored_bytes(pipeline: str, key: str, fields: dict[bytes, bytes]) -> int:
    compact = all(len(value) <= _LISTPACK_BYTES for value in fields.values())
    return hash_bytes(StateName(pipeline, 1).key(key).encode(), fields, compact=compact)


def _seconds_of(weighed: _Weighed) -> float:
    return weighed.seconds + weighed.fields * _FIELD_S + weighed.value_bytes * _BYTE_S


def _some_groups(records: int) -> list[int]:
    """As many key groups as give a sample, spread over all of them."""
    wanted = min(KEY_GROUPS, max(1, math.ceil(KEY_GROUPS * _SAMPLE_ROWS / max(1, records))))
    return sorted({KEY_GROUPS * number // wanted for number in range(wanted)})


def _cut_of(asked: BackfillAsked, dataset: str) -> dict[int, int]:
    mine = zip(asked.inputs, asked.cut, strict=True)
    return {source.partition: offset for source, offset in mine if source.dataset.name == dataset}
