"""A compiled aggregate step: rows of a frame in, state per key, and the finish of a key's state at an instant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from typing import Any, NamedTuple
from zlib import crc32

import polars as pl
from pydantic import BaseModel

from featurelib.aggregates import result_type
from featurelib.clock import Duration, Instant
from featurelib.definitions import AggregateStep, NamedAggregate
from featurelib.engine.aggregators import aggregator_for
from featurelib.engine.batch import condition
from featurelib.engine.codec import joined_rows
from featurelib.engine.edges import Edges, Group, Span, WindowSet, is_steady, window_set
from featurelib.engine.frames import where
from featurelib.engine.kept_reads import KEPT_READS, KeptRead
from featurelib.engine.keys import key_texts
from featurelib.engine.operators import IDENTITY, UNTIL
from featurelib.engine.panes import (
    EMPTY_TREE,
    Algebra,
    Header,
    KeyState,
    Pane,
    Sealed,
    read_node,
    root_level,
)
from featurelib.engine.partials import Aggregator, Input, Row
from featurelib.engine.stretches import Buffered, Plan, Stored, Stretches
from featurelib.expr import columns_of
from featurelib.types import Value
from featurelib.windows import AnyWindow

KEY = "__key"
_MASK = "__mask"
_NO_MASK = pl.Series(_MASK, [0], dtype=pl.Int64)
_FIRST_VALUE = 5


class _Output(NamedTuple):
    name: str
    aggregator: Aggregator
    slot: int  # of the accumulator it finishes, which others may share
    window: int
    default: Any
    has_default: bool


class KeyRows(NamedTuple):
    """Rows of one key, in the order of their frame."""

    key: str
    rows: list[Row]


@dataclass(frozen=True)
class Fold:
    """An aggregate step, ready to run. Make one with :meth:`compile`."""

    keys: tuple[str, ...]
    algebra: Algebra
    root: int
    windows: tuple[AnyWindow, ...]
    output_types: Mapping[str, str]
    _outputs: tuple[_Output, ...]
    _value_columns: tuple[str, ...]
    _predicates: tuple[BaseModel, ...]

    @classmethod
    def compile(cls, step: AggregateStep, types: Mapping[str, str]) -> Fold:
        """Share accumulators between windows and lay rows out.

        Args:
            step: a validated step.
            types: type name of every column in scope.
        """
        layout = _Layout(step.aggregates, types)
        return cls(
            keys=step.keys,
            algebra=Algebra(layout.slots, turn=_turn_of(step)),
            root=root_level(_longest(layout.windows)),
            windows=tuple(layout.windows),
            output_types={n.output: result_type(n.aggregate, types.get(n.aggregate.of)) for n in step.aggregates},
            _outputs=tuple(layout.outputs),
            _value_columns=tuple(layout.values),
            _predicates=tuple(layout.predicates),
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Output columns, in declared order."""
        return tuple(output.name for output in self._outputs)

    @property
    def layout(self) -> tuple[_Output, ...]:
        """Per output column, its accumulator and window."""
        return self._outputs

    def only(self, names: Sequence[str]) -> Fold:
        """The same step with fewer outputs and only their accumulators; rows stay as they are."""
        kept = [output for output in self._outputs if output.name in names]
        slots, windows = sorted({o.slot for o in kept}), sorted({o.window for o in kept})
        moved = [o._replace(slot=slots.index(o.slot), window=windows.index(o.window)) for o in kept]
        return replace(
            self,
            algebra=Algebra([self.algebra.aggregators[slot] for slot in slots], turn=self.algebra.turn),
            windows=tuple(self.windows[window] for window in windows),
            _outputs=tuple(moved),
        )

    @property
    def horizon(self) -> Duration | None:
        """How far back the longest window reaches; ``None``: for ever."""
        return _longest(self.windows)

    @property
    def columns(self) -> set[str]:
        """Columns the aggregates and their predicates read."""
        return {*self._value_columns, *(column for node in self._predicates for column in columns_of(node))}

    def shape(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The columns a row is made of: ``__key``, identity, ``__until``, value columns and ``__mask``."""
        key = key_texts([frame[name] for name in self.keys]).alias(KEY)
        mask = _NO_MASK.new_from_index(0, len(frame))
        for bit, node in enumerate(self._predicates):
            mask += condition(node, frame).cast(pl.Int64) * (1 << bit)
        values = [_stored(frame[name]) for name in self._value_columns]
        shaped = pl.DataFrame([key, *(frame[name] for name in (*IDENTITY, UNTIL)), *values, mask])
        return where(shaped, key.is_not_null()) if key.null_count() else shaped

    def rows_by_key(self, shaped: pl.DataFrame) -> Iterator[KeyRows]:
        """Rows of each key, keys in text order, rows in the frame's order."""
        found: dict[str, list[Row]] = {}
        rows = zip(*(shaped[name].to_list() for name in shaped.columns if name != KEY), strict=True)
        for key, row in zip(shaped[KEY].to_list(), rows, strict=True):
            found.setdefault(key, []).append(row)
        for key in sorted(found):
            yield KeyRows(key, found[key])

    def new_state(self, inputs: int) -> KeyState:
        """The state of a key never seen; ``inputs`` is the number of input partitions of the pipeline."""
        return KeyState(self.algebra, self.root, Header([0] * inputs, tree=EMPTY_TREE), whole=True)

    @cached_property
    def _windows(self) -> WindowSet:
        return window_set(self.windows, self.root)

    def read_fields(self, at: Instant, *, ahead: bool = False) -> list[bytes]:
        """Hash fields a read at ``at`` needs: header, buffer, and the path of every window edge.

        Args:
            at: the instant R.
            ahead: those too that a read a little later needs.
        """
        edges = self._windows.edges(at)
        return edges.fields_ahead if ahead else edges.fields

    def read_panes(self, at: Instant) -> list[Pane]:
        """The panes among :meth:`read_fields`."""
        return self._windows.edges(at).panes

    def finish(
        self,
        values: Sequence[bytes | None],
        at: Instant,
        more: Mapping[Pane, bytes | None] | None = None,
        key: str | None = None,
    ) -> dict[str, Value] | None:
        """The output row of a key at an instant.

        Args:
            values: stored bytes, in the order of ``read_fields(at)``.
            at: the instant R.
            more: panes fetched because an earlier call raised PanesMissing.
            key: under which to keep what the next read of these bytes can use.

        Returns:
            Column → value; ``None`` for a key that had no record by then.

        Raises: as :meth:`finish_lasting`.
        """
        return self.finish_lasting(values, at, more, key)[0]

    def finish_lasting(
        self,
        values: Sequence[bytes | None],
        at: Instant,
        more: Mapping[Pane, bytes | None] | None = None,
        key: str | None = None,
        *,
        ahead: bool = False,
    ) -> tuple[dict[str, Value] | None, Instant]:
        """Like :meth:`finish`, with the last instant at which a read of the same state gives the same row.

        ``ahead``: the values are those of ``read_fields(at, ahead=True)``.

        Raises:
            PanesMissing: a read before the latest closing of a row needs these panes too.
            Sealed: an edge falls where only partials are kept; history has the rows.
            ValueOverflow: a sum left the 64-bit range, or the finite floats.
            CorruptState: the bytes do not decode.
        """
        if values[0] is None:
            KEPT_READS.drop((self._mark, key))  # an erased key's values must not stay
            return None, at
        header = Header.decode(values[0])
        if not header.known_at(at):
            return None, at
        edges = self._windows.edges(at)
        if header.floor is not None and edges.reach_below(header.floor):
            raise Sealed
        _, buffer, tail, *found = values
        stored = dict(zip(edges.panes_ahead if ahead else edges.panes, found, strict=True))
        if more:
            stored.update(more)
        mark = (self._mark, header.oldest_us if key is None else key)
        # What was fetched later may be of a later tree.
        tree = None if more else header.tree
        panes = list(compress(stored.items(), stored.values()))  # what is not there is None, and no pane is empty
        kept = KEPT_READS.take(mark, panes, len(self.windows), self._share_of(key))
        plans = [self._plan(group) for group in edges.groups]
        waiting = joined_rows(buffer, tail)
        kept.walk_to(edges.groups, plans, self.root, Stored(stored, read_node, whole=False), waiting)
        kept.tree = tree
        KEPT_READS.put(mark, kept)
        return self._row_of(kept, edges, at)

    def may_follow(self, at: Instant, key: str) -> bool:
        """Whether what is kept of a key is enough for a read at an instant, should its tree still be the same."""
        kept = KEPT_READS.look((self._mark, key))
        return kept is not None and kept.tree is not None and kept.follows(self._windows.edges(at).groups)

    def is_due(self, at: Instant, key: str) -> bool:
        """Whether what is kept of a key soon ends, so that it should be read ahead now."""
        kept = KEPT_READS.look((self._mark, key))
        return kept is not None and kept.is_due(self._windows.edges(at).groups)

    def forget(self, key: str) -> None:
        """Keep nothing of a key: the store knows it no more."""
        KEPT_READS.drop((self._mark, key))

    def finish_again(
        self, header: Header, buffer: bytes | None, tail: bytes | None, at: Instant, key: str
    ) -> tuple[dict[str, Value] | None, Instant] | None:
        """Like :meth:`finish_lasting`, from what is kept of the key's tree and the buffer as it is stored now.

        Args:
            header: as stored, read together with buffer and tail.
            buffer: stored bytes.
            tail: stored bytes.
            at: the instant R.
            key: under which an earlier read was kept.

        Returns:
            As :meth:`finish_lasting`; ``None`` when nothing is kept that serves: read everything.

        Raises:
            Sealed: a window reaches to where nothing is stored.
            ValueOverflow: as :meth:`finish_lasting`.
            CorruptState: the bytes do not decode.
        """
        if not header.known_at(at):
            return None, at
        edges = self._windows.edges(at)
        if header.floor is not None and edges.reach_below(header.floor):
            raise Sealed
        mark = (self._mark, key)
        kept = KEPT_READS.take_of(mark, header.tree)
        if kept is None:
            return None
        follows = kept.follows(edges.groups)
        if follows:
            kept.follow_to(edges.groups, joined_rows(buffer, tail))
        KEPT_READS.put(mark, kept)
        return self._row_of(kept, edges, at) if follows else None

    def finish_state(self, state: KeyState, at: Instant) -> dict[str, Value]:
        """The output row of a state held in memory, every pane loaded."""
        edges = self._windows.edges(at)
        if state.header.floor is not None and edges.reach_below(state.header.floor):
            raise Sealed
        stored = Stored(state.nodes, _as_it_is, whole=True)
        merged: list[dict[int, Any]] = [{} for _ in self.windows]
        for group in edges.groups:
            self._merge(group, stored, state.buffer, merged)
        return self._row(merged, edges)

    def _row_of(self, kept: KeptRead, edges: Edges, at: Instant) -> tuple[dict[str, Value], Instant]:
        lasts = kept.lasts(edges.groups) if self._moves_steadily else 0
        row = self._row(kept.merged, edges) if self._ages else self._row_from(kept.merged, kept.finished)
        return row, at + lasts

    @cached_property
    def _moves_steadily(self) -> bool:
        """Whether every edge moves as time does, and nothing else of a row depends on the instant it is read at."""
        return self._edges_are_steady and not self._ages

    @cached_property
    def _edges_are_steady(self) -> bool:
        return is_steady(self.windows)

    @cached_property
    def _ages(self) -> bool:
        return any(output.aggregator.ages for output in self._outputs)

    def _merge(self, group: Group, stored: Stored, buffer: Sequence[Row], into: Sequence[dict[int, Any]]) -> None:
        plan = self._plan(group)
        parts = Stretches(plan, group, self.root, stored).parts
        plan.merged(Buffered(plan, group, buffer).beside(parts) if buffer else parts, into)

    def _plan(self, group: Group) -> Plan:
        plan = self._plans.get(group.spans)
        if plan is None:
            used = [frozenset(o.slot for o in self._outputs if o.window == w) for w in range(len(self.windows))]
            plan = self._plans[group.spans] = Plan(self.algebra, group.spans, used, steady=self._edges_are_steady)
        return plan

    @cached_property
    def _plans(self) -> dict[tuple[Span, ...], Plan]:
        return {}

    def _share_of(self, key: str | None) -> float:
        """An eighth to one, another for each key and for each pipeline: keys and views are renewed one by one."""
        return (1 + 7 * crc32((key or "").encode(), self.algebra.turn) / 2**32) / 8

    @cached_property
    def _mark(self) -> object:
        # Of the reads kept of it. An id could be another's one day; this lives as long as they do.
        return object()

    def _row_from(
        self, merged: Sequence[Mapping[int, Any]], finished: dict[str, tuple[Any, Value]]
    ) -> dict[str, Value]:
        """Like :meth:`_row`, where only partials count: those that are the same objects are not finished again."""
        row: dict[str, Value] = {}
        for name, aggregator, slot, window, default, has_default in self._outputs:
            partial = merged[window][slot]
            before = finished.get(name)
            if before is not None and before[0] is partial:
                row[name] = before[1]
                continue
            value = default if has_default and not aggregator.holds(partial) else aggregator.finish(partial, 0)
            finished[name] = partial, value
            row[name] = value
        return row

    def _row(self, merged: Sequence[Mapping[int, Any]], edges: Edges) -> dict[str, Value]:
        highs = edges.highs
        row: dict[str, Value] = {}
        for name, aggregator, slot, window, default, has_default in self._outputs:
            partial = merged[window][slot]
            if has_default and not aggregator.holds(partial):
                row[name] = default
            else:
                row[name] = aggregator.finish(partial, highs[window])
        return row


def _turn_of(step: AggregateStep) -> int:
    """A number that mostly differs between steps, whatever the order of their outputs."""
    return crc32("".join(sorted(f"{named.output}={named.aggregate!r}" for named in step.aggregates)).encode())


def _as_it_is(node: Any) -> Any:
    return node


def _longest(windows: Sequence[AnyWindow]) -> Duration | None:
    """How far the longest window reaches; of a table without columns beside its key, as of every table, for ever."""
    reaches = [window.reach_us for window in windows]
    return None if None in reaches else max((reach for reach in reaches if reach is not None), default=None)


def _window_text(window: AnyWindow) -> str:
    return window.model_dump_json()


class _Layout:
    """Distinct value columns, predicates, accumulators and windows of an aggregate step."""

    def __init__(self, aggregates: Sequence[NamedAggregate], types: Mapping[str, str]) -> None:
        self._types = types
        self.values = sorted({a.aggregate.of for a in aggregates if a.aggregate.of})
        self.predicates: list[BaseModel] = []
        self.slots: list[Aggregator] = []
        self._known: dict[Any, int] = {}
        # In one order however they are declared: pipelines with the same windows look their edges up together.
        self.windows: list[AnyWindow] = sorted({named.aggregate.window for named in aggregates}, key=_window_text)
        # Slots follow the outputs' names: declaring them in another order lays state out the same.
        made = {named.output: self._output(named) for named in sorted(aggregates, key=lambda named: named.output)}
        self.outputs = [made[named.output] for named in aggregates]

    def _output(self, named: NamedAggregate) -> _Output:
        default = named.aggregate.default
        aggregator = aggregator_for(named.aggregate, self._input(named))
        return _Output(
            name=named.output,
            aggregator=aggregator,
            slot=self._slot(aggregator),
            window=self.windows.index(named.aggregate.window),
            default=default.as_value(result_type(named.aggregate, self._types.get(named.aggregate.of)))
            if default
            else None,
            has_default=default is not None,
        )

    def _slot(self, aggregator: Aggregator) -> int:
        # Windows and defaults apart, equal aggregates share an accumulator.
        if aggregator.state not in self._known:
            self._known[aggregator.state] = len(self.slots)
            self.slots.append(aggregator)
        return self._known[aggregator.state]

    def _input(self, named: NamedAggregate) -> Input:
        column, where = named.aggregate.of, named.aggregate.where
        if where is not None and where not in self.predicates:
            self.predicates.append(where)
        return Input(
            column=_FIRST_VALUE + self.values.index(column) if column else None,
            type=self._types.get(column),
            bit=self.predicates.index(where) if where is not None else None,
        )


def _stored(column: pl.Series) -> pl.Series:
    # Instants are stored as integers, microseconds, like every other instant.
    return (column.dt.epoch("us") if column.dtype.is_temporal() else column).alias(f"__value_{column.name}")
