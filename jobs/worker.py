"""One worker of a pipeline: reads its log partitions, folds, commits. No Ray here.

A worker owns a range of key groups. Each group keeps a position per input partition, committed together
with the state; after a crash groups may stand at different positions, so the worker reads from the
lowest and each group skips what it has. The right side of a join lives in memory, rebuilt from history;
right records are always drained before left ones, so a restarted worker knows at least what any of its
groups knew. A right record that arrives after left rows it belongs to replaces those rows: putting a row
in place of the one with the same identity is idempotent, so redoing it after a crash is harmless.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from featurelib.clock import Instant
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.flow import Graph
from featurelib.engine.fold import KEY
from featurelib.engine.frames import where, without
from featurelib.engine.keys import key_group, key_groups
from featurelib.engine.nodes import Delta
from featurelib.engine.operators import IDENTITY, PLACE, PLACE_BITS, RightTable, UserFailure, run_steps
from featurelib.engine.panes import BESIDE_THE_TREE, HEADER, KeyState, decode_node, pane_field, pane_of
from featurelib.engine.partials import Row
from featurelib.engine.program import Program
from featurelib.engine.records import LATE, OFFSET, PARTITION, TIME, record_schema
from featurelib.stores.log import Log, texts_of
from featurelib.stores.online import GroupCommit, OnlineStore, StateName
from featurelib.stores.refused_rows import RefusedRow
from jobs.inputs import ArchivedRecords, InputReader, end_of
from jobs.tombstones import Erasure, up_to_tombstones

_GROUP = "__group"
# Keys whose state is kept in memory between steps; beyond it the oldest are loaded again when touched.
_CACHED_KEYS = 50_000
# Panes of one key kept in memory (64 rows each at most); a busier key is reloaded along the paths it touches.
_CACHED_PANES = 512
# Left rows kept in memory for right records that arrive late; older ones are read back from history.
_RECENT_ROWS = 500_000
# Later than any event time.
_NEVER: Instant = (1 << 63) - 1


class LeftHistory(ArchivedRecords, Protocol):
    """Accepted records of a dataset, read back (stores/history.py)."""

    def read(
        self,
        dataset: DatasetDef,
        partitions: int,
        *,
        keys: Sequence[str] | None = None,
        groups: Sequence[int] | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
        cut: Mapping[int, int] | None = None,
    ) -> pa.Table:
        """Records in total order; ``cut``: per partition, only offsets below."""
        ...


class Step(NamedTuple):
    """What one step did: records read, rows folded, rows replaced by a late right side."""

    read: int
    folded: int
    replaced: int


class PartitionWorker:
    """Applies a pipeline to the key groups of one partition. Create, :meth:`start`, then :meth:`step` for ever."""

    def __init__(
        self,
        program: Program,
        state: StateName,
        groups: range,
        *,
        log: Log,
        store: OnlineStore,
        history: LeftHistory,
        batch_rows: int,
    ) -> None:
        self._program = program
        self._state = state
        self._groups = groups
        self._log = log
        self._store = store
        self._history = history
        self.is_behind = False
        """Whether the last :meth:`step` left records, or tombstones, that were there already."""
        self._reader = InputReader(program, groups, log=log, archive=history, batch_rows=batch_rows)
        self._inputs, self._lefts, self._rights = self._reader.partitions, self._reader.lefts, self._reader.rights
        self._epochs: dict[int, int] = {}
        self._positions: dict[int, list[int]] = {}
        self._ahead: dict[int, list[int]] = {}
        self._newest: dict[int, Instant | None] = {}
        self._rows: dict[int, int] = {}
        self._keys: dict[str, KeyState] = {}
        self._right_tables: dict[str, RightTable] = {}
        self._graph: Graph | None = None
        self.failures: list[UserFailure] = []
        """Rows that the pipeline's own functions could not take; whoever tells people of them empties it."""
        self._recent: list[pa.Table] = []
        self._uncovered_newest: Instant | None = None

    def start(self) -> None:
        """Fence whoever worked on these groups before and take up their positions.

        Raises:
            StoreUnavailable: start again.
        """
        nothing = [0] * len(self._inputs)
        for claim in self._store.claim(self._state, self._groups):
            self._epochs[claim.group] = claim.epoch
            self._positions[claim.group] = claim.positions or list(nothing)
            self._ahead[claim.group] = claim.ahead or self._positions[claim.group]
            self._newest[claim.group] = claim.newest_us
            self._rows[claim.group] = claim.rows
        self._keys.clear()
        self._recent.clear()
        known = [newest for newest in self._newest.values() if newest is not None]
        self._uncovered_newest = max(known, default=None)
        if self._program.plain:
            self._right_tables = self._load_rights([self._lowest(index) for index in self._rights])
            self._take_rights_back()
        else:
            self._graph = self._started_graph()
        # Positions are written at once: a group that never gets a record is nevertheless begun.
        self._commit({}, {})

    @property
    def newest_us(self) -> Instant | None:
        """Newest event time folded."""
        return max((n for n in self._newest.values() if n is not None), default=None)

    @property
    def rows(self) -> int:
        """Rows folded since the state began."""
        return sum(self._rows.values())

    def lag(self) -> int:
        """Records of its inputs not applied yet."""
        return self._reader.lag(self._positions)

    def applied(self) -> dict[tuple[str, int], int]:
        """Per ``(dataset ref, log partition)`` it reads, the offset below which all is applied. Asks no store."""
        return self._reader.applied(self._positions)

    def wait(self, timeout_ms: int) -> bool:
        """Block until an input has something new; False on time-out."""
        return self._reader.wait(self._positions, timeout_ms)

    def step(self) -> Step:
        """Apply one batch: right records while there are any, then left ones.

        Raises:
            Fenced: another worker owns the groups; this one must end.
            StoreUnavailable: call :meth:`start` before the next step.
        """
        if self._graph is not None:
            batch, erasure = self._read([*self._lefts, *self._rights])
            if erasure is not None:
                return self._erase_from_graph(erasure)
            return self._apply_graph(self._graph, batch) if batch else Step(0, 0, 0)
        batch, erasure = self._read(self._rights)
        if erasure is not None:
            return self._erase_right(erasure)
        if batch:
            self.is_behind = True  # left records were not looked for
            return self._apply_right(batch)
        batch, erasure = self._read(self._lefts)
        if erasure is not None:
            return self._erase_left(erasure)
        return self._apply_left(batch) if batch else Step(0, 0, 0)

    @property
    def groups(self) -> range:
        """Its key groups."""
        return self._groups

    @property
    def is_settled(self) -> bool:
        """Whether no key stands beyond its group's position, as some do until a commit that was cut short is redone."""
        return self._reader.reached(self._ahead, self._positions)

    def applied_rows(self, groups: range, since: Instant, until: Instant) -> dict[str, list[Row]]:
        """Rows of some of its groups within both instants that are in the states, by key, read back from history.

        Only for a pipeline keyed like its dataset, without a right side.
        """
        cut = {self._inputs[i].partition: max(p[i] for p in self._positions.values()) for i in self._lefts}
        records = self._history.read(
            self._program.left,
            self._log.partitions(ref(self._program.left)),
            groups=groups,
            since=since,
            until=until,
            cut=cut,
        )
        shaped = self._own(self._program.prepare(records.select(self._program.left_columns()), {}))
        return dict(self._program.rows_by_key(self._applied(shaped).drop(_GROUP)))

    def loaded(self, rows: Mapping[str, Sequence[Row]]) -> dict[str, KeyState]:
        """The states of some keys, with the panes on the paths of these rows."""
        return self._states(rows, flushing=True)

    def cached(self, key: str) -> KeyState | None:
        """The state of a key, if it is in memory."""
        return self._keys.get(key)

    def write(self, changes: Mapping[str, Mapping[bytes, bytes | None]]) -> None:
        """Commit changes of state that no record made: positions stay.

        Raises:
            Fenced: another worker owns the groups.
            StoreUnavailable: call :meth:`start` before the next step.
        """
        by_group: dict[int, dict[str, Mapping[bytes, bytes | None]]] = {}
        for key, fields in changes.items():
            by_group.setdefault(key_group(key), {})[key] = fields
        self._store.commit(
            self._state,
            [
                GroupCommit(g, self._epochs[g], self._positions[g], self._newest[g], self._rows[g], of_group)
                for g, of_group in by_group.items()
            ],
        )

    def _lowest(self, index: int) -> int:
        return self._reader.lowest(index, self._positions)

    def _read(self, indexes: Sequence[int]) -> tuple[dict[int, pa.Table], Erasure | None]:
        """The next records, or the next tombstones: what comes before one is committed before it is applied."""
        found = self._reader.read(indexes, self._positions)
        batch, erasure = up_to_tombstones(found, self._inputs)
        cut = sum(map(len, batch.values())) < sum(map(len, found.values()))
        self.is_behind = cut or self._reader.behind
        return batch, erasure

    def _apply_left(self, batch: Mapping[int, pa.Table]) -> Step:
        columns = self._program.left_columns()
        records = pa.concat_tables([table.select(columns) for table in batch.values()])
        if self._right_tables:
            self._remember(records)
        failures: list[UserFailure] = []
        shaped = self._unapplied(self._own(self._program.prepare(records, self._right_tables, failures)))
        self._note(failures, batch)
        ends = {index: end_of(table) for index, table in batch.items()}
        touched = dict(self._program.rows_by_key(without(shaped, (_GROUP,))))
        states = self._states(touched, flushing=False)
        lowest = {index: self._lowest(index) for index in ends}
        held = {key: rows for key in touched if (rows := _held(states[key], touched[key], lowest))}
        if held and self._right_tables:
            # Joined with what was known then; right records since were not applied to them.
            self._states(held, flushing=True)
            for key, rows in held.items():
                states[key].replace(rows, rows)
        for key, rows in touched.items():
            fresh = rows if key not in held else [row for row in rows if row not in held[key]]
            self._add(states[key], fresh, ends)
        self._advance(shaped, newest_timely(records))
        self._commit(states, ends)
        return Step(len(records), len(shaped), 0)

    def _apply_right(self, batch: Mapping[int, pa.Table]) -> Step:
        before = self._right_tables
        after = dict(before)
        for index, table in batch.items():
            name = self._inputs[index].dataset.name
            after[name] = after[name].with_records(table)
        since = min(pc.min(table[TIME]).as_py() for table in batch.values())
        ends = {index: end_of(table) for index, table in batch.items()}
        replaced = self._change_rights(since, after, ends)
        return Step(sum(len(table) for table in batch.values()), 0, replaced)

    def _change_rights(self, since: Instant, after: Mapping[str, RightTable], ends: Mapping[int, int]) -> int:
        """Join with other right sides from now on; how many left rows dated at or after ``since`` were replaced."""
        removed, added = self._changed_rows(since, self._right_tables, after)
        replaced = dict(self._program.rows_by_key(added))
        gone = dict(self._program.rows_by_key(removed))
        touched = {key: [*gone.get(key, []), *replaced.get(key, [])] for key in {*gone, *replaced}}
        states = self._states(touched, flushing=True)
        for key in touched:
            self._replace(key, states[key], gone.get(key, []), replaced.get(key, []))
        self._right_tables = dict(after)
        self._commit(states, ends)
        return len(added)

    def _erase_left(self, erasure: Erasure) -> Step:
        """Take erased left records out again, from the keys whose rows they became."""
        dataset, partition = self._inputs[erasure.place]
        # A group beyond the tombstones has applied them, and may hold records of the key that came after.
        due = {g for g in self._groups if self._positions[g][erasure.place] < erasure.end}
        if self._program.keyed_like_its_dataset():
            self._recent = [_without_keys(table, dataset, erasure) for table in self._recent]
            states = self._states({key: [] for key in erasure.keys if key_group(key) in due}, flushing=False)
            self._commit_rest({}, states, erasure)
            return Step(len(erasure.keys), 0, 0)
        # Read as it was before: the rows to take out are made of what is erased.
        records = self._history.read(
            dataset, self._log.partitions(ref(dataset)), keys=erasure.keys, cut={partition: erasure.first}
        )
        self._recent = [_without_offsets(table, partition, records[OFFSET]) for table in self._recent]
        shaped = self._program.prepare(records.select(self._program.left_columns()), self._right_tables)
        gone = dict(self._program.rows_by_key(self._own(shaped).drop(_GROUP)))
        states = self._states(gone, flushing=True)
        for key, state in states.items():
            self._replace(key, state, gone[key], [])
            if key_group(key) in due:
                self._rows[key_group(key)] -= len(gone[key])
        self._commit_rest(states, {}, erasure)
        return Step(len(erasure.keys), 0, 0)

    def _erase_right(self, erasure: Erasure) -> Step:
        """Go on without erased right records; left rows that were joined with one are joined with what is left."""
        dataset, partition = self._inputs[erasure.place]
        kept, since = self._right_tables[dataset.name].without(erasure.keys, partition, erasure.first)
        ends = {erasure.place: erasure.end}
        if since is None:
            self._commit({}, ends)
            return Step(len(erasure.keys), 0, 0)
        replaced = self._change_rights(since, {**self._right_tables, dataset.name: kept}, ends)
        return Step(len(erasure.keys), 0, replaced)

    def _erase_from_graph(self, erasure: Erasure) -> Step:
        """Build the graph anew without the erased records; every key's state gets the difference.

        What one record did to a graph is not kept apart, so this reads the whole history twice.
        """
        before = [self._lowest(index) for index in range(len(self._inputs))]
        after = list(before)
        before[erasure.place], after[erasure.place] = erasure.first, erasure.end
        held = self._rows_at(self._program.new_graph(), before)
        self._graph = self._program.new_graph()
        difference = _difference(held, self._rows_at(self._graph, after), list(self._groups))
        states = self._take_back([difference])
        for rows, sign in ((difference.removed, -1), (difference.added, 1)):
            for group in key_groups(rows[KEY]).tolist():
                self._rows[group] += sign
        self._commit_rest(states, {}, erasure)
        return Step(len(erasure.keys), len(difference.added), len(difference.removed))

    def _commit_rest(self, changed: Mapping[str, KeyState], removed: Mapping[str, KeyState], erasure: Erasure) -> None:
        """Commit what an erasure left; of a key without rows nothing stays, since its text may name who is erased."""
        gone = {**removed, **{key: state for key, state in changed.items() if not state.header.rows}}
        for key in gone:
            if key in removed:
                self._rows[key_group(key)] -= removed[key].header.rows
            self._keys.pop(key, None)
        kept = {key: state for key, state in changed.items() if key not in gone}
        self._commit(kept, {erasure.place: erasure.end}, removed=gone)

    def _apply_graph(self, graph: Graph, batch: Mapping[int, pa.Table]) -> Step:
        """Apply a batch whose rows may take others back: every key's state gets the difference."""
        records = self._by_dataset(batch)
        removed, added = self._program.shape_delta(graph.top.apply(records))
        self._note(graph.failures, batch)
        removed, added = self._own(removed), self._own(added)
        gone = dict(self._program.rows_by_key(removed.drop(_GROUP)))
        come = dict(self._program.rows_by_key(added.drop(_GROUP)))
        touched = {key: [*gone.get(key, []), *come.get(key, [])] for key in {*gone, *come}}
        states = self._states(touched, flushing=True)
        ends = {index: end_of(table) for index, table in batch.items()}
        for key, state in states.items():
            self._replace(key, state, gone.get(key, []), come.get(key, []))
            self._add(state, [], ends)
        newest = [newest_timely(records[d.name]) for d in self._program.clocks if d.name in records]
        self._advance(added, max((n for n in newest if n is not None), default=None))
        for group, count in removed.group_by(_GROUP).agg(pl.len()).iter_rows():
            self._rows[group] -= count
        self._commit(states, ends)
        return Step(sum(len(table) for table in batch.values()), len(added), len(removed))

    def _note(self, failures: list[UserFailure], batch: Mapping[int, pa.Table]) -> None:
        # Every worker of a pipeline with functions reads every record: one of them tells. Who waits until these rows
        # are applied finds them, since the positions are committed after this.
        if failures and tells_failures(self._groups):
            self.failures.extend(failures)
            self._log.refused.note(self._program.ref, list(self._refused(failures, batch)))
        failures.clear()

    def _refused(self, failures: Sequence[UserFailure], batch: Mapping[int, pa.Table]) -> Iterator[RefusedRow]:
        """The records that failures are of: each dataset has a place of that name, and a union reads several."""
        read = [(self._inputs[i], range(table[OFFSET][0].as_py(), end_of(table))) for i, table in batch.items()]
        for each in failures:
            partition, offset = divmod(each.place, 1 << PLACE_BITS)
            for source, offsets in read:
                if source.partition == partition and offset in offsets:
                    yield RefusedRow(ref(source.dataset), partition, offset, each.time, each.message)

    def _replace(self, key: str, state: KeyState, gone: list[Row], come: list[Row]) -> None:
        if not state.whole and state.loses_its_oldest(gone, come):
            for name, data in self._store.fields(self._state, key).items():
                if name not in BESIDE_THE_TREE:
                    state.nodes.setdefault(pane_of(name), decode_node(data))
            state.whole = True
        state.replace(gone, come)

    def _by_dataset(self, batch: Mapping[int, pa.Table]) -> dict[str, pa.Table]:
        tables: dict[str, list[pa.Table]] = {}
        for index, table in batch.items():
            tables.setdefault(self._inputs[index].dataset.name, []).append(table)
        return {name: pa.concat_tables(found) for name, found in tables.items()}

    def _started_graph(self) -> Graph:
        """The graph at the lowest position of any group, and every group taken back to it.

        Groups stand apart after a crash, or when one worker takes over from several. What one of them has seen and
        the others have not may be gone from the graph before it gets there, so that nothing would ever take it out.
        """
        graph = self._program.new_graph()
        lowest = [self._lowest(index) for index in range(len(self._inputs))]
        rows = self._rows_at(graph, lowest)
        apart: dict[tuple[int, ...], list[int]] = {}
        for group in self._groups:
            for stand in {tuple(self._positions[group]), tuple(self._ahead[group])} - {tuple(lowest)}:
                apart.setdefault(stand, []).append(group)
        if apart:
            further = [(self._rows_at(self._program.new_graph(), stand), groups) for stand, groups in apart.items()]
            self._take_back([_difference(held, rows, groups) for held, groups in further])
            self._move_back(rows, lowest, {group for groups in apart.values() for group in groups})
        return graph

    def _rows_at(self, graph: Graph, stand: Sequence[int]) -> pl.DataFrame:
        """What a new graph gives of the records below a position."""
        records = {}
        for dataset in self._program.sources:
            indexes = [i for i, source in enumerate(self._inputs) if source.dataset == dataset]
            cut = {self._inputs[i].partition: stand[i] for i in indexes}
            if any(cut.values()):
                records[dataset.name] = self._history.read(dataset, len(indexes), cut=cut)
        added = graph.top.apply(records).added if records else graph.top.empty
        # What failed then was said then.
        graph.failures.clear()
        return self._own(self._program.shape(added))

    def _take_back(self, differences: Sequence[Delta]) -> dict[str, KeyState]:
        gone = dict(self._program.rows_by_key(pl.concat([delta.removed for delta in differences]).unique()))
        come = dict(self._program.rows_by_key(pl.concat([delta.added for delta in differences]).unique()))
        touched = {key: [*gone.get(key, []), *come.get(key, [])] for key in {*gone, *come}}
        states = self._states(touched, flushing=True)
        for key, state in states.items():
            self._replace(key, state, gone.get(key, []), come.get(key, []))
        return states

    def _move_back(self, rows: pl.DataFrame, lowest: Sequence[int], groups: Collection[int]) -> None:
        counts = dict(rows.group_by(_GROUP).agg(pl.len()).iter_rows())
        for group in groups:
            self._positions[group] = list(lowest)
            self._rows[group] = counts.get(group, 0)
        self._commit(self._keys, {}, back=True)

    def _changed_rows(
        self, since: Instant, before: Mapping[str, RightTable], after: Mapping[str, RightTable]
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows dated at or after ``since`` to take out and to put in, because their right side changed."""
        left = self._left_rows(since)
        steps = self._program.pipeline.steps[:-1]
        old = self._applied(self._own(self._program.shape(run_steps(left, steps, before)))).drop(_GROUP)
        new = self._applied(self._own(self._program.shape(run_steps(left, steps, after)))).drop(_GROUP)
        everything = old.columns
        return (
            old.join(new, on=everything, how="anti", nulls_equal=True),
            new.join(old, on=everything, how="anti", nulls_equal=True),
        )

    def _left_rows(self, since: Instant) -> pl.DataFrame:
        """Left records dated at or after ``since`` that are, or may be, applied already."""
        columns = self._program.left_columns()
        tables = [table.filter(pc.greater_equal(table[TIME], since)) for table in self._recent]
        if self._uncovered_newest is not None and since <= self._uncovered_newest:
            tables = [self._past_left(since).select(columns)]
        if not tables:
            return self._program.rows(record_schema(self._program.left).empty_table().select(columns))
        return self._program.rows(pa.concat_tables(tables, promote_options="default"))

    def _past_left(self, since: Instant) -> pa.Table:
        held = {self._inputs[i].partition: max(p[i] for p in self._positions.values()) for i in self._lefts}
        partitions = self._log.partitions(ref(self._program.left))
        cut = {partition: held.get(partition, 0) for partition in range(partitions)}
        return self._history.read(self._program.left, partitions, since=since, cut=cut)

    def _remember(self, records: pa.Table) -> None:
        self._recent.append(records)
        while sum(len(table) for table in self._recent) > _RECENT_ROWS:
            oldest = self._recent.pop(0)
            newest = pc.max(oldest[TIME]).as_py()
            self._uncovered_newest = max(newest, self._uncovered_newest or newest)

    def _take_rights_back(self) -> None:
        """Take every group back to the lowest position of right sides.

        A group further on may hold a row joined with a record that the others have not seen and that is outdated by
        one nobody has seen: the rows before and after that one are equal, and what is in between would stay.
        """
        lowest = tuple(self._lowest(index) for index in self._rights)
        apart: dict[tuple[int, ...], list[int]] = {}
        for group in self._groups:
            for stand in {
                tuple(of[index] for index in self._rights) for of in (self._positions[group], self._ahead[group])
            }:
                if stand != lowest:
                    apart.setdefault(stand, []).append(group)
        differences = [self._difference_of_rights(stand, groups) for stand, groups in apart.items()]
        if not differences:
            return
        self._take_back(differences)
        for group in {group for groups in apart.values() for group in groups}:
            for index, position in zip(self._rights, lowest, strict=True):
                self._positions[group][index] = position
        self._commit(self._keys, {}, back=True)

    def _difference_of_rights(self, stand: Sequence[int], groups: Sequence[int]) -> Delta:
        """What makes of left rows joined at a later stand of the right sides those joined at the lowest."""
        further = self._load_rights(stand)
        since = [table.differs_since(further[name]) for name, table in self._right_tables.items()]
        changed = [instant for instant in since if instant is not None]
        left = self._left_rows(min(changed, default=_NEVER))
        steps = self._program.pipeline.steps[:-1]
        held = self._applied(self._own(self._program.shape(run_steps(left, steps, further))))
        wanted = self._applied(self._own(self._program.shape(run_steps(left, steps, self._right_tables))))
        return _difference(held, wanted, groups)

    def _load_rights(self, stand: Sequence[int]) -> dict[str, RightTable]:
        """The right sides at a position in each of their partitions."""
        tables = self._program.right_tables()
        for dataset in self._program.rights:
            indexes = [i for i in self._rights if self._inputs[i].dataset == dataset]
            cut = {self._inputs[i].partition: stand[self._rights.index(i)] for i in indexes}
            if any(cut.values()):
                records = self._history.read(dataset, len(indexes), cut=cut)
                tables[dataset.name] = tables[dataset.name].with_records(records)
        return tables

    def _own(self, shaped: pl.DataFrame) -> pl.DataFrame:
        groups = key_groups(shaped[KEY])
        mine = (groups >= self._groups[0]) & (groups <= self._groups[-1])
        return where(shaped.hstack([pl.Series(_GROUP, groups)]), pl.Series(mine))

    def _unapplied(self, shaped: pl.DataFrame) -> pl.DataFrame:
        return shaped if self._even() else shaped.filter(~self._is_applied(shaped))

    def _applied(self, shaped: pl.DataFrame) -> pl.DataFrame:
        return shaped.filter(self._is_applied(shaped))

    def _even(self) -> bool:
        return self._reader.even(self._positions)

    def _is_applied(self, shaped: pl.DataFrame) -> pl.Series:
        # Left partitions come first in the list of inputs, so a log partition is its own index there.
        table = np.array([self._positions[group] for group in self._groups], dtype=np.int64)
        place = shaped[PLACE].to_numpy()
        group = shaped[_GROUP].to_numpy() - self._groups[0]
        offsets = place & ((1 << PLACE_BITS) - 1)
        return pl.Series(offsets < table[group, place >> PLACE_BITS])

    def _states(self, touched: Mapping[str, Sequence[Row]], *, flushing: bool) -> dict[str, KeyState]:
        unknown = [key for key in touched if key not in self._keys]
        if len(self._keys) + len(unknown) > _CACHED_KEYS:
            self._keys = {key: self._keys[key] for key in touched if key in self._keys}
        self._keys.update(self._load(unknown))
        states = {key: self._keys[key] for key in touched}
        while wanted := {
            key: panes for key, rows in touched.items() if (panes := states[key].missing(rows, flushing=flushing))
        }:
            fields = {key: [pane_field(pane) for pane in panes] for key, panes in wanted.items()}
            for key, values in self._store.load(self._state, fields).items():
                for pane, data in zip(wanted[key], values, strict=True):
                    states[key].nodes[pane] = decode_node(data) if data is not None else None
        return states

    def _load(self, keys: Sequence[str]) -> Iterator[tuple[str, KeyState]]:
        loaded = self._store.load(self._state, dict.fromkeys(keys, BESIDE_THE_TREE)) if keys else {}
        for key, (header, buffer, tail) in loaded.items():
            if header is None:
                yield key, self._program.new_state(len(self._inputs))
            else:
                yield key, KeyState.stored(self._program.algebra, self._program.root, header, buffer, tail)

    def _add(self, state: KeyState, rows: list[Row], ends: Mapping[int, int]) -> None:
        for index, end in ends.items():
            state.header.applied[index] = max(state.header.applied[index], end)
        if rows:
            state.add(rows)

    def _advance(self, shaped: pl.DataFrame, newest: Instant | None) -> None:
        # A record that a filter drops was applied all the same: it moves the clock, and a right side that comes
        # later may let it through.
        if newest is not None:
            for group, known in self._newest.items():
                self._newest[group] = newest if known is None else max(known, newest)
        for group, count in Counter(shaped[_GROUP].to_list()).items():
            self._rows[group] += count

    def _tell_applied(self, states: Mapping[str, KeyState]) -> None:
        """Say of keys about to be written up to where they reflect what is not their own records.

        Right sides, and all inputs of a graph, bear on a key without touching it: it reflects them as far as its group
        has come. That may be less far than before, where a group was taken back.
        """
        indexes = self._rights if self._graph is None else range(len(self._inputs))
        if not indexes:
            return
        for key, state in states.items():
            if HEADER in state.dirty:
                positions = self._positions[key_group(key)]
                for index in indexes:
                    state.header.applied[index] = positions[index]

    def _commit(
        self,
        states: Mapping[str, KeyState],
        ends: Mapping[int, int],
        *,
        back: bool = False,
        removed: Collection[str] = (),
    ) -> None:
        for positions in self._positions.values():
            for index, end in ends.items():
                positions[index] = max(positions[index], end)
        self._tell_applied(states)
        by_group: dict[int, dict[str, dict[bytes, bytes]]] = {group: {} for group in self._groups}
        for key, state in states.items():
            changes = state.changes()
            if changes:
                by_group[key_group(key)][key] = changes
            if len(state.nodes) > _CACHED_PANES:
                state.forget_panes()
        removed_of: dict[int, list[str]] = {}
        for key in removed:
            removed_of.setdefault(key_group(key), []).append(key)
        self._store.commit(
            self._state,
            [
                GroupCommit(
                    group=g,
                    epoch=self._epochs[g],
                    positions=self._positions[g],
                    newest_us=self._newest[g],
                    rows=self._rows[g],
                    changes=changes,
                    back=back,
                    removed=removed_of.get(g, ()),
                )
                for g, changes in by_group.items()
            ],
        )


def _difference(held: pl.DataFrame, wanted: pl.DataFrame, groups: Sequence[int]) -> Delta:
    """What makes of the rows that some groups hold those that are wanted."""
    held, wanted = (rows.filter(pl.col(_GROUP).is_in(groups)).drop(_GROUP) for rows in (held, wanted))
    return Delta(
        held.join(wanted, on=[KEY, *IDENTITY], how="anti"),
        wanted.join(held, on=wanted.columns, how="anti", nulls_equal=True),
    )


def _without_keys(records: pa.Table, dataset: DatasetDef, erasure: Erasure) -> pa.Table:
    """Recent left records without the erased ones. A key's records are all in one log partition."""
    texts = pl.Series(texts_of(records[dataset.key.name]), dtype=pl.String)
    theirs = pa.array(texts.is_in(list(erasure.keys)).to_numpy())
    return records.filter(pc.invert(pc.and_(theirs, pc.less(records[OFFSET], erasure.first))))


def _without_offsets(records: pa.Table, partition: int, offsets: pa.ChunkedArray) -> pa.Table:
    """Recent left records without those at some offsets of a log partition: the key may not be among their columns."""
    theirs = pc.and_(pc.equal(records[PARTITION], partition), pc.is_in(records[OFFSET], offsets.combine_chunks()))
    return records.filter(pc.invert(theirs))


def _held(state: KeyState, rows: list[Row], lowest: Mapping[int, int]) -> list[Row]:
    """Rows the key has already: a commit in chunks was cut short after this key's chunk."""
    applied = state.header.applied
    if not any(applied[index] > offset for index, offset in lowest.items()):
        return []
    offset_mask = (1 << PLACE_BITS) - 1
    return [row for row in rows if (row[2] & offset_mask) < applied[row[2] >> PLACE_BITS]]


def tells_failures(groups: range) -> bool:
    """Whether the worker of these key groups is the one that tells which rows a function could not take."""
    return groups.start == 0


def newest_timely(records: pa.Table) -> Instant | None:
    """Newest event time among the records that were not late."""
    late, times = records[LATE], records[TIME]
    if pc.any(late).as_py():
        times = times.filter(pc.invert(late))
    return cast("Instant | None", pc.max(times).as_py())
