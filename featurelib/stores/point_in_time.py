"""Rows as of past instants: the archive and the log's tail, folded by the same engine as the stream.

What is read is cut twice: at the instant R, and at an offset of each log partition. Rows asked for together may be cut
at different offsets; the records of a dataset are read once for all of them, up to the furthest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from featurelib.clock import Instant
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.asof import Knowledge
from featurelib.engine.fold import KEY
from featurelib.engine.keys import key_group
from featurelib.engine.operators import PLACE, PLACE_BITS, RightTable
from featurelib.engine.program import Program, states_of
from featurelib.engine.records import ACCEPTED_AT, OFFSET, PARTITION, TIME
from featurelib.errors import CorruptState
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.online_reader import Lookup
from featurelib.stores.spine_reader import SpineReader
from featurelib.types import Value

Row = dict[str, Value] | None
Offsets = tuple[int, ...]
"""Per log partition of a dataset the offset at which to stop."""


class _Asked(NamedTuple):
    """A row that is asked for: of which records, per dataset by ``Name@version``, and known by when."""

    lookup: Lookup
    ends: Mapping[str, Offsets]
    known_by: Instant | None

    def cut(self, datasets: Iterable[DatasetDef]) -> tuple[Offsets, ...]:
        """Where the logs of some datasets stop."""
        return tuple(self.ends[ref(dataset)] for dataset in datasets)


class PointInTime:
    """Evaluates pipelines at past instants. Blocking: an event loop runs it in a thread."""

    def __init__(self, history: History, log: Log) -> None:
        self._history = history
        self._log = log
        self._partitions: dict[str, int] = {}

    def rows(
        self,
        lookups: Sequence[Lookup],
        ends: dict[str, Offsets] | None = None,
        known_by: Instant | None = None,
    ) -> list[Row]:
        """Output rows, in order; ``None`` where the key had no record at or before the instant.

        Args:
            lookups: keys and instants.
            ends: per dataset where its log stops; of a dataset that is not named the end is put there as it is now, so
                that whoever passes the same dictionary again reads of the same records.
            known_by: counts only records accepted at or before this instant; ``None``: all.

        Raises:
            StoreUnavailable: the log or the archive does not answer.
            ValueOverflow: an integer sum left the 64-bit range.
        """
        ends = {} if ends is None else ends
        self._look(ends, {lookup.program.ref: lookup.program for lookup in lookups}.values())
        return self._rows([_Asked(lookup, ends, known_by) for lookup in lookups])

    def newest(self, lookups: Sequence[Lookup]) -> list[Instant | None]:
        """Of each key the event time of its newest record at or before the instant; ``None`` where it had none.

        Raises:
            StoreUnavailable: the log or the archive does not answer.
        """
        ends: dict[str, Offsets] = {}
        self._look(ends, {lookup.program.ref: lookup.program for lookup in lookups}.values())
        records = _Records(self._history, asked := [_Asked(lookup, ends, None) for lookup in lookups])
        return [_newest(each, records) for each in asked]

    def rows_below(self, lookups: Sequence[Lookup], applied: Sequence[Sequence[int]]) -> list[Row]:
        """Output rows, in order, each of the records below offsets of its own.

        Args:
            lookups: keys and instants.
            applied: per row, the offset for every input partition of its pipeline, the left dataset's first: as the
                online store has it of each key.

        Raises:
            StoreUnavailable: the log or the archive does not answer.
            CorruptState: there are not as many offsets as the pipeline has input partitions.
            ValueOverflow: an integer sum left the 64-bit range.
        """
        pairs = zip(lookups, applied, strict=True)
        return self._rows([_Asked(lookup, self._ends(lookup.program, offsets), None) for lookup, offsets in pairs])

    def spine(
        self,
        programs: Iterable[Program],
        knowledge: Knowledge = "latest",
        ends: dict[str, Offsets] | None = None,
    ) -> SpineReader:
        """Reads many rows of these pipelines at once, of the records appended before this call.

        ``ends`` is as in :meth:`rows`.

        Raises:
            StoreUnavailable: the log does not answer.
        """
        ends = {} if ends is None else ends
        self._look(ends, programs)
        return SpineReader(self._history, ends, knowledge)

    def spine_below(self, lookup: Lookup, applied: Sequence[int]) -> SpineReader:
        """Reads of the records that a row reflects; ``applied`` is its, as in :meth:`rows_below`.

        Raises:
            StoreUnavailable: the log does not answer.
            CorruptState: there are not as many offsets as the pipeline has input partitions.
        """
        return SpineReader(self._history, self._ends(lookup.program, applied))

    def ends_of(self, datasets: Iterable[DatasetDef]) -> dict[str, Offsets]:
        """Where the logs of some datasets end now, per ``Name@version``.

        Raises:
            StoreUnavailable: the log does not answer.
        """
        found: dict[str, Offsets] = {}
        for name in sorted({ref(dataset) for dataset in datasets}):
            heads = self._log.heads(name, self._partitions_of(name))
            found[name] = tuple(head.next_offset for head in heads)
        return found

    def _look(self, ends: dict[str, Offsets], programs: Iterable[Program]) -> None:
        """Put the present end of every dataset's log where none is."""
        sources = [dataset for program in programs for dataset in program.sources]
        ends |= self.ends_of(dataset for dataset in sources if ref(dataset) not in ends)

    def _ends(self, program: Program, offsets: Sequence[int]) -> dict[str, Offsets]:
        ends: dict[str, Offsets] = {}
        start = 0
        for dataset in program.sources:
            stop = start + self._partitions_of(ref(dataset))
            ends[ref(dataset)] = tuple(offsets[start:stop])
            start = stop
        if start != len(offsets):
            raise CorruptState(f"{program.ref} has {start} input partitions, but {len(offsets)} offsets are given")
        return ends

    def _partitions_of(self, name: str) -> int:
        # Fixed once and for ever, when the log is created.
        if not self._partitions.get(name):
            self._partitions[name] = self._log.partitions(name)
        return self._partitions[name]

    def _rows(self, asked: Sequence[_Asked]) -> list[Row]:
        records = _Records(self._history, asked)
        by_program: dict[str, list[int]] = {}
        for place, each in enumerate(asked):
            by_program.setdefault(each.lookup.program.ref, []).append(place)
        found: dict[int, Row] = {}
        for places in by_program.values():
            these = [asked[place] for place in places]
            program = these[0].lookup.program
            rows = _plain_rows(program, these, records) if program.plain else _graph_rows(program, these, records)
            found |= zip(places, rows, strict=True)
        return [found[place] for place in range(len(asked))]


class _Records:
    """What one call reads: each dataset once, as far as any row that is asked for needs it."""

    def __init__(self, history: History, asked: Sequence[_Asked]) -> None:
        self._history = history
        self._asked = asked
        self._read: dict[tuple[str, bool, bool], pa.Table] = {}

    def whole(self, dataset: DatasetDef) -> pa.Table:
        """Records of every key and time."""
        these = [each for each in self._asked if dataset in each.lookup.program.sources]
        return self._once(dataset, these, since=None, columns=None)

    def left(self, program: Program, *, recent: bool) -> pa.Table:
        """Left records of a plain pipeline: those of the keys alone where keys stay what they are in the log.

        ``recent`` leaves out what no window reaches.
        """
        dataset, keyed = program.left, program.keyed_like_its_dataset()
        these = [each for each in self._asked if _reads_alike(each.lookup.program, dataset, keyed=keyed)]
        horizons = [each.lookup.program.horizon for each in these]
        longest = max((horizon for horizon in horizons if horizon is not None), default=0)
        bounded = recent and None not in horizons
        since = min(each.lookup.at for each in these) - longest if bounded else None
        columns = {name for each in these for name in each.lookup.program.left_columns()} if keyed else None
        return self._once(dataset, these, since=since, columns=columns)

    def _once(
        self, dataset: DatasetDef, these: Sequence[_Asked], *, since: Instant | None, columns: set[str] | None
    ) -> pa.Table:
        """Records of the keys that are asked for, these columns of them; ``None``: of all keys, and all columns."""
        place = (ref(dataset), columns is not None, since is None)
        if place not in self._read:
            keys = None if columns is None else sorted({each.lookup.key for each in these})
            cut = _furthest(dataset, these)
            self._read[place] = self._history.read(
                dataset,
                len(cut),
                keys=keys,
                groups=None if keys is None else sorted({key_group(key) for key in keys}),
                since=since,
                until=max(each.lookup.at for each in these),
                cut=cut,
                columns=columns,
            )
        return self._read[place]


def _reads_alike(program: Program, dataset: DatasetDef, *, keyed: bool) -> bool:
    return program.plain and program.left == dataset and program.keyed_like_its_dataset() == keyed


def _graph_rows(program: Program, asked: Sequence[_Asked], records: _Records) -> list[Row]:
    """Rows of a pipeline that is not plain: any record may bear on any key, so all are read."""
    found: dict[int, Row] = {}
    for places in _alike(asked, program.sources):
        these = [asked[place] for place in places]
        below = {d.name: _below(records.whole(d), d, these[0]) for d in program.sources}
        states = states_of(program, below, {each.lookup.key for each in these})
        for place in places:
            state = states.get(asked[place].lookup.key)
            found[place] = None if state is None else program.finish_state(state, asked[place].lookup.at)
    return [found[place] for place in range(len(asked))]


def _plain_rows(program: Program, asked: Sequence[_Asked], records: _Records) -> list[Row]:
    rows = _folded(program, asked, records, recent=True)
    # Nothing in the longest window: a key that was ever seen is known, and its windows are empty (decision 9).
    unseen = [place for place, row in enumerate(rows) if row is None] if program.horizon is not None else []
    if unseen:
        older = _folded(program, [asked[place] for place in unseen], records, recent=False)
        for place, row in zip(unseen, older, strict=True):
            rows[place] = row
    return rows


def _folded(program: Program, asked: Sequence[_Asked], records: _Records, *, recent: bool) -> list[Row]:
    left = records.left(program, recent=recent).select(program.left_columns())
    found: dict[int, Row] = {}
    for places in _alike(asked, program.rights):
        these = [asked[place] for place in places]
        rights = _joined(program, {d.name: records.whole(d) for d in program.rights}, these[0])
        # A row of a plain pipeline is made of one left record, so they are cut after they are made.
        shaped = program.prepare(_known(left, these[0]), rights)
        found |= zip(places, _finished(program, shaped, these), strict=True)
    return [found[place] for place in range(len(asked))]


def _newest(asked: _Asked, records: _Records) -> Instant | None:
    """The newest of the rows that a key's row is made of."""
    program, key, at = asked.lookup
    if not program.plain:
        below = {dataset.name: _below(records.whole(dataset), dataset, asked) for dataset in program.sources}
        state = states_of(program, below, {key}).get(key)
        return None if state is None else state.newest(at)
    left = records.left(program, recent=False).select(program.left_columns())
    rights = _joined(program, {d.name: records.whole(d) for d in program.rights}, asked)
    rows = program.prepare(left, rights).filter((pl.col(KEY) == key) & (pl.col(TIME) <= at))
    newest: Instant | None = rows[TIME].max()  # type: ignore[assignment]  # a column of integers
    return newest


def _furthest(dataset: DatasetDef, asked: Sequence[_Asked]) -> dict[int, int]:
    """Per log partition the furthest offset at which a row of these stops."""
    return dict(enumerate(map(max, zip(*(each.ends[ref(dataset)] for each in asked), strict=True))))


def _alike(asked: Sequence[_Asked], datasets: Sequence[DatasetDef]) -> Iterator[list[int]]:
    """Places of the rows for which the same records of these datasets count."""
    by_cut: dict[tuple[object, ...], list[int]] = {}
    for place, each in enumerate(asked):
        by_cut.setdefault((each.cut(datasets), each.known_by), []).append(place)
    yield from by_cut.values()


def _known(records: pa.Table, asked: _Asked) -> pa.Table:
    return records if asked.known_by is None else records.filter(pc.field(ACCEPTED_AT) <= asked.known_by)


def _below(records: pa.Table, dataset: DatasetDef, asked: _Asked) -> pa.Table:
    stops = np.array(asked.ends[ref(dataset)], dtype=np.int64)
    below = records[OFFSET].to_numpy() < stops[records[PARTITION].to_numpy()] if len(records) else np.array([], bool)
    return _known(records if below.all() else records.filter(pa.array(below)), asked)


def _joined(program: Program, records: Mapping[str, pa.Table], asked: _Asked) -> dict[str, RightTable]:
    tables = program.right_tables()
    for dataset in program.rights:
        tables[dataset.name] = tables[dataset.name].with_records(_below(records[dataset.name], dataset, asked))
    return tables


def _finished(program: Program, shaped: pl.DataFrame, asked: Sequence[_Asked]) -> Iterator[Row]:
    """The row of each, of those below its offsets and dated at or before its instant."""
    by_key = _by_key(shaped, {each.lookup.key for each in asked})
    for each in asked:
        rows = by_key.get(each.lookup.key)
        yield None if rows is None else _row(program, rows, each)


def _by_key(shaped: pl.DataFrame, keys: set[str]) -> dict[str, pl.DataFrame]:
    ours = shaped.filter(pl.col(KEY).is_in(list(keys)))
    return {frame[KEY][0]: frame for frame in ours.partition_by(KEY, maintain_order=True)}


def _row(program: Program, rows: pl.DataFrame, asked: _Asked) -> Row:
    stops = np.array(asked.ends[ref(program.left)], dtype=np.int64)
    place = rows[PLACE].to_numpy()
    below = pl.Series((place & ((1 << PLACE_BITS) - 1)) < stops[place >> PLACE_BITS])
    state = program.new_state(1)
    for _, of_key in program.rows_by_key(rows.filter(below & (rows[TIME] <= asked.lookup.at))):
        state.add(of_key)
    return program.finish_state(state, asked.lookup.at)
